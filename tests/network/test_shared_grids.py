"""Grids and codes of concatenations, average pools, lone BatchNorms and ReLUs, ReLU6, and unusual logits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from qil_deploy.config import QuantConfig
from qil_deploy.integers.freeze_model import freeze
from qil_deploy.integers.frozen_layer import FrozenLayer
from qil_deploy.integers.frozen_modules import FrozenDequantize, FrozenMeanLogits
from qil_deploy.network.calibration import calibrate
from qil_deploy.network.capture import capture_network
from qil_deploy.network.graph import module_of
from qil_deploy.network.layers import GlobalAveragePool, QuantConv2d, Standalone
from qil_deploy.network.moves import Concat
from qil_deploy.network.preparation import prepare
from qil_deploy.preprocessing import Preprocessing
from qil_deploy.quantizers import ActivationQuantizer, RangeQuantizer

SIZE = 8
GRID = Preprocessing(channels=3, height=SIZE, width=SIZE, scale=0.0123, zero_point=77)


class Network(nn.Module):
    """A stem, two branches of it, and a linear layer; the function in between is the case."""

    def __init__(self, function: Callable[[Network, Tensor], Tensor], features: int, **modules: nn.Module) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU())
        self.left = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.ReLU())
        self.right = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU())
        self.inner = nn.Conv2d(8, 4, 1)
        self.fc = nn.Linear(features, 5)
        for name, module in modules.items():
            self.add_module(name, module)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - modules that the cases call
        return super().__getattr__(name)


def prepared(model: nn.Module, **config: object) -> fx.GraphModule:
    return prepare(model, QuantConfig(**config), torch.zeros(1, 3, SIZE, SIZE), input_grid=GRID)


def calls(model: fx.GraphModule, kind: type[nn.Module]) -> dict[str, list[str]]:
    """Return the inputs of each module of a kind, by name: one entry per call."""
    found: dict[str, list[str]] = {}
    for node in model.graph.nodes:
        if node.op == "call_module" and isinstance(module_of(model, node), kind):
            found.setdefault(str(node.target), []).append(str(node.all_input_nodes[0].target))
    return found


def images(count: int = 16) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    pixels = torch.randint(0, 256, (count, 3, SIZE, SIZE), generator=generator, dtype=torch.uint8)
    return torch.from_numpy(GRID.normalize(pixels.numpy()))


def frozen_and_prepared(model: nn.Module, **config: object) -> tuple[fx.GraphModule, fx.GraphModule]:
    quantized = prepared(model, **config)
    calibrate(quantized, [images()])
    return freeze(quantized), quantized.eval()


def pooled(model: Network, y: Tensor) -> Tensor:
    logits: Tensor = model.fc(F.adaptive_avg_pool2d(y, 1).flatten(1))
    return logits


def two_branches(model: Network, x: Tensor) -> Tensor:
    x = model.stem(x)
    return pooled(model, F.relu(model.inner(torch.cat([model.left(x), model.right(x)], 1))))


def test_branches_that_only_an_inner_layer_reads_share_its_interval() -> None:
    model = prepared(Network(two_branches, 4))
    intervals = calls(model, ActivationQuantizer)
    assert sorted(intervals["intervals.inner"]) == ["left.2", "right.1"]
    assert isinstance(model.get_submodule("cat"), Concat)


def test_branches_that_something_else_reads_share_a_range_and_the_interval_follows() -> None:
    def function(model: Network, x: Tensor) -> Tensor:
        x = model.stem(x)
        joined = torch.cat([model.left(x), model.right(x)], 1)
        return pooled(model, torch.cat([model.inner(joined), F.max_pool2d(joined, 3, 1, 1)], 1))

    model = prepared(Network(function, 12))
    assert calls(model, ActivationQuantizer)["intervals.inner"] == ["cat"]
    # The inner layer's result joins what it reads, through the pooling: one grid for all three, signed like it.
    ranges = calls(model, RangeQuantizer)
    assert ranges["ranges.left_2"] == ["left.2", "right.1", "inner"]
    assert ranges["ranges.adaptive_avg_pool2d_1"] == ["adaptive_avg_pool2d"]
    assert model.get_submodule("ranges.left_2").signed


def test_a_dense_block_has_one_grid_and_lone_norms_become_layers() -> None:
    def function(model: Network, x: Tensor) -> Tensor:
        x = model.stem(x)
        y = model.first(F.relu(model.norm1(torch.cat([x], 1))))
        z = model.second(F.relu(model.norm2(torch.cat([x, y], 1))))
        return pooled(model, F.relu(model.norm3(torch.cat([x, y, z], 1))))

    norms = {f"norm{index}": nn.BatchNorm2d(4 * index) for index in (1, 2, 3)}
    network = Network(function, 12, first=nn.Conv2d(4, 4, 3, padding=1), second=nn.Conv2d(8, 4, 1), **norms)
    model = prepared(network)
    assert calls(model, RangeQuantizer)["ranges.stem_1"] == ["stem.1", "first", "second"]
    standalone = {name: model.get_submodule(name) for name in ("norm1_input", "norm2_input", "norm3_input")}
    for index, layer in enumerate(standalone.values(), start=1):
        assert isinstance(layer, QuantConv2d)
        assert layer.groups == layer.out_channels == 4 * index
        assert not any(parameter.requires_grad for parameter in layer.parameters())
    assert set(calls(model, ActivationQuantizer)) == {"intervals.first", "intervals.second"}


@pytest.mark.parametrize("placement", ["integer", "paper"])
def test_a_lone_relu_and_an_average_pool_compute_what_they_did(placement: str) -> None:
    def function(model: Network, x: Tensor) -> Tensor:
        x = F.avg_pool2d(model.stem[0](x), 3, 2, 1)
        y = F.relu(x)
        return pooled(model, x + y)

    network = Network(function, 4).eval()
    model = prepared(network, placement=placement, weight_bits=8, activation_bits=7).eval()
    for module in model.modules():
        if isinstance(module, ActivationQuantizer | RangeQuantizer):
            module.forward = lambda x: x  # type: ignore[method-assign] # without rounding nothing changes
    assert (len(calls(model, Standalone)) == 1) == (placement == "paper")
    model.get_buffer("calibrated").fill_(True)  # there is nothing to calibrate
    if placement == "paper":  # the layers are float there; in integer placement their weights are rounded
        torch.testing.assert_close(model(images()), network(images()))


@pytest.mark.parametrize("divisor", [None, 5])
@pytest.mark.parametrize(("kernel", "stride", "padding"), [(2, 2, 0), (3, 2, 1), ((2, 4), (1, 2), (0, 1)), (1, 2, 0)])
def test_an_average_pool_as_a_layer_computes_its_mean(
    kernel: int | tuple[int, int], stride: int | tuple[int, int], padding: int | tuple[int, int], divisor: int | None
) -> None:
    pool = nn.AvgPool2d(kernel, stride, padding, divisor_override=divisor)

    def function(model: Network, x: Tensor) -> Tensor:
        return pooled(model, model.pool(model.stem(x)))

    layer = prepared(Network(function, 4, pool=pool)).get_submodule("pool")
    x = torch.rand(2, 4, SIZE, SIZE)
    assert isinstance(layer, QuantConv2d)
    torch.testing.assert_close(layer(x), pool(x))


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("activation", [nn.ReLU6(), nn.Hardtanh(0.0, 0.7), nn.ReLU()])
def test_codes_end_at_the_bounds_of_the_activation(bits: int, activation: nn.Module) -> None:
    def function(model: Network, x: Tensor) -> Tensor:
        return pooled(model, F.relu(model.right[0](model.activation(model.stem[0](x)))))

    model = prepared(Network(function, 4, activation=activation), weight_bits=4, activation_bits=bits)
    calibrate(model, [images()])
    quantizer: Any = model.get_submodule("intervals.right_0")
    quantizer.set_thresholds(-0.3, 9.0)
    layer: Any = freeze(model).get_submodule("stem.0")
    step = float(np.float32(9.3 / (2**bits - 1)))
    upper = getattr(activation, "max_val", None)
    assert int(layer.y.low) == np.rint(0.3 / step)
    assert int(layer.y.high) == (2**bits - 1 if upper is None else np.rint((upper + 0.3) / step))


def test_a_relu_within_a_signed_group_ends_at_its_zero_point() -> None:
    def function(model: Network, x: Tensor) -> Tensor:
        x = model.stem(x)
        return pooled(model, torch.cat([model.left(x), model.right[0](x)], 1))

    frozen, _ = frozen_and_prepared(Network(function, 8))
    left, right = (frozen.get_submodule(name) for name in ("left.0", "right.0"))
    assert isinstance(left, FrozenLayer)
    assert isinstance(right, FrozenLayer)
    assert left.y is not None
    assert right.y is not None
    assert (left.y.limits(), right.y.limits()) == ((128, 255), (0, 255))
    assert left.y.scale == right.y.scale


def squeezenet_head(model: Network, x: Tensor) -> Tensor:
    return F.adaptive_avg_pool2d(F.relu(model.right[0](model.stem(x))), 1).flatten(1)


def signed_pool(model: Network, x: Tensor) -> Tensor:
    return F.adaptive_avg_pool2d(model.right[0](model.stem(x)), 1).flatten(1)


def flat_convolution(model: Network, x: Tensor) -> Tensor:
    return F.max_pool2d(model.right[0](model.stem(x)), 8).flatten(1)


def sum_of_two(model: Network, x: Tensor) -> Tensor:
    rows = F.max_pool2d(model.stem(x), 8).flatten(1)
    return model.fc(rows) + model.other(rows)  # type: ignore[no-any-return] # modules return anything


def relu_logits(model: Network, x: Tensor) -> Tensor:
    return F.relu(model.fc(F.max_pool2d(model.stem(x), 8).flatten(1)))


@pytest.mark.parametrize(
    ("function", "last"),
    [
        (squeezenet_head, FrozenMeanLogits),
        (signed_pool, FrozenMeanLogits),
        (flat_convolution, FrozenDequantize),
        (sum_of_two, FrozenDequantize),
        (relu_logits, FrozenDequantize),
    ],
)
def test_logits_that_no_linear_layer_makes(
    function: Callable[[Network, Tensor], Tensor], last: type[nn.Module]
) -> None:
    frozen, quantized = frozen_and_prepared(Network(function, 4, other=nn.Linear(4, 5)))
    x = images(64)
    with torch.no_grad():
        found, expected = frozen(x), quantized(x)
    ends = [module for module in frozen.modules() if isinstance(module, last)]
    assert len(ends) == 1
    # Freezing moves codes by one at most here and there; logits by a step of their grid.
    assert float((found - expected).norm() / expected.norm()) < 0.03
    assert len(expected.unique()) > 20


def test_quantizers_that_several_tensors_share_are_set_from_the_largest() -> None:
    model = prepared(Network(two_branches, 4))
    seen: list[float] = []
    quantizer: Any = model.get_submodule("intervals.inner")
    initialize = quantizer.initialize

    def spy(x: Tensor) -> float:
        seen.append(initialize(x))
        return seen[-1]

    quantizer.initialize = spy
    batches = [images(8), 2 * images(8)]
    calibrate(model, batches)
    assert len(seen) == 4
    expected = np.sqrt(max(seen[:2]) * max(seen[2:]))
    np.testing.assert_allclose(quantizer.thresholds[1], expected, rtol=1e-6)


def test_an_interval_of_signed_activations_starts_symmetric() -> None:
    def function(model: Network, x: Tensor) -> Tensor:
        return pooled(model, model.right[0](model.stem[0](x)))

    model = prepared(Network(function, 4))
    calibrate(model, [images()])
    quantizer: Any = model.get_submodule("intervals.right_0")
    lower, upper = quantizer.thresholds
    assert lower == pytest.approx(-upper)


def test_a_bias_in_front_of_a_norm_moves_into_its_mean() -> None:
    network = Network(two_branches, 4)
    convolution: Any = network.left[0]
    float_norm: Any = network.left[1].eval()
    with torch.no_grad():
        convolution.bias.normal_()
        float_norm.running_mean.normal_()
    model = prepared(network, placement="paper").eval()
    layer: Any = model.get_submodule("left.0")
    norm: Any = model.get_submodule("left.1")
    x = torch.rand(2, 4, SIZE, SIZE)
    biased = F.conv2d(x, layer.weight_quantizer(layer.weight), convolution.bias)
    torch.testing.assert_close(norm(layer(x)), float_norm(biased))


class Rewritten(nn.Module):
    """A network that is one function of its input."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.function = nn.Conv2d(3, 4, 1), function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.conv(x))


REWRITTEN: dict[str, tuple[Callable[[Tensor], Tensor], type[nn.Module] | None]] = {
    "view": (lambda x: x.view(x.size(0), -1), nn.Flatten),
    "view by shape": (lambda x: x.view(x.shape[0], x.shape[1] * x.shape[2] * x.shape[3]), nn.Flatten),
    "reshape": (lambda x: torch.reshape(x, (-1, 256)), nn.Flatten),
    "pooling of the whole image": (lambda x: F.avg_pool2d(x, x.size(3)).flatten(1), GlobalAveragePool),
    "adaptive pooling to the same size": (lambda x: F.adaptive_avg_pool2d(x, 8).flatten(1), None),
    "adaptive pooling to a divisor": (lambda x: F.adaptive_avg_pool2d(x, (4, None)).flatten(1), nn.AvgPool2d),
    "adaptive pooling to more": (lambda x: F.adaptive_avg_pool2d(x, 16).flatten(1), nn.Upsample),
    "rounding up that changes nothing": (
        lambda x: F.avg_pool2d(x, 2, ceil_mode=True).flatten(1),
        nn.AvgPool2d,
    ),
    "relu6": (lambda x: F.relu6(x).flatten(1), nn.ReLU6),
    "clamp": (lambda x: torch.clamp(x, 0, 3).flatten(1), nn.Hardtanh),
    "clamp from below": (lambda x: x.clamp(min=0).flatten(1), nn.ReLU),
    "hardtanh": (lambda x: F.hardtanh(x, 0, 2).flatten(1), nn.Hardtanh),
    "concatenation of one": (lambda x: torch.cat([x], 1).flatten(1), None),
    "concatenation with itself": (lambda x: torch.cat([x, x], dim=-3).flatten(1), Concat),
    "nearest neighbours": (lambda x: F.interpolate(x, scale_factor=2).flatten(1), nn.Upsample),
    "nearest neighbours by size": (lambda x: F.interpolate(x, (8, 24)).flatten(1), nn.Upsample),
}


@pytest.mark.parametrize("case", REWRITTEN)
def test_functional_forms_become_modules_that_compute_the_same(case: str) -> None:
    function, kind = REWRITTEN[case]
    network = Rewritten(function)
    traced = capture_network(network, torch.zeros(1, 3, SIZE, SIZE))
    x = torch.randn(3, 3, SIZE, SIZE)
    torch.testing.assert_close(traced(x), network(x), rtol=1e-6, atol=1e-6)
    found = {type(module) for module in traced.children()} - {nn.Conv2d, nn.Flatten}
    assert found == {kind} - {nn.Flatten, None}
