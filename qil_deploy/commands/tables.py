"""Tables that the commands print."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.table import Table

if TYPE_CHECKING:
    from qil_deploy.runtime_tests.layers import LayerDescription
    from qil_deploy.training.train import RunResult


def certificate_table(lines: Sequence[Mapping[str, Any]]) -> Table:
    """Table of the certificate's lines, all of which hold."""
    table = Table(title="Certificate", title_justify="left")
    for heading in ("line", "worst", "bound", "where"):
        table.add_column(heading, justify="left" if heading in ("line", "where") else "right")
    for line in lines:
        table.add_row(line["name"], f"{line['worst']:,.4g}", f"{line['bound']:,.4g}", line["where"])
    return table


def layer_table(layers: Sequence[LayerDescription]) -> Table:
    """Table of an exported model's layers, with their sums in the last row."""
    table = Table(title="Layers", title_justify="left", show_footer=True)
    stored, macs = sum(layer.bytes for layer in layers), sum(layer.macs for layer in layers)
    weights = sum(math.prod(layer.weight_shape) for layer in layers)
    zeros = sum(layer.zero_share * math.prod(layer.weight_shape) for layer in layers)
    columns = {
        "layer": f"{len(layers)} layers",
        "operator": "",
        "bits": "",
        "input codes": "",
        "weights": f"{weights:,}",
        "MACs": f"{macs:,}",
        "bytes": f"{stored:,}",
        "zero weights": f"{100 * zeros / weights:.1f} %" if weights else "",
        "dead channels": f"{sum(layer.dead_channels for layer in layers):,}",
        "multiplier": "",
    }
    for heading, total in columns.items():
        table.add_column(heading, total, justify="left" if heading in ("layer", "operator") else "right")
    for layer in layers:
        table.add_row(
            layer.name,
            layer.operator,
            str(layer.weight_bits),
            f"0..{layer.largest_input_code}",
            "x".join(map(str, layer.weight_shape)),
            f"{layer.macs:,}",
            f"{layer.bytes:,}",
            f"{100 * layer.zero_share:.1f} %",
            f"{layer.dead_channels:,}",
            _range(layer.smallest_multiplier, layer.largest_multiplier),
        )
    return table


def _range(smallest: float | None, largest: float | None) -> str:
    if smallest is None or largest is None:
        return ""
    return f"{smallest:.3g}" if smallest == largest else f"{smallest:.3g}..{largest:.3g}"


def kernel_table(counts: Mapping[str, int], in_float: Sequence[tuple[str, str]]) -> Table:
    """Table of the operators that ONNX Runtime executes; those that compute in float by name, in red."""
    table = Table(title="Executed by ONNX Runtime, after its optimizer", title_justify="left")
    table.add_column("operator")
    table.add_column("nodes", justify="right")
    table.add_column("computing in float", style="red")
    for operator, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        names = ", ".join(name for kernel, name in in_float if kernel == operator)
        table.add_row(operator, str(count), names)
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
