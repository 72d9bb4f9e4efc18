"""Curves as TensorBoard reads them, from prepared, frozen and float networks, and after an interrupted start."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import fx

from qil_deploy.config import QuantConfig
from qil_deploy.errors import OutputError
from qil_deploy.integers.freeze_model import freeze
from qil_deploy.network.calibration import calibrate
from qil_deploy.network.layers import QuantConv2d
from qil_deploy.network.preparation import prepare
from qil_deploy.preprocessing import Preprocessing
from qil_deploy.quantizers import ActivationQuantizer, RangeQuantizer
from qil_deploy.training.models.build import build_model
from qil_deploy.training.pictures.curves import Curves

ARGUMENTS = {"in_channels": 1, "num_classes": 10, "width": 4}


def points(folder: Path) -> dict[str, list[tuple[int, float]]]:
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    return {name: [(event.step, event.value) for event in events.Scalars(name)] for name in events.Tags()["scalars"]}


def prepared(*, train_gamma: bool) -> fx.GraphModule:
    grid = Preprocessing.from_statistics((1, 8, 8), 0.3, 0.4)
    config = QuantConfig(weight_bits=3, activation_bits=2, train_gamma=train_gamma)
    model = prepare(build_model("resnet8", ARGUMENTS), config, torch.zeros(1, 1, 8, 8), input_grid=grid)
    calibrate(model, [torch.randn(16, 1, 8, 8)])
    return model


def test_steps_and_epochs_come_back(tmp_path: Path) -> None:
    with Curves(tmp_path, None) as curves:
        for step in range(4):
            curves.step(step, {"loss": 1.0 - step / 4, "rate": 0.5})
        curves.epoch(3, {"accuracy": 75.0})
    assert points(tmp_path) == {
        "train/loss": [(0, 1.0), (1, 0.75), (2, 0.5), (3, 0.25)],
        "train/rate": [(step, 0.5) for step in range(4)],
        "epoch/accuracy": [(3, 75.0)],
    }


def test_going_on_hides_what_an_interrupted_start_wrote_behind_the_saved_step(tmp_path: Path) -> None:
    interrupted = Curves(tmp_path, None)
    for step in range(6):
        interrupted.step(step, {"loss": 1.0})
        if step % 3 == 2:
            interrupted.epoch(step, {"accuracy": 50.0})
    interrupted.flush()  # and never closed
    with Curves(tmp_path, 3) as curves:
        for step in range(3, 5):
            curves.step(step, {"loss": 2.0})
    found = points(tmp_path)
    assert found["train/loss"] == [(0, 1.0), (1, 1.0), (2, 1.0), (3, 2.0), (4, 2.0)]
    assert found["epoch/accuracy"] == [(2, 50.0)]
    interrupted.close()


def test_beginning_anew_hides_all_that_was_there(tmp_path: Path) -> None:
    for value in (1.0, 2.0):
        with Curves(tmp_path, 0) as curves:
            curves.step(0, {"loss": value})
    assert points(tmp_path) == {"train/loss": [(0, 2.0)]}


def test_every_interval_of_a_prepared_model_has_its_curve(tmp_path: Path) -> None:
    model = prepared(train_gamma=True)
    with Curves(tmp_path, None) as curves:
        curves.intervals(7, model)
    found = points(tmp_path)
    layer, activations = model.get_submodule("layer1.0.conv1"), model.get_submodule("intervals.layer1_0_conv1")
    stream = model.get_submodule("ranges.relu")
    assert isinstance(layer, QuantConv2d)
    assert isinstance(activations, ActivationQuantizer)
    assert isinstance(stream, RangeQuantizer)
    expected = {
        "interval/layer1.0.conv1/weight_lower": layer.weight_quantizer.thresholds[0],
        "interval/layer1.0.conv1/weight_upper": layer.weight_quantizer.thresholds[1],
        "interval/layer1.0.conv1/weight_gamma": 1.0,
        "interval/intervals.layer1_0_conv1/lower": activations.thresholds[0],
        "interval/intervals.layer1_0_conv1/upper": activations.thresholds[1],
        "interval/ranges.relu/step": float(stream.step.detach()),
    }
    assert {name: found[name] for name in expected} == {
        name: [(7, float(torch.tensor(value)))] for name, value in expected.items()
    }
    kinds = (ActivationQuantizer, RangeQuantizer, QuantConv2d)
    assert len({name.rsplit("/", 1)[0] for name in found}) == 1 + sum(isinstance(m, kinds) for m in model.modules())


def test_a_frozen_model_has_weight_intervals_under_the_same_names(tmp_path: Path) -> None:
    model = prepared(train_gamma=False)
    for folder, each in (("prepared", model), ("frozen", freeze(model))):
        with Curves(tmp_path / folder, None) as curves:
            curves.intervals(0, each)
    before, frozen = points(tmp_path / "prepared"), points(tmp_path / "frozen")
    assert frozen == {name: values for name, values in before.items() if "/weight_" in name}
    assert frozen
    assert not any("gamma" in name for name in frozen)


def test_a_float_model_has_no_intervals(tmp_path: Path) -> None:
    with Curves(tmp_path, None) as curves:
        curves.intervals(0, build_model("resnet8", ARGUMENTS))
    assert points(tmp_path) == {}


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=r"cannot write curves to .*file"):
        Curves(tmp_path / "file" / "curves", None)
