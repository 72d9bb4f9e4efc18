"""Predictors of checkpoints: which exist, and that they compute the same as their model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from qil_deploy.checkpoint import load_model, save_checkpoint
from qil_deploy.commands.predictors import checkpoint_predictors, model_predictor
from qil_deploy.datasets import load_images
from qil_deploy.errors import CheckpointError, DataError
from qil_deploy.training.models.build import build_model

if TYPE_CHECKING:
    from tests.command_line import Outcome
    from tests.commands.conftest import Run

IMAGES = load_images("digits").first(40).images


def test_a_frozen_checkpoint_has_one_and_a_quantized_one_two(run: Run) -> None:
    assert list(checkpoint_predictors(run.frozen)) == ["frozen PyTorch"]
    assert list(checkpoint_predictors(run.quantized)) == ["unfrozen PyTorch", "frozen PyTorch"]


def test_they_run_the_models_on_normalised_images(run: Run) -> None:
    for path, name in ((run.frozen, "frozen PyTorch"), (run.quantized, "unfrozen PyTorch")):
        info, model = load_model(path, build_model)
        with torch.no_grad():
            expected = model(torch.from_numpy(info.preprocessing.normalize(IMAGES))).numpy()
        found = checkpoint_predictors(path)[name](IMAGES)["logits"]
        np.testing.assert_array_equal(found, expected, strict=True)
        assert found.dtype == np.float32


def test_freezing_moves_logits_a_little(run: Run) -> None:
    unfrozen, frozen = (predict(IMAGES)["logits"] for predict in checkpoint_predictors(run.quantized).values())
    assert (unfrozen != frozen).any()
    np.testing.assert_allclose(frozen, unfrozen, rtol=0, atol=0.5 * float(np.ptp(unfrozen)))


def test_a_float_checkpoint_is_refused(run: Run) -> None:
    with pytest.raises(CheckpointError, match="holds a float network; name the quantized or frozen one"):
        checkpoint_predictors(run.float)


def test_images_of_another_shape_are_refused(run: Run) -> None:
    with pytest.raises(DataError, match=r"uint8 of shape \[N, 1, 8, 8\]"):
        checkpoint_predictors(run.frozen)["frozen PyTorch"](IMAGES[:, :, :4])


def test_what_is_no_model_is_refused() -> None:
    with pytest.raises(TypeError, match="a quantized model and its preprocessing"):
        model_predictor("model", None)


def test_networks_of_the_user_are_run_only_where_the_user_names_them(
    run: Run,
    tmp_path: Path,
    user_network: str,
    call: Callable[..., Outcome],
    refused: Callable[..., str],
) -> None:
    info, model = load_model(run.frozen, build_model)
    checkpoint, exported = tmp_path / "mine.safetensors", tmp_path / "mine.onnx"
    save_checkpoint(checkpoint, info.model_copy(update={"model_name": user_network}), model)
    trusting = ("--model", user_network)

    assert refused("export", checkpoint, "-o", exported).endswith(f"name it yourself: --model {user_network}.")
    assert not exported.exists()
    assert call("export", checkpoint, "-o", exported, *trusting).code == 0
    verifying = ("verify", exported, "--checkpoint", checkpoint, "--limit", 20)
    assert "code outside this project" in refused(*verifying)
    assert call(*verifying, *trusting).code == 0
    assert refused("verify", exported, *trusting) == (
        "--model names the function that builds the network of --checkpoint; give both."
    )
