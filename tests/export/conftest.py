"""Untrained networks with awkward numbers, their exports, and the comparison of everything that must be equal."""

from __future__ import annotations

import copy
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn

from qil_deploy.config import QuantConfig
from qil_deploy.datasets import load_images, preprocessing_for
from qil_deploy.export import ExportOptions, export_onnx
from qil_deploy.export.capture import node_names
from qil_deploy.integers.freeze_model import freeze
from qil_deploy.integers.frozen_modules import FrozenModule
from qil_deploy.network.calibration import calibrate
from qil_deploy.network.preparation import prepare
from qil_deploy.onnx_io.model_file import read_model
from qil_deploy.preprocessing import Preprocessing
from qil_deploy.quantizers import QilActivationQuantizer
from qil_deploy.reference import IntegerReference
from qil_deploy.runtime_tests.sessions import OPTIMIZATION_LEVELS
from qil_deploy.training.models.build import build_model

Array = NDArray[Any]

# Where ONNX Runtime computes with integers: QDQ is fused from "extended" on.
EXACT_LEVELS = {"qlinear": tuple(OPTIMIZATION_LEVELS), "qdq": ("extended", "all")}


def run_runtime(model: onnx.ModelProto, images: Array, level: str = "all") -> dict[str, Array]:
    """Run a model in ONNX Runtime; return its outputs by name."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = OPTIMIZATION_LEVELS[level]
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    results = session.run(names, {session.get_inputs()[0].name: images})
    return dict(zip(names, map(np.asarray, results), strict=True))


def randomize_norms(model: nn.Module, rng: np.random.Generator) -> None:
    """Give every BatchNorm gammas of both signs, some of them zero or tiny, and random betas."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            gammas = rng.normal(0, 1, module.num_features)
            special = rng.random(module.num_features)
            gammas[special < 0.1] = 0.0
            gammas[(special >= 0.1) & (special < 0.2)] *= 1e-12
            with torch.no_grad():
                module.weight.copy_(torch.from_numpy(gammas))
                module.bias.copy_(torch.from_numpy(rng.normal(0, 1, module.num_features)))


def disturb(model: fx.GraphModule, rng: np.random.Generator) -> None:
    """Change calibrated values, as training would: intervals (two of three begin below zero), statistics, scales."""
    lowest = itertools.cycle((-0.4, 0.3, -0.2))
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, QilActivationQuantizer):
                upper = module.thresholds[1] * rng.uniform(0.7, 1.3)
                module.set_thresholds(upper * next(lowest) * rng.uniform(), upper)
            elif isinstance(module, nn.BatchNorm2d):
                assert module.running_mean is not None
                assert module.running_var is not None
                deviation = module.running_var.sqrt()
                module.running_mean += deviation * torch.from_numpy(rng.normal(0, 0.3, module.num_features))
                module.running_var *= torch.from_numpy(np.exp(rng.normal(0, 0.5, module.num_features)))
        for name, parameter in model.named_parameters():
            if name.endswith(("log_step", "log_largest", "log_output_scale", "output_shift")):
                parameter.add_(float(rng.normal(0, 0.2)))


@dataclass(frozen=True, kw_only=True)
class Case:
    """A frozen network with images to run it on.

    Attributes:
        network: the float network that `prepared` was made from.
        images: uint8 [N, C, H, W].
    """

    network: nn.Module
    prepared: fx.GraphModule
    frozen: fx.GraphModule
    preprocessing: Preprocessing
    images: NDArray[np.uint8]
    class_names: tuple[str, ...]

    @classmethod
    def of(
        cls,
        network: nn.Module,
        config: QuantConfig,
        images: NDArray[np.uint8],
        preprocessing: Preprocessing,
        seed: int = 0,
    ) -> Case:
        """Prepare, calibrate and freeze a network on the images; its numbers are random and awkward."""
        rng = np.random.default_rng(seed)
        randomize_norms(network, rng)
        x = torch.from_numpy(preprocessing.normalize(images))
        prepared = prepare(network, config, x[:1], input_grid=preprocessing)
        calibrate(prepared, [x], float_model=network if config.output_scales == "channels" else None)
        disturb(prepared, rng)
        frozen = freeze(prepared)
        with torch.no_grad():
            found = frozen(x[:1])
        classes = found.shape[1] if isinstance(found, Tensor) and found.ndim == 2 else 0
        return cls(
            network=network,
            prepared=prepared,
            frozen=frozen,
            preprocessing=preprocessing,
            images=images,
            class_names=tuple(f"class {index}" for index in range(classes)),
        )

    def export(self, path: Path, *, data: str | None = None, **options: Any) -> Path:  # noqa: ANN401 - ExportOptions'
        """Write the frozen network as ONNX."""
        export_onnx(
            self.frozen,
            path,
            preprocessing=self.preprocessing,
            class_names=self.class_names,
            data=data,
            options=ExportOptions(**options),
        )
        return path

    def input_of(self, path: Path) -> Array:
        """Return the images in the form of a file's input."""
        if read_model(path).inputs[0].dtype == "uint8":
            return self.images
        return self.preprocessing.normalize(self.images)

    def frozen_values(self) -> dict[str, Array]:
        """Return every code tensor of frozen PyTorch and the logits, by their name in the exported graph."""
        recorder = _Recorder(copy.deepcopy(self.frozen))
        with torch.no_grad():
            recorder.run(torch.from_numpy(self.preprocessing.normalize(self.images)))
        names = node_names(recorder.graph_module)
        last = recorder.graph_module.graph.output_node().all_input_nodes[0]
        names[last] = "logits"
        reals = _real_nodes(recorder.graph_module)
        values = {}
        for node, value in recorder.values.items():
            values[names[node]] = value if node in reals else value.astype(np.uint8)
            np.testing.assert_array_equal(values[names[node]], value, err_msg=f"{names[node]} is no uint8 code")
        return values

    def runtime_values(self, path: Path, names: Sequence[str], level: str) -> dict[str, Array]:
        """Return the named tensors of a file in ONNX Runtime."""
        model = onnx.load(path)
        kept = {output.name for output in model.graph.output}
        model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in kept)
        return run_runtime(model, self.input_of(path), level)


def _real_nodes(model: fx.GraphModule) -> set[fx.Node]:
    """Return the nodes whose values are float logits, flattened or not."""
    reals: set[fx.Node] = set()
    for node in model.graph.nodes:
        module = model.get_submodule(str(node.target)) if node.op == "call_module" else None
        makes_logits = isinstance(module, FrozenModule) and module.y is None
        if makes_logits or reals.intersection(node.all_input_nodes):
            reals.add(node)
    return reals


def gone(path: Path) -> set[str]:
    """Return the modules of the network whose codes a file lacks, because passes merged or rearranged them.

    These are the names that its metadata gives. A tensor that still had one of them would hold other codes than its
    module makes.
    """
    model = onnx.load(path)
    (entry,) = model.metadata_props
    metadata = json.loads(entry.value)
    passes, layers = metadata["passes"], {layer["name"] for layer in metadata["layers"]}
    # Linear layers behind a rearranged map keep their results; the map is what has gone.
    names = {*passes.get("simplify", ()), *set(passes.get("channels_last", ())).difference(layers)} - {"logits"}
    left = names.intersection(output for node in model.graph.node for output in node.output)
    assert not left, f"{path} has tensors {sorted(left)}, though its metadata says that passes took them out"
    return names


class _Recorder(fx.Interpreter):
    """Records the results of all module calls."""

    def __init__(self, model: fx.GraphModule) -> None:
        super().__init__(model)
        self.graph_module = model
        self.values: dict[fx.Node, Array] = {}

    def run_node(self, node: fx.Node) -> Any:  # noqa: ANN401 - as in the base class
        result = super().run_node(node)
        if node.op == "call_module" and isinstance(result, Tensor):
            self.values[node] = result.numpy()
        return result


@dataclass(frozen=True)
class Exports:
    """Makes cases and compares all backends that must compute the same."""

    resnets: dict[tuple[object, ...], Case] = field(default_factory=dict)

    def resnet(self, depth: int = 8, *, weight_bits: int = 4, activation_bits: int = 4, width: int = 8) -> Case:
        """Return an untrained ResNet on 32 digits, always the same for the same arguments."""
        key = (depth, weight_bits, activation_bits, width)
        if key not in self.resnets:
            torch.manual_seed(depth)
            data = load_images("digits", "test")
            arguments = {"in_channels": 1, "num_classes": 10, "width": width}
            self.resnets[key] = Case.of(
                build_model(f"resnet{depth}", arguments),
                QuantConfig(weight_bits=weight_bits, activation_bits=activation_bits),
                data.images[:32],
                preprocessing_for("digits", data),
            )
        return self.resnets[key]

    @staticmethod
    def case(
        network: nn.Module,
        config: QuantConfig,
        images: NDArray[np.uint8],
        preprocessing: Preprocessing,
        seed: int = 0,
    ) -> Case:
        """Return the case of any network."""
        return Case.of(network, config, images, preprocessing, seed)

    @staticmethod
    def frozen(case: Case, prepared: fx.GraphModule) -> Case:
        """Return `case` with another prepared model, frozen anew."""
        return replace(case, prepared=prepared, frozen=freeze(prepared))

    @staticmethod
    def run_runtime(model: onnx.ModelProto, images: Array, level: str = "all") -> dict[str, Array]:
        """Run a model in ONNX Runtime; return its outputs by name."""
        return run_runtime(model, images, level)

    def check_equal(self, case: Case, path: Path, **options: Any) -> dict[str, Array]:  # noqa: ANN401 - ExportOptions'
        """Export, and require every code and logit of all backends to be equal; return them by name."""
        case.export(path, **options)
        expected = case.frozen_values()
        for name in gone(path):
            expected.pop(name, None)
        if options.get("input", "uint8") == "uint8":
            # The graph has no such node: the image is its first code tensor.
            np.testing.assert_array_equal(expected.pop("input_quantizer"), case.images, strict=True)
        x = case.input_of(path)
        reference = IntegerReference(read_model(path))
        found = {"integer reference": reference.run_all(x)}
        np.testing.assert_array_equal(reference.run(x), expected["logits"], strict=True)
        levels = EXACT_LEVELS[options.get("format", "qlinear")]
        found |= {f"ONNX Runtime ({level})": case.runtime_values(path, list(expected), level) for level in levels}
        for backend, values in found.items():
            self.compare(values, expected, backend)
        for level in levels:
            # Without the additional outputs the optimizer is free to fuse more.
            logits = run_runtime(onnx.load(path), x, level)["logits"]
            np.testing.assert_array_equal(logits, expected["logits"], strict=True)
        return expected

    @staticmethod
    def compare(values: Mapping[str, Array], expected: Mapping[str, Array], backend: str) -> None:
        """Require all tensors to be equal, dtype and shape included."""
        assert set(expected) <= set(values), backend
        for name, value in expected.items():
            np.testing.assert_array_equal(values[name], value, err_msg=f"{backend}: {name}", strict=True)


@pytest.fixture(scope="session")
def exports() -> Exports:
    return Exports()
