"""What a finding says, and how severe it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from qil_deploy.onnx_file import Node

SEVERITIES = ("blocks", "slow", "inexact", "note")  # the worst first
_SHOWN = 8


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that holds a model back.

    Attributes:
        kind: which finding of docs/doctor.md it is.
        severity: "blocks" (does not run), "slow", "inexact" (machines may differ, or sums saturate) or "note".
        what: what was found.
        count: at how many places.
        where: the first of them, by the names of nodes.
        why: why it matters.
        remedy: what to do.
    """

    kind: str
    severity: str
    what: str
    count: int
    where: tuple[str, ...]
    why: str
    remedy: str


def found(kind: str, severity: str, where: Sequence[str], *, what: str, why: str, remedy: str) -> list[Finding]:
    """Return the finding at these places in a list, which is empty if there are none."""
    if not where:
        return []
    shown = tuple(where[:_SHOWN])
    return [Finding(kind=kind, severity=severity, what=what, count=len(where), where=shown, why=why, remedy=remedy)]


def label(node: Node) -> str:
    """Return a node's operator and name; where it has none, the tensor it makes."""
    name = node.name or next((output for output in node.outputs if output), "")
    # ONNX Runtime appends this where it changes the layout of a float convolution.
    return f"{node.op_type} {name.removesuffix('_nchwc')!r}"
