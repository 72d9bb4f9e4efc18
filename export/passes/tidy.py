"""Tidy the graph for its readers: constants in the order of use, inputs and outputs.

A node's weights come before its scales and zero points.

Types and shapes of the tensors in between follow from the operators, and would take a tenth of a small file. ONNX does
not know the additions of `com.microsoft`, and its checker needs types before functions: if an addition is a function
itself, the type of its result stays.
"""

from __future__ import annotations

import onnx_ir as ir

from qil_deploy.onnx_io import KERNEL_DOMAIN, QUANTIZED_ADDITIONS

from .replacement import inputs_of


class Tidy(ir.passes.InPlacePass):
    """Sorts constants, drops information about intermediate tensors, and fixes the number of images if requested."""

    def __init__(self, batch: int | None) -> None:
        """Fix the number of images per run in inputs and outputs; None leaves it free."""
        super().__init__()
        self._batch = batch

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Tidy up."""
        graph = model.graph
        read = [value for node in graph for value in sorted(inputs_of(node), key=_is_small)]
        constants = [value for value in dict.fromkeys(read) if value.is_initializer()]
        graph.initializers.clear()
        for value in constants:
            graph.register_initializer(value)
        for node in graph:
            for value in node.outputs:
                if not value.is_graph_output():
                    value.shape, value.type = None, _type_to_keep(node)
        if self._batch is not None:
            for value in (*graph.inputs, *graph.outputs):
                if value.shape is None:
                    raise ValueError(f"{value.name!r} has no shape")
                value.shape = ir.Shape([self._batch, *value.shape[1:]])
        return ir.passes.PassResult(model, modified=True)


def _type_to_keep(node: ir.Node) -> ir.TensorType | None:
    is_addition = node.domain == KERNEL_DOMAIN and node.op_type in QUANTIZED_ADDITIONS
    return ir.TensorType(ir.DataType.UINT8) if is_addition else None


def _is_small(value: ir.Value) -> bool:
    return value.shape is None or value.shape.rank() < 2
