"""Passes that move work: linear layers that read maps channels last, shared operators, clipping behind pools."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from qil_deploy.config import QuantConfig
from qil_deploy.export.capture import capture
from qil_deploy.export.passes.share_repeated import ShareRepeated
from qil_deploy.preprocessing import Preprocessing
from qil_deploy.quantizers import QilActivationQuantizer

if TYPE_CHECKING:
    from .conftest import Case, Exports

GRID = Preprocessing(channels=3, height=12, width=10, scale=0.0123, zero_point=77)
IMAGES = np.random.default_rng(3).integers(0, 256, (6, 3, 12, 10), dtype=np.uint8)


class PooledMap(nn.Module):
    """Layers with BatchNorm, a pool, and a linear layer that reads the whole map."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
            nn.Conv2d(8, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2),
        )  # fmt: skip
        self.hidden, self.last = nn.Linear(6 * 6 * 5, 16), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.hidden(self.body(x).flatten(1)).relu())  # type: ignore[no-any-return]  # nn.Module's type


class TwoReaders(nn.Module):
    """A sum that two convolutions read, each through an interval of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.inner = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
        self.left, self.right = nn.Conv2d(6, 6, 3, padding=1), nn.Conv2d(6, 6, 1)
        self.last = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        x = (self.inner(x) + x).relu()
        x = self.left(x).relu() + self.right(x).relu()
        return self.last(x.mean((2, 3)))  # type: ignore[no-any-return]  # nn.Module's type


def case_of(exports: Exports, network: nn.Module, bits: int = 4) -> Case:
    torch.manual_seed(0)
    return exports.case(network.eval(), QuantConfig(weight_bits=bits, activation_bits=bits), IMAGES, GRID)


def passes_of(path: Path) -> dict[str, list[str]]:
    (entry,) = onnx.load(path).metadata_props
    passes: dict[str, list[str]] = json.loads(entry.value)["passes"]
    return passes


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("switch", ["channels_last", "simplify"])
def test_on_and_off(exports: Exports, switch: str, bits: int, tmp_path: Path) -> None:
    case = case_of(exports, PooledMap(), bits)
    on, off = tmp_path / "on.onnx", tmp_path / "off.onnx"
    np.testing.assert_array_equal(
        exports.check_equal(case, on)["logits"], exports.check_equal(case, off, **{switch: False})["logits"]
    )
    assert passes_of(on)[switch] == {"channels_last": ["flatten", "hidden"], "simplify": ["body.3"]}[switch]
    assert switch not in passes_of(off)


def test_a_linear_layer_reads_channels_last(exports: Exports, tmp_path: Path) -> None:
    path = case_of(exports, PooledMap()).export(tmp_path / "model.onnx")
    (flatten,) = (node for node in onnx.load(path).graph.node if node.op_type == "Flatten")
    (transpose,) = (node for node in onnx.load(path).graph.node if node.op_type == "Transpose")
    assert flatten.input[0] == transpose.output[0]
    assert list(transpose.attribute[0].ints) == [0, 2, 3, 1]


def test_clipping_follows_the_pool(exports: Exports, tmp_path: Path) -> None:
    graph = onnx.load(case_of(exports, PooledMap()).export(tmp_path / "model.onnx")).graph
    (pool,) = (node for node in graph.node if node.op_type == "MaxPool")
    assert pool.input[0] == "body.3_unclipped"
    (reader,) = (node for node in graph.node if pool.output[0] in node.input)
    assert reader.op_type == "Clip"


def test_equal_quantizers_of_one_tensor_share_their_work(exports: Exports, tmp_path: Path) -> None:
    case = case_of(exports, TwoReaders())
    shared = [module for module in case.prepared.modules() if isinstance(module, QilActivationQuantizer)]
    for quantizer in shared:
        quantizer.set_thresholds(0.05, 1.1)
    case = exports.frozen(case, case.prepared)
    captured = capture(case.frozen, GRID, "uint8")
    before = Counter(node.op_type for node in captured.graph)
    share = ShareRepeated()
    share(captured)
    after = Counter(node.op_type for node in captured.graph)
    assert before["Rescale"] - after["Rescale"] == len(share.notes.rewritten)
    path = tmp_path / "model.onnx"
    exports.check_equal(case, path)
    exports.check_equal(case, path, simplify=False)
