"""The operators `qil.deploy::TernaryConv` and `LowBitConv`, and the functions of these names that a file brings along.

A file with such nodes is whole by itself: a runtime that has no kernel for them runs the function, which is for both

    LowBitConv(x, x_scale, x_zero_point, w, w_scale, w_zero_point, y_scale, y_zero_point, bias, low, high, x_high)
        = Clip(QLinearConv(x, ..., bias), low, high)

and hands on its attributes. `x_high`, the largest code that `x` can hold, is for kernels alone, as is the name: sums of
`TernaryConv` can be looked up. Whatever reads such files here computes the nodes as that function, so a file with any
other function is refused.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from .schema import parse_message
from .tensors import DefectError

if TYPE_CHECKING:
    from google.protobuf.message import Message

KERNEL_DOMAIN: Final = "qil.deploy"
TERNARY_CONV: Final = "TernaryConv"
LOW_BIT_CONV: Final = "LowBitConv"
KERNEL_OPERATORS: Final = (TERNARY_CONV, LOW_BIT_CONV)
KERNEL_VERSION: Final = 1
KERNEL_INPUTS: Final = (
    *("x", "x_scale", "x_zero_point", "w", "w_scale", "w_zero_point", "y_scale", "y_zero_point", "bias"),
    *("low", "high", "x_high"),
)
KERNEL_ATTRIBUTES: Final = ("kernel_shape", "strides", "pads", "dilations", "group")

_CONVOLUTION_INPUTS = 9  # of QLinearConv
_STANDARD = ("", "ai.onnx")


def check_functions(model: Message) -> None:
    """Raise unless the functions of a ModelProto are those of `TernaryConv` and `LowBitConv`, word for word, or none.

    Raises:
        DefectError: another function, or one of these names that computes something else.
    """
    functions = [parse_message("FunctionProto", content) for content in model.functions]
    if any(function.domain != KERNEL_DOMAIN or function.name not in KERNEL_OPERATORS for function in functions):
        raise DefectError("model-local functions are not supported; inline them before export.")
    standard = [opset.version for opset in model.opset_import if opset.domain in _STANDARD]
    names = [function.name for function in functions]
    for function in functions:
        if names.count(function.name) > 1 or not _is_low_bit_conv(function, standard):
            raise DefectError(
                f"its function {KERNEL_DOMAIN}.{function.name} is not QLinearConv and Clip, as exports write it; "
                "export the model again."
            )


def check_calls(model: Message) -> None:
    """Raise unless a ModelProto has the functions that its nodes `TernaryConv` and `LowBitConv` call.

    Raises:
        DefectError: it has not.
    """
    calls = {node.op_type for node in model.graph.node if node.domain == KERNEL_DOMAIN}
    if not calls:
        return
    defined = {parse_message("FunctionProto", content).name for content in model.functions}
    missing = sorted(calls.intersection(KERNEL_OPERATORS) - defined)
    if missing and defined.issubset(KERNEL_OPERATORS):  # others are refused as such (`check_functions`)
        raise DefectError(
            f"it has nodes {KERNEL_DOMAIN}.{missing[0]}, but not the function of that name, so nothing says what "
            "they compute. ONNX Runtime leaves it out of a graph that it writes while the kernel library is "
            "registered; use the exported file itself."
        )
    versions = [opset.version for opset in model.opset_import if opset.domain == KERNEL_DOMAIN]
    if versions != [KERNEL_VERSION]:
        raise DefectError(
            f"it uses version {versions or 'none'} of {KERNEL_DOMAIN}; this version of qil_deploy reads "
            f"{KERNEL_VERSION}."
        )


def _is_low_bit_conv(function: Message, standard: list[int]) -> bool:
    """Whether a FunctionProto is that of the module docstring; `standard`: the model's own operator set."""
    inputs, outputs, nodes = list(function.input), list(function.output), list(function.node)
    imported = [(opset.domain in _STANDARD, opset.version) for opset in function.opset_import]
    if len(inputs) != len(KERNEL_INPUTS) or len(outputs) != 1 or len(nodes) != 2:
        return False
    if sorted(function.attribute) != sorted(KERNEL_ATTRIBUTES) or function.attribute_proto:
        return False
    convolution, clip = nodes
    inner = list(convolution.output)
    return (
        imported == [(True, version) for version in standard]
        and len({*inputs, *inner, *outputs}) == len(inputs) + 2
        and all(inputs)
        and (convolution.op_type, clip.op_type) == ("QLinearConv", "Clip")
        and convolution.domain in _STANDARD
        and clip.domain in _STANDARD
        and list(convolution.input) == inputs[:_CONVOLUTION_INPUTS]
        and list(clip.input) == [*inner, *inputs[_CONVOLUTION_INPUTS:-1]]
        and list(clip.output) == outputs
        and not clip.attribute
        and sorted((each.name, each.ref_attr_name) for each in convolution.attribute)
        == sorted((name, name) for name in KERNEL_ATTRIBUTES)
    )
