"""An export takes at most twice the memory of the float weights, beside the model."""

from __future__ import annotations

import pytest

import export_memory
from export_memory import Step


@pytest.mark.skipif(not export_memory.can_measure(), reason="this system does not tell the peak of a part of a process")
@pytest.mark.parametrize(
    "form", ["prepared, qlinear", pytest.param("frozen, qdq, int8 storage", marks=pytest.mark.slow)]
)
def test_an_export_of_many_weights(form: str) -> None:
    """AlexNet: most of its weights are in one layer, so that every copy shows. It once took nine times as much."""
    step = export_memory.measure("alexnet", 224, form)
    assert step.weights > 200 * 2**20
    assert step.multiple <= export_memory.GOAL, f"{step.multiple:.2f} times the float weights"


def test_rows() -> None:
    steps = {
        "prepared, qlinear": Step(weights=2**30, before=2**30, peak=3 * 2**30, seconds=1.0),
        "frozen, qdq": Step(weights=2**30, before=2**30, peak=3 * 2**30 + 2**28, seconds=1.0),
    }
    assert export_memory.rows_of("vgg16", steps).cells == [
        ["vgg16: prepared, qlinear", "1,024 MiB", "2,048 MiB", "2.00", "1.0 s", "met"],
        ["vgg16: frozen, qdq", "1,024 MiB", "2,304 MiB", "2.25", "1.0 s", "MISSED"],
    ]
