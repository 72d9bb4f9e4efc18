"""The examples run as their READMEs say."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torchvision

from tests.docs.pages import ROOT, run_page

if TYPE_CHECKING:
    from tests.command_line import Outcome

EXAMPLES = ROOT / "examples"


def test_a_network_of_your_own_by_recipe(
    call: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "own_network"
    shutil.copytree(EXAMPLES / "own_network", folder, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)
    _, commands = run_page(folder / "README.md", call)
    assert commands == ["train", "export", "verify", "inspect"]


def test_a_pretrained_network_without_data(
    call: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Offline, so without torchvision's weights, and with few and small images."""
    spec = spec_from_file_location("pretrained_without_data_example", EXAMPLES / "pretrained_without_data.py")
    assert spec is not None
    assert spec.loader is not None
    example = module_from_spec(spec)
    spec.loader.exec_module(example)
    images = example.smooth_noise(4, (3, 32, 32))
    assert (images.shape, images.dtype) == ((4, 3, 32, 32), np.uint8)
    monkeypatch.chdir(tmp_path)
    network = torchvision.models.resnet18(num_classes=10)
    example.quantize(network, images, [str(index) for index in range(10)], Path("model.onnx"))
    assert call("verify", "model.onnx", "--golden", "model.golden.npz").code == 0
