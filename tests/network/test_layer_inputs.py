"""Inputs of layers, layer after layer: the same as in a run of the whole model in its present state."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from qil_deploy.config import QuantConfig
from qil_deploy.network.bit_widths import quantized_layers
from qil_deploy.network.calibration import calibrate
from qil_deploy.network.layer_inputs import LayerInputs
from qil_deploy.network.preparation import prepare
from qil_deploy.network.quantized_model import PreparedModel
from qil_deploy.preprocessing import Preprocessing


class Branches(nn.Module):
    """Two convolutions with one input, an addition over both, and a concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.left, self.right = (nn.Conv2d(c, 4, 3, padding=1) for c in (3, 4, 4))
        self.after, self.head = nn.Conv2d(4, 4, 1), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        y = (self.left(x) + self.right(x) + x).relu()
        y = torch.cat([self.after(y).relu(), x], 1)
        return self.head(y.mean((2, 3)))  # type: ignore[no-any-return] # a tensor


def model_and_batches() -> tuple[PreparedModel, list[Tensor]]:
    torch.manual_seed(0)
    grid = Preprocessing(channels=3, height=6, width=6, scale=1 / 64, zero_point=128)
    batches = [torch.randint(-128, 128, (count, 3, 6, 6)) / 64 for count in (3, 3, 2)]
    model = prepare(Branches().eval(), QuantConfig(), batches[0][:1], input_grid=grid)
    calibrate(model, batches)
    return model.eval(), batches


@pytest.mark.parametrize("kept_bytes", [0, 3000, 2**30])
def test_layers_read_what_they_do_in_a_whole_run(monkeypatch: pytest.MonkeyPatch, kept_bytes: int) -> None:
    monkeypatch.setattr("qil_deploy.network.layer_inputs._KEPT_BYTES", kept_bytes)
    model, batches = model_and_batches()
    copies = [batch.clone() for batch in batches]
    inputs = LayerInputs(model, batches)
    layers = quantized_layers(model)
    assert len(layers) == 5
    for node in [node for node in model.graph.nodes if str(node.target) in layers]:
        layer = layers[str(node.target)]
        read: list[Tensor] = []
        with torch.no_grad(), layer.register_forward_pre_hook(lambda _, given, read=read: read.append(given[0])):
            for batch in batches:
                model(batch)
        found = list(inputs.of(node))
        assert all(torch.equal(a, b) for a, b in zip(found, read, strict=True)), node.target
        with torch.no_grad():
            layer.weight.mul_(-1)  # what all behind it read changes
    assert all(torch.equal(a, b) for a, b in zip(batches, copies, strict=True))
