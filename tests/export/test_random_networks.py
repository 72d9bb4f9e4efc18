"""Random networks of all supported operations: reference, ONNX Runtime and frozen PyTorch agree on every code.

The normal run tries a few, always the same. Thousands of new ones (CONTRIBUTING.md):

    python -m pytest tests/export/test_random_networks.py --hypothesis-profile=campaign --hypothesis-show-statistics
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import Phase, event, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import fx, nn

from qil_deploy.commands.predictors import model_predictor, record_codes
from qil_deploy.config import LayerOverride, Outputs, OutputScales, QuantConfig
from qil_deploy.datasets import ImageSet
from qil_deploy.export.passes import matmul_nbits
from qil_deploy.preprocessing import Preprocessing
from qil_deploy.quantizers import QilActivationQuantizer, QilWeightQuantizer, RangeQuantizer
from qil_deploy.runtime_tests import verify
from qil_deploy.runtime_tests.backends import FROZEN, REFERENCE

from .random_networks import HEADS, MAPS, Head, RandomNetwork, Step, steps

if TYPE_CHECKING:
    from tests.export.conftest import Case, Exports

CLASSES = 3
PASSES = ("space_to_depth", "channels_last", "matmul_nbits", "simplify")
IN_CAMPAIGN = settings.get_current_profile_name() == "campaign"


@dataclass(frozen=True)
class Spec:
    """A network, its quantization, and the distributions of its images and numbers."""

    plan: tuple[Step, ...]
    head: Head
    weight_bits: int
    activation_bits: int
    override: LayerOverride | None
    train_gamma: bool
    extreme: bool
    image_channels: int
    size: tuple[int, int]
    input_zero_point: int
    seed: int
    outputs: Outputs = "float"


@st.composite
def specs(draw: st.DrawFn, heads: tuple[Head, ...] = HEADS) -> Spec:
    weight_bits, activation_bits = draw(
        st.tuples(st.integers(2, 8), st.integers(2, 8)).filter(lambda bits: bits != (8, 8))
    )
    bits = st.none() | st.integers(2, 7)
    return Spec(
        plan=tuple(draw(st.lists(steps(), min_size=1, max_size=7))),
        head=draw(st.sampled_from(heads)),
        weight_bits=weight_bits,
        activation_bits=activation_bits,
        override=draw(st.none() | st.builds(LayerOverride, weight_bits=bits, activation_bits=bits)),
        train_gamma=draw(st.booleans()),
        extreme=draw(st.sampled_from((False, False, True))),
        image_channels=draw(st.sampled_from((1, 3, 4))),
        size=draw(st.sampled_from(((8, 8), (9, 7), (12, 10), (5, 13)))),
        input_zero_point=draw(st.sampled_from((0, 73, 128, 255))),
        outputs=draw(st.sampled_from(("float", "codes"))),
        seed=draw(st.integers(0, 1000)),
    )


@st.composite
def forms(draw: st.DrawFn) -> dict[str, Any]:
    """Options of one exported file."""
    weights = draw(st.sampled_from(("packed", "int8")))
    return {
        "format": draw(st.sampled_from(("qlinear", "qlinear", "qdq"))),
        "weights": weights,
        "input": draw(st.sampled_from(("uint8", "float"))),
        **dict(zip(PASSES, draw(st.sampled_from(((True,) * 4, (True,) * 4, (False,) * 4))), strict=True)),
        "opset": draw(st.sampled_from((13, 17, 21, 25))) if weights == "int8" else None,
    }


OUTPUT_SCALES: tuple[OutputScales, ...] = ("without_batchnorm", "all", "channels")


def awkward(network: nn.Module, rng: np.random.Generator) -> None:
    """Draw all weights anew; one channel of each layer is dead, tiny or large."""
    for layer in network.modules():
        if isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Linear):
            with torch.no_grad():
                layer.weight.normal_()
                layer.weight[int(rng.integers(len(layer.weight)))] *= float(rng.choice((0.0, 1e-9, 5.0)))
                if layer.bias is not None:
                    layer.bias.normal_()


def make_extreme(model: fx.GraphModule, rng: np.random.Generator) -> None:
    """Move some intervals and ranges far from their calibrated values."""
    for module in model.modules():
        if rng.random() < 0.6:
            continue
        with torch.no_grad():
            if isinstance(module, QilActivationQuantizer):
                width = module.thresholds[1] * float(10 ** rng.uniform(-2, 1))
                lower = width * float(rng.choice((-3, -0.5, 0, 0.5, 3)))
                module.set_thresholds(lower, lower + width)
            elif isinstance(module, QilWeightQuantizer):
                module.set_thresholds(float(rng.uniform(-1, 1)), float(rng.uniform(1, 4)))
                if module.gamma_raw is not None:
                    module.gamma_raw.fill_(float(rng.normal(0, 3)))
            elif isinstance(module, RangeQuantizer):
                module.log_step.add_(float(rng.uniform(-3, 3)))


def case_of(exports: Exports, spec: Spec) -> Case:
    torch.manual_seed(spec.seed)
    network = RandomNetwork(spec.plan, spec.head, spec.image_channels, spec.size, CLASSES)
    rng = np.random.default_rng(spec.seed)
    awkward(network, rng)
    inner = network.layers()[1:-1]
    override = spec.override
    if override is not None and spec.head in MAPS:  # any layer may be the last one of some output
        override = LayerOverride(weight_bits=override.weight_bits)
    overrides = {inner[0]: override} if inner and override is not None else {}
    config = QuantConfig(
        weight_bits=spec.weight_bits,
        activation_bits=spec.activation_bits,
        overrides=overrides,
        train_gamma=spec.train_gamma,
        output_scales=OUTPUT_SCALES[spec.seed % len(OUTPUT_SCALES)],
        outputs=spec.outputs,
    )
    images = rng.integers(0, 256, (5, spec.image_channels, *spec.size), np.uint8)
    preprocessing = Preprocessing(
        channels=spec.image_channels,
        height=spec.size[0],
        width=spec.size[1],
        scale=float(rng.uniform(0.005, 0.02)),
        zero_point=spec.input_zero_point,
    )
    if spec.seed % 3 == 0:
        mean, std = (rng.uniform(low, high, spec.image_channels).tolist() for low, high in ((0, 1), (0.1, 0.5)))
        preprocessing = Preprocessing.from_statistics(preprocessing.shape, mean, std)
    case = exports.case(network, config, images, preprocessing, spec.seed)
    if spec.extreme:
        make_extreme(case.prepared, rng)
        case = exports.frozen(case, case.prepared)
    return case


@pytest.fixture(autouse=True, scope="module")
def small_linears_are_large_enough() -> Iterator[None]:
    """Let linear layers of any size become MatMulNBits."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(matmul_nbits, "MIN_WEIGHTS", 1)
        yield


def check_outputs(case: Case, path: Path, **form: Any) -> None:  # noqa: ANN401 - ExportOptions'
    """Export a network of maps or several outputs, and require every number and every code to be equal."""
    case.export(path, **form)
    images = ImageSet(images=case.images, labels=np.zeros(len(case.images), np.int64), class_names=())

    def codes(pixels: NDArray[np.uint8]) -> Any:  # noqa: ANN401 - arrays
        return record_codes(case.frozen, torch.from_numpy(case.preprocessing.normalize(pixels)))

    report = verify(
        path,
        images.batches(3),
        others={FROZEN: model_predictor(case.frozen, case.preprocessing)},
        codes={FROZEN: codes},
        first_difference=True,
        between=(REFERENCE, FROZEN),
    )
    assert report.exact, report.backends
    (comparison,) = report.comparisons
    assert comparison.difference is None
    event(f"outputs: {len(report.backends[0].outputs)}")


@given(spec=specs(HEADS + MAPS), form=forms())
# Shrinking such networks takes many minutes and their specs are short already.
@settings(
    max_examples=4000 if IN_CAMPAIGN else 60,
    derandomize=not IN_CAMPAIGN,
    phases=(Phase.explicit, Phase.reuse, Phase.generate),
)
def test_every_code_and_logit_is_equal(exports: Exports, folder: Path, spec: Spec, form: dict[str, Any]) -> None:
    case = case_of(exports, spec)
    event(f"head: {spec.head}")
    event(f"format: {form['format']}")
    for operation in sorted({step.operation for step in spec.plan}):
        event(f"operation: {operation}")
    event(f"bits: {spec.weight_bits}/{spec.activation_bits}")
    form = form | {"kernels": form["format"] == "qlinear" and spec.seed % 2 == 0}
    if spec.head in MAPS:
        check_outputs(case, folder / "model.onnx", **form)
        return
    values = exports.check_equal(case, folder / "model.onnx", **form)
    assert np.isfinite(values["logits"]).all()
    event("all logits equal" if len(np.unique(values["logits"])) == 1 else "logits differ from image to image")


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("random")
