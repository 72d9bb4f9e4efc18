"""Set the versions that a file needs: its operator sets, and the file format of that time.

The functions of the kernel library's operators are written in the same operator set, so they are added here, too.
"""

from __future__ import annotations

from collections.abc import Iterable

import onnx_ir as ir

from qil_deploy.errors import ConfigError
from qil_deploy.export.emitter import MICROSOFT_DOMAIN
from qil_deploy.export.options import Storage
from qil_deploy.onnx_io import KERNEL_DOMAIN, KERNEL_FUNCTIONS, KERNEL_VERSION

from .kernel_functions import MICROSOFT_VERSION, kernel_function

MIN_OPSET, MAX_OPSET = 13, 25
# The oldest opset that has what the storage needs (per-channel QDQ, INT4 and INT2 tensors), and the IR of that time.
_OPSETS = {ir.DataType.INT4: 21, ir.DataType.INT2: 25}
_IR_VERSIONS = {13: 7, 21: 10, 25: 13}


def oldest_opset(types: Iterable[ir.DataType]) -> int:
    """Return the oldest operator set in which weights of these types can be stored."""
    return max((_OPSETS.get(dtype, MIN_OPSET) for dtype in types), default=MIN_OPSET)


def choose_opset(types: Iterable[ir.DataType], wanted: int | None, weights: Storage, float_opset: int | None) -> int:
    """Return the opset to write: the requested one, or the oldest that supports the weights and float parts.

    Args:
        types: of the constants.
        wanted: by the user, if any.
        weights: how they are stored, for the message.
        float_opset: that of the operators that are kept in float; None if there are none.

    Raises:
        ConfigError: the wanted one is too old for the storage, or newer than what is supported.
    """
    needed = oldest_opset(types)
    if wanted is None:
        return max(needed, float_opset or needed)
    if not needed <= wanted <= MAX_OPSET:
        raise ConfigError(
            f"opset is {wanted}; {weights} weights of this model need {needed} to {MAX_OPSET}"
            + (", or store them as int8." if weights == "packed" else ".")
        )
    return wanted


class SetVersions(ir.passes.InPlacePass):
    """Sets the IR version and the operator sets of the domains in use; adds the functions that nodes call."""

    def __init__(self, opset: int | None, weights: Storage, float_opset: int | None) -> None:
        """Take the arguments of `choose_opset`."""
        super().__init__()
        self._opset, self._weights, self._float_opset = opset, weights, float_opset

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Set them.

        Raises:
            ConfigError: the wanted opset is too old or too new.
        """
        types = [value.dtype for value in model.graph.initializers.values() if value.dtype]
        opset = choose_opset(types, self._opset, self._weights, self._float_opset)
        called = sorted({node.op_type for node in model.graph if node.domain == KERNEL_DOMAIN})
        uses_microsoft = any(node.domain == MICROSOFT_DOMAIN for node in model.graph) or any(
            MICROSOFT_DOMAIN in KERNEL_FUNCTIONS[name].domains for name in called
        )
        model.graph.opset_imports.clear()
        model.graph.opset_imports.update(
            {"": opset} | ({MICROSOFT_DOMAIN: MICROSOFT_VERSION} if uses_microsoft else {})
        )
        for name in called:
            model.graph.opset_imports[KERNEL_DOMAIN] = KERNEL_VERSION
            function = kernel_function(name, opset)
            model.functions[function.identifier()] = function
        model.ir_version = max(version for minimum, version in _IR_VERSIONS.items() if minimum <= opset)
        return ir.passes.PassResult(model, modified=True)
