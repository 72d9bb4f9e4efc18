"""Stochastic depth is captured: off in evaluation, dropping images in training, under the user's name."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torchvision
from timm.layers.drop import DropPath as DropPathOfTimm
from torch import Tensor, nn

from qil_deploy.config import QuantConfig
from qil_deploy.errors import UnsupportedModelError
from qil_deploy.network.drop_path import DropPath, replace_drop_paths
from qil_deploy.network.preparation import prepare

from .prepared_network import GRID


class Residual(nn.Module):
    """A residual block whose branch may be dropped."""

    def __init__(self, drop: nn.Module) -> None:
        super().__init__()
        self.stem, self.conv, self.drop = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1), drop
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        x = x + self.drop(self.conv(x))
        return self.fc(x.mean((2, 3)))  # type: ignore[no-any-return] # a tensor


KNOWN: dict[str, Callable[[], nn.Module]] = {
    "torchvision": lambda: torchvision.ops.StochasticDepth(0.5, "row"),
    "timm": lambda: DropPathOfTimm(0.5),
}


@pytest.mark.parametrize("package", KNOWN)
def test_a_prepared_network_drops_images_in_training_alone(package: str) -> None:
    network = Residual(KNOWN[package]())
    model = prepare(network, QuantConfig(), torch.zeros(1, *GRID.shape), input_grid=GRID)
    drop = model.get_submodule("drop")
    assert isinstance(drop, DropPath)
    assert drop.p == 0.5
    assert not isinstance(network.drop, DropPath)  # the caller's stays
    x = torch.ones(400, 4, 2, 2)
    torch.manual_seed(0)
    kept = drop.train()(x)
    assert set(kept.unique().tolist()) == {0.0, 2.0}
    assert (kept.flatten(1).std(1) == 0).all()  # whole images
    assert 140 < int((kept[:, 0, 0, 0] == 0).sum()) < 260
    assert torch.equal(drop.eval()(x), x)


def test_other_kinds_stay_and_are_refused() -> None:
    for drop in (torchvision.ops.StochasticDepth(0.5, "batch"), DropPathOfTimm(0.5, scale_by_keep=False)):
        network = Residual(drop)
        replace_drop_paths(network)
        assert network.drop is drop
        with pytest.raises(UnsupportedModelError, match="draws random numbers in training mode: bernoulli_"):
            prepare(network, QuantConfig(), torch.zeros(1, *GRID.shape), input_grid=GRID)
