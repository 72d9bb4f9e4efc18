"""Networks with float parts: the rest stays exact, and the file describes the parts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import torchvision.models
from numpy.typing import NDArray
from torch import Tensor, fx, nn

from qil_deploy.config import QuantConfig
from qil_deploy.datasets import ImageSet, load_images, preprocessing_for
from qil_deploy.errors import CertificateError, ConfigError, ModelFileError, UnsupportedModelError
from qil_deploy.export import ExportOptions, export_onnx
from qil_deploy.export.capture import node_names
from qil_deploy.export.certify import certify
from qil_deploy.export.export import expected_codes
from qil_deploy.integers.frozen_modules import FrozenFloat
from qil_deploy.onnx_io.float_parts import kept_parts
from qil_deploy.onnx_io.model_file import read_model
from qil_deploy.reference import IntegerReference
from qil_deploy.runtime_tests.exported_model import read_exported_model
from qil_deploy.runtime_tests.layers import describe_layers
from qil_deploy.runtime_tests.verify import verify

from .conftest import Case, Exports, gone, run_runtime

Array = NDArray[Any]
FORMS: dict[str, dict[str, Any]] = {
    "qlinear": {},
    "qlinear, int8 storage": {"weights": "int8"},
    "qdq": {"format": "qdq"},
    "qdq, int8 storage": {"format": "qdq", "weights": "int8"},
    "float input, fixed batch": {"input": "float", "batch": 4},
    "kernels": {"kernels": True},
}
CONFIG = QuantConfig(weight_bits=4, activation_bits=4, allow_float=True)


class Attentive(nn.Module):
    """A convolution, an operation without an integer form, and a gate with such a step."""

    def __init__(self, unknown: nn.Module) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), unknown)
        self.squeeze = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 4, 1), nn.ReLU(), nn.Conv2d(4, 8, 1), nn.Tanh()
        )
        self.third = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.pool = nn.AdaptiveAvgPool2d(2)
        self.fc = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, 1, 8, 8] to [N, 10]."""
        x = self.second(self.first(x))
        x = self.squeeze(x) * x
        return self.fc(self.pool(self.third(x)).flatten(1))  # type: ignore[no-any-return] # modules return Any


UNKNOWN: dict[str, Callable[[], nn.Module]] = {
    "Mish": nn.Mish,
    "GELU": nn.GELU,
    "ELU": lambda: nn.ELU(0.1),
    "PReLU": lambda: nn.PReLU(8),
    "LocalResponseNorm": lambda: nn.LocalResponseNorm(3),
    "Softmax": lambda: nn.Softmax(1),
    "GroupNorm": lambda: nn.GroupNorm(2, 8),
    "sharp ReLU": lambda: nn.Sequential(nn.Tanh(), nn.ReLU6()),
    "uneven pooling": lambda: nn.AvgPool2d(3, 1, 1, count_include_pad=False),
}


def case_of(exports: Exports, unknown: nn.Module) -> Case:
    torch.manual_seed(3)
    data = load_images("digits", "test")
    return exports.case(Attentive(unknown), CONFIG, data.images[:32], preprocessing_for("digits", data))


def check(case: Case, path: Path, share: float = 0.01, **options: Any) -> None:  # noqa: ANN401 - ExportOptions'
    """Export, and follow ONNX Runtime step by step: integers must be exact, float at most one step off.

    Every module gets the codes that ONNX Runtime gave its own. A kept part differs from PyTorch by float32 errors of
    some 1e-6, which move a code by one where it lies that close to a tie: in fewer than one of a hundred codes. `share`
    is for what ONNX Runtime fuses to a kernel that approximates the function.
    """
    case.export(path, **options)
    names = node_names(case.frozen)
    last = case.frozen.graph.output_node().all_input_nodes[0]
    names[last] = "logits"
    wanted = [name for node, name in names.items() if node.target != "input_quantizer" and name not in gone(path)]
    for level in ("all", "disabled") if options.get("format") != "qdq" else ("all",):
        found = _runtime_values(case, path, wanted, level)
        found["input_quantizer"] = case.preprocessing.normalize(case.images) / np.float32(case.preprocessing.scale)
        found["input_quantizer"] = np.rint(found["input_quantizer"]) + case.preprocessing.zero_point
        seen = 0
        for node, name in names.items():
            sources = [names.get(source) for source in node.args if isinstance(source, fx.Node)]
            module = case.frozen.get_submodule(str(node.target))
            if name not in found or any(source not in found for source in sources):
                continue
            with torch.no_grad():
                inputs = [torch.from_numpy(np.asarray(found[str(source)], np.float32)) for source in sources]
                expected = module(*inputs).numpy()
            result = np.asarray(found[name], np.float32)
            if isinstance(module, FrozenFloat):
                seen += 1
                steps = np.abs(result - expected)
                assert steps.max() <= 1, (name, level)
                assert (steps > 0).mean() < (share if level == "all" else 0.01), (name, level)
                assert len(np.unique(expected)) > 2, name
            else:
                np.testing.assert_array_equal(result, expected, err_msg=f"{name} at {level}")
        assert seen == len(kept_parts(read_model(path)))
    with torch.no_grad():
        frozen = case.frozen(torch.from_numpy(case.preprocessing.normalize(case.images))).numpy()
    data = ImageSet(images=case.images, labels=frozen.argmax(1), class_names=case.class_names).batches(64)
    report = verify(path, data, others={"frozen PyTorch": lambda _: frozen})
    assert {backend.accuracy for backend in report.backends} == {1.0}, report.backends
    assert report.exact is None


def _runtime_values(case: Case, path: Path, names: list[str], level: str) -> dict[str, Array]:
    """Return tensors of ONNX Runtime, in as many runs as a fixed batch requires."""
    model = onnx.load(path)
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name != "logits")
    images = case.input_of(path)
    size = json.loads(model.metadata_props[0].value)["batch"] or len(images)
    runs = [run_runtime(model, images[start : start + size], level) for start in range(0, len(images), size)]
    return {name: np.concatenate([run[name] for run in runs]) for name in runs[0]}


def test_a_transformer_whose_parts_ask_for_the_number_of_images(exports: Exports, tmp_path: Path) -> None:
    """The tracer lets one part compute the number for all of them; each part of the file is independent."""
    torch.manual_seed(5)
    network = torchvision.models.VisionTransformer(
        image_size=8, patch_size=2, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=32, num_classes=10
    )
    network.conv_proj = nn.Conv2d(1, 16, 2, stride=2)
    data = load_images("digits", "test")
    case = exports.case(network, CONFIG, data.images[:32], preprocessing_for("digits", data))
    check(case, tmp_path / "model.onnx", share=0.05)


@pytest.mark.parametrize("form", FORMS)
def test_integers_around_float_parts_are_exact(exports: Exports, form: str, tmp_path: Path) -> None:
    check(case_of(exports, nn.ELU(inplace=True)), tmp_path / "model.onnx", **FORMS[form])


@pytest.mark.parametrize("unknown", UNKNOWN)
def test_whatever_maps_tensors_to_a_tensor_is_kept(exports: Exports, unknown: str, tmp_path: Path) -> None:
    # ONNX Runtime fuses Softmax to QLinearSoftmax, which adds up a table of rounded exponentials.
    share = 0.25 if unknown == "Softmax" else 0.01
    check(case_of(exports, UNKNOWN[unknown]()), tmp_path / "model.onnx", share)


def test_codes_before_the_first_part_equal_those_of_frozen_pytorch(exports: Exports, tmp_path: Path) -> None:
    case, path = case_of(exports, nn.ELU()), tmp_path / "model.onnx"
    case.export(path)
    expected = case.frozen_values()
    names = list(expected)[1 : list(expected).index("second.2")]
    assert {"first.0", "second.0"} <= set(names)
    found = case.runtime_values(path, names, "all")
    for name in names:
        np.testing.assert_array_equal(found[name], expected[name], strict=True)


def test_the_file_names_its_parts(exports: Exports, tmp_path: Path) -> None:
    case, path = case_of(exports, nn.ELU()), tmp_path / "model.onnx"
    result = export_onnx(
        case.frozen, path, preprocessing=case.preprocessing, class_names=case.class_names, options=ExportOptions()
    )
    parts = ("second.2", "squeeze.4")
    lines = {line.name: line for line in result.certificate}
    assert (lines["float"].worst, lines["float"].bound, lines["float"].where) == (2, 2, ", ".join(parts))
    assert list(lines) == ["int32", "int16", "matmul", "scales", "pooling", "ties", "float", "weights", "runs"]
    assert lines["int32"].worst > 0
    model = read_exported_model(path)
    assert model.float_parts == parts
    assert [layer.name for layer in describe_layers(model)] == [
        "first.0", "second.0", "squeeze.1", "squeeze.3", "third.0", "pool", "fc"
    ]  # fmt: skip
    with pytest.raises(ModelFileError, match=r"'second.2' is kept in float, and the integer reference computes"):
        IntegerReference(model.graph).run(case.images)


@pytest.mark.parametrize("form", ["qlinear", "qdq"])
def test_float_outside_the_parts_fails_the_certificate(exports: Exports, form: str, tmp_path: Path) -> None:
    case, path = case_of(exports, nn.ELU()), tmp_path / "model.onnx"
    case.export(path, **FORMS[form])
    model = onnx.load(path)
    metadata = json.loads(model.metadata_props[0].value)
    metadata["float_parts"].remove("squeeze.4")
    model.metadata_props[0].value = json.dumps(metadata)
    onnx.save(model, path)
    with pytest.raises(CertificateError, match=r"line 'float' fails at Tanh squeeze.4"):
        certify(path, expected_codes(case.frozen))


def test_networks_without_float_parts_are_the_same_file(exports: Exports, tmp_path: Path) -> None:
    torch.manual_seed(3)
    data = load_images("digits", "test")
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10))
    files = []
    for allowed in (False, True):
        config = QuantConfig(weight_bits=4, activation_bits=4, allow_float=allowed)
        case = exports.case(network, config, data.images[:32], preprocessing_for("digits", data))
        files.append(case.export(tmp_path / "model.onnx").read_bytes())
    assert files[0] == files[1]


def test_operator_sets(exports: Exports, tmp_path: Path) -> None:
    case, path = case_of(exports, nn.ELU()), tmp_path / "model.onnx"
    with pytest.raises(ConfigError, match=r"opset is 13; the operators that this model keeps in float need 18 to 25"):
        case.export(path, weights="int8", opset=13)
    assert read_model(case.export(path, weights="int8")).opsets[""] == 18
    assert read_model(case.export(path)).opsets[""] == 25  # of the two-bit weights of the pooling
    check(case, path, weights="int8", opset=21)


class Bessel(nn.Module):
    """A function without operators in ONNX."""

    def forward(self, x: Tensor) -> Tensor:
        """Map a tensor to one of its shape."""
        return torch.special.i0(x)  # type: ignore[no-any-return] # torch declares none


def test_what_the_tracer_cannot_write_is_named(exports: Exports, tmp_path: Path) -> None:
    case = case_of(exports, Bessel())
    with pytest.raises(UnsupportedModelError, match=r"'special_i0', kept in float, cannot be written as ONNX: "):
        case.export(tmp_path / "model.onnx")
    assert not (tmp_path / "model.onnx").exists()


class Sliced(nn.Module):
    """Takes a part of a map, in one step or two."""

    def __init__(self, *parts: tuple[slice, ...]) -> None:
        super().__init__()
        self.parts = parts
        self.body = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1), nn.ReLU())
        self.pool, self.fc = nn.AdaptiveAvgPool2d(1), nn.LazyLinear(10)

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, 1, 8, 8] to [N, 10]."""
        x = self.body(x)
        for part in self.parts:
            x = x[part]
        return self.fc(self.pool(x).flatten(1))  # type: ignore[no-any-return] # modules return Any


@pytest.mark.parametrize(
    "parts",
    [
        [(slice(None), slice(0, 2))],
        [(slice(None), slice(None, -1))],
        [(slice(None), slice(None), slice(None, None, 2))],
        [(slice(None), slice(1, 3), slice(1, -1), slice(2, None, 2))],
        [(slice(None), slice(0, 3)), (slice(None), slice(1, None))],
    ],
    ids=str,
)
def test_slices_move_codes(exports: Exports, parts: list[tuple[slice, ...]], tmp_path: Path) -> None:
    """They are no float parts, though these are allowed."""
    torch.manual_seed(0)
    data, network = load_images("digits", "test"), Sliced(*parts)
    network(torch.zeros(1, 1, 8, 8))
    case = exports.case(network, CONFIG, data.images[:4], preprocessing_for("digits", data))
    for form in FORMS.values():
        exports.check_equal(case, tmp_path / "model.onnx", **form)


class ChannelsBehind(nn.Module):
    """Normalization and multiplication with the channels in the last dimension, as in ConvNeXt."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.mix = nn.Conv2d(1, 8, 3, padding=1), nn.LayerNorm(8), nn.Linear(8, 8)
        self.fc = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.mix(self.norm(self.conv(x).permute(0, 2, 3, 1))).permute(0, 3, 1, 2)
        logits: Tensor = self.fc(y.mean((2, 3)))
        return logits


def test_permutations_move_codes(exports: Exports, tmp_path: Path) -> None:
    """Between two quantizations ONNX Runtime would merge them, and round once where the file rounds twice."""
    images = load_images("digits", "test").images[:8]
    case = exports.case(
        ChannelsBehind().eval(), CONFIG, images, preprocessing_for("digits", load_images("digits", "test"))
    )
    model = onnx.load(case.export(tmp_path / "model.onnx"))
    made_by = {name: node.op_type for node in model.graph.node for name in node.output}
    moved = [made_by[node.input[0]] for node in model.graph.node if node.op_type == "Transpose"]
    assert len(moved) == 4  # the network's two, and one on either side of the linear layer over pixels
    assert "DequantizeLinear" not in moved
