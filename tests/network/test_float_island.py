"""`allow_float`: operations that it keeps, those it still refuses, and the arithmetic around them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qil_deploy.config import QuantConfig
from qil_deploy.errors import ConfigError, UnsupportedModelError
from qil_deploy.integers.freeze_model import freeze
from qil_deploy.integers.frozen_modules import FrozenFloat
from qil_deploy.network.calibration import calibrate
from qil_deploy.network.capture import capture_network
from qil_deploy.network.float_island import FloatIsland
from qil_deploy.network.preparation import prepare
from qil_deploy.preprocessing import Preprocessing

PIXELS = Preprocessing.from_statistics((1, 6, 6), 0.5, 0.25)
X = torch.from_numpy(PIXELS.normalize(torch.arange(4 * 36, dtype=torch.uint8).reshape(4, 1, 6, 6).numpy()))


class Around(nn.Module):
    """A convolution, some `operation` on its result, and a linear layer."""

    def __init__(self, operation: Callable[[Any, Tensor], Tensor], **modules: nn.Module) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.gain = nn.Parameter(torch.full((4, 1, 1), 0.5))
        self.fc = nn.Linear(64, 3)
        for name, module in modules.items():
            self.add_module(name, module)
        self.operation = operation

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, 1, 6, 6] to [N, 3]."""
        return self.fc(torch.flatten(self.operation(self, self.conv(x)), 1))  # type: ignore[no-any-return] # modules return Any


def islands(network: nn.Module) -> dict[str, FloatIsland]:
    traced = capture_network(network.eval(), X[:1], allow_float=True)
    return {name: module for name, module in traced.named_modules() if isinstance(module, FloatIsland)}


KEPT: dict[str, tuple[nn.Module, list[str], list[bool]]] = {
    "module": (Around(lambda m, x: m.act(x), act=nn.GELU()), ["act"], [True]),
    "called twice": (Around(lambda m, x: m.act(m.act(x)), act=nn.Mish()), ["act", "act_2"], [True, True]),
    "function": (Around(lambda _, x: F.softplus(x)), ["softplus"], [False]),
    "method": (Around(lambda _, x: x.exp()), ["exp"], [False]),
    "scalar": (Around(lambda _, x: x.pow(3)), ["pow_1"], [True]),
    "dimension": (Around(lambda _, x: x.softmax(dim=1)), ["softmax"], [False]),
    "square": (Around(lambda _, x: x.square()), ["square"], [True]),
    "gate": (Around(lambda _, x: x.tanh() * x.tanh().mean(1, keepdim=True)), [], []),
    "parameter": (Around(lambda m, x: x * m.gain.exp()), ["mul"], [True]),
    "in place": (Around(lambda _, x: F.elu(x, inplace=True)), ["elu"], [True]),
    "read after it is written": (Around(lambda _, x: F.elu(x, inplace=True) + x), ["elu"], [True]),
    "sizes": (Around(lambda _, x: x[:, :1].expand(x.size(0), 4, 4, 4)), ["expand"], [True]),
    "recurrent": (Around(lambda m, x: m.lstm(x.flatten(2))[0], lstm=nn.LSTM(16, 16, batch_first=True)), [], []),
    "layer that cannot be lowered": (Around(lambda m, x: m.clip(x), clip=nn.Hardshrink()), ["clip"], [True]),
}


@pytest.mark.parametrize("case", KEPT)
def test_an_operation_becomes_an_island_and_computes_the_same(case: str) -> None:
    network, names, signed = KEPT[case]
    found = islands(network)
    if names:
        assert list(found) == names
        assert [island.is_signed([True] * len(island.input_shapes)) for island in found.values()] == signed
    with torch.no_grad():
        traced = capture_network(network.eval(), X[:1], allow_float=True)
        torch.testing.assert_close(traced(X), network(X), rtol=0, atol=0)
    with pytest.raises(UnsupportedModelError, match=r"cannot be lowered.* or keep it in float with allow_float\.$"):
        capture_network(network, X[:1])


@pytest.mark.parametrize(
    ("operation", "reason"),
    [
        (lambda _, x: x + x.argmax(1, keepdim=True), "'argmax' .* makes integers"),
        (lambda _, x: x - x.mean(0, keepdim=True), "'mean' .* makes a tensor of shape"),
        (lambda _, x: x.softmax(0), "'softmax' .* does not compute each image for itself"),
        (lambda _, x: F.alpha_dropout(x, training=True), "'alpha_dropout' .* draws random numbers"),
        (lambda _, x: x.flatten(0, 1).view(1, 4, 4, 4), r"does not run on an input of shape \[2, 1, 6, 6\]"),
        (lambda _, x: -x if x.sum() > 0 else x, r"test_float_island.py, line \d+\): what it does depends on values"),
    ],
)
def test_what_is_still_refused(operation: Callable[[Any, Tensor], Tensor], reason: str) -> None:
    network = Around(operation, lstm=nn.LSTM(16, 16, batch_first=True))
    with pytest.raises(UnsupportedModelError, match=reason):
        capture_network(network.eval(), X[:1], allow_float=True)


def test_paper_placement_keeps_no_islands() -> None:
    with pytest.raises(ConfigError, match=r"allow_float is for placement 'integer'"):
        QuantConfig(placement="paper", allow_float=True)


def test_frozen_codes_follow_from_the_grids() -> None:
    network = Around(lambda m, x: torch.logaddexp(m.act(x), x), act=nn.GroupNorm(2, 4))
    torch.manual_seed(0)
    prepared = prepare(network, QuantConfig(allow_float=True), X[:1], input_grid=PIXELS)
    calibrate(prepared, [X])
    frozen = freeze(prepared)
    combined = frozen.get_submodule("logaddexp")
    assert isinstance(combined, FrozenFloat)
    assert int(combined.y.zero_point) == 128
    (a, b), rng = combined.reads(), torch.Generator().manual_seed(1)
    codes_a = torch.randint(0, 256, (2, 4, 4, 4), generator=rng).float()
    codes_b = torch.randint(0, 256, (2, 4, 4, 4), generator=rng).float()
    real = torch.logaddexp((codes_a - int(a.zero_point)) * a.scale, (codes_b - int(b.zero_point)) * b.scale)
    expected = ((real / combined.y.scale).round() + 128).clamp(0, 255)
    torch.testing.assert_close(combined(codes_a, codes_b), expected, rtol=0, atol=0)
    assert any(name.startswith("act.island.") for name, _ in frozen.named_parameters())
    prepared.eval()
    with torch.no_grad():
        assert float((prepared(X) - frozen(X)).abs().max()) < 0.1 * float(prepared(X).abs().max())
