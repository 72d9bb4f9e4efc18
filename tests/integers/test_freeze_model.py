"""Freezing: integers at every node, the same result by every way of computing it, and a model that still trains."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import Tensor, fx, nn

from qil_deploy.config import QuantConfig
from qil_deploy.errors import UnsupportedModelError
from qil_deploy.integers.freeze_model import freeze
from qil_deploy.integers.frozen_layer import FrozenLayer, drop_float_weights
from qil_deploy.integers.frozen_modules import FrozenAdd, FrozenGlobalAveragePool, FrozenRescale, Grid
from qil_deploy.network.calibration import calibrate
from qil_deploy.network.preparation import prepare
from qil_deploy.preprocessing import Preprocessing
from qil_deploy.quantizers import RangeQuantizer

if TYPE_CHECKING:
    from tests.trained_digits import Digits


@pytest.fixture(params=[2, 3, 4, 6, 8], scope="module")
def calibrated(digits: Digits, request: pytest.FixtureRequest) -> fx.GraphModule:
    """The network at several bit widths, some intervals reaching below zero and some beginning above it."""
    model = digits.prepare(request.param, train_gamma=request.param == 3)
    calibrate(model, digits.batches())
    for name, lower in (("intervals.conv1", -0.05), ("intervals.conv3", 0.03)):
        quantizer: Any = model.get_submodule(name)
        quantizer.set_thresholds(lower, quantizer.thresholds[1])
    return model.eval()


@pytest.fixture(scope="module")
def frozen(calibrated: fx.GraphModule) -> fx.GraphModule:
    return freeze(calibrated)


class Recorder(fx.Interpreter):
    """Runs a frozen model and records every tensor."""

    def __init__(self, model: fx.GraphModule) -> None:
        super().__init__(model)
        self.seen: dict[str, Tensor] = {}

    def run_node(self, n: fx.Node) -> object:
        self.seen[n.name] = result = super().run_node(n)
        return result


def modules_of(model: fx.GraphModule, kind: type[nn.Module]) -> dict[str, Any]:
    return {name: module for name, module in model.named_modules() if isinstance(module, kind)}


def logits_of(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        logits: Tensor = model(x)
    return logits


def test_every_node_is_one_of_the_runtimes_operations(frozen: fx.GraphModule) -> None:
    kinds = {type(frozen.get_submodule(str(n.target))).__name__ for n in frozen.graph.nodes if n.op == "call_module"}
    assert kinds == {
        "FrozenInput",
        "FrozenLayer",
        "FrozenRescale",
        "FrozenAdd",
        "FrozenGlobalAveragePool",
        "MaxPool2d",
        "Flatten",
    }
    assert {name: len(modules_of(frozen, kind)) for name, kind in (("l", FrozenLayer), ("r", FrozenRescale))} == {
        "l": 5,
        "r": 2,
    }
    assert not frozen.training


def test_every_tensor_holds_codes_within_its_grid(digits: Digits, frozen: fx.GraphModule) -> None:
    recorder = Recorder(frozen)
    with torch.no_grad():
        recorder.run(digits.fresh())
    checked = 0
    for node in frozen.graph.nodes:
        if node.op != "call_module" or node in frozen.graph.output_node().all_input_nodes:
            continue
        codes = recorder.seen[node.name]
        grid = getattr(frozen.get_submodule(str(node.target)), "y", None)
        low, high = grid.limits() if isinstance(grid, Grid) else (0, 255)
        assert torch.equal(codes, codes.round()), node.name
        assert low <= int(codes.min()), node.name
        assert int(codes.max()) <= high, node.name
        assert len(codes.unique()) > 1, node.name
        checked += 1
    assert checked >= 10
    for name, rescale in modules_of(frozen, FrozenRescale).items():
        assert recorder.seen[name.replace(".", "_") + "_1"].unique().numel() <= int(rescale.y.high) + 1


def test_evaluation_repeats_whatever_the_batch_and_the_kernel(digits: Digits, frozen: fx.GraphModule) -> None:
    x = digits.fresh()[:64]
    expected = logits_of(frozen, x)
    assert torch.equal(logits_of(frozen, x), expected)
    assert torch.equal(torch.cat([logits_of(frozen, image[None]) for image in x]), expected)
    assert torch.equal(logits_of(frozen, x.contiguous(memory_format=torch.contiguous_format)), expected)
    with torch.backends.mkldnn.flags(enabled=False):  # NNPACK would take over
        assert torch.equal(logits_of(frozen, x), expected)


@pytest.mark.parametrize("training", [False, True])
def test_autocast_changes_no_code_and_no_logit(digits: Digits, frozen: fx.GraphModule, training: bool) -> None:
    model = copy.deepcopy(frozen).train(training)
    for module in modules_of(model, nn.Dropout).values():
        module.eval()
    x = digits.fresh()[:64]
    recorders = Recorder(model), Recorder(model)
    recorders[0].run(x)
    with torch.autocast("cpu", torch.bfloat16):
        recorders[1].run(x)
    for name, expected in recorders[0].seen.items():
        assert recorders[1].seen[name].dtype is expected.dtype, name
        assert torch.equal(recorders[1].seen[name], expected), name


def test_no_sum_needs_more_than_float32_holds(
    digits: Digits, frozen: fx.GraphModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = digits.fresh()[:64]
    expected = logits_of(frozen, x)
    monkeypatch.setattr("qil_deploy.integers.frozen_layer.EXACT_FLOAT32", 0)  # everything in float64
    assert torch.equal(logits_of(frozen, x), expected)


def test_a_state_dict_carries_everything(digits: Digits, calibrated: fx.GraphModule, frozen: fx.GraphModule) -> None:
    other = copy.deepcopy(calibrated)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.3)
    blank = freeze(other)
    x = digits.fresh()
    assert not torch.equal(logits_of(blank, x), logits_of(frozen, x))
    state = {name: tensor.clone() for name, tensor in frozen.state_dict().items()}
    blank.load_state_dict(state)
    assert torch.equal(logits_of(blank, x), logits_of(frozen, x))
    # Training mode folds the parameters anew, and finds the same integers.
    blank.train().eval()
    assert torch.equal(logits_of(blank, x), logits_of(frozen, x))


def test_freezing_changes_few_predictions(digits: Digits, calibrated: fx.GraphModule, frozen: fx.GraphModule) -> None:
    before, after = logits_of(calibrated, digits.fresh()), logits_of(frozen, digits.fresh())
    assert float((before.argmax(1) == after.argmax(1)).float().mean()) >= 0.97
    assert float((before - after).norm() / before.norm()) <= 0.05


def test_the_prepared_model_is_left_alone(digits: Digits, calibrated: fx.GraphModule) -> None:
    before = logits_of(calibrated, digits.fresh())
    state = {name: tensor.clone() for name, tensor in calibrated.state_dict().items()}
    freeze(calibrated).train()(digits.images[:8])
    assert torch.equal(logits_of(calibrated, digits.fresh()), before)
    assert all(torch.equal(tensor, state[name]) for name, tensor in calibrated.state_dict().items())


def test_training_mode_computes_what_evaluation_does(digits: Digits, frozen: fx.GraphModule) -> None:
    model = copy.deepcopy(frozen)
    x = digits.fresh()[:64]
    assert torch.equal(model.train()(x).detach(), logits_of(frozen, x))


def test_gradients_reach_weights_norms_and_weight_intervals(digits: Digits, frozen: fx.GraphModule) -> None:
    model = copy.deepcopy(frozen).train()
    nn.functional.cross_entropy(model(digits.images[:128]), digits.labels[:128]).backward()
    silent = set()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        if not parameter.grad.any():
            silent.add(name)
    assert not silent


def test_norms_keep_their_statistics_and_evaluation_uses_what_training_left(
    digits: Digits, frozen: fx.GraphModule
) -> None:
    model = copy.deepcopy(frozen)
    statistics = {name: tensor.clone() for name, tensor in model.named_buffers() if "running" in name}
    assert statistics
    before = {name: tensor.clone() for name, tensor in model.named_buffers()}
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for batch, labels in zip(digits.images[:512].split(128), digits.labels[:512].split(128), strict=True):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(batch), labels).backward()
        optimizer.step()
    in_training = model(digits.fresh()[:64]).detach()
    # Until training ends the buffers are those of the start; then they follow.
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.named_buffers())
    model.eval()
    assert torch.equal(logits_of(model, digits.fresh()[:64]), in_training)
    after = dict(model.named_buffers())
    assert all(torch.equal(after[name], tensor) for name, tensor in statistics.items())
    for name, layer in modules_of(model, FrozenLayer).items():
        assert not torch.equal(layer.bias, before[f"{name}.bias"]), name


def test_a_short_frozen_training_lowers_the_loss(digits: Digits) -> None:
    model = digits.prepare(2)
    calibrate(model, digits.batches())
    model = freeze(model)
    x, labels = digits.images[:256], digits.labels[:256]

    def loss() -> float:
        return float(nn.functional.cross_entropy(logits_of(model.eval(), x), labels))

    before = loss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    model.train()
    for _ in range(20):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), labels).backward()
        optimizer.step()
    assert loss() < 0.8 * before


def integers(x: Tensor) -> np.ndarray[Any, np.dtype[np.int64]]:
    return np.asarray(x.numpy(), dtype=np.int64)


def rounded(total: Any, q: int, grid: Grid) -> Any:  # noqa: ANN401 - arrays of exact integers
    assert q % 2 == 1
    assert (2 * total % (2 * q) != q).all()  # no tie, whatever the codes
    return np.clip(np.rint(total / q) + int(grid.zero_point), *grid.limits())


def test_rescales_add_and_pool_are_exact_fractions(frozen: fx.GraphModule) -> None:
    codes = torch.arange(256.0).reshape(1, 1, 16, 16)
    for rescale in modules_of(frozen, FrozenRescale).values():
        q, p, k = (int(value) for value in (rescale.denominator, rescale.numerator, rescale.offset_numerator))
        total = (integers(codes) - int(rescale.x.zero_point)) * p - k
        np.testing.assert_array_equal(rescale(codes).numpy(), rounded(total, q, rescale.y))
        # The fraction is the ratio it stands for: within half a step, at most a hundredth of a code or so.
        assert p / q == pytest.approx(float(rescale.x.scale) / float(rescale.y_step), abs=0.51 / q)
    for add in modules_of(frozen, FrozenAdd).values():
        a, b = codes.reshape(256, 1), codes.reshape(1, 256)
        p_a, p_b = add.numerators.tolist()
        total = (integers(a) - int(add.a.zero_point)) * p_a + (integers(b) - int(add.b.zero_point)) * p_b
        np.testing.assert_array_equal(add(a, b).numpy(), rounded(total, int(add.denominator), add.y))
        for p, grid in ((p_a, add.a), (p_b, add.b)):
            ratio = float(grid.scale) / float(add.y.scale)
            assert p / int(add.denominator) == pytest.approx(ratio, abs=0.51 / int(add.denominator))
    for pool in modules_of(frozen, FrozenGlobalAveragePool).values():
        x = torch.randint(0, 256, (500, 3, 4, 4)).float()
        total = (integers(x) - int(pool.x.zero_point)).sum((2, 3), keepdims=True) * int(pool.numerator)
        np.testing.assert_array_equal(pool(x).numpy(), rounded(total, int(pool.denominator), pool.y))


def test_grids_come_from_the_ranges_that_were_learned(calibrated: fx.GraphModule, frozen: fx.GraphModule) -> None:
    ranges: dict[str, Any] = modules_of(calibrated, RangeQuantizer)
    stem: Any = frozen.get_submodule("stem")
    learned = ranges["ranges.relu"]
    assert float(stem.y.scale) == float(learned.step.detach())
    assert (int(stem.y.zero_point), stem.y.limits()) == (0, (0, 255))
    conv2: Any = frozen.get_submodule("conv2")
    assert int(conv2.y.zero_point) == 128


def test_the_lowest_code_behind_a_relu_is_that_of_zero(calibrated: fx.GraphModule) -> None:
    model = copy.deepcopy(calibrated)
    quantizer: Any = model.get_submodule("intervals.conv2")
    quantizer.set_thresholds(-0.5, 1.0)
    q = quantizer.largest_code
    layer: Any = freeze(model).get_submodule("conv1")
    assert int(layer.y.low) == round(q / 3)
    quantizer.set_thresholds(0.5, 1.0)
    layer = freeze(model).get_submodule("conv1")
    assert int(layer.y.low) == 0
    quantizer.set_thresholds(-2.0, -1.0)
    layer = freeze(model).get_submodule("conv1")
    assert int(layer.y.low) == q


def test_paper_placement_is_refused(digits: Digits) -> None:
    model = digits.prepare(4, "paper")
    calibrate(model, digits.batches())
    with pytest.raises(
        UnsupportedModelError, match="'paper' placement keeps float layers and cannot be frozen; prepare"
    ):
        freeze(model)


def test_a_frozen_model_is_refused(frozen: fx.GraphModule) -> None:
    with pytest.raises(UnsupportedModelError, match="the model is frozen already; give freeze the prepared model"):
        freeze(frozen)


def test_without_its_float_weights_a_model_computes_the_same(digits: Digits, calibrated: fx.GraphModule) -> None:
    prepared = copy.deepcopy(calibrated)
    kept, frozen = freeze(prepared), freeze(prepared, share_parameters=True)
    shared = {id(parameter) for parameter in prepared.parameters()}
    assert {id(parameter) for parameter in frozen.parameters()} <= shared
    assert not {id(parameter) for parameter in kept.parameters()} & shared
    drop_float_weights(frozen)
    assert all(layer.layer.weight.numel() == 0 for layer in modules_of(frozen, FrozenLayer).values())
    images = digits.fresh()[:32]
    assert torch.equal(logits_of(frozen, images), logits_of(kept, images))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_a_model_on_a_gpu_is_frozen_there_and_computes_the_same_integers() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 5))
    pixels = Preprocessing.from_statistics((1, 8, 8), 0.5, 0.5)
    images = np.random.default_rng(0).integers(0, 256, (32, 1, 8, 8), np.uint8)
    x = torch.from_numpy(pixels.normalize(images))
    prepared = prepare(network, QuantConfig(), x, input_grid=pixels)
    calibrate(prepared, [x])
    expected = freeze(prepared)(x)
    frozen = freeze(prepared.cuda())
    assert {tensor.device.type for tensor in frozen.state_dict().values()} == {"cuda"}
    torch.testing.assert_close(frozen(x.cuda()).cpu(), expected, atol=0, rtol=0)
