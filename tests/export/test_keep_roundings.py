"""Pools that keep roundings: their places, and unchanged codes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from qil_deploy.onnx_io.model_file import read_model

if TYPE_CHECKING:
    from .conftest import Exports


@pytest.mark.parametrize(
    ("format_", "weights", "expected"), [("qdq", "int8", 5), ("qdq", "packed", 0), ("qlinear", "int8", 0)]
)
def test_pools_stand_in_front_of_additions_in_files_for_other_runtimes(
    exports: Exports, tmp_path: Path, format_: str, weights: str, expected: int
) -> None:
    path = exports.resnet().export(tmp_path / "model.onnx", format=format_, weights=weights)
    pools = [node for node in read_model(path).nodes if node.op_type == "MaxPool"]
    # Three additions of two convolutions each, but for the first one's shortcut: the stem, which the body reads too.
    assert len(pools) == expected
    assert all(node.attributes["kernel_shape"] == [1, 1] for node in pools)


def test_they_change_no_code(exports: Exports, tmp_path: Path) -> None:
    exports.check_equal(exports.resnet(), tmp_path / "model.onnx", format="qdq", weights="int8")
