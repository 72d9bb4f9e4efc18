"""Networks of rows [N, C, L]: every code and logit equal, in both formats and all bit widths; checkpoints, too."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qil_deploy.checkpoint import METADATA_KEY, CheckpointInfo, load_model, read_checkpoint, save_checkpoint
from qil_deploy.checkpoint.safetensors_file import file_content
from qil_deploy.config import QuantConfig
from qil_deploy.network.moves import ConstantPad
from qil_deploy.preprocessing import Preprocessing

if TYPE_CHECKING:
    from .conftest import Case, Exports

LENGTH = 64
GRID = Preprocessing(channels=2, height=1, width=LENGTH, scale=0.0123, zero_point=128)


class Causal(nn.Module):
    """A residual block of a temporal convolutional network: each result depends only on earlier inputs."""

    def __init__(self, inputs: int, outputs: int, dilation: int) -> None:
        super().__init__()
        self.pads = (2 * dilation, 0)
        self.conv, self.norm = nn.Conv1d(inputs, outputs, 3, dilation=dilation, bias=False), nn.BatchNorm1d(outputs)
        self.conv_too, self.norm_too = nn.Conv1d(outputs, outputs, 3, dilation=dilation), nn.BatchNorm1d(outputs)
        self.dropout = nn.Dropout1d(0.1)
        self.project = nn.Conv1d(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.dropout(F.relu(self.norm(self.conv(F.pad(x, self.pads)))))
        y = self.norm_too(self.conv_too(F.pad(y, self.pads)))
        return F.relu(y + self.project(x))


class TimeSeries(nn.Module):
    """A classifier of series of two channels in the usual form: rows from the first layer to the last."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv1d(2, 8, 7, stride=2, padding=3, bias=False), nn.BatchNorm1d(8)
        self.pool = nn.MaxPool1d(3, 2, 1)
        self.blocks = nn.Sequential(Causal(8, 8, 1), Causal(8, 12, 2))
        self.average = nn.AvgPool1d(2, 2, ceil_mode=True)
        self.last, self.fc = nn.AdaptiveAvgPool1d(1), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(F.relu(self.norm(self.stem(x.squeeze(2)))))
        logits: Tensor = self.fc(self.last(self.average(self.blocks(x))).flatten(1))
        return logits


class Denoiser(nn.Module):
    """Encoder and decoder, with transposed convolutions, pools of several windows, upsampling and padding of rows."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.down = nn.Conv1d(2, 6, 3, padding=1), nn.Conv1d(6, 8, 4, 2, 1)
        self.norm, self.up_norm = nn.BatchNorm1d(8), nn.BatchNorm1d(6)
        self.up = nn.ConvTranspose1d(8, 6, 4, 2, 1, groups=2, bias=False)
        self.up_too = nn.ConvTranspose1d(8, 6, 5, 3, 2, output_padding=1)
        self.joined, self.fc = nn.Conv1d(12, 4, 3, padding="same", dilation=2), nn.Linear(4 * 9, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.stem(x[:, :, 0]))
        low = F.relu(self.norm(self.down(x)))
        y = F.relu(self.up_norm(self.up(F.max_pool1d(low, 3, 1, 1))))
        z = F.interpolate(F.avg_pool1d(self.up_too(low), 3, 3, 1), size=LENGTH, mode="linear")
        z = F.pad(F.pad(z, (2, 3), mode="reflect"), (1, 0), mode="replicate")[:, :, 3:-3]
        z = F.pad(torch.sigmoid(F.adaptive_max_pool1d(z, 48)), (8, 8), value=0.5) * x
        y = F.interpolate(F.avg_pool1d(y + z, 3, 2, 1, ceil_mode=True, count_include_pad=False), scale_factor=2)
        y = F.relu6(self.joined(torch.cat([y[:, :, :LENGTH], x], 1)))
        logits: Tensor = self.fc(F.adaptive_avg_pool1d(y, 9).flatten(1))
        return logits


def case_of(exports: Exports, network: nn.Module, config: QuantConfig) -> Case:
    images = np.random.default_rng(config.weight_bits).integers(0, 256, (6, *GRID.shape), np.uint8)
    return exports.case(network, config, images, GRID, seed=config.weight_bits)


@pytest.mark.parametrize("bits", [2, 3, 4, 7])
@pytest.mark.parametrize("build", [TimeSeries, Denoiser])
def test_every_code_and_logit_is_equal(exports: Exports, build: type[nn.Module], bits: int, tmp_path: Path) -> None:
    torch.manual_seed(bits)
    case = case_of(exports, build(), QuantConfig(weight_bits=bits, activation_bits=bits))
    for format_ in ("qlinear", "qdq"):
        values = exports.check_equal(case, tmp_path / f"{format_}.onnx", format=format_)
        assert len(np.unique(values["logits"])) > 1


def test_convolutions_read_low_bit_codes_through_the_padding(exports: Exports) -> None:
    """Zero padding before a convolution needs no 8-bit codes: the convolution absorbs it."""
    case = case_of(exports, TimeSeries(), QuantConfig())
    intervals = dict(case.prepared.get_submodule("intervals").named_children())
    assert {f"blocks_{index}_{layer}" for index in (0, 1) for layer in ("conv", "conv_too")} <= set(intervals)
    assert not any(isinstance(module, ConstantPad) for module in case.prepared.modules())


@pytest.mark.parametrize("float_rows", [False, True])
@pytest.mark.parametrize("kind", ["quantized", "frozen"])
def test_checkpoints_hold_them(
    exports: Exports, kind: Literal["quantized", "frozen"], *, float_rows: bool, tmp_path: Path
) -> None:
    """With `float_rows` as before: float parts, in a checkpoint without that key."""
    torch.manual_seed(0)

    def build(_name: str, _arguments: dict[str, Any]) -> nn.Module:
        return Denoiser()

    config = QuantConfig(allow_float=float_rows, float_rows=float_rows)
    case = case_of(exports, Denoiser(), config)
    model = case.prepared if kind == "quantized" else case.frozen
    info = CheckpointInfo(
        kind=kind, model_name="denoiser", model_arguments={}, config=config, preprocessing=GRID, data="digits",
        class_names=("a", "b", "c"), metrics={},
    )  # fmt: skip
    path = tmp_path / "rows.safetensors"
    save_checkpoint(path, info, model)
    if float_rows:
        info, tensors = read_checkpoint(path)
        content = json.loads(info.model_dump_json())
        del content["config"]["float_rows"]
        path.write_bytes(file_content(tensors, {METADATA_KEY: json.dumps(content)}))
    info, again = load_model(path, build)
    assert info.config == config
    x = torch.from_numpy(GRID.normalize(case.images))
    with torch.no_grad():
        torch.testing.assert_close(again(x), model.eval()(x), rtol=0, atol=0)
