"""The operators of the kernel library, in the domain `qil.deploy`, and the functions of these names in a file.

A file with such nodes is self-contained: a runtime that has no kernel for them runs the function, which is

    TernaryConv, LowBitConv(x, x_scale, x_zero_point, w, w_scale, w_zero_point, y_scale, y_zero_point, bias, low, high,
                            x_high)                         Clip(QLinearConv(x, ..., bias), low, high)
    LowBitMatMul(A, B, scales, zero_points)                 com.microsoft.MatMulNBits(A, B, scales, zero_points)
    LowBitMaxPool(X)                                        MaxPool(X)
    ResidualAdd(A, A_scale, A_zero_point, B, B_scale, B_zero_point, C_scale, C_zero_point)
                                                            com.microsoft.QLinearAdd(A, ..., C_zero_point)
    LowBitRescale(A, ..., C_zero_point, low, high)          Clip(com.microsoft.QLinearAdd(A, ...), low, high)

and hands on its attributes. `x_high`, the largest code that `x` can hold, is for kernels alone, as are the names: sums
of `TernaryConv` can be looked up. Whatever reads such files here computes the nodes as these functions, so a file with
any other function is refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from .schema import parse_message
from .tensors import DefectError

if TYPE_CHECKING:
    from google.protobuf.message import Message

KERNEL_DOMAIN: Final = "qil.deploy"
KERNEL_VERSION: Final = 1
TERNARY_CONV: Final = "TernaryConv"
LOW_BIT_CONV: Final = "LowBitConv"
LOW_BIT_MATMUL: Final = "LowBitMatMul"
LOW_BIT_MAX_POOL: Final = "LowBitMaxPool"
RESIDUAL_ADD: Final = "ResidualAdd"
LOW_BIT_RESCALE: Final = "LowBitRescale"

KERNEL_CONVOLUTIONS: Final = (TERNARY_CONV, LOW_BIT_CONV)
KERNEL_OPERATORS: Final = (*KERNEL_CONVOLUTIONS, LOW_BIT_MATMUL, LOW_BIT_MAX_POOL, RESIDUAL_ADD, LOW_BIT_RESCALE)
PACKED_MATMULS: Final = ("MatMulNBits", LOW_BIT_MATMUL)  # which compute the same
QUANTIZED_ADDITIONS: Final = ("QLinearAdd", RESIDUAL_ADD, LOW_BIT_RESCALE)  # which round sums in the same way

KERNEL_INPUTS: Final = (  # of the convolutions
    *("x", "x_scale", "x_zero_point", "w", "w_scale", "w_zero_point", "y_scale", "y_zero_point", "bias"),
    *("low", "high", "x_high"),
)
_MICROSOFT = "com.microsoft"
_STANDARD = ("", "ai.onnx")


@dataclass(frozen=True)
class _Step:
    """A node of a function; tensors are numbered: first the function's inputs, then the results of its nodes."""

    domain: str
    op_type: str
    inputs: tuple[int, ...]
    output: int
    attributes: frozenset[str] = frozenset()


@dataclass(frozen=True)
class KernelFunction:
    """The function of an operator.

    Attributes:
        said: what it computes, for messages.
        inputs: how many there are.
        attributes: passed on by its nodes under their own names.
        steps: its nodes; the last one makes its output.
    """

    said: str
    inputs: int
    attributes: frozenset[str]
    steps: tuple[_Step, ...]

    @property
    def domains(self) -> frozenset[str]:
        """The domains that it imports: the standard one, and those of its nodes."""
        return frozenset({"", *(step.domain for step in self.steps)})


def _convolution() -> KernelFunction:
    attributes = frozenset({"kernel_shape", "strides", "pads", "dilations", "group"})
    steps = (
        _Step("", "QLinearConv", tuple(range(9)), 12, attributes),
        _Step("", "Clip", (12, 9, 10), 13),
    )
    return KernelFunction("QLinearConv and Clip", len(KERNEL_INPUTS), attributes, steps)


def _rescale() -> KernelFunction:
    steps = (_Step(_MICROSOFT, "QLinearAdd", tuple(range(8)), 10), _Step("", "Clip", (10, 8, 9), 11))
    return KernelFunction("QLinearAdd and Clip", 10, frozenset(), steps)


def _call(domain: str, op_type: str, inputs: int, attributes: frozenset[str]) -> KernelFunction:
    step = _Step(domain, op_type, tuple(range(inputs)), inputs, attributes)
    return KernelFunction(op_type, inputs, attributes, (step,))


KERNEL_FUNCTIONS: Final = {
    TERNARY_CONV: _convolution(),
    LOW_BIT_CONV: _convolution(),
    LOW_BIT_MATMUL: _call(_MICROSOFT, "MatMulNBits", 4, frozenset({"N", "K", "bits", "block_size", "accuracy_level"})),
    LOW_BIT_MAX_POOL: _call("", "MaxPool", 1, frozenset({"kernel_shape", "strides", "pads"})),
    RESIDUAL_ADD: _call(_MICROSOFT, "QLinearAdd", 8, frozenset()),
    LOW_BIT_RESCALE: _rescale(),
}


def check_functions(model: Message) -> None:
    """Raise unless the functions of a ModelProto are exactly those of the kernel library's operators, or none.

    Raises:
        DefectError: another function, or one of these names that computes something else.
    """
    functions = [parse_message("FunctionProto", content) for content in model.functions]
    if any(function.domain != KERNEL_DOMAIN or function.name not in KERNEL_OPERATORS for function in functions):
        raise DefectError("model-local functions are not supported; inline them before export.")
    versions = [(_plain(opset.domain), opset.version) for opset in model.opset_import]
    names = [function.name for function in functions]
    for function in functions:
        expected = KERNEL_FUNCTIONS[function.name]
        if names.count(function.name) > 1 or not _is_function(function, expected, versions):
            raise DefectError(
                f"its function {KERNEL_DOMAIN}.{function.name} is not {expected.said}, as exports write it; "
                "export the model again."
            )


def check_calls(model: Message) -> None:
    """Raise unless a ModelProto has the functions that its nodes of the kernel library's operators call.

    Raises:
        DefectError: it does not.
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


def _plain(domain: str) -> str:
    return "" if domain in _STANDARD else domain


def _is_function(function: Message, expected: KernelFunction, versions: list[tuple[str, int]]) -> bool:
    """Whether a FunctionProto computes `expected`; `versions`: the model's own operator sets."""
    nodes, outputs = list(function.node), list(function.output)
    names = [*function.input, *(name for node in nodes for name in node.output)]
    imported = sorted((_plain(opset.domain), opset.version) for opset in function.opset_import)
    if len(function.input) != expected.inputs or len(nodes) != len(expected.steps) or function.attribute_proto:
        return False
    if not all(names) or len(set(names)) != len(names) or any(len(node.output) != 1 for node in nodes):
        return False
    return (
        imported == sorted(version for version in versions if version[0] in expected.domains)
        and sorted(function.attribute) == sorted(expected.attributes)
        and outputs == names[-1:]
        and all(_is_step(node, step, names) for node, step in zip(nodes, expected.steps, strict=True))
    )


def _is_step(node: Message, step: _Step, names: list[str]) -> bool:
    return (
        (_plain(node.domain), node.op_type) == (step.domain, step.op_type)
        and list(node.input) == [names[index] for index in step.inputs]
        and list(node.output) == [names[step.output]]
        and sorted((each.name, each.ref_attr_name) for each in node.attribute)
        == sorted((name, name) for name in step.attributes)
    )
