"""Sensitivity by layer: lowered and unchanged layers, the images measured on, and bits proposed for a budget."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import fx

from qil_deploy.checkpoint import CheckpointInfo, load_model, read_checkpoint, save_checkpoint
from qil_deploy.config import LayerBits, LayerOverride, Placement, QuantConfig
from qil_deploy.datasets import load_images, preprocessing_for
from qil_deploy.errors import CheckpointError, ConfigError, DataError
from qil_deploy.integers.freeze_model import freeze
from qil_deploy.network.calibration import calibrate
from qil_deploy.network.preparation import prepare
from qil_deploy.terminal.progress import Progress
from qil_deploy.training.mixed_precision import budget_in_bytes, packed_bytes, propose, recipe_text
from qil_deploy.training.models.build import build_model
from qil_deploy.training.recipe import recipe_from_dict
from qil_deploy.training.recipe_file import load_recipe
from qil_deploy.training.sensitivity import Plan, Probe, What, measure_sensitivity
from qil_deploy.training.train import train

PLAN = Plan(images=100, calibration_images=50)
FAST = Plan(images=20, calibration_images=20, widths=(2,))
EDGES = ("conv1", "fc")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train a float network until it knows the digits; quantize it at 4/4 bits, and freeze that."""
    folder = tmp_path_factory.mktemp("run")
    recipe = {
        "name": "digits",
        "data": "digits",
        "model": {"name": "resnet8", "width": 8},
        "float_training": {"epochs": 4, "batch_size": 64},
    }
    train(recipe_from_dict(recipe, "of the test"), folder)
    quantized(folder / "float.safetensors", "integer")
    info, prepared = load_model(folder / "w4a4.safetensors", build_model)
    assert isinstance(prepared, fx.GraphModule)
    frozen = info.model_copy(update={"kind": "frozen"})
    save_checkpoint(folder / "w4a4_frozen.safetensors", frozen, freeze(prepared))
    return folder


def quantized(path: Path, placement: Placement) -> Path:
    info, network = load_model(path, build_model)
    config = QuantConfig(
        weight_bits=4,
        activation_bits=4,
        placement=placement,
        overrides={"layer2.0.*": LayerOverride(weight_bits=5), "layer3.0.conv2": LayerOverride(activation_bits=3)},
    )
    data = load_images("digits", "train")
    x = torch.from_numpy(info.preprocessing.normalize(data.images[:256]))
    prepared = prepare(network, config, x[:1], input_grid=info.preprocessing)
    calibrate(prepared, [x])
    result = path.with_name("w4a4.safetensors" if placement == "integer" else "paper.safetensors")
    save_checkpoint(result, info.model_copy(update={"kind": "quantized", "config": config}), prepared)
    return result


def test_the_baseline_of_a_float_network_is_close_to_it(run: Path) -> None:
    probe = Probe(run / "float.safetensors", PLAN)
    assert set(probe.bits.values()) == {LayerBits(weight_bits=7, activation_bits=8)}
    assert probe.edges == set(EDGES)
    baseline = probe.measure({})
    assert (baseline.kl, baseline.kl_error) == (0.0, 0.0)
    assert baseline.accuracy > 90.0


def test_images_are_drawn_from_the_training_split_and_calibration_has_others(run: Path) -> None:
    probe = Probe(run / "float.safetensors", PLAN)
    train_set, test_set = load_images("digits", "train"), load_images("digits", "test")
    known = {image.tobytes(): label for image, label in zip(train_set.images, train_set.labels, strict=True)}
    for image, label in zip(probe.images.images, probe.images.labels, strict=True):
        assert known[image.tobytes()] == label
    measured = {image.tobytes() for image in probe.images.images}
    pixels = probe.info.preprocessing
    calibrated = np.rint(torch.cat(probe.batches).numpy() / pixels.scale + pixels.zero_point).astype(np.uint8)
    assert len(calibrated) == 50
    assert not measured & {image.tobytes() for image in calibrated}
    assert not measured & {image.tobytes() for image in test_set.images}
    again, other = (Probe(run / "float.safetensors", replace(PLAN, seed=seed)) for seed in (0, 1))
    np.testing.assert_array_equal(again.images.images, probe.images.images)
    assert not np.array_equal(other.images.images, probe.images.images)


@pytest.mark.parametrize("what", ["weights", "activations", "both"])
@pytest.mark.parametrize("edges", [False, True])
def test_what_of_which_layer_is_lowered(what: What, edges: bool, run: Path) -> None:
    probe = Probe(run / "w4a4.safetensors", replace(FAST, what=what, edges=edges))
    assert probe.bits["conv1"] == LayerBits(weight_bits=7, activation_bits=8)
    assert probe.bits["layer2.0.conv1"] == LayerBits(weight_bits=5, activation_bits=4)
    assert probe.bits["layer3.0.conv2"] == LayerBits(weight_bits=4, activation_bits=3)
    for name, bits in probe.bits.items():
        edge = name in EDGES
        weight = 3 if what != "activations" and (edges or not edge) else bits.weight_bits
        activation = 3 if what != "weights" and not edge else bits.activation_bits
        assert probe.lowered(name, 3) == LayerBits(weight_bits=weight, activation_bits=activation)


@pytest.mark.parametrize("checkpoint", ["float", "w4a4"])
def test_every_trial_and_its_figures(checkpoint: str, run: Path) -> None:
    probe = Probe(run / f"{checkpoint}.safetensors", replace(PLAN, widths=(2, 4)))
    with Progress(disable=True) as progress:
        measured = measure_sensitivity(probe, progress)
    assert [layer.name for layer in measured.layers] == list(probe.bits)
    for layer in measured.layers:
        wanted = [width for width in (4, 2) if probe.lowered(layer.name, width) != layer.bits]
        assert [trial.width for trial in layer.trials] == wanted
        for trial in layer.trials:
            assert trial.bits == probe.lowered(layer.name, trial.width)
            assert trial.measured.kl > 0
    assert {layer.name for layer in measured.layers if not layer.trials} == set(EDGES)
    inner = [layer for layer in measured.layers if layer.name not in EDGES]
    two = sum(layer.trials[-1].measured.kl for layer in inner)
    if checkpoint == "float":
        assert two > 3 * sum(layer.trials[0].measured.kl for layer in inner)
    trial = inner[0].trials[-1]
    assert probe.measure({inner[0].name: trial.bits}) == trial.measured  # nothing is left behind by other trials
    assert probe.measure({}) == measured.baseline


def test_an_override_by_pattern_does_not_undo_a_trial(run: Path) -> None:
    probe = Probe(run / "w4a4.safetensors", FAST)
    bits = LayerBits(weight_bits=2, activation_bits=2)
    kls = [probe.measure({name: bits}).kl for name in ("layer2.0.conv1", "layer3.0.conv2")]
    assert all(kl > 0 for kl in kls)


def test_paper_placement_has_no_bits_at_its_edges(run: Path) -> None:
    for checkpoint in (run / "float.safetensors", quantized(run / "float.safetensors", "paper")):
        probe = Probe(checkpoint, replace(FAST, placement="paper"))
        assert not probe.bits.keys() & set(EDGES)
        assert len(probe.bits) == 8
        assert probe.measure({"layer1.0.conv1": probe.lowered("layer1.0.conv1", 2)}).kl > 0


@pytest.mark.parametrize(
    ("name", "plan", "error", "message"),
    [
        ("w4a4_frozen", FAST, CheckpointError, "is frozen, its bits are fixed; name the quantized one"),
        ("float", replace(FAST, widths=(1,)), ConfigError, r"bits are \[1\]; give whole numbers from 2 to 8"),
        ("float", replace(FAST, widths=(4, 9)), ConfigError, r"bits are \[4, 9\]; give whole numbers from 2 to 8"),
        ("float", replace(FAST, widths=()), ConfigError, r"bits are \[\]; give whole numbers from 2 to 8"),
        ("float", replace(FAST, images=1), ConfigError, "1 images and 20 for calibration are too few"),
        ("float", replace(FAST, images=1430), DataError, "the training split of digits has 1437"),
    ],
)
def test_what_is_refused(name: str, plan: Plan, error: type[Exception], message: str, run: Path) -> None:
    with pytest.raises(error, match=message):
        Probe(run / f"{name}.safetensors", plan)


def test_nothing_to_lower_is_refused(run: Path) -> None:
    probe = Probe(run / "w4a4.safetensors", replace(FAST, widths=(6, 5)))
    with Progress(disable=True) as progress, pytest.raises(ConfigError, match="no layer would be lowered"):
        measure_sensitivity(probe, progress)


def test_proposals_fit_their_budgets_and_get_worse_as_these_shrink(run: Path) -> None:
    probe = Probe(run / "float.safetensors", replace(FAST, widths=(4, 2)))
    with Progress(disable=True) as progress:
        measured = measure_sensitivity(probe, progress)
    weights = sum(probe.weights.values())
    smallest = packed_bytes(probe, {name: probe.lowered(name, 2) for name in probe.bits})
    budgets = [measured.bytes - 1, budget_in_bytes(probe, 4), budget_in_bytes(probe, 3), smallest]
    assert budgets[1] == weights // 2
    proposals = [propose(probe, measured, budget) for budget in budgets]
    for budget, proposal in zip(budgets, proposals, strict=True):
        assert proposal.bytes == packed_bytes(probe, proposal.bits) <= budget
        assert proposal.measured == probe.measure(proposal.bits)
        assert [entry.width for entry in proposal.uniform] == [4, 2]
    assert all(a.summed_kl < b.summed_kl for a, b in itertools.pairwise(proposals))
    last = proposals[-1]
    assert last.measured == last.uniform[-1].measured
    for budget, message in [
        (smallest - 1, f"cannot be met: with every layer at its fewest bits the packed weights take {smallest:,}"),
        (measured.bytes, f"is met with nothing lowered: the packed weights take {measured.bytes:,}"),
    ]:
        with pytest.raises(ConfigError, match=message):
            propose(probe, measured, budget)
    with pytest.raises(ConfigError, match="nan bits per weight"):
        budget_in_bytes(probe, float("nan"))


def test_a_budget_needs_weights(run: Path) -> None:
    probe = Probe(run / "float.safetensors", replace(FAST, what="activations"))
    with Progress(disable=True) as progress:
        measured = measure_sensitivity(probe, progress)
    with pytest.raises(ConfigError, match="a size budget needs weights to be lowered"):
        propose(probe, measured, 1000)


@pytest.mark.parametrize("checkpoint", ["float", "w4a4"])
def test_the_recipe_trains_these_bits_from_the_float_network(checkpoint: str, run: Path, tmp_path: Path) -> None:
    probe = Probe(run / f"{checkpoint}.safetensors", FAST)
    bits = {name: probe.lowered(name, width) for name, width in zip(probe.bits, itertools.cycle((2, 3, 4)))}
    bits["fc"] = LayerBits(weight_bits=4, activation_bits=8)
    path = tmp_path / "mixed.toml"
    path.write_text(recipe_text(probe, bits, run / f"{checkpoint}.safetensors", "mixed"))
    recipe = load_recipe(path, ("stages.0.epochs=1",))
    assert recipe.model.weights == str((run / "float.safetensors").resolve())
    assert recipe.float_training.epochs == 0
    config = recipe.quant_config(recipe.stages[0])
    assert {name: config.bits_of(name, edge=name in EDGES) for name in bits} == bits
    result = train(recipe, tmp_path / "run")
    _, start = read_checkpoint(run / "float.safetensors")
    _, tensors = read_checkpoint(result.float_result.checkpoint)
    assert tensors.keys() == start.keys()
    assert all(torch.equal(tensors[name], tensor) for name, tensor in start.items())
    assert Probe(result.stages[0].checkpoint, FAST).bits == bits


def test_a_recipe_without_a_float_checkpoint_trains_one_first(run: Path, tmp_path: Path) -> None:
    alone = tmp_path / "w4a4.safetensors"
    alone.write_bytes((run / "w4a4.safetensors").read_bytes())
    probe = Probe(alone, FAST)
    path = tmp_path / "mixed.toml"
    path.write_text(recipe_text(probe, probe.bits, alone, "mixed"))
    recipe = load_recipe(path)
    assert recipe.model.weights is None
    assert recipe.float_training.epochs > 0


def test_a_recipe_brings_images_to_the_size_of_the_network(tmp_path: Path) -> None:
    data = load_images("digits", "train", shape=(1, 12, 12))
    arguments = {"in_channels": 1, "num_classes": 10}
    info = CheckpointInfo(
        kind="float",
        model_name="resnet8",
        model_arguments=arguments,
        config=None,
        preprocessing=preprocessing_for("digits", data),
        data="digits",
        class_names=data.class_names,
        metrics={},
    )
    path = tmp_path / "float.safetensors"
    save_checkpoint(path, info, build_model("resnet8", arguments))
    probe = Probe(path, FAST)
    written = tmp_path / "mixed.toml"
    written.write_text(recipe_text(probe, probe.bits, path, "mixed"))
    assert load_recipe(written).image_size == 12
    assert load_recipe(written).model.width is None
