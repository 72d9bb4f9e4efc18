"""Findings and their severity."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from qil_deploy.onnx_io import Node
from qil_deploy.reference import operator_of
from qil_deploy.untrusted_text import excerpt

SEVERITIES: Final = ("blocks", "wrong", "slow", "inexact", "unknown", "note")  # the worst first
_SHOWN: Final = 8
# What ONNX Runtime adds to the names of nodes that it makes, fuses or moves to another layout.
_ADDED: Final = re.compile(r"^(fused |InsertedPrecisionFreeCast_)+|(_token_\d+|_nchwc)+$")


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A problem of a model, or a question that could not be answered.

    Attributes:
        kind: which finding of docs/doctor.md it is.
        severity: "blocks" (does not run), "wrong" (ONNX Runtime computes other results than the file says), "slow",
            "inexact" (machines may differ, or sums saturate), "unknown" (was not examined) or "note".
        what: what was found.
        count: in how many places.
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
    """Return a list with the finding at these places, empty if there are none."""
    if not where:
        return []
    shown = tuple(where[:_SHOWN])
    return [Finding(kind=kind, severity=severity, what=what, count=len(where), where=shown, why=why, remedy=remedy)]


def label(node: Node) -> str:
    """Return a node's operator and name; for one without a name, the tensor it makes, or its weights."""
    names = [name for name in (node.name, *node.outputs) if name]
    own = next((name for name in (_ADDED.sub("", name) for name in names) if name), "")
    if not own and operator_of(node).is_integer_layer and len(node.inputs) > 3:
        return f"{excerpt(node.op_type)} of weights {quoted(node.inputs[3])}"
    return f"{excerpt(node.op_type)} {quoted(own or ''.join(names[:1]))}"


def quoted(name: str) -> str:
    """Return a name from the file in quotes, cut and escaped if necessary."""
    return f"'{excerpt(name)}'"
