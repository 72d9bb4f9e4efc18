"""A zoo made of networks that are trained already: which files it takes, and what it freezes."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest
import torch

import make_zoo
from qil_deploy.checkpoint import CheckpointInfo, read_info, save_checkpoint
from qil_deploy.config import QuantConfig
from qil_deploy.datasets import ImageSet, load_images, preprocessing_for
from qil_deploy.errors import DataError
from qil_deploy.network import calibrate, prepare
from qil_deploy.training.models import build_model

IMAGES = 40


def few(name: str, split: Literal["train", "test"], **options: object) -> ImageSet:
    return load_images(name, split, **options).first(IMAGES)  # type: ignore[arg-type] # handed through


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Networks with the names that `equal_epochs` gives them; resnet8 with random weights."""
    folder = tmp_path_factory.mktemp("trained")
    images = few("fashion-mnist", "train")
    preprocessing = preprocessing_for("fashion-mnist", images)
    x = torch.from_numpy(preprocessing.normalize(images.images))
    widths = {"float": None, "w4a4": 4, "w3a3": 3, "w2a2": 2}
    for name, bits in ((make_zoo.TRAINED[width], bits) for width, bits in widths.items()):
        torch.manual_seed(0)
        model = build_model("resnet8", {"in_channels": 1, "num_classes": 10}).eval()
        config = None if bits is None else QuantConfig(weight_bits=bits, activation_bits=bits)
        if config is not None:
            model = prepare(model, config, x[:1], input_grid=preprocessing)
            calibrate(model, [x])
        info = CheckpointInfo(
            kind="float" if config is None else "quantized",
            model_name="resnet8",
            model_arguments={"in_channels": 1, "num_classes": 10},
            config=config,
            preprocessing=preprocessing,
            data="fashion-mnist",
            class_names=images.class_names,
            metrics={"accuracy": 12.5},
        )
        save_checkpoint(folder / f"{name}.safetensors", info, model)
    return folder


def test_networks_are_taken_as_they_are_and_frozen(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(make_zoo, "load_images", few)
    (tmp_path / "metrics.jsonl").write_text("of a recipe")
    make_zoo.take_networks(trained, tmp_path)
    widths = ("w4a4", "w3a3", "w2a2")
    names = ["float", *widths, *(f"{width}_frozen" for width in widths)]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(f"{name}.safetensors" for name in names)
    for width in widths:
        source = trained / f"{make_zoo.TRAINED[width]}.safetensors"
        assert (tmp_path / f"{width}.safetensors").read_bytes() == source.read_bytes()
        frozen = read_info(tmp_path / f"{width}_frozen.safetensors")
        assert frozen.kind == "frozen"
        assert frozen.metrics["accuracy"] == frozen.metrics["accuracy_frozen_at_once"]
        assert frozen.metrics["accuracy"] in {100 * right / IMAGES for right in range(IMAGES + 1)}
    result = make_zoo.result_of(tmp_path)
    assert [stage.name for stage in result.stages] == list(widths)
    assert result.float_result.accuracy == 12.5


def test_a_missing_network_is_named_before_anything_is_written(trained: Path, tmp_path: Path) -> None:
    part = tmp_path / "part"
    part.mkdir()
    for path in trained.glob("qil_*.safetensors"):
        (part / path.name).write_bytes(path.read_bytes())
    with pytest.raises(
        DataError, match=r"float_trained_on.safetensors is missing; train it with benchmarks/equal_epochs"
    ):
        make_zoo.take_networks(part, tmp_path / "zoo")
    assert not (tmp_path / "zoo").exists()
