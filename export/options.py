"""Options of the export, validated before work starts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from qil_deploy.errors import ConfigError

from .capture import InputKind

Format = Literal["qlinear", "qdq"]
Storage = Literal["packed", "int8"]
_LARGEST_BATCH = 2**20


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """Options of the export.

    Attributes:
        format: `qlinear` (integer operators) or `qdq` (float operators between quantize and dequantize).
        weights: `packed` to 4 or 2 bits, or `int8`.
        input: `uint8` (raw images) or `float` (normalised images).
        opset: ONNX operator set; None for the oldest that the storage allows.
        batch: images per run; None for any number.
        space_to_depth: whether the stem may be rewritten (`space_to_depth`).
        channels_last: whether linear layers may read feature maps channels last (`channels_last`); only in `qlinear`.
        matmul_nbits: whether large linear layers may be rewritten (`matmul_nbits`); only packed, in `qlinear`.
        simplify: whether work that changes no code is left out (`simplify`).
        kernels: whether layers of at most 4 bits become operators that a kernel library computes faster and other
            runtimes as before (`low_bit_conv`, `kernel_calls`); only in `qlinear`.
    """

    format: Format = "qlinear"
    weights: Storage = "packed"
    input: InputKind = "uint8"
    opset: int | None = None
    batch: int | None = None
    space_to_depth: bool = True
    channels_last: bool = True
    matmul_nbits: bool = True
    simplify: bool = True
    kernels: bool = False

    def __post_init__(self) -> None:
        """Validate every value.

        Raises:
            ConfigError: naming the option, its value and the allowed ones.
        """
        allowed = {
            "format": ("qlinear", "qdq"),
            "weights": ("packed", "int8"),
            "input": ("uint8", "float"),
        }
        for name, values in allowed.items():
            if getattr(self, name) not in values:
                raise ConfigError(f"{name} is {getattr(self, name)!r}; allowed are {', '.join(values)}.")
        for name in ("space_to_depth", "channels_last", "matmul_nbits", "simplify", "kernels"):
            if not isinstance(getattr(self, name), bool):
                raise ConfigError(f"{name} is {getattr(self, name)!r}; allowed are True and False.")
        for name, meaning in (("opset", "the oldest that works"), ("batch", "any number of images")):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
                raise ConfigError(f"{name} is {value!r}; it must be a whole number, or None for {meaning}.")
        if self.kernels and self.format != "qlinear":
            raise ConfigError(
                f"kernels is True and format {self.format!r}; the operator of kernels takes and makes codes, and is "
                "written in format 'qlinear' alone."
            )
        if self.batch is not None and not 1 <= self.batch <= _LARGEST_BATCH:
            raise ConfigError(
                f"batch is {self.batch}; it must be at least 1 and at most {_LARGEST_BATCH:,}, or None for any number "
                "of images."
            )


def checked_options(options: object) -> ExportOptions:
    """Return the given options, or the defaults for None.

    Raises:
        ConfigError: they are something else.
    """
    if options is None:
        return ExportOptions()
    if not isinstance(options, ExportOptions):
        raise ConfigError(f"options is a {type(options).__name__}; give ExportOptions(...), or None for the defaults.")
    return options
