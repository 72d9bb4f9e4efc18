"""Networks whose quantizers use another method than QIL: every code of every file, signed activations too."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from qil_deploy.config import DEFAULT_METHOD, QuantConfig
from qil_deploy.datasets import load_images, preprocessing_for
from qil_deploy.integers import FrozenLayer
from qil_deploy.quantizers import METHODS, ActivationQuantizer

if TYPE_CHECKING:
    from tests.export.conftest import Exports

BITS = [(2, 2), (3, 3), (4, 4), (5, 6), (8, 7)]
OTHERS = [method for method in METHODS if method != DEFAULT_METHOD]


class Bottleneck(nn.Module):
    """A layer reads values that no ReLU has clipped, with padding and without, and one has an output scale."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.wide, self.norm1 = nn.Conv2d(8, 24, 1, bias=False), nn.BatchNorm2d(24)
        self.deep, self.norm2 = nn.Conv2d(24, 24, 3, padding=1, groups=24, bias=False), nn.BatchNorm2d(24)
        self.narrow, self.last = nn.Conv2d(24, 8, 1), nn.Conv2d(8, 16, 3)
        self.fc = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x))
        x = torch.relu(self.norm1(self.wide(x)))
        x = self.norm2(self.deep(x))
        x = torch.relu(self.last(self.narrow(x)))
        logits: Tensor = self.fc(x.mean((2, 3)))
        return logits


@pytest.mark.parametrize("bits", BITS, ids=str)
@pytest.mark.parametrize("method", OTHERS)
@pytest.mark.parametrize("options", [{}, {"format": "qdq", "weights": "int8"}], ids=["qlinear", "qdq"])
def test_every_code_equals_the_reference_and_frozen_pytorch(
    exports: Exports, method: str, bits: tuple[int, int], options: dict[str, Any], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    data = load_images("digits", "test")
    config = QuantConfig(method=method, weight_bits=bits[0], activation_bits=bits[1])
    case = exports.case(Bottleneck(), config, data.images[:24], preprocessing_for("digits", data))
    intervals = [each for each in case.prepared.modules() if isinstance(each, ActivationQuantizer)]
    assert {each.signed for each in intervals} == {False, True}
    assert all(type(each).__name__.lower().startswith(method) for each in intervals)
    values = exports.check_equal(case, tmp_path / "model.onnx", **options)
    assert len(np.unique(values["logits"], axis=0)) > 12
    for name, layer in case.frozen.named_modules():
        if isinstance(layer, FrozenLayer):
            assert len(layer.weight_codes.unique()) > 2, name
