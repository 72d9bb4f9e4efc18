"""One phase of training: schedule, optimizers, evaluation, divergence."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from qil_deploy.config import QuantConfig
from qil_deploy.datasets import ImageSet
from qil_deploy.errors import TrainingError
from qil_deploy.network.calibration import calibrate
from qil_deploy.network.preparation import prepare
from qil_deploy.preprocessing import Preprocessing
from qil_deploy.quantizers import interval_parameters
from qil_deploy.terminal.console import Console
from qil_deploy.terminal.progress import Progress
from qil_deploy.training.data.memory_batches import ArrayBatches
from qil_deploy.training.fit import EpochMetrics, Phase, train_epochs
from qil_deploy.training.models.build import build_model, memory_format_for
from qil_deploy.training.optimizers import make_optimizers, output_parameters, rate_factor
from qil_deploy.training.recipe_sections import OptimizerSection
from qil_deploy.training.run_state import Learner, Position

from .conftest import MemoryRecord, accuracy

PREPROCESSING = Preprocessing(channels=1, height=8, width=8, scale=0.01, zero_point=128)


def section(**values: object) -> OptimizerSection:
    return OptimizerSection.model_validate({"epochs": 2, "batch_size": 16} | values)


@pytest.fixture
def data(rng: np.random.Generator) -> ImageSet:
    """Two classes distinguished by the mean grey level."""
    labels = np.arange(64) % 2
    images = np.clip(rng.normal(80 + 90 * labels[:, None, None, None], 20, (64, 1, 8, 8)), 0, 255)
    return ImageSet(images=images.astype(np.uint8), labels=labels, class_names=("dark", "bright"))


def batches(data: ImageSet) -> ArrayBatches:
    return ArrayBatches(data, PREPROCESSING, batch_size=16, flip=False, shift=0, seed=0)


def network() -> nn.Module:
    torch.manual_seed(0)
    return build_model("resnet8", {"in_channels": 1, "num_classes": 2, "width": 4})


def run(model: nn.Module, data: ImageSet, options: OptimizerSection, *, norms_stay: bool = False) -> list[EpochMetrics]:
    record = MemoryRecord(evaluate=lambda model: accuracy(model, data, PREPROCESSING))
    phase = Phase(name="test", batches=batches(data), section=options, seed=0, norms_stay=norms_stay)
    learner = Learner(model=model, optimizers=make_optimizers(model, options))
    progress = Progress(console=Console(file=io.StringIO()))
    train_epochs(phase, learner, record, position=Position(), accelerator=Accelerator(), progress=progress)
    assert [step.step for step in record.steps] == list(range(4 * options.epochs))
    return record.epochs


@pytest.mark.parametrize("steps", [1, 2, 10, 1000])
@pytest.mark.parametrize("warmup", [0.0, 0.05, 0.5, 0.99])
def test_rates_rise_then_fall_and_stay_positive(steps: int, warmup: float) -> None:
    factors = [rate_factor(step, steps, section(warmup=warmup)) for step in range(steps)]
    assert all(0 < factor <= 1 for factor in factors)
    assert max(factors) == pytest.approx(1.0)
    peak = factors.index(max(factors))
    assert factors[: peak + 1] == sorted(factors[: peak + 1])
    assert factors[peak:] == sorted(factors[peak:], reverse=True)
    assert steps < 1000 or factors[-1] < 0.03


def test_rates_fall_at_milestones() -> None:
    options = section(schedule="step", milestones=(0.5, 0.75), decay=0.1, warmup=0.2)
    factors = [rate_factor(step, 20, options) for step in range(20)]
    assert factors == pytest.approx([0.25, 0.5, 0.75, 1.0] + [1.0] * 6 + [0.1] * 5 + [0.01] * 5)


def test_weights_decay_and_intervals_do_not() -> None:
    model = prepare(network(), QuantConfig(train_gamma=True), torch.zeros(1, 1, 8, 8), input_grid=PREPROCESSING)
    sgd, adam = make_optimizers(model, section(weight_decay=0.01, learning_rate=0.3, interval_learning_rate=0.02))
    assert isinstance(sgd, torch.optim.SGD)
    assert isinstance(adam, torch.optim.Adam)
    decayed, rest = sgd.param_groups
    assert (decayed["weight_decay"], rest["weight_decay"]) == (0.01, 0.0)
    assert {id(p) for p in decayed["params"]} == {id(p) for p in model.parameters() if p.ndim >= 2}
    (intervals,) = adam.param_groups
    assert (intervals["weight_decay"], intervals["lr"]) == (0, 0.02)
    assert {id(p) for p in intervals["params"]} == {
        id(p) for p in interval_parameters(model) + output_parameters(model)
    }
    # Every parameter is with exactly one optimizer.
    everything = [id(p) for group in (decayed, rest, intervals) for p in group["params"]]
    assert sorted(everything) == sorted(id(p) for p in model.parameters())


def test_float_networks_need_no_second_optimizer() -> None:
    assert len(make_optimizers(network(), section())) == 1


def test_training_learns_and_reports_each_epoch(data: ImageSet) -> None:
    model = network()
    epochs = run(model, data, section(epochs=4, learning_rate=0.05))
    assert [metrics.epoch for metrics in epochs] == [0, 1, 2, 3]
    assert epochs[-1].loss < epochs[0].loss
    assert epochs[-1].test_accuracy == accuracy(model, data, PREPROCESSING) >= 90
    assert all(0 <= metrics.train_accuracy <= 100 and metrics.seconds > 0 for metrics in epochs)
    assert not model.training


def test_training_a_quantized_network_moves_its_intervals(data: ImageSet) -> None:
    model = prepare(network(), QuantConfig(weight_bits=2), torch.zeros(1, 1, 8, 8), input_grid=PREPROCESSING)
    calibrate(model, [next(batches(data).epoch(0))[0]])
    before = [parameter.detach().clone() for parameter in interval_parameters(model)]
    run(model, data, section(epochs=2, learning_rate=0.02))
    moved = [not torch.equal(a, b) for a, b in zip(interval_parameters(model), before, strict=True)]
    assert all(moved)
    assert all(math.isfinite(float(parameter.detach())) for parameter in interval_parameters(model))


def test_the_same_seed_gives_the_same_network(data: ImageSet) -> None:
    states = []
    for _ in range(2):
        model = network()
        run(model, data, section())
        states.append(model.state_dict())
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())


@pytest.mark.parametrize(("width", "expected"), [(4, torch.contiguous_format), (16, torch.channels_last)])
def test_narrow_networks_train_where_strided_1x1_convolutions_are_safe(
    data: ImageSet, width: int, expected: torch.memory_format
) -> None:
    model = build_model("resnet8", {"in_channels": 1, "num_classes": 2, "width": width})
    assert memory_format_for(model) is expected
    shortcut = model.get_submodule("layer2.0.downsample.0")
    seen: list[Tensor] = []
    shortcut.register_forward_pre_hook(lambda _module, arguments: seen.append(arguments[0]))
    run(model.to(memory_format=memory_format_for(model)), data, section(epochs=1))
    assert all(x.is_contiguous(memory_format=expected) for x in seen if x.requires_grad)


def test_no_epochs_change_nothing(data: ImageSet) -> None:
    model = network().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert run(model, data, section(epochs=0)) == []
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not model.training


class Diverging(nn.Module):
    """A network whose logits, in the third step, become unusable for a loss."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.fc, self.value, self.calls = nn.Linear(64, 2), value, 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        logits: Tensor = self.fc(x.flatten(1)) * (self.value if self.calls == 3 else 1.0)
        return logits


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_divergence_ends_training_with_a_sentence(data: ImageSet, value: float) -> None:
    with pytest.raises(
        TrainingError, match=r"test: the loss is (nan|inf) at batch 2 of epoch 0: .*Lower learning_rate"
    ):
        run(Diverging(value), data, section())


def test_norms_stay_where_they_shall(data: ImageSet) -> None:
    model = network()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items() if "running" in name}
    run(model, data, section(), norms_stay=True)
    after = model.state_dict()
    assert before
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
