"""Inputs that ONNX Runtime's kernels or float32 cannot handle are bounded in freezing, or refused."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import Phase, event, example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import fx, nn

from qil_deploy.config import QuantConfig
from qil_deploy.errors import CertificateError, ModelFileError, UnsupportedModelError
from qil_deploy.export import export_onnx
from qil_deploy.export import trial_run as trial_module
from qil_deploy.export.certify import certify
from qil_deploy.export.export import expected_codes
from qil_deploy.export.trial_run import Trial, differing_outputs
from qil_deploy.integers.freeze_model import freeze
from qil_deploy.integers.frozen_modules import FrozenGlobalAveragePool
from qil_deploy.network.layers import GlobalAveragePool, QuantConv2d, QuantLinear
from qil_deploy.onnx_io.model_file import read_model
from qil_deploy.preprocessing import Preprocessing
from qil_deploy.quantizers import QilActivationQuantizer, RangeQuantizer

from .random_networks import Step
from .test_random_networks import Spec, case_of, forms, specs

if TYPE_CHECKING:
    from tests.export.conftest import Case, Exports

MAPS = {4: (2, 2), 9: (3, 3), 56: (7, 8)}


def pooled(exports: Exports, size: tuple[int, int], shift: float) -> Case:
    """Return a network whose pool reads steps `exp(2 * shift)` times as large as those of its result."""
    torch.manual_seed(0)
    pixels = Preprocessing(channels=1, height=size[0], width=size[1], scale=0.01, zero_point=0)
    images = np.random.default_rng(0).integers(0, 256, (16, *pixels.shape), np.uint8)
    network = nn.Sequential(nn.Conv2d(1, 4, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    case = exports.case(network, QuantConfig(), images, pixels)
    first, *_, last = (module for module in case.prepared.modules() if isinstance(module, RangeQuantizer))
    with torch.no_grad():
        first.log_step.add_(shift)
        last.log_step.sub_(shift)
    return exports.frozen(case, case.prepared)


@pytest.mark.parametrize("shift", [-20.0, -6.0, 0.0, 3.0, 6.0, 8.0, 20.0])
@pytest.mark.parametrize("window", MAPS)
def test_pools_of_any_ratio_run_and_are_exact(exports: Exports, window: int, shift: float, tmp_path: Path) -> None:
    case = pooled(exports, MAPS[window], shift)
    for form in ({}, {"format": "qdq"}):
        exports.check_equal(case, tmp_path / "model.onnx", **form)
    (pool,) = (module for module in case.frozen.modules() if isinstance(module, FrozenGlobalAveragePool))
    assert 2**-32 <= int(pool.numerator) / int(pool.denominator) < 256


def test_a_mean_that_no_fraction_comes_near_is_refused(exports: Exports) -> None:
    images = np.random.default_rng(0).integers(0, 256, (4, 1, 112, 112), np.uint8)
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    pixels = Preprocessing.from_statistics((1, 112, 112), 0.5, 0.5)
    with pytest.raises(UnsupportedModelError, match=r"averages maps of 12,544 pixels, too many .* Pool them in two"):
        exports.case(network, QuantConfig(), images, pixels)


def test_a_pool_beyond_what_the_kernel_counts_is_refused(exports: Exports) -> None:
    case = pooled(exports, (2, 2), 0.0)
    (pool,) = (module for module in case.prepared.modules() if isinstance(module, GlobalAveragePool))
    pool.window = 2**24
    with pytest.raises(
        UnsupportedModelError, match=r"averages maps of 16,777,216 pixels; ONNX Runtime averages 16,777,215"
    ):
        freeze(case.prepared)


class Planted:
    """An exported file of a pooled network, with other constants."""

    def __init__(self, exports: Exports, path: Path, **options: Any) -> None:  # noqa: ANN401 - ExportOptions'
        self.case = pooled(exports, (2, 2), 0.0)
        self.path = self.case.export(path, **options)

    def change(self, node: str, index: int, value: NDArray[Any] | np.generic) -> None:
        model = onnx.load(self.path)
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(value), f"planted_{index}"))
        (found,) = [entry for entry in model.graph.node if entry.name == node]
        found.input[index] = f"planted_{index}"
        onnx.save(model, self.path)

    def scale(self, node: str, index: int) -> Any:  # noqa: ANN401 - a numpy scalar or array
        file = read_model(self.path)
        (found,) = [entry for entry in file.nodes if entry.name == node]
        return file.initializers[found.inputs[index]]

    def refusal(self) -> str:
        with pytest.raises(CertificateError) as caught:
            certify(self.path, expected_codes(self.case.frozen))
        return str(caught.value)


@pytest.fixture
def planted(exports: Exports, tmp_path: Path) -> Planted:
    return Planted(exports, tmp_path / "model.onnx", weights="int8")


@pytest.mark.parametrize(
    ("ratio", "worst"), [(256.0, "256"), (2.0**20, "1048576"), (2.0**-33, "512"), (2.0**-40, "65536")]
)
def test_the_certificate_refuses_pools_that_the_kernel_does_not_take(
    planted: Planted, ratio: float, worst: str
) -> None:
    y_scale = planted.scale("2", 3)
    planted.change("2", 1, np.float32(ratio * 4) * y_scale)
    assert f"'pooling' fails at 2: {worst} is above 255.9999847" in planted.refusal()
    trial = Trial.of(read_model(planted.path), None)
    with pytest.raises(CertificateError, match=r"line 'runs' fails: ONNX Runtime \S+ cannot run the file at .*range"):
        differing_outputs(planted.path, trial)


NO_MULTIPLIER = "the multiplier of its three scales is not a finite number"


@pytest.mark.parametrize("value", [1e-39, 1e-45])
@pytest.mark.parametrize(("node", "index"), [("0", 6), ("0", 4), ("4", 1)])
def test_the_certificate_refuses_scales_below_the_normal_numbers(
    planted: Planted, node: str, index: int, value: float
) -> None:
    planted.change(node, index, np.full_like(planted.scale(node, index), value))
    overflows = (node, index, value) == ("0", 6, 1e-45)  # which the reader refuses before the certificate can
    assert (NO_MULTIPLIER if overflows else f"'scales' fails at {node}: ") in planted.refusal()


def test_the_certificate_refuses_multipliers_that_overflow(planted: Planted) -> None:
    planted.change("0", 4, np.full_like(planted.scale("0", 4), 1e30))
    planted.change("0", 6, np.full_like(planted.scale("0", 6), 1e-30))
    assert NO_MULTIPLIER in planted.refusal()


def test_a_file_that_computes_something_else_gets_no_name(
    exports: Exports, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = pooled(exports, (2, 2), 0.0)
    original = trial_module._run

    def one_off(path: Path, trial: Trial, level: str) -> dict[str, NDArray[Any]]:
        outputs = original(path, trial, level)
        if level == "disabled":
            outputs["logits"] = np.nextafter(outputs["logits"], np.float32(1e9))
        return outputs

    monkeypatch.setattr(trial_module, "_run", one_off)
    message = r"line 'runs' fails at ONNX Runtime at optimization level 'disabled': 3 is above 0\."
    with pytest.raises(CertificateError, match=message):
        case.export(tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())
    case.export(tmp_path / "model.onnx", format="qdq")  # which ONNX Runtime computes in float there


def test_a_file_that_cannot_be_loaded_gets_no_name(
    exports: Exports, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("no kernel\n  for this")

    case, path = pooled(exports, (2, 2), 0.0), tmp_path / "model.onnx"
    monkeypatch.setattr(onnxruntime, "InferenceSession", refuse)
    with pytest.raises(ModelFileError, match=rf"ONNX Runtime \S+ cannot load {path}: no kernel for this\."):
        case.export(path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", [RangeQuantizer, QilActivationQuantizer])
@pytest.mark.parametrize("shift", [-90.0, 80.0])
def test_steps_beyond_float32_are_refused_by_name(exports: Exports, kind: type[nn.Module], shift: float) -> None:
    case = exports.resnet()
    prepared = exports.case(case.network, QuantConfig(), case.images, case.preprocessing).prepared
    name, module = next((name, module) for name, module in prepared.named_modules() if isinstance(module, kind))
    with torch.no_grad():
        next(module.parameters()).add_(shift)
    with pytest.raises(
        UnsupportedModelError, match=rf"'{name}' is out of range: (its step|half the width of its interval) is \d"
    ):
        freeze(prepared)


@pytest.mark.parametrize("gain", [1e38, 3e37])
def test_multipliers_beyond_float32_are_refused_by_name(exports: Exports, gain: float) -> None:
    case = exports.resnet()
    prepared = exports.case(case.network, QuantConfig(), case.images, case.preprocessing).prepared
    with torch.no_grad():
        prepared.get_parameter("layer2.0.bn2.weight").fill_(gain)
        prepared.get_buffer("layer2.0.bn2.running_var").fill_(1e-5)
    with pytest.raises(UnsupportedModelError, match=r"layer 'layer2\.0\.conv2' multiplies its sums by"):
        freeze(prepared)


def move_far(model: fx.GraphModule, rng: np.random.Generator, reach: float) -> None:
    """Multiply or divide some steps, intervals, scales and slopes by up to `exp(reach)`."""

    def factor() -> float:
        return math.exp(rng.uniform(-reach, reach))

    with torch.no_grad():
        for module in model.modules():
            if rng.random() < 0.6:
                continue
            if isinstance(module, QilActivationQuantizer):
                module.log_distance.add_(math.log(factor()))
                if rng.random() < 0.3:
                    module.center_ratio.fill_(float(rng.choice([-1e6, -3, 0, 1, 3, 1e6])))
            elif isinstance(module, RangeQuantizer):
                module.log_step.add_(math.log(factor()))
            elif isinstance(module, QuantConv2d | QuantLinear) and module.log_output_scale is not None:
                module.log_output_scale.add_(math.log(factor()))
            elif isinstance(module, nn.BatchNorm2d):
                module.weight.mul_(min(factor(), 1e30))
                module.bias.mul_(min(factor(), 1e30))


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ranges")


POOL = Spec(
    plan=(Step("maxpool", window=3, stride=2), Step("maxpool", window=1, stride=2)), head="pooled", weight_bits=4,
    activation_bits=8, override=None, train_gamma=False, extreme=False, image_channels=1, size=(8, 8),
    input_zero_point=0, seed=0,
)  # fmt: skip


@given(spec=specs(), form=forms(), reach=st.sampled_from((12.0, 40.0, 70.0)), seed=st.integers(0, 10**6))
@example(spec=POOL, form={}, reach=12.0, seed=4)
@settings(max_examples=25, derandomize=True, phases=(Phase.explicit, Phase.generate))
def test_numbers_of_any_size_are_exact_or_refused(
    exports: Exports, folder: Path, spec: Spec, form: dict[str, Any], reach: float, seed: int
) -> None:
    case = case_of(exports, spec)
    move_far(case.prepared, np.random.default_rng(seed), reach)
    try:
        case = exports.frozen(case, case.prepared)
    except UnsupportedModelError:
        event("refused")
        return
    event("exported")
    values = exports.check_equal(case, folder / "model.onnx", **form)
    assert np.isfinite(values["logits"]).all()


def test_a_checkpoint_of_an_earlier_version_is_refused_too(exports: Exports, tmp_path: Path) -> None:
    """Frozen models whose ratios were not bounded are not frozen anew: the certificate checks their content."""
    case = pooled(exports, (2, 2), 0.0)
    (pool,) = (module for module in case.frozen.modules() if isinstance(module, FrozenGlobalAveragePool))
    pool.numerator.fill_(300)
    pool.denominator.fill_(1)
    with pytest.raises(CertificateError, match=r"line 'pooling' fails at 2: (300|299\.9\d*) is above 255\.9999847"):
        export_onnx(
            case.frozen, tmp_path / "model.onnx", preprocessing=case.preprocessing, class_names=case.class_names
        )
    assert not list(tmp_path.iterdir())
