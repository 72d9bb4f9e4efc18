"""Parameter groups: every trained parameter is in one of them, at its rate."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from qil_deploy.config import QuantConfig
from qil_deploy.errors import ConfigError
from qil_deploy.integers.freeze_model import freeze
from qil_deploy.network.calibration import calibrate
from qil_deploy.network.preparation import prepare
from qil_deploy.preprocessing import Preprocessing
from qil_deploy.quantizers import interval_parameters
from qil_deploy.training import distillation_loss, parameter_groups, recipe_optimizers, weight_parameters
from qil_deploy.training.models.build import build_model
from qil_deploy.training.optimizers import make_optimizers, output_parameters, quantizer_optimizers
from qil_deploy.training.recipe_sections import INTERVAL_LEARNING_RATE, StageSection

PIXELS = Preprocessing(channels=1, height=8, width=8, scale=0.0123, zero_point=77)


def network() -> nn.Module:
    return build_model("resnet8", {"in_channels": 1, "num_classes": 10, "width": 4})


def prepared(float_network: nn.Module) -> nn.Module:
    config = QuantConfig(train_gamma=True)
    model = prepare(float_network, config, torch.zeros(1, 1, 8, 8), input_grid=PIXELS)
    calibrate(model, [torch.randn(16, 1, 8, 8)])
    return model


def frozen(float_network: nn.Module) -> nn.Module:
    return freeze(prepared(float_network))


KINDS = {"float": lambda model: model, "prepared": prepared, "frozen": frozen}


def summary(optimizers: list[torch.optim.Optimizer]) -> list[tuple[str, list[dict[str, Any]]]]:
    """Names of the optimizers, and their groups with identities instead of tensors."""
    return [
        (type(each).__name__, [{**group, "params": [id(p) for p in group["params"]]} for group in each.param_groups])
        for each in optimizers
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_every_trained_parameter_is_in_one_group_at_its_rate(kind: str) -> None:
    model = KINDS[kind](network())
    groups = parameter_groups(model, learning_rate=0.3, interval_learning_rate=0.02, weight_decay=0.01)
    found = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(found) == sorted(id(p) for p in model.parameters() if p.requires_grad)
    bounded = {id(parameter) for parameter in interval_parameters(model) + output_parameters(model)}
    for group in groups:
        (of_intervals,) = {id(parameter) in bounded for parameter in group["params"]}
        (decays,) = {parameter.ndim >= 2 for parameter in group["params"]}
        assert group["lr"] == (0.02 if of_intervals else 0.3)
        assert group["weight_decay"] == (0.01 if decays else 0.0)
    assert len(groups) == (2 if kind == "float" else 3)
    torch.optim.AdamW(groups)


def test_the_defaults_are_those_of_recipes() -> None:
    model = prepared(network())
    stage = StageSection(epochs=1, weight_bits=4, activation_bits=4)
    assert summary(recipe_optimizers(model)) == summary(make_optimizers(model, stage))
    sgd, adam = recipe_optimizers(model)
    assert isinstance(sgd, torch.optim.SGD)
    assert isinstance(adam, torch.optim.Adam)
    assert all(group["nesterov"] and group["momentum"] == 0.9 for group in sgd.param_groups)


class Count(TorchDispatchMode):
    """Counts the operations that run inside of it."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operations = 0

    def __torch_dispatch__(
        self,
        func: Callable[..., object],
        types: object,
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        self.operations += 1
        return func(*args, **(kwargs or {}))


def test_all_intervals_are_updated_at_once_as_adam_would_one_by_one() -> None:
    model = prepared(network())
    _, adam = recipe_optimizers(model, interval_learning_rate=0.01)
    (parameters,) = [group["params"] for group in adam.param_groups]
    copies = [parameter.detach().clone().requires_grad_() for parameter in parameters]
    one_by_one = torch.optim.Adam(copies, lr=0.01, foreach=False)
    count = Count()
    for _ in range(3):
        count.operations = 0
        for parameter, copy in zip(parameters, copies, strict=True):
            parameter.grad = torch.randn_like(parameter)
            copy.grad = parameter.grad.clone()
        with count:
            adam.step()
        one_by_one.step()
        torch.testing.assert_close([p.detach() for p in parameters], [c.detach() for c in copies])
    assert count.operations < len(parameters)  # the first step also made what Adam keeps of each


def test_intervals_may_learn_by_sgd_at_their_own_rate() -> None:
    model = prepared(network())
    options = {"learning_rate": 0.04, "interval_learning_rate": 4e-4, "interval_optimizer": "sgd"}
    stage = StageSection.model_validate({"epochs": 1, "weight_bits": 4, "activation_bits": 4} | options)
    weights, intervals = make_optimizers(model, stage)
    assert isinstance(weights, torch.optim.SGD)
    assert isinstance(intervals, torch.optim.SGD)
    (group,) = intervals.param_groups
    assert {id(p) for p in group["params"]} == {id(p) for p in interval_parameters(model) + output_parameters(model)}
    assert (group["lr"], group["momentum"], group["nesterov"], group["weight_decay"]) == (4e-4, 0.9, True, 0)
    assert summary([weights, intervals]) == summary(
        recipe_optimizers(
            model, learning_rate=0.04, interval_learning_rate=4e-4, weight_decay=1e-4, interval_optimizer="sgd"
        )
    )
    assert isinstance(make_optimizers(model, stage.frozen_section())[1], torch.optim.SGD)
    (alone,) = quantizer_optimizers(prepared(network()), stage)
    assert isinstance(alone, torch.optim.SGD)


def test_what_requires_no_gradient_is_left_out() -> None:
    model = prepared(network().requires_grad_(False))
    assert not weight_parameters(model)
    assert output_parameters(model)  # they are new, and learn
    (adam,) = recipe_optimizers(model)
    assert isinstance(adam, torch.optim.Adam)
    for parameter in output_parameters(model):
        parameter.requires_grad_(False)
    (adam,) = recipe_optimizers(model)
    assert {id(p) for p in adam.param_groups[0]["params"]} == {id(p) for p in interval_parameters(model)}
    model = prepared(network())
    for parameter in output_parameters(model):
        parameter.requires_grad_(False)
    (sgd,) = recipe_optimizers(model, interval_learning_rate=0.0)
    assert isinstance(sgd, torch.optim.SGD)


def test_output_scales_learn_where_intervals_are_kept() -> None:
    model = prepared(network())
    sgd, adam = recipe_optimizers(model, learning_rate=0.3, interval_learning_rate=0.0)
    assert isinstance(sgd, torch.optim.SGD)
    assert isinstance(adam, torch.optim.Adam)
    (group,) = adam.param_groups
    assert [id(p) for p in group["params"]] == [id(p) for p in output_parameters(model)]
    assert (group["lr"], group["weight_decay"]) == (INTERVAL_LEARNING_RATE, 0.0)


@pytest.mark.parametrize("interval_rate", [0.0, 0.02])
def test_output_scales_may_have_a_rate_of_their_own(interval_rate: float) -> None:
    model = prepared(network())
    intervals = {id(p) for p in interval_parameters(model)} if interval_rate else set()
    scales = {id(p) for p in output_parameters(model)}
    section = StageSection(
        epochs=1,
        weight_bits=4,
        activation_bits=4,
        interval_learning_rate=interval_rate,
        output_scale_learning_rate=3e-4,
    )
    (_, adam), (alone,) = make_optimizers(model, section), quantizer_optimizers(model, section)
    for optimizer in (adam, alone):
        rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
        assert rates == dict.fromkeys(intervals, interval_rate) | dict.fromkeys(scales, 3e-4)


def test_no_rate_of_weights_makes_the_output_scale_of_the_last_layer_run_away() -> None:
    # The softened loss curves by 6.7 along the logarithm of the scale of these logits. Nesterov momentum of 0.9 is
    # stable up to a curvature of 3.8 / 2.8 over the rate, 2.7 here; the logits of trained networks, whose curvature is
    # 24, go beyond it at 0.06 (decision 0011).
    torch.manual_seed(0)
    model, x = prepared(network()).eval(), torch.randn(64, 1, 8, 8)
    (scale,) = output_parameters(model)
    for parameter in weight_parameters(model) + interval_parameters(model):
        parameter.requires_grad_(False)
    with torch.no_grad():
        scale.add_(math.log(13.0 / float(model(x).norm(dim=1).mean())))
        teacher, start = model(x), scale.clone()
        scale.add_(0.1)
    optimizers = recipe_optimizers(model, learning_rate=0.5)
    for _ in range(100):
        for optimizer in optimizers:
            optimizer.zero_grad()
        distillation_loss(model(x), teacher, teacher.argmax(1), temperature=4.0).backward()
        for optimizer in optimizers:
            optimizer.step()
    torch.testing.assert_close(scale.detach(), start, atol=0.1, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_of_which_nothing_would_be_trained_is_refused(kind: str) -> None:
    model = KINDS[kind](network()).requires_grad_(False)
    for make in (parameter_groups, recipe_optimizers, lambda each: make_optimizers(each, StageSection(
        epochs=1, weight_bits=4, activation_bits=4
    ))):  # fmt: skip
        with pytest.raises(
            ConfigError, match=r"there is nothing to train: no parameter .*; call requires_grad_\(True\)"
        ):
            make(model)
    intervals_only = prepared(network())
    for parameter in weight_parameters(intervals_only) + output_parameters(intervals_only):
        parameter.requires_grad_(False)
    with pytest.raises(ConfigError, match="quantizers count where interval_learning_rate is above 0"):
        recipe_optimizers(intervals_only, interval_learning_rate=0.0)


def test_quantizers_alone_are_trained_where_there_are_any() -> None:
    section = StageSection(epochs=1, weight_bits=4, activation_bits=4)
    with pytest.raises(ConfigError, match="no output scale, and no quantizer whose interval"):
        quantizer_optimizers(network(), section)


def test_output_scales_alone_are_trained_where_intervals_are_kept() -> None:
    section = StageSection(epochs=1, weight_bits=4, activation_bits=4, interval_learning_rate=0.0)
    model = prepared(network())
    (adam,) = quantizer_optimizers(model, section)
    (group,) = adam.param_groups
    assert {id(p) for p in group["params"]} == {id(p) for p in output_parameters(model)}
    assert group["lr"] == INTERVAL_LEARNING_RATE
    assert not any(parameter.requires_grad for parameter in interval_parameters(model))
