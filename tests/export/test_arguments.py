"""Arguments of an export: accepted if their meaning is clear, else refused with a sentence and without a file."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn.parallel import DataParallel
from torch.optim.swa_utils import AveragedModel

from qil_deploy.config import QuantConfig
from qil_deploy.errors import ConfigError, OutputError, UnsupportedModelError
from qil_deploy.export import ExportOptions, export_float_onnx, export_onnx
from qil_deploy.integers.freeze_model import freeze
from qil_deploy.network.calibration import calibrate
from qil_deploy.network.preparation import prepare
from qil_deploy.preprocessing import Preprocessing

PIXELS = Preprocessing(channels=2, height=6, width=7, scale=0.02, zero_point=100)
NAMES = ["a", "b", "c"]


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(24, 3))


def model_of(placement: Literal["integer", "paper"] = "integer", pixels: Preprocessing = PIXELS) -> fx.GraphModule:
    x = torch.from_numpy(pixels.normalize(np.random.default_rng(0).integers(0, 256, (4, *pixels.shape), np.uint8)))
    model = prepare(network(), QuantConfig(placement=placement), x[:1], input_grid=pixels)
    calibrate(model, [x])
    return model.eval()


@pytest.fixture(scope="module")
def model() -> fx.GraphModule:
    return model_of()


def export(model: Any, path: Any, **changes: Any) -> None:  # noqa: ANN401 - wrong types, too
    arguments: dict[str, Any] = {"preprocessing": PIXELS, "class_names": NAMES} | changes
    export_onnx(model, path, **arguments)


def compiled(model: fx.GraphModule) -> nn.Module:
    result = torch.compile(model, backend="eager")
    assert isinstance(result, nn.Module)
    return result


WRAPPED: dict[str, Callable[[fx.GraphModule], nn.Module]] = {
    "as it is": lambda model: model,
    "frozen": freeze,
    "copied": copy.deepcopy,
    "Sequential": nn.Sequential,
    "DataParallel": DataParallel,
    "AveragedModel": AveragedModel,
    "torch.compile": compiled,
    "wrapped twice": lambda model: DataParallel(nn.Sequential(freeze(model))),
}


@pytest.mark.parametrize("wrapping", WRAPPED)
def test_the_model_may_be_wrapped(model: fx.GraphModule, wrapping: str, tmp_path: Path) -> None:
    export(model, tmp_path / "plain.onnx")
    export(WRAPPED[wrapping](model), tmp_path / "wrapped.onnx")
    assert (tmp_path / "wrapped.onnx").read_bytes() == (tmp_path / "plain.onnx").read_bytes()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (network, r"export_onnx needs a model from prepare or freeze, but got 'Sequential'; make one"),
        (lambda: fx.symbolic_trace(network()), r"export_onnx needs a model from prepare or freeze, but got"),
        (lambda: nn.Sequential(network(), model_of()), r"which does more than pass on to one; give the model inside"),
        (lambda: network().state_dict(), r"export_onnx needs a model from prepare or freeze, but got"),
        (lambda: None, r"export_onnx needs a model from prepare or freeze, but got"),
    ],
)
def test_what_is_no_prepared_model_is_refused(given: Callable[[], object], message: str, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match=message):
        export(given(), tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def test_a_model_that_was_never_calibrated_is_refused(tmp_path: Path) -> None:
    x = torch.zeros(1, *PIXELS.shape)
    placements: tuple[Literal["integer", "paper"], ...] = ("integer", "paper")
    for placement in placements:
        prepared = prepare(network(), QuantConfig(placement=placement), x, input_grid=PIXELS)
        with pytest.raises(UnsupportedModelError, match="intervals were never set"):
            export(prepared, tmp_path / "model.onnx", options=ExportOptions(format="qdq"))
    assert not list(tmp_path.iterdir())


def test_a_path_may_be_text(model: fx.GraphModule, tmp_path: Path) -> None:
    result = export_onnx(model, str(tmp_path / "model.onnx"), preprocessing=PIXELS, class_names=NAMES)
    assert result.path == tmp_path / "model.onnx"
    written = export_float_onnx(network(), str(tmp_path / "float.onnx"), preprocessing=PIXELS, class_names=NAMES)
    assert written.path == tmp_path / "float.onnx"


class ItsShape(nn.Module):
    def forward(self, x: Tensor) -> list[int]:
        return list(x.shape)


BOTH: list[tuple[dict[str, Any], str]] = [
    ({"path": None}, r"path is None; name the file to write"),
    ({"path": ""}, r"path is ''; name the file to write"),
    ({"path": b"model.onnx"}, r"path is b'model.onnx'; name the file to write"),
    ({"preprocessing": None}, r"preprocessing is None; give the qil_deploy.Preprocessing"),
    ({"preprocessing": (3, 8, 8)}, r"preprocessing is a tuple; give the qil_deploy.Preprocessing"),
    ({"class_names": None}, r"class_names is None; give a list of 3 names, one for each logit\."),
    ({"class_names": "abc"}, r"class_names is the text 'abc'; give a list of 3 names"),
    ({"class_names": 3}, r"class_names is 3; give a list of 3 names"),
    ({"class_names": ["a", "b", 3]}, r"class_names\[2\] is 3; names are text\."),
    ({"class_names": ["a", "b"]}, r"class_names has 2 names, but the model has 3 logits\."),
    ({"class_names": [*NAMES, "d"]}, r"class_names has 4 names, but the model has 3 logits\."),
    ({"data": 5}, r"data is 5; give the name of the data set as text, or None\."),
]


@pytest.mark.parametrize(("changes", "message"), BOTH)
@pytest.mark.parametrize("quantized", [True, False])
def test_arguments_of_the_wrong_kind(
    model: fx.GraphModule, changes: dict[str, Any], message: str, quantized: bool, tmp_path: Path
) -> None:
    function, given = (export_onnx, model) if quantized else (export_float_onnx, network())
    arguments: dict[str, Any] = {"path": tmp_path / "m.onnx", "preprocessing": PIXELS, "class_names": NAMES} | changes
    with pytest.raises(ConfigError, match=message):
        function(given, arguments.pop("path"), **arguments)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"options": {"format": "qdq"}}, r"options is a dict; give ExportOptions\(\.\.\.\)"),
        ({"options": "qdq"}, r"options is a str; give ExportOptions"),
        ({"freezing": {"images": 3}}, r"freezing is a dict; give the FreezingReport"),
    ],
)
def test_arguments_of_quantized_exports(
    model: fx.GraphModule, changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        export(model, tmp_path / "model.onnx", **changes)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"opset": "21"}, r"opset is '21'; it must be a whole number, or None for the oldest that works\."),
        ({"opset": True}, r"opset is True; it must be a whole number"),
        ({"opset": 21.0}, r"opset is 21\.0; it must be a whole number"),
        ({"batch": "8"}, r"batch is '8'; it must be a whole number, or None for any number of images\."),
        ({"batch": 0}, r"batch is 0; it must be at least 1"),
        ({"batch": 2**40}, r"batch is 1099511627776; it must be at least 1 and at most 1,048,576"),
        ({"simplify": "no"}, r"simplify is 'no'; allowed are True and False\."),
        ({"format": None}, r"format is None; allowed are qlinear, qdq\."),
        ({"weights": ["packed"]}, r"weights is \['packed'\]; allowed are packed, int8\."),
    ],
)
def test_options_of_the_wrong_kind(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ExportOptions(**options)


def test_a_folder_in_the_place_of_a_file(model: fx.GraphModule, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="is a folder; name a file to write"):
        export(model, tmp_path)


OTHERS = {
    "scale": replace(PIXELS, scale=0.03),
    "zero point": replace(PIXELS, zero_point=99),
    "size": replace(PIXELS, height=12, width=14),
    "channels": replace(PIXELS, channels=3),
}


@pytest.mark.parametrize("other", OTHERS)
@pytest.mark.parametrize("state", ["prepared", "frozen", "paper"])
def test_another_preprocessing_than_that_of_prepare(state: str, other: str, tmp_path: Path) -> None:
    given = model_of("paper" if state == "paper" else "integer")
    if state == "frozen":
        given = freeze(given)
    options = ExportOptions(format="qdq")
    message = (
        r"preprocessing says images of shape \d+x\d+x\d+ with scale 0\.0\d+ and zero point \d+, but the model was "
        r"prepared for shape 2x6x7 with scale 0\.0199999996 and zero point 100; export it with the Preprocessing"
    )
    for same in (given, copy.deepcopy(given)):
        with pytest.raises(ConfigError, match=message):
            export(same, tmp_path / "model.onnx", preprocessing=OTHERS[other], options=options)
    assert not list(tmp_path.iterdir())
    export(given, tmp_path / "model.onnx", preprocessing=replace(PIXELS), options=options)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (model_of, r"export_float_onnx needs a float network, but this one is prepared already"),
        (lambda: freeze(model_of()), r"export_float_onnx needs a float network, but this one is frozen already"),
        (
            lambda: {"a": torch.zeros(1)},
            r"export_float_onnx needs a float network, a torch\.nn\.Module, but got a dict",
        ),
        (ItsShape, r"the network returns no tensor for one image; it has to return rows or maps of floats\."),
        (lambda: nn.Flatten(0), r"the network returns a tensor of shape \[84\] for one of shape \[1, 2, 6, 7\]"),
        (lambda: nn.Linear(3, 3), r"the network does not run on images of shape \[2, 6, 7\]: "),
    ],
)
def test_what_is_no_float_network_is_refused(given: Callable[[], object], message: str, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match=message):
        export_float_onnx(given(), tmp_path / "m.onnx", preprocessing=PIXELS, class_names=NAMES)  # type: ignore[arg-type] # wrong on purpose
    assert not list(tmp_path.iterdir())


def test_a_float_network_keeps_its_mode(tmp_path: Path) -> None:
    trained = network().train()
    trained[1].eval()
    export_float_onnx(trained, tmp_path / "m.onnx", preprocessing=PIXELS, class_names=NAMES)
    assert [module.training for module in trained] == [True, False, True, True, True, True]
