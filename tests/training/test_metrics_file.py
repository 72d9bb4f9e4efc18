"""The lines of `metrics.jsonl`: a line cut by a kill is mended, any other damage refused."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from qil_deploy.errors import DataError
from qil_deploy.training.metrics_file import METRICS_NAME, append_epoch, drop_epochs, mend_last_line, read_epochs


def entry(phase: str, epoch: int, **changes: Any) -> dict[str, Any]:  # noqa: ANN401 - whatever JSON holds
    figures = {"loss": 1.5, "train_accuracy": 50.0, "test_accuracy": 40, "seconds": 1.0}
    return {"phase": phase, "epoch": epoch} | figures | changes


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for phase in ("float", "w4a4"):
        for epoch in range(3):
            append_epoch(tmp_path, entry(phase, epoch))
    return tmp_path


def phases(folder: Path) -> list[tuple[str, int]]:
    return [(line.phase, line.epoch) for line in read_epochs(folder)]


ALL = [("float", 0), ("float", 1), ("float", 2), ("w4a4", 0), ("w4a4", 1), ("w4a4", 2)]


def test_lines_come_back_in_their_order(folder: Path) -> None:
    assert phases(folder) == ALL
    assert read_epochs(folder)[0].test_accuracy == 40.0
    assert read_epochs(folder / "absent") == ()


def test_epochs_that_come_again_are_dropped(folder: Path) -> None:
    drop_epochs(folder, "w4a4", 1)
    assert phases(folder) == ALL[:4]
    before = (folder / METRICS_NAME).read_bytes()
    drop_epochs(folder, "w2a2", 0)
    assert (folder / METRICS_NAME).read_bytes() == before
    drop_epochs(folder / "absent", "float", 0)


@pytest.mark.parametrize("cut", range(1, 105, 8))
def test_a_line_that_was_cut_off_is_removed_and_the_next_one_is_whole(folder: Path, cut: int) -> None:
    path = folder / METRICS_NAME
    path.write_bytes(path.read_bytes()[:-cut])
    mend_last_line(folder)
    kept = ALL if cut == 1 else ALL[:5]
    assert phases(folder) == kept
    append_epoch(folder, entry("w4a4", 9))
    assert phases(folder) == [*kept, ("w4a4", 9)]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"", "Expecting value"),
        (b"{}", "it has no 'loss'"),
        (b"[]", "it is no JSON object"),
        (b"3", "it is no JSON object"),
        (b"\xff", "'utf-8' codec"),
        (b"[" * 10**5, "recursion"),
        (json.dumps(entry("a", -1)).encode(), "epoch -1"),
        (json.dumps(entry("a", 1) | {"epoch": 1.0}).encode(), r"epoch 1\.0"),
        (json.dumps(entry("a", 1) | {"phase": 3}).encode(), "phase 3"),
        (json.dumps(entry("a", 1, loss="1")).encode(), "loss is '1'"),
        (json.dumps(entry("a", 1, loss=None)).encode(), "loss is None"),
        (json.dumps(entry("a", 1, loss="x" * 10**5)).encode(), "loss is"),
    ],
)
def test_a_damaged_line_is_refused_by_its_number(folder: Path, line: bytes, message: str) -> None:
    path = folder / METRICS_NAME
    lines = path.read_bytes().splitlines()
    path.write_bytes(b"\n".join([*lines[:2], line, *lines[2:]]) + b"\n")
    for read in (read_epochs, mend_last_line, lambda folder: drop_epochs(folder, "float", 0)):
        with pytest.raises(
            DataError, match=rf"line 3 of .*metrics\.jsonl is damaged \(.*{message}.*remove it"
        ) as caught:
            read(folder)
        assert len(str(caught.value)) < 1000
    assert path.read_bytes().splitlines()[2] == line


def test_a_figure_that_is_no_number_is_none(folder: Path) -> None:
    for loss in (math.nan, math.inf, 10**400):
        append_epoch(folder, entry("w2a2", 0, loss=loss))
        assert read_epochs(folder)[-1].loss is None


def test_a_folder_in_its_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / METRICS_NAME).mkdir()
    with pytest.raises(DataError, match="is no file of one line per epoch; move it away"):
        read_epochs(tmp_path)
