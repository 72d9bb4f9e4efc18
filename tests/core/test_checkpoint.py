"""Checkpoints: exact round trips, and a sentence for every way in which a file can be wrong."""

from __future__ import annotations

import errno
import json
import os
import re
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, fx, nn

from qil_deploy.calibration import calibrate
from qil_deploy.checkpoint import CheckpointInfo, load_model, load_tensors, read_checkpoint, save_checkpoint
from qil_deploy.config import LayerOverride, QuantConfig
from qil_deploy.errors import CheckpointError, OutputError
from qil_deploy.freezing import freeze
from qil_deploy.preparation import prepare
from qil_deploy.preprocessing import Preprocessing

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


def information(kind: Literal["float", "quantized", "frozen"], width: int = 4) -> CheckpointInfo:
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
    """A model of each kind, with parameters and statistics that no fresh one has."""
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
    """A good checkpoint, of a frozen model."""
    save_checkpoint(tmp_path / "model.safetensors", information("frozen"), trained("frozen"))
    return tmp_path / "model.safetensors"


@pytest.mark.parametrize("kind", ["float", "quantized", "frozen"])
def test_round_trip_gives_the_same_logits_to_the_bit(
    tmp_path: Path, kind: Literal["float", "quantized", "frozen"]
) -> None:
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


@pytest.mark.parametrize("share", [0.0, 0.001, 0.01, 0.1, 0.5, 0.9, 0.9999])
def test_truncated_files(path: Path, share: float) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(CheckpointError, match=r"model\.safetensors is damaged or truncated"):
        read_checkpoint(path)


@pytest.mark.parametrize("garbage", [b"hello, this is no checkpoint", b"\xff" * 1000, b"\0" * 1000, b"PK\x03\x04" * 99])
def test_garbage(tmp_path: Path, garbage: bytes) -> None:
    (tmp_path / "garbage").write_bytes(garbage)
    with pytest.raises(CheckpointError, match="garbage is damaged or truncated"):
        read_checkpoint(tmp_path / "garbage")


def test_every_flipped_byte_of_the_header_is_noticed_or_harmless(path: Path) -> None:
    """No byte of the header may lead to anything but a good checkpoint or a CheckpointError."""
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
    """Replace what the header says, keeping the tensors."""
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
        ({"surprise": 1}, "surprise: Extra inputs"),
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
