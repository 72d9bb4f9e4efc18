"""Quantizers learned on other images: tensors that stay bit for bit, images that are never read, and refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, fx, nn

from qil_deploy.checkpoint import load_model, read_checkpoint
from qil_deploy.datasets import ImageSet, load_images
from qil_deploy.errors import CheckpointError, ConfigError, DataError
from qil_deploy.export import export_onnx
from qil_deploy.integers.freeze_model import freeze
from qil_deploy.integers.frozen_layer import FrozenLayer
from qil_deploy.network import calibrate
from qil_deploy.onnx_io.model_file import read_model
from qil_deploy.preprocessing import Preprocessing
from qil_deploy.reference import IntegerReference
from qil_deploy.training import train as train_module
from qil_deploy.training.data import unlabelled as unlabelled_module
from qil_deploy.training.data.unlabelled import noise_images
from qil_deploy.training.models.build import build_model
from qil_deploy.training.pictures import write_html_report
from qil_deploy.training.recipe import Recipe, recipe_from_dict
from qil_deploy.training.recipe_sections import QuantizerOnlySection
from qil_deploy.training.run_state import Position
from qil_deploy.training.teacher import Teacher, TeacherLoss
from qil_deploy.training.train import train

from .conftest import train_until_killed

FILES = ["float", "w4a4", "w3a3", "w3a3_frozen"]
STAGE: dict[str, Any] = {"epochs": 2, "batch_size": 64, "from_float": True}


def content(weights: Path, **changes: object) -> dict[str, Any]:
    return {
        "name": "tiny",
        "data": "digits",
        "train_gamma": True,
        "model": {"name": "resnet8", "width": 4},
        "augmentation": {"flip": True, "shift": 1},
        "quantizer_only": {"weights": str(weights), "images": "noise", "noise_images": 128, "noise_blur": 1.0},
        "stages": [
            STAGE | {"weight_bits": 4, "activation_bits": 4},
            STAGE | {"weight_bits": 3, "activation_bits": 3, "frozen_epochs": 2},
        ],
    } | changes


def recipe(weights: Path, **changes: object) -> Recipe:
    return recipe_from_dict(content(weights, **changes), "test")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A float checkpoint of the network."""
    folder = tmp_path_factory.mktemp("float")
    float_recipe = content(folder, float_training={"epochs": 2, "batch_size": 64}, stages=[])
    del float_recipe["quantizer_only"]
    return train(recipe_from_dict(float_recipe, "float"), folder).float_result.checkpoint


@pytest.fixture(scope="module")
def finished(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "finished"
    train(recipe(weights), folder)
    return folder


def frozen_model(folder: Path) -> fx.GraphModule:
    _, model = load_model(folder / "w3a3_frozen.safetensors", build_model)
    assert isinstance(model, fx.GraphModule)
    return model


@pytest.mark.parametrize("name", ["float", "w4a4", "w3a3"])
def test_weights_and_norms_stay_bit_for_bit(weights: Path, finished: Path, name: str) -> None:
    _, before = read_checkpoint(weights)
    _, after = read_checkpoint(finished / f"{name}.safetensors")
    assert before.keys() <= after.keys()
    for key, value in before.items():
        assert torch.equal(after[key], value), key


def test_a_run_has_a_report(weights: Path, finished: Path) -> None:
    report = write_html_report(finished)
    assert [stage.name for stage in report.stages] == ["w4a4", "w3a3"]
    kept = (finished / "recipe.json").read_text()
    assert recipe_from_dict(json.loads(kept), "recipe.json") == recipe(weights)


def test_they_stay_in_the_frozen_epochs_too(weights: Path, finished: Path) -> None:
    _, before = read_checkpoint(weights)
    model = frozen_model(finished)
    layers = {name: module for name, module in model.named_modules() if isinstance(module, FrozenLayer)}
    assert len(layers) == 10
    for name, layer in layers.items():
        assert torch.equal(layer.layer.weight, before[f"{name}.weight"]), name
        if layer.norm is not None:
            norm = name.replace("downsample.0", "downsample.1").replace("conv", "bn")
            for key, value in layer.norm.state_dict().items():
                assert torch.equal(value, before[f"{norm}.{key}"]), norm


def test_every_channel_may_have_a_scale_and_a_shift(weights: Path, tmp_path: Path) -> None:
    noise = {"weights": str(weights), "images": "noise", "noise_images": 64, "output_scales": "channels"}
    stages = [STAGE | {"weight_bits": 4, "activation_bits": 4, "frozen_epochs": 1, "epochs": 1}]
    stages.append(stages[0] | {"weight_bits": 3, "from_float": False, "overrides": {"layer1.*": {"weight_bits": 4}}})
    train(recipe(weights, quantizer_only=noise, stages=stages), tmp_path / "run")
    _, before = read_checkpoint(weights)
    for name in ("w4a4", "w3a4"):
        _, after = read_checkpoint(tmp_path / "run" / f"{name}.safetensors")
        assert all(torch.equal(after[key], value) for key, value in before.items())
        assert after["layer1.0.conv1.log_output_scale"].shape == after["layer1.0.conv1.output_shift"].shape == (4,)
        _, model = load_model(tmp_path / "run" / f"{name}_frozen.safetensors", build_model)
        assert isinstance(model, fx.GraphModule)


@pytest.mark.parametrize(("asked", "taken"), [(1, 1), (2, 2), (1000, 2)])
def test_a_stage_says_how_many_batches_calibrate_it(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: int, taken: int
) -> None:
    """There are two of them."""
    found = []

    def counting(
        model: nn.Module, batches: list[Tensor], *, float_model: nn.Module, rounding: Literal["nearest", "compensated"]
    ) -> None:
        found.append([len(batch) for batch in batches])
        calibrate(model, batches, float_model=float_model, rounding=rounding)

    monkeypatch.setattr(train_module, "calibrate", counting)
    stage = STAGE | {"weight_bits": 4, "activation_bits": 4, "epochs": 0, "calibration_batches": asked}
    train(recipe(weights, stages=[stage]), tmp_path / "run")
    assert found == [[64] * taken]


def test_weights_may_be_rounded_so_that_errors_cancel(weights: Path, tmp_path: Path) -> None:
    noise = {"weights": str(weights), "images": "noise", "noise_images": 64, "rounding": "compensated"}
    stages = [STAGE | {"weight_bits": bits, "activation_bits": 4, "epochs": 0} for bits in (4, 3)]
    train(recipe(weights, quantizer_only=noise, stages=stages), tmp_path / "run")
    _, before = read_checkpoint(weights)
    after = {bits: read_checkpoint(tmp_path / "run" / f"w{bits}a4.safetensors")[1] for bits in (4, 3)}
    for key, value in before.items():
        rounded = key.endswith("weight") and value.ndim > 1
        for bits in (4, 3):
            assert torch.equal(after[bits][key], value) != rounded, key
        if key.startswith("layer") and rounded:
            codes = len(after[3][key].unique())
            assert codes <= 7, key


def test_compensated_rounding_goes_with_stages_from_the_float_network(weights: Path) -> None:
    section = {"weights": str(weights), "images": "noise", "rounding": "compensated"}
    stages = [STAGE | {"weight_bits": bits, "activation_bits": 4, "from_float": bits == 4} for bits in (4, 3)]
    with pytest.raises(ConfigError, match=r"stage w3a4 goes on with weights .* give each stage from_float = true"):
        recipe(weights, quantizer_only=section, stages=stages)


def test_intervals_exponents_and_scales_are_learned(weights: Path, finished: Path, tmp_path: Path) -> None:
    stages = [STAGE | {"weight_bits": 4, "activation_bits": 4, "epochs": 0}]
    train(recipe(weights, stages=stages), tmp_path / "run")
    info, start = read_checkpoint(tmp_path / "run" / "w4a4.safetensors")
    trained_info, trained = read_checkpoint(finished / "w4a4.safetensors")
    assert info.metrics["accuracy_at_start"] == info.metrics["accuracy"]
    assert trained_info.metrics["accuracy_at_start"] == info.metrics["accuracy"]
    learned = ("log_distance", "center_ratio", "gamma_raw", "log_output_scale", "log_step")
    for key, value in start.items():
        assert torch.equal(trained[key], value) is not key.endswith(learned), key
    _, frozen = read_checkpoint(finished / "w3a3_frozen.safetensors")
    _, unfrozen = read_checkpoint(finished / "w3a3.safetensors")
    assert not torch.equal(frozen["conv1.layer.log_output_scale"], unfrozen["conv1.log_output_scale"])


@pytest.mark.parametrize("output_scales", ["all", "channels"])
def test_frozen_epochs_without_an_interval_rate_learn_scales_and_shifts_alone(
    weights: Path, tmp_path: Path, output_scales: str
) -> None:
    """Weights stay with `quantizer_only`, intervals and ranges at an `interval_learning_rate` of 0."""
    noise = {"weights": str(weights), "images": "noise", "noise_images": 64, "output_scales": output_scales}
    rates = {"epochs": 1, "frozen_epochs": 1, "interval_learning_rate": 0.0}
    stages = [STAGE | rates | {"weight_bits": 3, "activation_bits": 3}]
    train(recipe(weights, quantizer_only=noise, stages=stages), tmp_path / "run")
    _, quantized = load_model(tmp_path / "run" / "w3a3.safetensors", build_model)
    assert isinstance(quantized, fx.GraphModule)
    trained = frozen_model(tmp_path / "run")
    before, after = freeze(quantized).state_dict(), trained.state_dict()
    assert before.keys() == after.keys()
    changed = {key for key, value in before.items() if not torch.equal(after[key], value)}
    learned = {key for key, _ in trained.named_parameters() if key.endswith(("log_output_scale", "output_shift"))}
    assert learned <= changed
    # What integers follow from scales and shifts is the rest.
    assert {key.rpartition(".")[2] for key in changed - learned} <= {"bias", "w_scale"}
    assert not changed.difference(learned).intersection(key for key, _ in trained.named_parameters())


@pytest.mark.parametrize("loss", ["squared_error", "divergence"])
def test_training_lowers_the_loss(weights: Path, tmp_path: Path, loss: str) -> None:
    digits = images_section(weights, "digits") | {"limit": 256, "loss": loss}
    rates = {"epochs": 6, "interval_learning_rate": 5e-2}
    stages = [STAGE | rates | {"weight_bits": 3, "activation_bits": 3}]
    # Without augmentation every epoch has the same images.
    train(recipe(weights, quantizer_only=digits, stages=stages, augmentation={}), tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["loss"] < 0.9 * lines[0]["loss"]


def test_a_recipe_without_a_width_takes_that_of_the_checkpoint(weights: Path, tmp_path: Path) -> None:
    train(recipe(weights, model={"name": "resnet8"}, stages=[]), tmp_path / "run")
    info, _ = read_checkpoint(tmp_path / "run" / "float.safetensors")
    assert info.model_arguments["width"] == 4


class Unlabelled:
    """Images whose labels must not be read."""

    def __init__(self, images: NDArray[np.uint8]) -> None:
        self.images = images
        self.class_names = ("unknown",)

    @property
    def labels(self) -> NDArray[np.int64]:
        raise AssertionError("labels were read")


def test_labels_are_never_read(weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digits = images_section(weights, "digits") | {"limit": 200}
    train(recipe(weights, quantizer_only=digits), tmp_path / "labelled")

    def unlabelled(name: str, split: str, *, preprocessing: Preprocessing) -> Unlabelled:
        assert (name, split) == ("digits", "train")
        return Unlabelled(load_images("digits", "train", preprocessing=preprocessing).images)

    monkeypatch.setattr(unlabelled_module, "load_images", unlabelled)
    train(recipe(weights, quantizer_only=digits), tmp_path / "unlabelled")
    for name in FILES:
        labelled, other = (tmp_path / folder / f"{name}.safetensors" for folder in ("labelled", "unlabelled"))
        assert labelled.read_bytes() == other.read_bytes(), name


def test_of_its_own_data_set_only_test_images_are_read(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refusing(*_arguments: object, **_options: object) -> ImageSet:
        raise AssertionError("training images were loaded")

    monkeypatch.setattr("qil_deploy.training.data.run_data.load_images", refusing)
    monkeypatch.setattr(unlabelled_module, "load_images", refusing)
    train(recipe(weights), tmp_path / "run")


def test_the_exported_file_computes_the_same_logits(finished: Path, tmp_path: Path) -> None:
    info, _ = read_checkpoint(finished / "w3a3_frozen.safetensors")
    path = tmp_path / "model.onnx"
    model = frozen_model(finished)
    export_onnx(model, path, preprocessing=info.preprocessing, class_names=info.class_names)
    images = load_images("digits", "test").images
    with torch.no_grad():
        expected = model(torch.from_numpy(info.preprocessing.normalize(images))).numpy()
    np.testing.assert_array_equal(IntegerReference(read_model(path)).run(images), expected, strict=True)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: images})
    np.testing.assert_array_equal(found, expected, strict=True)


@pytest.mark.parametrize("step", [1, 3, 5])  # 2 steps an epoch, 4 a phase
def test_a_run_goes_on_from_any_step(weights: Path, finished: Path, tmp_path: Path, step: int) -> None:
    train_until_killed(recipe(weights), tmp_path / "run", step)
    train(recipe(weights), tmp_path / "run", resume=True)
    for name in FILES:
        resumed, expected = (folder / f"{name}.safetensors" for folder in (tmp_path / "run", finished))
        assert resumed.read_bytes() == expected.read_bytes(), name


def section(**changes: object) -> QuantizerOnlySection:
    return QuantizerOnlySection.model_validate({"weights": "x", "images": "noise"} | changes)


def softened(values: NDArray[np.float64], temperature: float) -> NDArray[np.float64]:
    powers = np.exp(values / temperature)
    shares: NDArray[np.float64] = powers / powers.sum(1, keepdims=True)
    return shares


def test_losses_are_those_of_the_docstring(rng: np.random.Generator) -> None:
    f, g = rng.normal(0, 3, (5, 4)), rng.normal(0, 3, (5, 4))
    p, q = softened(f, 4.0), softened(g, 4.0)
    expected = {"squared_error": ((f - g) ** 2).mean(), "divergence": 16.0 * (p * np.log(p / q)).sum(1).mean()}
    for name, value in expected.items():
        loss = TeacherLoss(torch.nn.Identity(), section(loss=name, temperature=4.0))
        found = loss(torch.tensor(g), torch.tensor(f), Tensor(), Position())
        assert float(found) == pytest.approx(value, rel=1e-12), name


@pytest.mark.parametrize("blur", [0.0, 2.0])
def test_noise_has_mean_0_and_deviation_1_in_input_space(blur: float) -> None:
    grid = Preprocessing(channels=2, height=28, width=28, scale=0.03, zero_point=120)
    images = noise_images(300, grid, blur=blur, seed=5)
    assert images.shape == (300, 2, 28, 28)
    x = grid.normalize(images)
    assert abs(float(x.mean())) < 0.05
    assert float(x.std()) == pytest.approx(1.0, abs=0.02)
    beside = float((x[..., 1:] * x[..., :-1]).mean())
    assert beside > 0.7 if blur else abs(beside) < 0.02
    assert np.array_equal(images, noise_images(300, grid, blur=blur, seed=5))
    assert not np.array_equal(images, noise_images(300, grid, blur=blur, seed=6))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": {"name": "resnet14", "width": 4}}, "has model 'resnet8', but the recipe 'resnet14'"),
        ({"model": {"name": "resnet8", "width": 5}}, "has width 4, but the recipe 5"),
        ({"data": "fashion-mnist"}, "has data 'digits', but the recipe 'fashion-mnist'"),
    ],
)
def test_a_checkpoint_of_another_network_is_refused(
    weights: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        train(recipe(weights, **changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_no_checkpoint_or_no_float_one_is_refused(finished: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"nowhere\.safetensors does not exist"):
        train(recipe(tmp_path / "nowhere.safetensors"), tmp_path / "run")
    with pytest.raises(CheckpointError, match=r"is a quantized checkpoint; quantizer_only\.weights must name a float"):
        train(recipe(finished / "w4a4.safetensors"), tmp_path / "run")


def images_section(weights: Path, images: object) -> dict[str, Any]:
    return {"weights": str(weights), "images": str(images)}


def test_unknown_images_are_refused(weights: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="unknown data set 'mnist'"):
        train(recipe(weights, quantizer_only=images_section(weights, "mnist")), tmp_path / "run")


def test_images_of_other_channels_are_brought_to_the_networks_or_refused(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "images" / "train" / "class"
    folder.mkdir(parents=True)
    for index in range(64):
        Image.new("RGB", (12, 9), (4 * index, 0, 100)).save(folder / f"{index:02}.png")
    stages = [STAGE | {"weight_bits": 4, "activation_bits": 4, "epochs": 1}]
    train(recipe(weights, quantizer_only=images_section(weights, tmp_path / "images"), stages=stages), tmp_path / "run")
    info, _ = read_checkpoint(tmp_path / "run" / "w4a4.safetensors")
    assert info.preprocessing.shape == (1, 8, 8)
    two_channels = np.zeros((64, 2, 8, 8), np.uint8)
    monkeypatch.setattr(
        "qil_deploy.datasets._load_whole",
        lambda _name, _split: ImageSet(images=two_channels, labels=np.zeros(64, np.int64), class_names=("a",)),
    )
    with pytest.raises(DataError, match="images of 2 channels cannot become ones of 1"):
        unlabelled_module.unlabelled_images(
            section(images="digits"),
            Teacher(checkpoint=weights, info=info, model=torch.nn.Identity()),
            seed=0,
        )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"float_training": {"epochs": 1}}, "float_training with quantizer_only, which keeps the weights"),
        ({"train_images": 5}, "train_images with quantizer_only"),
        ({"model": {"name": "resnet8", "weights": "x"}}, r"model\.weights with quantizer_only"),
        (
            {"stages": [STAGE | {"weight_bits": 4, "activation_bits": 4, "batchnorm_batches": 2}]},
            "batchnorm_batches of w4a4 with quantizer_only",
        ),
        ({"quantizer_only": {"weights": "x"}}, r"quantizer_only\.images: this key is missing"),
        ({"quantizer_only": None}, "float_training is missing; only a recipe with quantizer_only needs none"),
    ],
)
def test_recipes_that_contradict_themselves_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        recipe(Path("x"), **changes)
