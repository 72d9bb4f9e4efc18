"""Checkpoints: exact round trips, and a sentence for every defect of a file."""

from __future__ import annotations

import errno
import json
import math
import os
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, fx, nn

from qil_deploy.checkpoint import (
    CheckpointInfo,
    load_model,
    load_tensors,
    read_checkpoint,
    read_info,
    save_checkpoint,
)
from qil_deploy.config import LayerOverride, QuantConfig
from qil_deploy.errors import CheckpointError, OutputError, QilDeployError
from qil_deploy.integers.freeze_model import freeze
from qil_deploy.network.calibration import calibrate
from qil_deploy.network.preparation import prepare
from qil_deploy.preprocessing import Preprocessing
from qil_deploy.training.models.build import build_model

ZOO = Path(__file__).parents[2] / "zoo" / "fashion_mnist"
EARLIER = Path(__file__).parent / "earlier"
KEPT_CHECKPOINTS = [
    *(EARLIER / f"{name}.safetensors" for name in ("float", "w2a2", "w2a2_frozen")),
    ZOO / "float.safetensors",
    *(ZOO / f"w{bits}a{bits}{end}.safetensors" for bits in (2, 3, 4) for end in ("", "_frozen")),
]
Kind = Literal["float", "quantized", "frozen"]

PREPROCESSING = Preprocessing(channels=3, height=8, width=8, scale=0.0123, zero_point=77)
CONFIG = QuantConfig(weight_bits=3, overrides={"2": LayerOverride(weight_bits=2)}, train_gamma=True)


def build(name: str, arguments: dict[str, Any]) -> nn.Module:
    assert name == "small"
    width: int = arguments["width"]
    return nn.Sequential(
        nn.Conv2d(3, width, 3, bias=False),
        nn.BatchNorm2d(width),
        nn.Conv2d(width, width, 3),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(width, 2),
    )


def information(kind: Kind, width: int = 4) -> CheckpointInfo:
    return CheckpointInfo(
        kind=kind,
        model_name="small",
        model_arguments={"width": width},
        config=None if kind == "float" else CONFIG,
        preprocessing=PREPROCESSING,
        data="digits",
        class_names=("cat", "dög"),
        metrics={"accuracy": 98.7},
    )


def images() -> Tensor:
    return (torch.randint(0, 256, (16, 3, 8, 8)) - 77.0) * PREPROCESSING.scale


def trained(kind: str) -> nn.Module:
    """A model of each kind, whose parameters and statistics differ from those of a new one."""
    model = build("small", {"width": 4}).train()
    model(images())
    if kind == "float":
        return model.eval()
    prepared = prepare(model, CONFIG, images(), input_grid=PREPROCESSING)
    calibrate(prepared, [images(), images()])
    if kind == "quantized":
        return prepared.eval()
    frozen = freeze(prepared).train()
    optimizer = torch.optim.SGD(frozen.parameters(), lr=0.01)
    for _ in range(3):
        optimizer.zero_grad()
        nn.functional.cross_entropy(frozen(images()), torch.randint(0, 2, (16,))).backward()
        optimizer.step()
    return frozen.eval()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A valid checkpoint of a frozen model."""
    (tmp_path / "model.safetensors").write_bytes(saved("frozen"))
    return tmp_path / "model.safetensors"


@pytest.mark.parametrize("kind", ["float", "quantized", "frozen"])
def test_round_trip_gives_the_same_logits_to_the_bit(tmp_path: Path, kind: Kind) -> None:
    model, x = trained(kind), images()
    save_checkpoint(tmp_path / "a.safetensors", information(kind), model)
    info, loaded = load_model(tmp_path / "a.safetensors", build)
    assert info == information(kind)
    assert not loaded.training
    assert isinstance(loaded, fx.GraphModule) == (kind != "float")
    with torch.no_grad():
        assert torch.equal(loaded(x), model(x))
    found, expected = loaded.state_dict(), model.state_dict()
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name


def test_the_same_content_is_the_same_file(tmp_path: Path) -> None:
    model = trained("frozen")
    for name in ("a", "b"):
        save_checkpoint(tmp_path / name, information("frozen"), model)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_loaded_frozen_model_still_trains(path: Path) -> None:
    _, model = load_model(path, build)
    model.train()
    model(images()).sum().backward()
    assert any(parameter.grad is not None and parameter.grad.any() for parameter in model.parameters())


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"none\.safetensors does not exist; train one with"):
        read_checkpoint(tmp_path / "none.safetensors")


def test_a_folder(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"is a folder; name a \.safetensors file"):
        read_checkpoint(tmp_path)


def test_paths_may_be_text(tmp_path: Path) -> None:
    model, file = trained("quantized"), str(tmp_path / "model.safetensors")
    save_checkpoint(file, information("quantized"), model)
    assert load_model(file, build)[0] == read_info(file) == read_checkpoint(file)[0] == information("quantized")


@pytest.mark.parametrize("share", [0.0, 0.001, 0.01, 0.1, 0.5, 0.9, 0.9999])
def test_truncated_files(path: Path, share: float) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(CheckpointError, match=r"model\.safetensors is damaged or truncated"):
        read_checkpoint(path)


@pytest.mark.parametrize("garbage", [b"hello, this is no checkpoint", b"\xff" * 1000, b"\0" * 1000, b"PK\x03\x04" * 99])
def test_garbage(tmp_path: Path, garbage: bytes) -> None:
    (tmp_path / "garbage").write_bytes(garbage)
    with pytest.raises(CheckpointError, match=r"garbage is damaged or truncated \(.*no (safetensors file|JSON)"):
        read_checkpoint(tmp_path / "garbage")


def test_every_flipped_byte_of_the_header_is_noticed_or_harmless(path: Path) -> None:
    """A changed byte of the header leads to a valid checkpoint or a CheckpointError, and nothing else."""
    content = path.read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")
    for position in range(0, header, 37):
        changed = bytearray(content)
        changed[position] ^= 0x15
        path.write_bytes(changed)
        try:
            read_checkpoint(path)
        except CheckpointError as error:
            assert str(path) in str(error)  # noqa: PT017 - some flips, of a class name for instance, go unnoticed


def test_a_safetensors_file_of_somebody_else(tmp_path: Path) -> None:
    save_file({"weight": torch.zeros(3)}, tmp_path / "foreign.safetensors")
    with pytest.raises(CheckpointError, match="is a safetensors file, but not a checkpoint that qil_deploy wrote"):
        read_checkpoint(tmp_path / "foreign.safetensors")


def rewrite(path: Path, header: object) -> None:
    """Replace the content of the header, keeping the tensors."""
    _, tensors = read_checkpoint(path)
    text = header if isinstance(header, str) else json.dumps(header)
    save_file(tensors, path, metadata={"qil_deploy": text})


def header_of(path: Path) -> dict[str, Any]:
    with safe_open(path, framework="pt") as file:
        content: dict[str, Any] = json.loads(file.metadata()["qil_deploy"])
    return content


@pytest.mark.parametrize("version", [0, 2, "1", None])
def test_another_schema_version(path: Path, version: object) -> None:
    rewrite(path, header_of(path) | {"schema_version": version})
    message = f"has schema version {version!r}; this version of qil_deploy reads 1"
    with pytest.raises(CheckpointError, match=re.escape(message)):
        read_checkpoint(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "half"}, "kind: .*found 'half'"),
        ({"config": {"weight_bits": 99}}, "weight_bits"),
        ({"preprocessing": {"channels": 3}}, r"preprocessing\.height"),
        ({"surprise": 1}, "surprise: there is no such key"),
        ({"metrics": None}, "metrics"),
    ],
)
def test_a_damaged_header(path: Path, change: dict[str, Any], message: str) -> None:
    rewrite(path, header_of(path) | change)
    with pytest.raises(CheckpointError, match=rf"the header of checkpoint .* is damaged.*{message}") as caught:
        read_checkpoint(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["{", "[]", "3", ""])
def test_a_header_that_is_no_json_object(path: Path, text: str) -> None:
    rewrite(path, text)
    with pytest.raises(CheckpointError, match=r"the header of checkpoint .* is damaged"):
        read_checkpoint(path)


def test_tensors_that_do_not_fit(path: Path) -> None:
    info, tensors = read_checkpoint(path)
    _, model = load_model(path, build)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    (first, *_) = (name for name in tensors if name.endswith("weight_codes"))
    for changed in (
        {name: tensor for name, tensor in tensors.items() if name != first},
        tensors | {"surplus": torch.zeros(1)},
        tensors | {first: tensors[first][:1]},
    ):
        with pytest.raises(CheckpointError, match=r"the tensors of here do not fit its model: .* in the model"):
            load_tensors(model, changed, "here")
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    rewrite(path, info.model_dump(mode="json") | {"model_arguments": {"width": 5}})
    with pytest.raises(CheckpointError, match=r"the tensors of .*model\.safetensors do not fit its model"):
        load_model(path, build)


def test_tensors_of_another_type_do_not_fit() -> None:
    model = trained("float")
    for convert in (Tensor.long, Tensor.half, Tensor.double):
        tensors = {name: convert(tensor) for name, tensor in model.state_dict().items()}
        with pytest.raises(CheckpointError, match=r"'0.weight', for one, has dtype .* and float32 in the model"):
            load_tensors(model, tensors, "here")


@cache
def saved(kind: Kind) -> bytes:
    """The content of a valid checkpoint of a kind."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "a.safetensors"
        save_checkpoint(path, information(kind), trained(kind))
        return path.read_bytes()


def written_with(tmp_path: Path, kind: Kind, changes: dict[str, Any]) -> Path:
    """Write a checkpoint of a kind, without its digest, with other tensors or entries of the header."""
    path = tmp_path / f"{kind}.safetensors"
    path.write_bytes(saved(kind))
    header = header_of(path)
    tensors = load_file(path)
    for name, value in changes.items():
        if name in header:
            header[name] = value
        else:
            tensors[name] = value(tensors[name].clone())
    save_file(tensors, path, metadata={"qil_deploy": json.dumps(header)})
    return path


def filled(number: float) -> Callable[[Tensor], Tensor]:
    return lambda tensor: torch.full_like(tensor, number)


def first(number: float) -> Callable[[Tensor], Tensor]:
    def change(tensor: Tensor) -> Tensor:
        tensor.view(-1)[0] = number
        return tensor

    return change


PIXELS = {"channels": 3, "height": 8, "width": 8, "scale": 0.0123, "zero_point": 77}


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        (
            "quantized",
            {"input_quantizer.scale": filled(0.5)},
            r"input_quantizer\.scale is 0\.5, but its config",
        ),
        ("quantized", {"input_quantizer.zero_point": filled(3)}, r"input_quantizer\.zero_point is 3, but"),
        ("quantized", {"preprocessing": PIXELS | {"zero_point": 78}}, r"zero_point is 77, but .* ask for 78"),
        ("quantized", {"calibrated": filled(False)}, r"its intervals were never set"),
        ("quantized", {"0.weight_quantizer.log_distance": filled(100)}, r"log_distance is 100, beyond -80 to 80"),
        ("quantized", {"0.weight_quantizer.log_distance": filled(math.nan)}, r"log_distance' has NaN or infinity"),
        ("quantized", {"2.weight_quantizer.center_ratio": filled(-1e7)}, r"center_ratio is -1e\+07: its thresholds"),
        ("quantized", {"2.weight_quantizer.gamma_raw": filled(math.inf)}, r"gamma_raw' has NaN or infinity"),
        ("quantized", {"2.log_output_scale": filled(-90)}, r"log_output_scale is -90, beyond"),
        ("quantized", {"0.weight": first(math.nan)}, r"'0\.weight' has NaN or infinity in 1 of 108 values"),
        ("float", {"1.running_var": first(-1)}, r"1\.running_var holds a negative variance, -1"),
        ("float", {"1.num_batches_tracked": filled(-1)}, r"num_batches_tracked is -1, a count"),
        ("frozen", {"input_quantizer.scale": filled(0.5)}, r"input_quantizer\.scale is 0\.5, but"),
        (
            "frozen",
            {"2.weight_codes": first(3)},
            r"2\.weight_codes has the code 3, but 2 bits, as its config says",
        ),
        ("frozen", {"2.spread": filled(0)}, r"2\.spread goes from 0 to 0, not from 1 to"),
        ("frozen", {"2.spread": first(-1)}, r"2\.spread goes from -1 to"),
        ("frozen", {"2.bias": first(2**31 - 1)}, r"2\.bias holds 2,147,483,647, beyond"),
        ("frozen", {"2.w_scale": first(0)}, r"2\.w_scale is 0, where a scale has to be positive"),
        ("frozen", {"2.w_scale": first(-1)}, r"2\.w_scale is -1, where a scale"),
        ("frozen", {"2.y_step": filled(1e-40)}, r"2\.y_step is .*, where a scale"),
        ("frozen", {"2.y_offset": filled(1e300)}, r"2\.y_offset is 1e\+300"),
        ("frozen", {"0.y.zero_point": filled(7), "2.x.zero_point": filled(7)}, r"0\.y\.zero_point is 7, but"),
        (
            "frozen",
            {"0.y.high": filled(16), "2.x.high": filled(16)},
            r"codes of 0\.y go from 0 to 16, not between",
        ),
        (
            "frozen",
            {"0.y.low": filled(9), "2.x.low": filled(9), "0.y.high": filled(3), "2.x.high": filled(3)},
            "from 9 to 3",
        ),
        ("frozen", {"0.y.scale": filled(0.5), "2.x.scale": filled(0.5)}, r"0\.y\.scale is 0\.5, but"),
        (
            "frozen",
            {"2.x.scale": filled(0.5)},
            r"0\.y\.scale and 2\.x\.scale are one tensor in its model",
        ),
        ("frozen", {"0.x.scale": filled(0.5)}, r"0 reads codes on the grid \(0\.5, .* written on \(0\.01"),
        ("frozen", {"4.denominator": filled(4)}, r"4\.denominator is 4, not an odd number up to 2147483647"),
        ("frozen", {"4.numerator": filled(0)}, r"numerator of 4 is 0, not between 1 and"),
        (
            "frozen",
            {"4.numerator": filled(4000)},
            r"4 rescales by 4000/\d+, but the steps before",
        ),
    ],
)
def test_what_contradicts_itself_is_refused(tmp_path: Path, kind: Kind, changes: dict[str, Any], message: str) -> None:
    path = written_with(tmp_path, kind, changes)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_model(path, build)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        (
            "float",
            {"kind": "quantized"},
            "kind 'quantized' with none as config; float",
        ),
        ("quantized", {"kind": "float"}, "kind 'float' with one as config"),
        ("frozen", {"kind": "float", "config": None}, "do not fit its model"),
        ("quantized", {"kind": "frozen"}, "do not fit its model"),
        ("frozen", {"kind": "quantized"}, "do not fit its model"),
        ("frozen", {"config": {"placement": "paper"}}, "kind 'frozen' with placement 'paper'"),
        ("quantized", {"class_names": ["cat"]}, r"1 class names, but its network returns a tensor of shape \[1, 2\]"),
        ("frozen", {"class_names": list("abc")}, r"3 class names, but its network returns .* one logit per class"),
        ("float", {"class_names": list("abc")}, r"3 class names, but its network returns a tensor of shape \[1, 2\]"),
        ("float", {"class_names": []}, r"0 class names, but its network returns a tensor of shape \[1, 2\]"),
        ("float", {"preprocessing": PIXELS | {"channels": 4}}, "does not run on an image of shape .* channels"),
        ("quantized", {"preprocessing": PIXELS | {"channels": 4}}, "does not run on an input of shape"),
        (
            "float",
            {"preprocessing": PIXELS | {"height": 10**9}},
            "an image of shape .* at most 16,777,216",
        ),
        ("float", {"preprocessing": PIXELS | {"height": 5000, "width": 5000}}, "preprocessing: an image of shape"),
        ("float", {"preprocessing": PIXELS | {"scale": 1e300}}, "scale is 1e.300; it must be positive and finite"),
        ("float", {"preprocessing": PIXELS | {"mean": [0.5, 0.5, 0.5]}}, "one of mean and std without the other"),
        ("float", {"preprocessing": PIXELS | {"mean": [0.5], "std": [0.2]}}, "mean has 1 numbers, but images have 3"),
        (
            "float",
            {"preprocessing": PIXELS | {"mean": [2.0] * 3, "std": [0.2] * 3}},
            "mean 2.0 and std 0.2 are no stat",
        ),
        ("float", {"preprocessing": PIXELS | {"mean": "abc", "std": [0.2] * 3}}, r"preprocessing\.mean: .*found 'abc'"),
        ("float", {"preprocessing": PIXELS | {"channel_order": "GRB"}}, r"preprocessing\.channel_order: .*found 'GRB'"),
        ("float", {"preprocessing": PIXELS | {"resize": 2}}, "resize is 2; it must be the length of the shorter side"),
        ("float", {"preprocessing": PIXELS | {"scale": "1"}}, r"preprocessing\.scale: .*valid number .found '1'"),
        ("float", {"model_arguments": {"width": 10**5}}, "holds 283 values, but its network small with .* would have"),
        ("float", {"model_arguments": {"width": 2**62}}, "holds 283 values, but its network small"),
        ("float", {"model_arguments": {"width": -4}}, "network small cannot be built with {'width': -4}: RuntimeError"),
        ("float", {"model_arguments": {}}, "network small cannot be built with {}: KeyError: 'width'"),
        ("float", {"model_arguments": {"width": 4, "in_channels": 1}}, "in_channels is 1, but there are 3 channels"),
        ("float", {"model_arguments": {"width": 4, "num_classes": True}}, "num_classes is True, but there are 2 class"),
        ("float", {"metrics": {"accuracy": 101}}, "metrics: accuracy is 101, not a percentage"),
        ("float", {"metrics": {"accuracy": "9"}}, r"metrics\.accuracy: .*valid number .found '9'"),
        ("float", {"metrics": {"test_images": 1.5}}, "metrics: test_images is 1.5, not a count"),
        ("float", {"metrics": {"changed_predictions": 1e300}}, "changed_predictions is 1e.300, not a count"),
        ("float", {"metrics": {"loss": math.nan}}, "is damaged: NaN is not a finite float64 number"),
        ("float", {"data": "x" * 10**6}, r"data: .*at most 600 characters .found 'x*\.\.\. "),
    ],
)
def test_headers_that_contradict_themselves_or_the_tensors(
    tmp_path: Path, kind: Kind, changes: dict[str, Any], message: str
) -> None:
    path = written_with(tmp_path, kind, changes)
    with pytest.raises(QilDeployError, match=message) as caught:
        load_model(path, build)
    assert len(str(caught.value)) < 1000
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["[" * 10**5, '{"schema_version": 1, "schema_version": 1}', "9" * 5000, "\ud800"])
def test_headers_that_no_parser_should_choke_on(path: Path, text: str) -> None:
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    outer = json.loads(content[8 : 8 + length])
    outer["__metadata__"] = {"qil_deploy": text}
    header = json.dumps(outer).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + content[8 + length :])
    with pytest.raises(CheckpointError, match=r"the header of checkpoint .* is damaged") as caught:
        read_checkpoint(path)
    assert len(str(caught.value)) < 1000


def test_one_flipped_bit_of_any_tensor_is_noticed(path: Path) -> None:
    content = path.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    for position in range(start, len(content), 101):
        changed = bytearray(content)
        changed[position] ^= 1 << position % 8
        path.write_bytes(changed)
        with pytest.raises(CheckpointError, match="its bytes are not those that were written"):
            read_checkpoint(path)


@pytest.mark.parametrize("path", KEPT_CHECKPOINTS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_checkpoints_of_earlier_versions_are_read(path: Path) -> None:
    info, model = load_model(path, build_model)
    assert info == read_info(path)
    found, expected = model.state_dict(), load_file(path)
    assert found.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[key]) for key, tensor in found.items())


def test_information_is_read_without_the_tensors(path: Path) -> None:
    content = path.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    path.write_bytes(content[:start] + bytes(len(content) - start))
    assert read_info(path) == information("frozen")
    with pytest.raises(CheckpointError, match="is damaged"):
        read_checkpoint(path)


@pytest.mark.parametrize("existing", [False, True])
def test_nothing_is_left_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, existing: bool) -> None:
    path, model = tmp_path / "a.safetensors", trained("float")
    if existing:
        save_checkpoint(path, information("float"), model)
    before = path.read_bytes() if existing else None

    def write_half(destination: Path, content: bytes) -> int:
        with destination.open("wb") as stream:
            stream.write(content[: len(content) // 2])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", write_half)
    with pytest.raises(OutputError, match=r"cannot write .*a\.safetensors: No space left on device"):
        save_checkpoint(path, information("float", width=9), model)
    monkeypatch.undo()
    assert [entry.name for entry in tmp_path.iterdir()] == (["a.safetensors"] if existing else [])
    if before is not None:
        assert path.read_bytes() == before
        load_model(path, build)
