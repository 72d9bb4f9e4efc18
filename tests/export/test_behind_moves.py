"""Exact results with BatchNorm and activations after a transposed convolution, of any geometry and groups."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from qil_deploy.config import QuantConfig
from qil_deploy.onnx_io.model_file import read_model
from qil_deploy.preprocessing import Preprocessing

if TYPE_CHECKING:
    from .conftest import Exports

GRID = Preprocessing(channels=3, height=8, width=8, scale=0.0123, zero_point=77)
ACTIVATIONS = (
    nn.Identity,
    nn.ReLU,
    nn.ReLU6,
    nn.Hardsigmoid,
    lambda: nn.Hardtanh(-0.4, 0.9),
    lambda: nn.LeakyReLU(0.2),
)


@st.composite
def transposed_convolutions(draw: st.DrawFn) -> nn.ConvTranspose2d:
    """From 4 to 8 channels."""
    rows, columns = draw(st.integers(1, 5)), draw(st.integers(1, 5))
    down, right = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    more = draw(st.integers(0, 2))
    return nn.ConvTranspose2d(
        4,
        8,
        (rows, columns),
        (down, right),
        (min(more, (rows - 1) // 2), min(more, (columns - 1) // 2)),
        (min(more, down - 1), min(more, right - 1)),
        groups=draw(st.sampled_from((1, 2, 4))),
        bias=draw(st.booleans()),
    )


@given(
    up=transposed_convolutions(),
    act=st.integers(0, len(ACTIVATIONS) - 1),
    bits=st.integers(2, 7),
    seed=st.integers(0, 1000),
)
@settings(max_examples=12, deadline=None)
def test_every_code_is_equal(exports: Exports, up: nn.ConvTranspose2d, act: int, bits: int, seed: int) -> None:
    """Gammas of both signs, zero and tiny ones among them (`randomize_norms`)."""
    torch.manual_seed(seed)
    up.reset_parameters()
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), up, nn.BatchNorm2d(8), ACTIVATIONS[act](), nn.Conv2d(8, 4, 1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3),
    )  # fmt: skip
    images = np.random.default_rng(seed).integers(0, 256, (3, *GRID.shape), np.uint8)
    case = exports.case(network, QuantConfig(weight_bits=bits, activation_bits=bits), images, GRID, seed)
    with tempfile.TemporaryDirectory() as folder:
        for format_ in ("qlinear", "qdq"):
            exports.check_equal(case, Path(folder) / f"{format_}.onnx", format=format_)


@pytest.mark.parametrize("apart", [False, True])
def test_one_convolution_does_it(exports: Exports, *, apart: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), nn.ConvTranspose2d(4, 6, 4, 2, 1), nn.BatchNorm2d(6), nn.ReLU(),
        nn.Conv2d(6, 4, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3),
    )  # fmt: skip
    images = np.random.default_rng(0).integers(0, 256, (3, *GRID.shape), np.uint8)
    case = exports.case(network, QuantConfig(norms_apart=apart), images, GRID)
    exports.check_equal(case, tmp_path / "model.onnx")
    convolutions = [node for node in read_model(tmp_path / "model.onnx").nodes if node.op_type == "QLinearConv"]
    assert len(convolutions) == (5 if apart else 3)
