"""Faults planted in a file of a trained network: `verify` names the layer, compared with the frozen checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import fx

from qil_deploy.checkpoint import load_model
from qil_deploy.commands.predictors import checkpoint_predictors, frozen_codes
from qil_deploy.datasets import load_images
from qil_deploy.export import ExportOptions, export_onnx
from qil_deploy.runtime_tests import Comparison, verify
from qil_deploy.runtime_tests.backends import FROZEN, REFERENCE, onnx_backend_name
from qil_deploy.training.models.build import build_model

CHECKPOINT = Path(__file__).parents[2] / "zoo" / "fashion_mnist" / "w2a2_frozen.safetensors"


@pytest.fixture(scope="module", params=["qlinear", "qdq"])
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The zoo's 2-bit network in either format."""
    info, model = load_model(CHECKPOINT, build_model)
    assert isinstance(model, fx.GraphModule)
    path = tmp_path_factory.mktemp("exported") / "model.onnx"
    options = ExportOptions(format=request.param, weights="int8")
    export_onnx(model, path, preprocessing=info.preprocessing, class_names=info.class_names, options=options)
    return path


Compare = Callable[[Path, str], Comparison]


@pytest.fixture(scope="module")
def compare() -> Compare:
    """Return a function that compares a backend with the frozen checkpoint on four images."""
    data = load_images("fashion-mnist", "test").first(4).batches(4)
    others, codes = checkpoint_predictors(CHECKPOINT), {FROZEN: frozen_codes(CHECKPOINT)}

    def compare(path: Path, backend: str) -> Comparison:
        report = verify(path, data, others=others, codes=codes, levels=["all"], between=(backend, FROZEN))
        return report.comparisons[0]

    return compare


def plant(path: Path, fault: str, layer: str, folder: Path) -> Path:
    """Write a copy with a fault in one layer; other readers keep their constants."""
    model = onnx.load(path)
    nodes = {node.name: node for node in model.graph.node}
    made = {output: node for node in model.graph.node for output in node.output}
    node, qdq = nodes[layer], nodes[layer].op_type == "Conv"
    stored = {constant.name: numpy_helper.to_array(constant) for constant in model.graph.initializer}

    def change(reader: onnx.NodeProto, index: int, value: NDArray[Any]) -> None:
        name = f"{reader.input[index]}_changed"
        if name not in stored:
            stored[name] = value
            model.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        reader.input[index] = name

    data, weights, bias = (made[name] for name in node.input[:3]) if qdq else (node, node, node)
    places = {"bias": 0, "weights": 0, "w_scale": 1, "b_scale": 1, "x_zero_point": 2} if qdq else {}
    places = places or {"bias": 8, "weights": 3, "w_scale": 4, "x_zero_point": 2}
    if fault == "bias":
        wrong = stored[bias.input[places["bias"]]].copy()
        wrong[3] += 4000
        change(bias, places["bias"], wrong)
    elif fault == "scale":
        change(weights, places["w_scale"], stored[weights.input[places["w_scale"]]] * np.float32(2))
        if qdq:
            change(bias, places["b_scale"], stored[bias.input[places["b_scale"]]] * np.float32(2))
    elif fault == "swapped channels":
        codes = stored[weights.input[places["weights"]]]
        change(weights, places["weights"], codes[[1, 0, *range(2, len(codes))]])
    else:
        wrong = np.asarray(stored[data.input[places["x_zero_point"]]] + np.uint8(2), np.uint8)
        change(data, places["x_zero_point"], wrong)
    planted = folder / "planted.onnx"
    onnx.save(model, planted)
    return planted


def test_a_right_file_equals_the_checkpoint_in_every_code(exported: Path, compare: Compare) -> None:
    for backend in (REFERENCE, onnx_backend_name("all")):
        comparison = compare(exported, backend)
        assert comparison.difference is None
        assert comparison.tensors > 30


@pytest.mark.parametrize(
    ("fault", "layer"),
    [("bias", "conv1"), ("scale", "layer2.0.conv1"), ("swapped channels", "layer3.1.conv2"), ("zero point", "conv1")],
)
def test_a_planted_fault_is_named(exported: Path, compare: Compare, fault: str, layer: str, tmp_path: Path) -> None:
    planted = plant(exported, fault, layer, tmp_path)
    for backend in (REFERENCE, onnx_backend_name("all")):
        difference = compare(planted, backend).difference
        assert difference is not None
        assert (difference.node, difference.layer) == (layer, layer)
