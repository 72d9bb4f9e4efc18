"""A tensor's name refers to the same codes everywhere: in every form of a file, in its metadata, in PyTorch."""

from __future__ import annotations

import itertools
import json
import tempfile
from collections import OrderedDict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import Phase, example, given, settings
from numpy.typing import NDArray
from torch import Tensor, nn

from qil_deploy.config import QuantConfig
from qil_deploy.export.passes import matmul_nbits, space_to_depth
from qil_deploy.onnx_io.model_file import read_model
from qil_deploy.preprocessing import Preprocessing
from qil_deploy.quantizers import RangeQuantizer
from qil_deploy.reference import IntegerReference
from qil_deploy.runtime_tests.backends import FROZEN, REFERENCE, ExecutedGraph
from qil_deploy.runtime_tests.differences import compare_codes
from qil_deploy.runtime_tests.exported_model import read_exported_model
from qil_deploy.runtime_tests.golden import write_golden
from qil_deploy.runtime_tests.golden_file import read_vectors

from .conftest import gone
from .random_networks import Step
from .test_random_networks import PASSES, Spec, case_of, specs

if TYPE_CHECKING:
    from tests.export.conftest import Case, Exports

Codes = dict[str, NDArray[Any]]
FORMS: list[dict[str, Any]] = [
    {"format": format_, "weights": weights, **dict.fromkeys(PASSES, passes)}
    for format_, weights, passes in itertools.product(("qlinear", "qdq"), ("packed", "int8"), (True, False))
]
CLIPPED_ADDITION = (Step("conv"), Step("add", other=1, act=3), Step("maxpool", window=1), Step("conv"))
POOLED_STEM = (Step("maxpool", window=1), Step("conv"))


def spec(plan: tuple[Step, ...], seed: int = 0) -> Spec:
    return Spec(
        plan=plan, head="pooled", weight_bits=4, activation_bits=4, override=None, train_gamma=False, extreme=False,
        image_channels=3, size=(12, 10), input_zero_point=73, seed=seed,
    )  # fmt: skip


def golden_tensors(case: Case, path: Path) -> Codes:
    golden = path.with_suffix(".npz")
    write_golden(path, case.images, "noise", golden)
    with tempfile.TemporaryDirectory() as folder:
        tensors = read_vectors(golden, read_exported_model(path), Path(folder)).tensors
        return {name: np.array(codes) for name, codes in tensors.items()}


def check_metadata(path: Path) -> None:
    """Require every name in the metadata of a file to be that of the right tensor."""
    model = onnx.load(path)
    (entry,) = model.metadata_props
    metadata = json.loads(entry.value)
    reference = IntegerReference(read_model(path))
    layers = {node.name for node in reference.nodes if node.op_type in ("QLinearConv", "QGemm", "MatMulNBits")}
    assert {layer["name"] for layer in metadata["layers"]} == layers
    passes = metadata["passes"]
    assert set(passes.get("space_to_depth", ())) | set(passes.get("matmul_nbits", ())) <= layers
    gone(path)
    nodes = {node.name for node in reference.nodes}
    assert {line["where"] for line in metadata["certificate"]} <= nodes | {""}


def check_codes(case: Case, path: Path) -> None:
    """Require every tensor that PyTorch and a file share to be compared, and equal."""
    exported = read_exported_model(path)
    graph = ExecutedGraph.of(exported)
    expected, found = case.frozen_values(), IntegerReference(exported.graph).run_all(case.images)
    comparison = compare_codes(graph, (REFERENCE, FROZEN), (found, expected), range(len(case.images)))
    assert comparison.difference is None
    in_file = {name for node in exported.graph.nodes for name in node.outputs}
    assert comparison.tensors == len(in_file.intersection(expected))


def check_forms(case: Case, folder: Path) -> None:
    known: Codes = case.frozen_values()
    for form in FORMS:
        path = case.export(folder / "model.onnx", **form)
        tensors = golden_tensors(case, path)
        for name in tensors.keys() & known.keys():
            if np.issubdtype(tensors[name].dtype, np.integer) or name == "logits":
                np.testing.assert_array_equal(tensors[name], known[name], err_msg=f"{name} in {form}", strict=True)
        known = tensors | known
        assert set(case.frozen_values()) - gone(path) - {"input_quantizer"} <= set(tensors), form
        check_metadata(path)
        check_codes(case, path)


@pytest.fixture(autouse=True, scope="module")
def every_pass_finds_work() -> Any:  # noqa: ANN401 - an iterator
    """Let linear layers and stems of any size be rewritten."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(matmul_nbits, "MIN_WEIGHTS", 1)
        patch.setattr(space_to_depth, "MIN_RESULTS", 1)
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("names")


@given(spec=specs())
@example(spec=spec(CLIPPED_ADDITION))
@example(spec=spec(POOLED_STEM))
@settings(max_examples=20, derandomize=True, phases=(Phase.explicit, Phase.generate))
def test_a_name_means_the_same_codes_in_every_form(exports: Exports, folder: Path, spec: Spec) -> None:
    check_forms(case_of(exports, spec), folder)


class ClippedSum(nn.Module):
    """An addition, its ReLU6 and a pool in a row."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.act, self.pool = nn.ReLU6(), nn.MaxPool2d(2)
        self.last, self.fc = nn.Conv2d(8, 8, 3), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        x = self.pool(self.act(x + self.second(x)))
        logits: Tensor = self.fc(self.last(x).mean((2, 3)))
        return logits


PIXELS = Preprocessing(channels=3, height=8, width=8, scale=0.02, zero_point=100)


def case_for(exports: Exports, network: nn.Module) -> Case:
    torch.manual_seed(0)
    images = np.random.default_rng(0).integers(0, 256, (4, *PIXELS.shape), np.uint8)
    return exports.case(network, QuantConfig(), images, PIXELS)


def test_an_addition_that_is_clipped_and_pooled_keeps_no_name_of_other_codes(exports: Exports, tmp_path: Path) -> None:
    """Two passes meet here: the clip moves after the pool, and the addition's operands get pools of one pixel."""
    case = case_for(exports, ClippedSum())
    with torch.no_grad():
        for module in case.prepared.modules():
            if isinstance(module, RangeQuantizer):
                module.log_step.add_(3.0)  # codes far beyond 6
    case = exports.frozen(case, case.prepared)
    path = case.export(tmp_path / "model.onnx", format="qdq", weights="int8")
    assert gone(path) == {"add"}
    names = {name for node in onnx.load(path).graph.node for name in node.output}
    assert {"add_unclipped", "second_rounded"} <= names
    check_forms(case, tmp_path)


def test_files_of_earlier_versions_have_no_difference_where_there_is_none(exports: Exports, tmp_path: Path) -> None:
    """They named codes before clipping after the layer."""
    case = case_of(exports, spec(POOLED_STEM))
    path = case.export(tmp_path / "model.onnx")
    (name,) = gone(path)
    model = onnx.load(path)
    for node in model.graph.node:
        for names in (node.input, node.output):
            names[:] = [name if entry == f"{name}_unclipped" else entry for entry in names]
    onnx.save(model, path)
    assert name in ExecutedGraph.of(read_exported_model(path)).rearranged


@pytest.mark.parametrize(
    "names",
    [
        {"2": "logits"},
        {"2": "image"},
        {"0": "image", "2": "logits", "5": "last"},
        {"0": "conv", "2": "conv_unclipped"},
        {"0": "conv", "2": "conv_weight"},
        {"2": "conv", "5": "conv_codes"},
        {"2": "uint8_0", "5": "float32_1"},
        {"0": "split_rows", "2": "blocks"},
        {"5": "logits"},
    ],
    ids=lambda names: "-".join(names.values()),
)
def test_modules_may_have_the_names_of_other_tensors(exports: Exports, names: dict[str, str], tmp_path: Path) -> None:
    layers = nn.Sequential(
        nn.Conv2d(3, 6, 4, 2, 1), nn.ReLU(), nn.Conv2d(6, 6, 1), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(24, 5)
    )
    modules = OrderedDict((names.get(name, name), module) for name, module in layers.named_children())
    check_forms(case_for(exports, nn.Sequential(modules)), tmp_path)


def test_a_module_called_twice_and_one_with_the_name_of_its_second_call(exports: Exports, tmp_path: Path) -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.pool, self.pool_1 = nn.Conv2d(3, 6, 3, padding=1), nn.MaxPool2d(2), nn.Conv2d(6, 6, 1)
            self.fc = nn.Linear(24, 5)

        def forward(self, x: Tensor) -> Tensor:
            x = self.pool(self.pool(self.first(x)))
            logits: Tensor = self.fc(torch.flatten(self.pool_1(x), 1))
            return logits

    check_forms(case_for(exports, Twice()), tmp_path)
