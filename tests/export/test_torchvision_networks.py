"""torchvision's networks through prepare, freeze and export: every code and logit equal, in every form of the file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
import torchvision
from numpy.typing import NDArray
from torch.nn import functional as F

from qil_deploy.config import QuantConfig
from qil_deploy.datasets import load_images
from qil_deploy.preprocessing import Preprocessing
from qil_deploy.training.models.build import build_model

if TYPE_CHECKING:
    from .conftest import Case, Exports

NETWORKS = (
    "resnet18",
    "resnet34",
    "resnet50",
    "alexnet",
    "alexnet_bn",
    "vgg11_bn",
    "mobilenet_v2",
    "squeezenet1_1",
    "googlenet",
    "densenet121",
)
# Beside the first, each form changes one thing.
FORMS: dict[str, dict[str, Any]] = {
    "qlinear": {},
    "int8 storage": {"weights": "int8"},
    "float input": {"input": "float"},
    "fixed batch": {"batch": 4},
    "no space-to-depth": {"space_to_depth": False},
    "no MatMulNBits": {"matmul_nbits": False},
    "not simplified": {"simplify": False},
    "qdq": {"format": "qdq"},
    "qdq, int8 storage, opset 13": {"format": "qdq", "weights": "int8", "opset": 13},
}


def images(size: int) -> NDArray[np.uint8]:
    """Two photographs (of digits, enlarged and in three shades) and two images of noise, uint8 [4, 3, size, size]."""
    digits = torch.from_numpy(load_images("digits", "test").images[:2]).float()
    enlarged = F.interpolate(digits, (size, size), mode="bilinear").round().clamp(0, 255).numpy().astype(np.uint8)
    shades = np.concatenate([enlarged, 255 - enlarged, enlarged // 2], axis=1)
    noise = np.random.default_rng(7).integers(0, 256, (2, 3, size, size), dtype=np.uint8)
    return np.concatenate([shades, noise])


def case_of(exports: Exports, name: str, size: int, bits: int) -> Case:
    torch.manual_seed(bits)
    network = build_model(name, {"in_channels": 3, "num_classes": 40})
    preprocessing = Preprocessing.from_statistics((3, size, size), 0.45, 0.226)
    config = QuantConfig(weight_bits=bits, activation_bits=bits)
    return exports.case(network.eval(), config, images(size), preprocessing)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "alexnet"])
def test_networks_at_full_size(exports: Exports, name: str, tmp_path: Path) -> None:
    case = case_of(exports, name, 224, 4)
    for options in ({}, {"format": "qdq", "weights": "int8"}):
        expected = exports.check_equal(case, tmp_path / "model.onnx", **options)
        assert len(np.unique(expected["logits"])) > 40


@pytest.mark.exhaustive
@pytest.mark.parametrize("bits", [4, 2])
@pytest.mark.parametrize("name", NETWORKS)
def test_every_form_computes_the_same_codes_and_logits(exports: Exports, name: str, bits: int, tmp_path: Path) -> None:
    case = case_of(exports, name, 224, bits)
    for form, options in FORMS.items():
        path = tmp_path / "model.onnx"
        expected = exports.check_equal(case, path, **options)
        assert len(np.unique(expected["logits"])) > 40, form


@pytest.mark.parametrize("name", ["mobilenet_v2", "squeezenet1_1", "googlenet", "densenet121"])
def test_small_images_too(exports: Exports, name: str, tmp_path: Path) -> None:
    case = case_of(exports, name, 64, 3)
    exports.check_equal(case, tmp_path / "model.onnx")


@pytest.mark.parametrize("name", ["shufflenet_v2_x0_5"])
def test_networks_that_recipes_do_not_name(exports: Exports, name: str, tmp_path: Path) -> None:
    torch.manual_seed(3)
    network = getattr(torchvision.models, name)(num_classes=40)
    preprocessing = Preprocessing.from_statistics((3, 64, 64), 0.45, 0.226)
    case = exports.case(network, QuantConfig(weight_bits=4, activation_bits=4), images(64), preprocessing)
    for format_ in ("qlinear", "qdq"):
        exports.check_equal(case, tmp_path / "model.onnx", format=format_)
