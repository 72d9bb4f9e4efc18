"""The zoo agrees with its README: real images, real checkpoints, nothing retrained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import fx

from qil_deploy.checkpoint import load_model
from qil_deploy.commands.predictors import checkpoint_predictors
from qil_deploy.datasets import ImageSet, load_images
from qil_deploy.export import export_onnx
from qil_deploy.onnx_io.model_file import read_model
from qil_deploy.runtime_tests import verify
from qil_deploy.training.models.build import build_model

ZOO = Path(__file__).parents[2] / "zoo" / "fashion_mnist"
STAGES = ("w4a4", "w3a3", "w2a2")
SHARES = {"w4a4": 6, "w3a3": 6, "w2a2": 10}


@pytest.fixture(scope="module")
def images() -> ImageSet:
    """Every twentieth test image: 500 of them, all classes."""
    whole = load_images("fashion-mnist", "test")
    return ImageSet(images=whole.images[::20], labels=whole.labels[::20], class_names=whole.class_names)


@pytest.fixture(scope="module")
def results() -> dict[str, dict[str, Any]]:
    return {line["name"]: line for line in json.loads((ZOO / "results.json").read_text())["models"]}


@pytest.mark.parametrize("stage", STAGES)
def test_models_compute_what_their_checkpoints_compute(stage: str, images: ImageSet) -> None:
    others = checkpoint_predictors(ZOO / f"{stage}_frozen.safetensors")

    report = verify(ZOO / f"{stage}.onnx", images.batches(250), others=others)

    assert {backend.name: backend.differing_logits for backend in report.backends} == {
        "ONNX Runtime (disabled)": 0,
        "ONNX Runtime (basic)": 0,
        "ONNX Runtime (extended)": 0,
        "ONNX Runtime (all)": 0,
        "frozen PyTorch": 0,
    }
    assert report.reference_accuracy is not None
    assert report.reference_accuracy > 0.85


@pytest.mark.parametrize("stage", STAGES)
def test_exporting_a_checkpoint_again_gives_the_same_network(stage: str, tmp_path: Path) -> None:
    info, model = load_model(ZOO / f"{stage}_frozen.safetensors", build_model)
    assert isinstance(model, fx.GraphModule)
    path = tmp_path / "again.onnx"

    export_onnx(model, path, preprocessing=info.preprocessing, class_names=info.class_names, data=info.data)

    again, kept = read_model(path), read_model(ZOO / f"{stage}.onnx")
    assert again.nodes == kept.nodes
    assert again.initializers.keys() == kept.initializers.keys()
    for name, array in kept.initializers.items():
        np.testing.assert_array_equal(again.initializers[name], array)


@pytest.mark.parametrize("stage", STAGES)
def test_files_have_the_promised_share_of_the_float_file(stage: str) -> None:
    float_size = (ZOO / "float.onnx").stat().st_size

    assert (ZOO / f"{stage}.onnx").stat().st_size * SHARES[stage] <= float_size


@pytest.mark.parametrize("stage", STAGES)
def test_the_table_is_that_of_the_results(stage: str, results: dict[str, dict[str, Any]]) -> None:
    row = next(line for line in (ZOO / "README.md").read_text().splitlines() if line.startswith(f"| {stage} |"))
    metrics = load_model(ZOO / f"{stage}_frozen.safetensors", build_model)[0].metrics

    assert results[stage]["differing_logits"] == 0
    assert results[stage]["images"] == 10_000
    assert results[stage]["size"] == (ZOO / f"{stage}.onnx").stat().st_size
    assert results[stage]["runtime_accuracy"] == pytest.approx(metrics["accuracy"], abs=1e-9)
    for key in ("accuracy", "frozen_at_once", "frozen_accuracy", "runtime_accuracy"):
        assert f"{results[stage][key]:.2f} %" in row


def test_low_bits_stay_close_to_float(results: dict[str, dict[str, Any]]) -> None:
    float_accuracy = results["float"]["accuracy"]

    assert float_accuracy >= 92.5
    assert results["w4a4"]["frozen_accuracy"] >= float_accuracy - 0.3
    assert results["w2a2"]["frozen_accuracy"] >= float_accuracy - 2.0
