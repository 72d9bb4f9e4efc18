"""The functions that a file contains for nodes of the kernel library, for runtimes without a kernel for them.

`qil_deploy.onnx_io.kernel_operators` says what they are, and every reader checks them against it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnx_ir as ir
from onnxscript import script, values
from onnxscript.onnx_opset import opset13

from qil_deploy.export.emitter import MICROSOFT_DOMAIN
from qil_deploy.onnx_io import (
    KERNEL_DOMAIN,
    KERNEL_FUNCTIONS,
    KERNEL_VERSION,
    LOW_BIT_CONV,
    LOW_BIT_MATMUL,
    LOW_BIT_MAX_POOL,
    LOW_BIT_RESCALE,
    RESIDUAL_ADD,
    TERNARY_CONV,
)

MICROSOFT_VERSION = 1

_operators = values.Opset(KERNEL_DOMAIN, KERNEL_VERSION)
_microsoft = values.Opset(MICROSOFT_DOMAIN, MICROSOFT_VERSION)


@script(_operators, default_opset=opset13)
def _low_bit_conv(  # type: ignore[no-untyped-def]  # noqa: ANN202, PLR0913, PLR0917 - read as ONNX, not run
    x, x_scale, x_zero_point, w, w_scale, w_zero_point, y_scale, y_zero_point, bias, low, high, x_high,  # noqa: ANN001, ARG001
    kernel_shape: Sequence[int], strides: Sequence[int], pads: Sequence[int], dilations: Sequence[int], group: int,
):  # fmt: skip
    codes = opset13.QLinearConv(
        x, x_scale, x_zero_point, w, w_scale, w_zero_point, y_scale, y_zero_point, bias,
        kernel_shape=kernel_shape, strides=strides, pads=pads, dilations=dilations, group=group,
    )  # fmt: skip
    return opset13.Clip(codes, low, high)


@script(_operators, default_opset=opset13)
def _low_bit_matmul(  # type: ignore[no-untyped-def]  # noqa: ANN202, PLR0913, PLR0917 - as above
    A, B, scales, zero_points,  # noqa: ANN001
    N: int, K: int, bits: int, block_size: int, accuracy_level: int,
):  # fmt: skip
    return _microsoft.MatMulNBits(
        A, B, scales, zero_points, N=N, K=K, bits=bits, block_size=block_size, accuracy_level=accuracy_level
    )


@script(_operators, default_opset=opset13)
def _low_bit_max_pool(  # type: ignore[no-untyped-def]  # noqa: ANN202 - as above
    X, kernel_shape: Sequence[int], strides: Sequence[int], pads: Sequence[int]  # noqa: ANN001
):  # fmt: skip
    return opset13.MaxPool(X, kernel_shape=kernel_shape, strides=strides, pads=pads)


@script(_operators, default_opset=opset13)
def _residual_add(  # type: ignore[no-untyped-def]  # noqa: ANN202 - as above
    A, A_scale, A_zero_point, B, B_scale, B_zero_point, C_scale, C_zero_point,  # noqa: ANN001
):  # fmt: skip
    return _microsoft.QLinearAdd(A, A_scale, A_zero_point, B, B_scale, B_zero_point, C_scale, C_zero_point)


@script(_operators, default_opset=opset13)
def _low_bit_rescale(  # type: ignore[no-untyped-def]  # noqa: ANN202, PLR0913, PLR0917 - as above
    A, A_scale, A_zero_point, B, B_scale, B_zero_point, C_scale, C_zero_point, low, high,  # noqa: ANN001
):  # fmt: skip
    codes = _microsoft.QLinearAdd(A, A_scale, A_zero_point, B, B_scale, B_zero_point, C_scale, C_zero_point)
    return opset13.Clip(codes, low, high)


_FUNCTIONS: dict[str, values.OnnxFunction[Any, Any]] = {
    TERNARY_CONV: _low_bit_conv,
    LOW_BIT_CONV: _low_bit_conv,
    LOW_BIT_MATMUL: _low_bit_matmul,
    LOW_BIT_MAX_POOL: _low_bit_max_pool,
    RESIDUAL_ADD: _residual_add,
    LOW_BIT_RESCALE: _low_bit_rescale,
}


def kernel_function(name: str, opset: int) -> ir.Function:
    """Return the function that replaces an operator without a kernel, in an operator set of ONNX."""
    proto = _FUNCTIONS[name].to_function_proto()
    proto.name, proto.doc_string = name, ""
    del proto.opset_import[:], proto.metadata_props[:], proto.value_info[:]
    versions = {"": opset, MICROSOFT_DOMAIN: MICROSOFT_VERSION}
    for domain in sorted(KERNEL_FUNCTIONS[name].domains):
        proto.opset_import.add(domain=domain, version=versions[domain])
    return ir.serde.deserialize_function(proto)
