"""`QuantConfig`: method, placement and bit widths, with the rules for one layer."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from qil_deploy.integers import INT16_MAX, largest_pair

from .errors import ConfigError
from .untrusted_text import excerpt

Placement = Literal["paper", "integer"]
OutputScales = Literal["without_batchnorm", "all", "channels"]
Outputs = Literal["float", "codes"]

# 8-bit activations with 8-bit weights could saturate the int16 sums of x86 without VNNI
# (2 * 255 * 127 > 32767), so the first and last layer take seven-bit weights, and 8/8 is refused.
EDGE_ACTIVATION_BITS = 8
EDGE_WEIGHT_BITS = 7

DEFAULT_METHOD = "qil"

_PROBLEMS_SHOWN = 4
# pydantic's kinds of errors whose own words do not say what to do.
_WORDS = {"extra_forbidden": "there is no such key", "missing": "this key is missing"}
_LAYERS_SHOWN = 20

Bits = Annotated[int, Field(ge=2, le=8, strict=True)]
GradientScaling = Annotated[float, Field(ge=0, le=2, allow_inf_nan=False, strict=True)]
"""Beyond 2 a gradient could change its sign."""


def _known_method(name: str) -> str:
    from .quantizers import METHODS  # needs torch

    if name not in METHODS:
        raise ValueError(f"there is no such method; choose {' or '.join(map(repr, METHODS))}")
    return name


MethodName = Annotated[str, AfterValidator(_known_method)]
"""How quantizers learn: a key of `quantizers.METHODS`."""


class LayerBits(BaseModel):
    """Bit widths of one convolution or linear layer and of the activation it reads."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    weight_bits: Bits
    activation_bits: Bits

    @model_validator(mode="after")
    def _no_int16_saturation(self) -> Self:
        largest = largest_pair(2**self.activation_bits - 1, 2 ** (self.weight_bits - 1) - 1)
        if largest > INT16_MAX:
            raise ValueError(
                f"weight_bits={self.weight_bits} with activation_bits={self.activation_bits} would saturate the "
                f"int16 sums of CPUs without VNNI ({largest} > {INT16_MAX}); use at most 7 bits for one of them"
            )
        return self


class LayerOverride(BaseModel):
    """Settings that an override may change; those left out keep the network-wide value."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    weight_bits: Bits | None = None
    activation_bits: Bits | None = None


class QuantConfig(BaseModel):
    """Quantization of a network.

    Attributes:
        weight_bits: 2 to 8; codes `-q..q` with `q = 2**(bits-1) - 1` (2 bits are ternary).
        activation_bits: 2 to 8; codes `0..2**bits - 1`.
        placement: `paper`: float first and last layer, float residual stream, one interval per layer, as in
            the paper. `integer`: integer arithmetic from input to logits; the first and last layers take
            8-bit activations and 7-bit weights, the residual stream and pooled features 8-bit codes.
        method: how quantizers learn: `qil` (centre and width of each interval) or `lsq` (the step of each tensor).
        train_gamma: learn the exponent of each weight transformer (1 otherwise); for method `qil`.
        gradient_scaling: scale the gradient of each rounding by `1 + gradient_scaling * sign(g) * (r - rint(r))`, where
            `r` is the code before rounding and `g` the gradient (EWGS; Lee et al., CVPR 2021), from 0 (plain
            straight-through) to 2. It counts in steps between codes, so 0.2 scales by 0.9 to 1.1 at every bit width;
            the paper's factor counts in [0, 1] over the interval (`quantizers/kernels.py`). For weights and
            activations, not 8-bit ranges; training only.
        returning_weights: pass the gradient on to weights outside of their interval, too (`quantizers/returning.py`);
            in the papers of both methods they have none, and never learn again. Training only.
        allow_float: keep what has no integer form in float between 8-bit codes (`float_island`), where the network
            would otherwise be refused; only in `integer` placement.
        float_gates: keep gates and smooth activations (products, sigmoids, SiLU and their like) in float, too, as
            `allow_float` did before they had an integer form; so do older checkpoints.
        float_scales: the same for scales and shifts of channels, PReLU of several slopes, means along one direction,
            BatchNorm of rows, and flipped, rolled or repeated tensors.
        float_rows: the same for pooling, transposed convolutions, upsampling and padding of rows [N, C, L].
        norms_apart: keep BatchNorm and activations apart from a layer whose values are moved in between (a transposed
            convolution's), and an activation apart from a BatchNorm that no layer absorbs, as all were before; so do
            older checkpoints.
        output_scales: which layers have a learned output scale. `without_batchnorm`: those that no BatchNorm follows;
            the others leave the scale to BatchNorm, whose statistics follow the quantized network. `all`: every
            layer, so that BatchNorm keeps the statistics of the float network (decision 0019). `channels`: the same
            with a scale and a shift for every output channel, whose weights are quantized in units of their largest
            (decision 0043); calibration needs the float network.
        outputs: what the file returns for maps (rows of logits are float in any case): `float`, exact sums times their
            scale where a convolution makes them, or `codes`, uint8 with a scale and a zero point (decision 0042).
        overrides: bits by layer-name pattern (`layer4.*`); where several match, the last one wins. An
            override also applies to first and last layers.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    weight_bits: Bits = 4
    activation_bits: Bits = 4
    placement: Placement = "integer"
    method: MethodName = DEFAULT_METHOD
    train_gamma: bool = False
    gradient_scaling: GradientScaling = 0.0
    returning_weights: bool = False
    allow_float: bool = False
    float_gates: bool = False
    float_scales: bool = False
    float_rows: bool = False
    norms_apart: bool = False
    output_scales: OutputScales = "without_batchnorm"
    outputs: Outputs = "float"
    overrides: dict[str, LayerOverride] = Field(default_factory=dict)

    def __init__(self, **values: object) -> None:
        """Validate; raise ConfigError with one sentence per problem."""
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise ConfigError(validation_sentences("quantization config", error)) from error

    @property
    def norms_stay(self) -> bool:
        """Whether BatchNorm keeps the statistics of the float network."""
        return self.output_scales != "without_batchnorm"

    @model_validator(mode="after")
    def _inner_layers_are_possible(self) -> Self:
        LayerBits(weight_bits=self.weight_bits, activation_bits=self.activation_bits)
        return self

    @model_validator(mode="after")
    def _gamma_is_of_one_method(self) -> Self:
        if self.train_gamma and self.method != "qil":
            raise ValueError(f"train_gamma is for method 'qil'; method {self.method!r} has no exponent to train")
        return self

    @model_validator(mode="after")
    def _islands_need_integers_around_them(self) -> Self:
        if self.allow_float and self.placement != "integer":
            raise ValueError(
                f"allow_float is for placement 'integer'; in {self.placement!r} the network is refused as it was"
            )
        for name in ("float_gates", "float_scales", "float_rows"):
            if getattr(self, name) and not self.allow_float:
                raise ValueError(f"{name} keeps {name.removeprefix('float_')} in float, which needs allow_float")
        return self

    def bits_of(self, layer: str, *, edge: bool) -> LayerBits:
        """Return the bits of one layer.

        Args:
            layer: dotted name, as in `named_modules()`.
            edge: whether it is the first or last layer of the network.

        Raises:
            ConfigError: the combination of defaults and overrides cannot run (see `LayerBits`).
        """
        weight = EDGE_WEIGHT_BITS if edge else self.weight_bits
        activation = EDGE_ACTIVATION_BITS if edge else self.activation_bits
        for pattern, override in self.overrides.items():
            if fnmatchcase(layer, pattern):
                weight = override.weight_bits or weight
                activation = override.activation_bits or activation
        try:
            return LayerBits(weight_bits=weight, activation_bits=activation)
        except ValidationError as error:
            raise ConfigError(validation_sentences(f"layer {layer}", error)) from error

    def check_patterns(self, layers: list[str]) -> None:
        """Raise ConfigError if an override matches none of `layers`: most likely a misspelt name."""
        for pattern in self.overrides:
            if not any(fnmatchcase(layer, pattern) for layer in layers):
                names = ", ".join(layers[:_LAYERS_SHOWN])
                more = f" and {len(layers) - _LAYERS_SHOWN} more" if len(layers) > _LAYERS_SHOWN else ""
                raise ConfigError(f"override {excerpt(repr(pattern))} matches no layer; the layers are {names}{more}.")


def validation_sentences(what: str, error: ValidationError) -> str:
    """Describe validation errors of `what` in one line: field, allowed and found values; only the first few of many.

    Whatever comes from outside is escaped and cut.
    """
    found = error.errors()
    problems = [_problem_clause(item) for item in found[:_PROBLEMS_SHOWN]]
    if len(found) > _PROBLEMS_SHOWN:
        problems.append(f"and {len(found) - _PROBLEMS_SHOWN} more")
    return f"{what}: " + "; ".join(problems) + "."


def _problem_clause(item: ErrorDetails) -> str:
    clause = _WORDS.get(item["type"]) or excerpt(item["msg"].removeprefix("Value error, ").removesuffix("."), 300)
    if item["loc"]:
        clause = f"{excerpt('.'.join(map(str, item['loc'])), 60)}: {clause}"
    if isinstance(item["input"], int | float | str):
        clause = f"{clause} (found {excerpt(_shown(item['input']), 40)})"
    return clause


def _shown(value: float | str) -> str:
    """Return a value as Python writes it; integers of thousands of digits it refuses to write."""
    try:
        return repr(value)
    except ValueError:
        return "an integer of thousands of digits"
