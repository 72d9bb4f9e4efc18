"""Tables that the commands print."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from qil_deploy.terminal import Column, Table

if TYPE_CHECKING:
    from qil_deploy.runtime_tests.layers import LayerDescription
    from qil_deploy.training.train import RunResult


def certificate_table(lines: Sequence[Mapping[str, Any]]) -> Table:
    """Table of the certificate's lines, all of which hold."""
    table = Table("Certificate", ("line", "worst", "bound", Column(heading="where", text=True)))
    for line in lines:
        table.row(line["name"], f"{line['worst']:,.4g}", f"{line['bound']:,.4g}", line["where"])
    return table


def layer_table(layers: Sequence[LayerDescription]) -> Table:
    """Table of an exported model's layers, with their sums in the last row."""
    stored, macs = sum(layer.bytes for layer in layers), sum(layer.macs for layer in layers)
    weights = sum(math.prod(layer.weight_shape) for layer in layers)
    zeros = sum(layer.zero_share * math.prod(layer.weight_shape) for layer in layers)
    columns = (
        *("layer", Column(heading="operator", text=True), "bits", "input codes", "weights", "MACs", "bytes"),
        *("zero weights", "dead channels", "multiplier"),
    )
    table = Table("Layers", columns)
    for layer in layers:
        table.row(
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
    table.row(
        *(f"{len(layers)} layers", "", "", "", f"{weights:,}", f"{macs:,}", f"{stored:,}"),
        f"{100 * zeros / weights:.1f} %" if weights else "",
        f"{sum(layer.dead_channels for layer in layers):,}",
        "",
        apart=True,
    )
    return table


def _range(smallest: float | None, largest: float | None) -> str:
    if smallest is None or largest is None:
        return ""
    return f"{smallest:.3g}" if smallest == largest else f"{smallest:.3g}..{largest:.3g}"


def rewrite_table(left_alone: Mapping[str, Mapping[str, Sequence[str]]]) -> Table:
    """Table of the nodes that rewrites left as they were, and why."""
    table = Table("Not rewritten", ("pass", Column(heading="because", text=True), Column(heading="nodes", text=True)))
    for name, reasons in left_alone.items():
        for reason, nodes in reasons.items():
            table.row(name, reason, some_of(nodes))
    return table


def kernel_table(counts: Mapping[str, int], in_float: Sequence[tuple[str, str]]) -> Table:
    """Table of the operators that ONNX Runtime executes; those that compute in float by name, in red."""
    columns = ("operator", "nodes", Column(heading="computing in float", text=True, style="red"))
    table = Table("Executed by ONNX Runtime, after its optimizer", columns)
    for operator, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        table.row(operator, str(count), some_of([name for kernel, name in in_float if kernel == operator]))
    return table


def some_of(names: Sequence[str], most: int = 12) -> str:
    """List names; of many, the first of them and the number of others."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"{', '.join(names[:most])}{more}"


def run_table(result: RunResult) -> Table:
    """Table of a run: accuracy of each stage, before and after freezing."""
    columns = ("stage", "fake quantization", "frozen at once", "frozen and trained on")
    table = Table("Accuracy on the test set, in percent", columns)
    for stage in (result.float_result, *result.stages):
        frozen = [stage.frozen_at_once, stage.frozen_accuracy]
        cells = ["" if value is None else f"{value:.2f}" for value in frozen]
        table.row(stage.name, f"{stage.accuracy:.2f}", *cells)
    return table
