from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from qil_deploy.datasets import ImageBatches, ImageSet
from qil_deploy.runtime_tests import verify
from qil_deploy.runtime_tests.backends import FROZEN, UNFROZEN
from qil_deploy.runtime_tests.tables import verify_table
from qil_deploy.terminal.console import Console
from qil_deploy.terminal.table import Table

WriteModel = Callable[..., Path]


def batches(images: NDArray[np.uint8], labels: NDArray[np.int64]) -> ImageBatches:
    return ImageSet(images=images, labels=labels, class_names=("cat", "dog", "fox", "hen", "owl")).batches(250)


def shown(table: Table) -> list[str]:
    """Return the lines of a table on a terminal of 80 columns."""
    console = Console(width=80, file=io.StringIO(), record=True)
    console.print(table)
    return console.export_text().splitlines()


def row(lines: list[str], start: str) -> list[str]:
    (found,) = [line for line in lines if line.startswith(start)]
    return found.removeprefix(start).split()


@pytest.mark.parametrize("ties", [False, True])
def test_every_backend_has_a_row_of_its_own_and_there_is_a_verdict(
    write_model: WriteModel, images: NDArray[np.uint8], labels: NDArray[np.int64], ties: bool
) -> None:
    others = {UNFROZEN: lambda batch: np.full((len(batch), 5), np.nan, np.float32)}
    report = verify(write_model(ties=ties), batches(images, labels), others=others)
    lines = shown(verify_table(report))
    assert report.reference_accuracy is not None
    accuracy = f"{100 * report.reference_accuracy:.2f}"
    assert row(lines, "integer reference") == [accuracy]
    for backend in report.backends[:4]:
        cells = row(lines, backend.name)
        assert cells[1] == str(backend.differing_logits)
        assert cells[-1] == ("DIFFERS" if ties else "equal")
    assert row(lines, UNFROZEN)[:4] == ["0.00", "300", "60", "0"]
    text = " ".join(" ".join(lines).split())
    assert "may differ, 300" in text
    expected = "Not exact: ONNX Runtime (disabled)," if ties else "Exact: every backend that must equal"
    assert expected in text


def test_the_verdict_names_only_the_backends_that_fail(
    write_model: WriteModel, images: NDArray[np.uint8], labels: NDArray[np.int64]
) -> None:
    others = dict.fromkeys((UNFROZEN, FROZEN), lambda batch: np.zeros((len(batch), 5), np.float32))
    lines = shown(verify_table(verify(write_model(), batches(images, labels), others=others)))
    assert f"Not exact: {FROZEN} must equal the integer reference" in " ".join(lines)


def test_warnings_are_shown(write_model: WriteModel, images: NDArray[np.uint8], labels: NDArray[np.int64]) -> None:
    report = verify(write_model(), batches(np.repeat(images[:1], 60, axis=0), labels))
    text = " ".join(" ".join(shown(verify_table(report))).split())
    assert "Note: integer reference returns the same logits" in text
