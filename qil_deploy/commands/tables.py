"""Tables that the commands print."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.table import Table

from qil_deploy.onnx_file import OnnxFile

if TYPE_CHECKING:
    from qil_deploy.training.train import RunResult


def certificate_table(lines: Sequence[Mapping[str, Any]]) -> Table:
    """Table of the certificate's lines, all of which hold."""
    table = Table(title="Certificate", title_justify="left")
    for heading in ("line", "worst", "bound", "where"):
        table.add_column(heading, justify="left" if heading in ("line", "where") else "right")
    for line in lines:
        table.add_row(line["name"], f"{line['worst']:,.4g}", f"{line['bound']:,.4g}", line["where"])
    return table


def layer_table(graph: OnnxFile, layers: Sequence[Mapping[str, Any]]) -> Table:
    """Table of an exported model's layers: bits, weights, and the share of them that is zero."""
    table = Table(title="Layers", title_justify="left")
    for heading in ("layer", "weight bits", "input codes", "weights", "zero weights"):
        table.add_column(heading, justify="left" if heading == "layer" else "right")
    for layer in layers:
        stored = [f"{layer['name']}_weight_packed", f"{layer['name']}_weight"]
        codes = next(graph.initializers[name] for name in stored if name in graph.initializers)
        table.add_row(
            layer["name"],
            str(layer["weight_bits"]),
            f"0..{layer['largest_input_code']}",
            f"{codes.size:,}",
            f"{100 * float(np.mean(codes == 0)):.1f} %",
        )
    return table


def run_table(result: RunResult) -> Table:
    """Table of a run: accuracy of each stage, before and after freezing."""
    table = Table(title="Accuracy on the test set, in percent", title_justify="left")
    for heading in ("stage", "fake quantization", "frozen at once", "frozen and trained on"):
        table.add_column(heading, justify="left" if heading == "stage" else "right")
    for stage in (result.float_result, *result.stages):
        frozen = [stage.frozen_at_once, stage.frozen_accuracy]
        cells = ["" if value is None else f"{value:.2f}" for value in frozen]
        table.add_row(stage.name, f"{stage.accuracy:.2f}", *cells)
    return table
