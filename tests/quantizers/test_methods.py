"""Every method alike: a quantizer's contract with other packages, from `prepare` to `verify`, and in files."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import nn

from qil_deploy.checkpoint import METADATA_KEY, load_model, read_checkpoint, read_contents, read_info
from qil_deploy.config import DEFAULT_METHOD, QuantConfig
from qil_deploy.datasets import load_images, preprocessing_for
from qil_deploy.errors import CheckpointError, ConfigError
from qil_deploy.integers import FrozenLayer, freeze
from qil_deploy.network import calibrate, change_bits
from qil_deploy.quantizers import (
    METHODS,
    IntervalQuantizer,
    RangeQuantizer,
    activation_quantizer,
    interval_parameters,
    weight_quantizer,
)
from qil_deploy.training.models import build_model
from qil_deploy.training.recipe import recipe_from_dict
from qil_deploy.training.train import train
from tests.command_line import call_command

if TYPE_CHECKING:
    from tests.trained_digits import Digits

BITS = range(2, 9)
EARLIER = Path(__file__).parents[1] / "checkpoint" / "earlier"


@pytest.fixture(params=METHODS)
def method(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


def test_qil_is_the_default_and_lsq_another() -> None:
    assert {"qil", "lsq"} <= METHODS.keys()
    assert QuantConfig().method == DEFAULT_METHOD == "qil"


@pytest.mark.parametrize("bits", BITS)
def test_weights_become_signed_codes_over_the_largest(method: str, bits: int) -> None:
    quantizer = weight_quantizer(bits, QuantConfig(method=method))
    quantizer.initialize(torch.randn(4000))
    lower, upper = quantizer.thresholds
    weight = torch.linspace(-1.5 * upper, 1.5 * upper, 8001)
    q = quantizer.largest_code
    assert (quantizer.bits, q) == (bits, 2 ** (bits - 1) - 1)
    assert 0 == lower < upper
    codes = quantizer.codes_real(weight).round()
    assert torch.equal(quantizer(weight), codes / q)
    assert set(codes.abs().unique().tolist()) == set(range(q + 1))
    assert bool((codes * weight >= 0).all())


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("signed", [False, True])
def test_activations_become_codes_spread_evenly_over_the_interval(method: str, bits: int, signed: bool) -> None:
    quantizer = activation_quantizer(bits, QuantConfig(method=method), signed=signed)
    quantizer.set_largest(quantizer.initialize(torch.randn(4000)))
    lower, upper = quantizer.thresholds
    x = torch.linspace(2 * lower - upper, 2 * upper - lower, 8001)
    q = quantizer.largest_code
    assert (quantizer.bits, quantizer.signed, q) == (bits, signed, 2**bits - 1)
    assert (lower < 0) == signed
    codes = (quantizer(x) * q).detach().numpy()
    real = np.clip((x.double().numpy() - lower) * q / (upper - lower), 0, q)
    away = np.abs(real % 1 - 0.5) > 1e-4  # float32 may round a tie either way
    np.testing.assert_array_equal(np.rint(codes)[away], np.rint(real)[away])
    assert set(np.rint(codes)) == set(range(q + 1))


def test_impossible_parameters_are_named(method: str) -> None:
    quantizer = weight_quantizer(4, QuantConfig(method=method))
    assert quantizer.fault() is None
    name = next(name for name in quantizer.state_dict() if name.startswith("log_"))
    getattr(quantizer, name).data.fill_(-81.0)
    assert quantizer.fault() == f"{name} is -81, beyond -80 to 80"


def test_all_parameters_of_a_prepared_model_are_known_and_move(digits: Digits, method: str) -> None:
    model = prepared(digits, method, bits=2)
    parameters = interval_parameters(model)
    kinds = IntervalQuantizer | RangeQuantizer
    owned = [p for each in model.modules() if isinstance(each, kinds) for p in each.parameters() if p.requires_grad]
    assert {id(parameter) for parameter in parameters} == {id(parameter) for parameter in owned}
    optimizer = torch.optim.Adam(parameters, lr=1e-3)
    before = [parameter.detach().clone() for parameter in parameters]
    nn.functional.cross_entropy(model.train()(digits.images[:64]), digits.labels[:64]).backward()
    optimizer.step()
    moved = [not torch.equal(new, old) for new, old in zip(parameters, before, strict=True)]
    # Which clip nothing learn nothing: the interval behind ReLU has values on both sides, and so have most weights.
    assert sum(moved) >= len(moved) - 2


def prepared(digits: Digits, method: str, bits: int) -> Any:  # noqa: ANN401 - a graph module, with what it is asked for
    from qil_deploy.network import prepare

    config = QuantConfig(method=method, weight_bits=min(bits, 7), activation_bits=bits)
    model = prepare(digits.network, config, digits.images[:1], input_grid=digits.preprocessing)
    calibrate(model, digits.batches())
    return model


@pytest.mark.parametrize("bits", BITS)
def test_freezing_keeps_weight_codes_and_the_answers(digits: Digits, method: str, bits: int) -> None:
    model = prepared(digits, method, bits)
    frozen = freeze(model)
    for name, layer in frozen.named_modules():
        if isinstance(layer, FrozenLayer):
            quantizer = layer.layer.weight_quantizer
            codes = quantizer.codes_real(layer.layer.weight).round().abs()
            dead = (layer.weight_codes == 0).flatten(1).all(1)
            assert torch.equal(layer.weight_codes.abs().float()[~dead], codes[~dead]), name
    with torch.no_grad():
        same = (model.eval()(digits.fresh()).argmax(1) == frozen(digits.fresh()).argmax(1)).float().mean()
    assert float(same) > 0.95


def recipe(method: str, **changes: object) -> Any:  # noqa: ANN401 - a Recipe
    content = {
        "name": "tiny",
        "data": "digits",
        "method": method,
        "model": {"name": "resnet8", "width": 4},
        "float_training": {"epochs": 2, "batch_size": 64},
        "stages": [
            {"weight_bits": 3, "activation_bits": 3, "epochs": 1, "batch_size": 128},
            {"weight_bits": 2, "activation_bits": 2, "epochs": 1, "batch_size": 128, "frozen_epochs": 1},
        ],
    }
    return recipe_from_dict(content | changes, "test")


@pytest.fixture(scope="module", params=METHODS)
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A tiny run by each method: float, 3 and 2 bits, frozen."""
    folder = tmp_path_factory.mktemp("runs") / request.param
    train(recipe(request.param), folder)
    return request.param, folder


def test_a_run_is_exported_and_verified_without_a_difference(run: tuple[str, Path], tmp_path: Path) -> None:
    checkpoint, model = run[1] / "w2a2_frozen.safetensors", tmp_path / "model.onnx"
    assert call_command("export", checkpoint, "-o", model).code in (None, 0)
    report = tmp_path / "verify.json"
    outcome = call_command("verify", model, "--checkpoint", checkpoint, "--json", report)
    assert outcome.code in (None, 0), outcome
    written = json.loads(report.read_text())
    assert written["exact"] is True
    names = {backend["name"] for backend in written["backends"]}
    assert any("torch" in name.lower() for name in names), names
    assert [backend["differing_logits"] for backend in written["backends"]] == [0] * len(written["backends"])


def test_checkpoints_carry_the_method_and_come_back(run: tuple[str, Path]) -> None:
    method, folder = run
    for name in ("w3a3", "w2a2", "w2a2_frozen"):
        info, model = load_model(folder / f"{name}.safetensors", build_model)
        assert info.config is not None
        assert info.config.method == method
        state = model.state_dict()
        tensors = read_checkpoint(folder / f"{name}.safetensors")[1]
        assert tensors.keys() == state.keys()
        assert all(torch.equal(tensor, state[key]) for key, tensor in tensors.items())


@pytest.mark.parametrize("name", ["w2a2", "w2a2_frozen"])
def test_checkpoints_that_name_no_method_are_qil(name: str) -> None:
    path = EARLIER / f"{name}.safetensors"
    assert "method" not in json.loads(read_contents(path).metadata[METADATA_KEY])["config"]
    info = read_info(path)
    assert info.config is not None
    assert info.config.method == "qil"
    _, model = load_model(path, build_model)
    quantizers = [each for each in model.modules() if isinstance(each, IntervalQuantizer)]
    assert quantizers
    assert all({"log_distance", "center_ratio"} <= each.state_dict().keys() for each in quantizers)


def test_a_run_begun_before_methods_goes_on(run: tuple[str, Path], tmp_path: Path) -> None:
    """Its recipe was stored without the key."""
    method, folder = run
    kept = json.loads((folder / "recipe.json").read_text())
    assert kept.pop("method") == method
    (tmp_path / "recipe.json").write_text(json.dumps(kept, indent=2) + "\n")
    for name in ("float", "w3a3", "w2a2", "w2a2_frozen"):
        (tmp_path / f"{name}.safetensors").write_bytes((folder / f"{name}.safetensors").read_bytes())
    if method == DEFAULT_METHOD:
        train(recipe(method), tmp_path, resume=True)
    else:
        with pytest.raises(ConfigError, match="holds a run of another recipe"):
            train(recipe(method), tmp_path, resume=True)


def test_a_checkpoint_of_one_method_is_not_read_as_another(run: tuple[str, Path], tmp_path: Path) -> None:
    method, folder = run
    content = (folder / "w3a3.safetensors").read_bytes()
    other = "qil" if method == "lsq" else "lsq"
    old, new = (f'\\"method\\":\\"{name}\\"'.encode() for name in (method, other))
    assert content.count(old) == 1
    path = tmp_path / "changed.safetensors"
    path.write_bytes(content.replace(old, new))
    with pytest.raises(CheckpointError):
        load_model(path, build_model)


@pytest.mark.parametrize("found", ["QIL", "pact", ""])
def test_unknown_methods_are_refused_with_those_there_are(found: str, run: tuple[str, Path], tmp_path: Path) -> None:
    sentence = f"there is no such method; choose {' or '.join(map(repr, METHODS))}"
    message = re.escape(f"method: {sentence} (found {found!r})")
    with pytest.raises(ConfigError, match=message):
        QuantConfig(method=found)
    with pytest.raises(ConfigError, match=message):
        recipe(found)
    content = (run[1] / "w3a3.safetensors").read_bytes()
    old = f'\\"method\\":\\"{run[0]}\\"'.encode()
    path = tmp_path / "changed.safetensors"
    path.write_bytes(content.replace(old, old.replace(run[0].encode(), b"x" * len(run[0]))))
    with pytest.raises(CheckpointError, match=re.escape(sentence)):
        read_info(path)


def test_only_qil_has_an_exponent_to_train() -> None:
    with pytest.raises(ConfigError, match="train_gamma is for method 'qil'; method 'lsq' has no exponent to train"):
        QuantConfig(method="lsq", train_gamma=True)


def test_another_method_starts_its_intervals_anew(digits: Digits) -> None:
    model = prepared(digits, "qil", 4)
    config = QuantConfig(method="lsq", weight_bits=4, activation_bits=4)
    changed = change_bits(
        model, digits.network, config, digits.batches(), input_grid=digits.preprocessing, carry_over=True
    )
    fresh = prepared(digits, "lsq", 4).state_dict()
    assert changed.state_dict().keys() == fresh.keys()
    for name, tensor in fresh.items():
        if name.endswith("weight_quantizer.log_largest"):
            assert torch.equal(tensor, changed.state_dict()[name]), name
        elif name.endswith(
            ("log_largest", "log_step")
        ):  # BatchNorm's statistics were those of the quantized network meanwhile
            assert torch.allclose(tensor, changed.state_dict()[name], atol=0.1), name


@pytest.mark.parametrize("signed", [False, True])
def test_parameters_mean_the_same_at_every_width(method: str, signed: bool) -> None:
    """A stage goes on with the parameters of the stage before, at fewer bits."""
    config = QuantConfig(method=method)
    for make in (
        lambda bits: weight_quantizer(bits, config),
        lambda bits: activation_quantizer(bits, config, signed=signed),
    ):
        before = make(5)
        before.set_largest(1.7)
        for bits in BITS:
            after = make(bits)
            after.load_state_dict(before.state_dict())
            fresh = make(bits)
            fresh.set_largest(1.7)
            assert after.thresholds == fresh.thresholds
            assert max(map(abs, after.thresholds)) == pytest.approx(1.7, rel=1e-6)


def test_prepared_models_can_be_copied_and_shown(digits: Digits, method: str) -> None:
    model = copy.deepcopy(prepared(digits, method, 3))
    assert f"{method.capitalize()}WeightQuantizer(bits=3, interval=[0, " in repr(model)


def test_calibration_alone_gives_a_useful_network(digits: Digits, method: str) -> None:
    data = load_images("digits", "test")
    assert preprocessing_for("digits", data).shape == (1, 8, 8)
    with torch.no_grad():
        answers = prepared(digits, method, 4).eval()(digits.fresh()).argmax(1)
    assert float((answers == digits.labels[1024:]).float().mean()) > 0.7
