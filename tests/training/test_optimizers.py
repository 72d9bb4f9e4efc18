"""Parameter groups: every parameter that is trained is in one of them, at its rate."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from qil_deploy.config import QuantConfig
from qil_deploy.errors import ConfigError
from qil_deploy.integers.freeze_model import freeze
from qil_deploy.network.calibration import calibrate
from qil_deploy.network.preparation import prepare
from qil_deploy.preprocessing import Preprocessing
from qil_deploy.quantizers import interval_parameters
from qil_deploy.training import parameter_groups, recipe_optimizers, weight_parameters
from qil_deploy.training.models.build import build_model
from qil_deploy.training.optimizers import make_optimizers, quantizer_optimizers
from qil_deploy.training.recipe import StageSection

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
    """Names of the optimizers, and their groups with identities in the place of tensors."""
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
    intervals = {id(parameter) for parameter in interval_parameters(model)}
    for group in groups:
        (of_intervals,) = {id(parameter) in intervals for parameter in group["params"]}
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


def test_intervals_may_learn_by_sgd_at_their_own_rate() -> None:
    model = prepared(network())
    options = {"learning_rate": 0.04, "interval_learning_rate": 4e-4, "interval_optimizer": "sgd"}
    stage = StageSection.model_validate({"epochs": 1, "weight_bits": 4, "activation_bits": 4} | options)
    weights, intervals = make_optimizers(model, stage)
    assert isinstance(weights, torch.optim.SGD)
    assert isinstance(intervals, torch.optim.SGD)
    (group,) = intervals.param_groups
    assert {id(p) for p in group["params"]} == {id(p) for p in interval_parameters(model)}
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
    assert not [p for p in weight_parameters(model) if p.ndim >= 2]  # output scales are new, and learn
    kinds = [name for name, _ in summary(recipe_optimizers(model))]
    assert kinds == ["SGD", "Adam"]
    for parameter in weight_parameters(model):
        parameter.requires_grad_(False)
    (adam,) = recipe_optimizers(model)
    assert isinstance(adam, torch.optim.Adam)
    (sgd,) = recipe_optimizers(prepared(network()), interval_learning_rate=0.0)
    assert isinstance(sgd, torch.optim.SGD)


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
    for parameter in weight_parameters(intervals_only):
        parameter.requires_grad_(False)
    with pytest.raises(ConfigError, match="quantizers count where interval_learning_rate is above 0"):
        recipe_optimizers(intervals_only, interval_learning_rate=0.0)


def test_quantizers_alone_are_trained_where_there_are_any() -> None:
    section = StageSection(epochs=1, weight_bits=4, activation_bits=4)
    with pytest.raises(ConfigError, match="the model has no quantizer whose interval could be learned"):
        quantizer_optimizers(network(), section)
