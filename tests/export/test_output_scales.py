"""Networks with an output scale before BatchNorm, exported: exact in integers, close if layers stay float."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
import torch

from qil_deploy.config import OutputScales, QuantConfig
from qil_deploy.datasets import load_images, preprocessing_for
from qil_deploy.export import ExportOptions, export_onnx
from qil_deploy.network.calibration import calibrate
from qil_deploy.network.preparation import prepare
from qil_deploy.quantizers import METHODS
from qil_deploy.training.models.build import build_model

from .conftest import disturb, randomize_norms, run_runtime

if TYPE_CHECKING:
    from .conftest import Exports

ARGUMENTS = {"in_channels": 1, "num_classes": 10, "width": 8}


@pytest.mark.parametrize("format_", ["qlinear", "qdq"])
@pytest.mark.parametrize(("bits", "scales"), [(2, "all"), (3, "all"), (4, "all"), (4, "channels")])
def test_every_code_and_logit_is_equal(
    exports: Exports, bits: int, scales: OutputScales, format_: str, tmp_path: Path
) -> None:
    data = load_images("digits", "test")
    config = QuantConfig(weight_bits=bits, activation_bits=bits, output_scales=scales)
    case = exports.case(
        build_model("resnet8", ARGUMENTS), config, data.images[:16], preprocessing_for("digits", data), seed=bits
    )
    exports.check_equal(case, tmp_path / "model.onnx", format=format_)


@pytest.mark.parametrize("scales", ["all", "channels"])
@pytest.mark.parametrize("method", METHODS)
def test_paper_placement_folds_the_scale_too(
    rng: np.random.Generator, tmp_path: Path, method: str, scales: OutputScales
) -> None:
    data = load_images("digits", "test")
    preprocessing = preprocessing_for("digits", data)
    network = build_model("resnet8", ARGUMENTS).eval()
    randomize_norms(network, rng)
    images = data.images[:32]
    x = torch.from_numpy(preprocessing.normalize(images))
    config = QuantConfig(weight_bits=4, activation_bits=4, method=method, placement="paper", output_scales=scales)
    model = prepare(network, config, x[:1], input_grid=preprocessing)
    calibrate(model, [x], float_model=network)
    disturb(model, rng)
    path = tmp_path / "model.onnx"
    export_onnx(
        model,
        path,
        preprocessing=preprocessing,
        class_names=data.class_names,
        options=ExportOptions(format="qdq"),
    )
    with torch.no_grad():
        expected = model.eval()(x).numpy()
    found = run_runtime(onnx.load(path), images, "disabled")["logits"]
    # A sum that falls on the other side of a rounding moves a code of an inner tensor.
    difference = np.abs(found - expected) / np.abs(expected).max()
    assert np.median(difference) < 1e-5
    assert difference.max() < 0.1
