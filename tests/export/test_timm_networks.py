"""Unmodified networks of timm: captured, prepared, frozen and exported, every code and logit equal at every level."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import timm
import torch
from torch import nn

from qil_deploy.config import QuantConfig
from qil_deploy.preprocessing import Preprocessing

from .test_float_parts import check
from .test_torchvision_networks import images

if TYPE_CHECKING:
    from pathlib import Path

    from .conftest import Case, Exports

# Each family once, at the smallest size that it takes well; integers only, from the pixels to the logits.
INTEGER_ONLY = {
    "mobilenetv3_small_100": 64,
    "mobilenetv4_conv_small": 64,
    "mobileone_s0": 64,
    "repvgg_a0": 64,
    "tf_efficientnet_lite0": 64,
}
MORE = {
    "densenet121": 64,
    "dla34": 64,
    "dla46x_c": 64,
    "efficientnet_b0": 64,
    "efficientnet_lite0": 64,
    "fbnetc_100": 64,
    "gernet_s": 64,
    "ghostnet_100": 64,
    "hardcorenas_a": 64,
    "hrnet_w18_small": 64,
    "inception_v3": 128,
    "legacy_xception": 96,
    "mnasnet_100": 64,
    "mobilenetv2_100": 64,
    "mobilenetv3_large_100": 64,
    "regnetx_002": 64,
    "regnety_002": 64,
    "ecaresnet26t": 32,
    "ghostnetv2_100": 64,
    "res2net50_14w_8s": 32,
    "resnet10t": 64,
    "resnet14t": 64,
    "resnet18": 64,
    "resnet26t": 64,
    "resnet34d": 64,
    "resnetv2_50": 64,
    "resnext50_32x4d": 64,
    "selecsls42": 96,
    "spnasnet_100": 64,
    "vgg11_bn": 224,
    "wide_resnet50_2": 64,
    "xception41": 64,
}
WITH_FLOAT_PARTS = ("convnext_atto",)


def case_of(exports: Exports, name: str, size: int, *, allow_float: bool = False) -> Case:
    torch.manual_seed(4)
    network: nn.Module = timm.create_model(name, num_classes=40)
    preprocessing = Preprocessing.from_statistics((3, size, size), 0.45, 0.226)
    config = QuantConfig(weight_bits=4, activation_bits=4, allow_float=allow_float)
    return exports.case(network, config, images(size), preprocessing)  # in training mode, as timm returns it


@pytest.mark.parametrize("name", INTEGER_ONLY)
def test_integer_only(exports: Exports, name: str, tmp_path: Path) -> None:
    exports.check_equal(case_of(exports, name, INTEGER_ONLY[name]), tmp_path / "model.onnx")


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", MORE)
def test_more_families(exports: Exports, name: str, tmp_path: Path) -> None:
    exports.check_equal(case_of(exports, name, MORE[name]), tmp_path / "model.onnx")


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", WITH_FLOAT_PARTS)
def test_with_float_parts(exports: Exports, name: str, tmp_path: Path) -> None:
    check(case_of(exports, name, 64, allow_float=True), tmp_path / "model.onnx")
