"""Files of `paper` placement: shared constants, and near agreement of ONNX Runtime with PyTorch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from onnx import load, numpy_helper
from torch import Tensor, nn
from torch.nn import functional as F

from qil_deploy.config import QuantConfig
from qil_deploy.errors import CertificateError
from qil_deploy.export import ExportOptions, export_onnx
from qil_deploy.export import trial_run as trial_module
from qil_deploy.network.calibration import calibrate
from qil_deploy.network.preparation import prepare
from qil_deploy.preprocessing import Preprocessing

from .conftest import run_runtime

if TYPE_CHECKING:
    from torch import fx

PIXELS = Preprocessing(channels=1, height=4, width=4, scale=0.01, zero_point=0)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.ReLU(), nn.Flatten(),
        nn.Linear(64, 2),
    )  # fmt: skip


def prepared(
    floats: nn.Module,
    images: np.ndarray[Any, np.dtype[np.uint8]],
    **bits: int,
) -> fx.GraphModule:
    x = torch.from_numpy(PIXELS.normalize(images))
    model = prepare(floats, QuantConfig(placement="paper", **bits), x[:1], input_grid=PIXELS)
    calibrate(model, [x])
    return model.eval()


@pytest.fixture
def images() -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.random.default_rng(0).integers(0, 256, (4, *PIXELS.shape), np.uint8)


def write(model: fx.GraphModule, path: Path) -> list[str]:
    """Export; return the names of the certificate's lines."""
    options = ExportOptions(format="qdq")
    result = export_onnx(model, path, preprocessing=PIXELS, class_names=["a", "b"], options=options)
    return [line.name for line in result.certificate]


def test_zeros_of_both_signs(images: np.ndarray[Any, np.dtype[np.uint8]], tmp_path: Path) -> None:
    """Two layers add nothing, one of them minus zero: two constants, both named after their value."""
    floats, path = network(), tmp_path / "model.onnx"
    with torch.no_grad():
        for index, zero in ((2, 0.0), (4, -0.0)):
            bias = floats[index].bias
            assert isinstance(bias, nn.Parameter)
            bias.fill_(zero)
    model = prepared(floats, images)
    assert write(model, path) == ["weights", "runs"]
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in load(path).graph.initializer}
    zeros = {name: np.signbit(array) for name, array in stored.items() if name.startswith("float32_0x4")}
    assert {name: signs.tolist() for name, signs in zeros.items()} == {
        "float32_0x4": [False] * 4,
        "float32_0x4_2": [True] * 4,
    }
    with torch.no_grad():
        expected = model(torch.from_numpy(PIXELS.normalize(images))).numpy()
    np.testing.assert_allclose(run_runtime(load(path), images)["logits"], expected, atol=1e-4)


class Scaled(nn.Module):
    """Scales and shifts of channels, from parameters and numbers: after layers, after BatchNorm, and alone."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.first, self.inner, self.last = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
        self.up, self.norm, self.slopes = nn.ConvTranspose2d(4, 4, 2, 2), nn.BatchNorm2d(4), nn.PReLU(4)
        self.gains, self.added = nn.Parameter(torch.linspace(-2, 2, 4)), nn.Parameter(torch.randn(4, 1, 1))
        self.fc = nn.Linear(64, 2)
        with torch.no_grad():
            self.slopes.weight.copy_(torch.linspace(-0.5, 1.5, 4))
            nn.init.uniform_(self.norm.weight, -1, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x * 0.5) * self.gains[:, None, None] + self.added
        y = F.hardtanh(self.inner(F.relu(x)) * self.gains.view(1, -1, 1, 1), -0.3, 0.8)
        z = F.relu(self.norm(self.up(F.max_pool2d(y + x, 2))) / 1.5 - 0.1)
        rows: Tensor = self.fc(self.last(self.slopes(z + y)).flatten(1))
        return 1 - 2 * rows


@pytest.mark.parametrize("bits", [2, 4])
def test_scales_and_shifts_of_channels(images: np.ndarray[Any, np.dtype[np.uint8]], bits: int, tmp_path: Path) -> None:
    model, path = prepared(Scaled(), images, weight_bits=bits, activation_bits=bits), tmp_path / "model.onnx"
    assert write(model, path) == ["weights", "runs"]
    with torch.no_grad():
        expected = model(torch.from_numpy(PIXELS.normalize(images))).numpy()
    np.testing.assert_allclose(run_runtime(load(path), images)["logits"], expected, atol=1e-4)


def test_a_file_that_does_not_run_gets_no_name(
    images: np.ndarray[Any, np.dtype[np.uint8]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise CertificateError("certificate line 'runs' fails")

    monkeypatch.setattr(trial_module, "_run", refuse)
    with pytest.raises(CertificateError, match="line 'runs' fails"):
        write(prepared(network(), images), tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())
