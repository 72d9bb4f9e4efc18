"""Tables of the command `sensitivity`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qil_deploy.onnx_io import stored_bytes
from qil_deploy.terminal import Column, Table

if TYPE_CHECKING:
    from qil_deploy.config import LayerBits
    from qil_deploy.training.mixed_precision import Proposal
    from qil_deploy.training.sensitivity import Measurement, Probe, Sensitivity


def sensitivity_table(measured: Sensitivity) -> Table:
    """Table of all layers, the one that hurts most first: size, KL, loss and accuracy at each width."""
    widths = sorted({trial.width for layer in measured.layers for trial in layer.trials}, reverse=True)
    columns: list[Column | str] = ["layer", "weights", "bits"]
    for heading in ("bytes", "KL", "loss", "accuracy"):
        columns += [Column(heading=f"{heading} {width}", group=heading) for width in widths]
    table = Table("Each layer lowered by itself", columns)
    for layer in sorted(measured.layers, key=lambda entry: -entry.worst):
        trials = {trial.width: trial for trial in layer.trials}
        found = [trials.get(width) for width in widths]
        sizes = [None if trial is None else stored_bytes(layer.weights, trial.bits.weight_bits) for trial in found]
        answers = [None if trial is None else trial.measured for trial in found]
        table.row(
            layer.name,
            f"{layer.weights:,}",
            bits_of(layer.bits),
            *("-" if size is None else f"{size:,}" for size in sizes),
            *("-" if answer is None else f"{answer.kl:.5f}" for answer in answers),
            *("-" if answer is None else f"{answer.loss - measured.baseline.loss:+.4f}" for answer in answers),
            *("-" if answer is None else f"{answer.accuracy - measured.baseline.accuracy:+.2f}" for answer in answers),
        )
    return table


def proposal_table(probe: Probe, measured: Sensitivity, proposal: Proposal) -> Table:
    """Table of a proposal: each layer's bits, and their joint effect beside that of one width for all."""
    columns = ("layer", "bits", "bytes", "KL", "loss", "accuracy")
    table = Table(f"Proposed for at most {proposal.budget:,} bytes of packed weights", columns)
    for layer in measured.layers:
        bits = proposal.bits[layer.name]
        kl = next((trial.measured.kl for trial in layer.trials if trial.bits == bits), 0.0)
        stored = f"{stored_bytes(layer.weights, bits.weight_bits):,}"
        table.row(layer.name, bits_of(bits), stored, f"{kl:.5f}", "", "")
    table.row("summed", "", f"{proposal.bytes:,}", f"{proposal.summed_kl:.5f}", "", "", apart=True)
    rows = [("nothing lowered", measured.bytes, measured.baseline), ("proposed", proposal.bytes, proposal.measured)]
    rows += [(f"all at {entry.width} bits", entry.bytes, entry.measured) for entry in proposal.uniform]
    weights = sum(probe.weights.values())
    for name, size, answer in rows:
        table.row(name, f"{8 * size / weights:.2f}", f"{size:,}", *_answer(answer))
    return table


def _answer(answer: Measurement) -> list[str]:
    return [f"{answer.kl:.5f}", f"{answer.loss:.4f}", f"{answer.accuracy:.2f} %"]


def bits_of(bits: LayerBits) -> str:
    """Bits of weights and activations, like `4/4`."""
    return f"{bits.weight_bits}/{bits.activation_bits}"
