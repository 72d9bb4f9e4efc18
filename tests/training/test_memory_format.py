"""Networks that are unsafe in channels last train in the other format, whatever the strides of their images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from qil_deploy.training import fit as fit_module
from qil_deploy.training.models.build import in_memory_format
from qil_deploy.training.recipe import recipe_from_dict
from qil_deploy.training.train import train


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("given", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("wanted", [torch.contiguous_format, torch.channels_last])
def test_images_have_the_strides_of_their_memory_format(
    channels: int, given: torch.memory_format, wanted: torch.memory_format
) -> None:
    images = torch.rand(2, channels, 4, 5)
    found = in_memory_format(images.clone(memory_format=given), wanted)
    assert torch.equal(found, images)
    assert found.stride() == torch.empty(2, channels, 4, 5, memory_format=wanted).stride()


@pytest.mark.parametrize("augmentation", [{}, {"flip": True, "shift": 1}], ids=["plain", "augmented"])
def test_a_narrow_network_sees_no_image_in_channels_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, augmentation: dict[str, Any]
) -> None:
    """Images of one channel are in both formats; convolutions use their strides."""
    seen: set[tuple[int, ...]] = set()
    true_step = fit_module._step

    def step(model: Any, optimizers: Any, weights: Any, batch: Any, *rest: Any) -> Any:  # noqa: ANN401 - handed through
        seen.add(batch[0].stride())
        return true_step(model, optimizers, weights, batch, *rest)

    monkeypatch.setattr(fit_module, "_step", step)
    content: dict[str, Any] = {
        "name": "narrow",
        "data": "digits",
        "model": {"name": "resnet8", "width": 4},
        "float_training": {"epochs": 1, "batch_size": 512},
        "augmentation": augmentation,
        "stages": [],
    }
    train(recipe_from_dict(content, "test"), tmp_path / "run")
    assert seen == {(64, 64, 8, 1)}
