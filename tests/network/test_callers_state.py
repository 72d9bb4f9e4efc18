"""The caller's state stays unchanged: modes of modules, images, buffers, random numbers, gradients, default type."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, fx, nn

from qil_deploy.config import QuantConfig
from qil_deploy.datasets import load_images
from qil_deploy.errors import DataError
from qil_deploy.integers.freeze_model import freeze
from qil_deploy.integers.freezing_report import compare_freezing, predictions
from qil_deploy.network.bit_widths import change_bits
from qil_deploy.network.calibration import calibrate, estimate_batchnorm
from qil_deploy.network.preparation import prepare
from qil_deploy.preprocessing import Preprocessing
from qil_deploy.training.pictures.interval_shares import activation_values

if TYPE_CHECKING:
    from tests.trained_digits import Digits


class Caller:
    """Arguments from a caller: a float network, a prepared one, and images, all with modes and gradients of theirs."""

    def __init__(self, digits: Digits) -> None:
        self.digits = digits
        self.network = copy.deepcopy(digits.network).train()
        self.network.norm1.eval()  # kept from learning
        self.network.conv2.requires_grad_(False)
        self.network(digits.images[:8]).sum().backward()
        self.prepared = digits.prepare(4)
        calibrate(self.prepared, digits.batches()[:1])
        self.prepared.train()
        self.prepared.get_submodule("norm0").eval()
        self.prepared(digits.images[:8]).sum().backward()
        self.frozen = freeze(self.prepared).train()
        self.batches = [batch.clone() for batch in digits.batches()[:2]]
        self.data = load_images("digits", "test")

    def models(self) -> dict[str, nn.Module]:
        return {"network": self.network, "prepared": self.prepared, "frozen": self.frozen}

    def look(self, changed: str | None) -> dict[str, object]:
        """Return all state that a call could change, except the tensors of the one model that it should change."""
        found: dict[str, object] = {
            "random numbers": torch.get_rng_state().tolist(),
            "default type": torch.get_default_dtype(),
            "gradients are recorded": torch.is_grad_enabled(),
            "batches": [batch.tolist() for batch in self.batches],
        }
        for name, model in self.models().items():
            found[f"modes of {name}"] = {each: module.training for each, module in model.named_modules()}
            found[f"hooks of {name}"] = [len(module._forward_pre_hooks) for module in model.modules()]
            found[f"momenta of {name}"] = [getattr(module, "momentum", None) for module in model.modules()]
            found[f"which parameters of {name} are trained"] = {k: p.requires_grad for k, p in model.named_parameters()}
            if name != changed:
                # Integers of a frozen model in training mode are folded when somebody looks at them.
                tensors = dict(model.named_parameters() if name == "frozen" else model.state_dict().items())
                found[f"tensors of {name}"] = {key: tensor.tolist() for key, tensor in tensors.items()}
                found[f"gradients of {name}"] = {
                    key: None if p.grad is None else p.grad.tolist() for key, p in model.named_parameters()
                }
        return found

    def prepare(self, **options: Any) -> fx.GraphModule:  # noqa: ANN401 - of QuantConfig
        return prepare(self.network, QuantConfig(**options), self.batches[0], input_grid=self.digits.preprocessing)

    def change_bits(self, bits: int) -> fx.GraphModule:
        config = QuantConfig(weight_bits=bits, activation_bits=bits)
        return change_bits(self.prepared, self.network, config, self.batches, input_grid=self.digits.preprocessing)


def _refused(caller: Caller) -> None:
    with pytest.raises(DataError):
        calibrate(caller.prepared, [caller.batches[0], caller.batches[1].double()])


CALLS: dict[str, tuple[Callable[[Caller], object], str | None]] = {
    "prepare": (lambda caller: caller.prepare(), None),
    "prepare, paper": (lambda caller: caller.prepare(placement="paper"), None),
    "prepare, with scales": (lambda caller: caller.prepare(output_scales="all", train_gamma=True), None),
    "calibrate": (lambda caller: calibrate(caller.prepared, caller.batches), "prepared"),
    "calibrate by the float network": (
        lambda caller: calibrate(caller.prepared, caller.batches, float_model=caller.network),
        "prepared",
    ),
    "estimate_batchnorm": (lambda caller: estimate_batchnorm(caller.prepared, caller.batches), "prepared"),
    "estimate_batchnorm, float": (lambda caller: estimate_batchnorm(caller.network, caller.batches), "network"),
    "change_bits": (lambda caller: caller.change_bits(2), None),
    "change_bits to the same": (lambda caller: caller.change_bits(4), None),
    "freeze": (lambda caller: freeze(caller.prepared), None),
    "predictions": (lambda caller: predictions(caller.frozen, caller.data.images, caller.digits.preprocessing), None),
    "compare_freezing": (
        lambda caller: compare_freezing(
            caller.prepared, caller.frozen, "digits", caller.data, caller.digits.preprocessing
        ),
        None,
    ),
    "activation_values": (lambda caller: activation_values(caller.prepared, caller.batches[0]), None),
    "a batch that is refused": (_refused, None),
}


@pytest.mark.parametrize("call", CALLS)
def test_nothing_of_the_callers_changes(call: str, digits: Digits) -> None:
    caller = Caller(digits)
    function, changed = CALLS[call]
    before = caller.look(changed)
    function(caller)
    after = caller.look(changed)
    assert [name for name in before if before[name] != after[name]] == []


def test_a_prepared_model_has_the_modes_of_its_network_and_no_gradients(digits: Digits) -> None:
    caller = Caller(digits)
    model = caller.prepare()
    assert model.training
    assert not model.get_submodule("norm1").training
    assert model.get_submodule("norm0").training
    assert model.get_submodule("intervals.conv1").training
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not model.get_parameter("conv2.weight").requires_grad
    caller.network.eval()
    assert not any(module.training for module in caller.prepare().modules())


class WritesOverItsImage(nn.Module):
    """A network whose first operation writes into its input."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.conv, self.fc = nn.ReLU(inplace=True), nn.Conv2d(1, 2, 3), nn.Linear(72, 2)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.fc(self.conv(self.first(x)).flatten(1))
        return logits


@pytest.mark.parametrize("placement", ["integer", "paper"])
def test_images_stay_though_the_network_writes_over_them(placement: str, digits: Digits) -> None:
    network, x = WritesOverItsImage(), digits.images[:16].clone()
    assert bool((x < 0).any())

    def unchanged() -> bool:
        return torch.equal(x, digits.images[:16])

    config = QuantConfig.model_validate({"placement": placement})
    model = prepare(network, config, x, input_grid=digits.preprocessing)
    assert unchanged()
    calibrate(model, [x], float_model=network)
    assert unchanged()
    estimate_batchnorm(network, [x])
    assert unchanged()
    change_bits(model, network, config, [x], input_grid=digits.preprocessing)
    assert unchanged()
    activation_values(model, x)
    assert unchanged()
    model.train()(x).sum().backward()
    model.eval()(x)
    assert unchanged()


@pytest.mark.parametrize("default", [torch.float64, torch.float16])
def test_another_default_type_is_left_out_of_it(default: torch.dtype, digits: Digits) -> None:
    expected = prepared_and_frozen(digits)
    torch.set_default_dtype(default)
    try:
        found = prepared_and_frozen(digits)
        assert torch.get_default_dtype() == default
    finally:
        torch.set_default_dtype(torch.float32)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=0)


def prepared_and_frozen(digits: Digits) -> dict[str, Tensor]:
    model = digits.prepare(4, train_gamma=True)
    calibrate(model, digits.batches()[:1])
    return model.state_dict() | {f"frozen.{name}": tensor for name, tensor in freeze(model).state_dict().items()}


def test_models_made_in_inference_mode_can_be_trained(digits: Digits) -> None:
    with torch.inference_mode():
        model = digits.prepare(4)
        calibrate(model, digits.batches()[:1])
        lower = change_bits(
            model, digits.network, QuantConfig(weight_bits=2), digits.batches()[:1], input_grid=digits.preprocessing
        )
        frozen = freeze(lower)
        assert torch.is_inference_mode_enabled()
    for each in (model, lower, frozen):
        nn.functional.cross_entropy(each.train()(digits.images[:16]), digits.labels[:16]).backward()
        assert all(parameter.grad is not None for parameter in each.parameters())


def test_average_pools_and_lone_norms_of_a_frozen_network_are_told_apart_from_its_layers() -> None:
    """A network without parameters to train is quantized like any other: its layers count as layers."""
    network = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AvgPool2d(2), nn.Conv2d(4, 4, 2), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2)
    )
    pixels = Preprocessing(channels=1, height=8, width=8, scale=0.01, zero_point=100)
    x = torch.from_numpy(pixels.normalize(load_images("digits", "test").images[:32]))
    results = []
    for frozen in (False, True):
        each = copy.deepcopy(network).requires_grad_(not frozen)
        model = prepare(each, QuantConfig(), x[:1], input_grid=pixels)
        if frozen:
            model.requires_grad_(False)
        calibrate(model, [x])
        lower = change_bits(model, each, QuantConfig(weight_bits=2, activation_bits=2), [x], input_grid=pixels)
        results.append(lower.state_dict())
    for name, tensor in results[0].items():
        torch.testing.assert_close(results[1][name], tensor, rtol=0, atol=0)
