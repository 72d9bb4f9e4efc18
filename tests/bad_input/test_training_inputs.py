"""Invalid checkpoints and recipes, given to every command that reads one; none of them loads a data set first."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from .conftest import ZOO

Refused = Callable[..., str]


@pytest.fixture
def no_files(tmp_path: Path) -> list[Path]:
    """Return unreadable paths."""
    pipe, noise, header = tmp_path / "pipe", tmp_path / "noise", tmp_path / "header"
    os.mkfifo(pipe)
    noise.write_bytes(bytes(range(256)))
    header.write_bytes(b"\xff" * 7 + b"\x7f{")  # a header of 2**63 bytes, says safetensors' first number
    return [tmp_path, pipe, noise, header, tmp_path / "absent", Path("/dev/zero"), Path("/dev/null")]


@pytest.mark.parametrize("command", ["export", "sensitivity", "verify"])
def test_checkpoints(
    model: Path, images: Path, refused: Refused, tmp_path: Path, no_files: list[Path], command: str
) -> None:
    for path in no_files:
        arguments: dict[str, list[object]] = {
            "export": [path, "-o", tmp_path / "out.onnx"],
            "sensitivity": [path],
            "verify": [model, "--data", images, "--checkpoint", path],
        }
        assert str(path) in refused(command, *arguments[command])
    assert not (tmp_path / "out.onnx").exists()


def test_half_a_checkpoint(refused: Refused, tmp_path: Path) -> None:
    content = (ZOO / "w2a2.safetensors").read_bytes()
    path = tmp_path / "half.safetensors"
    path.write_bytes(content[: len(content) // 2])
    assert "is damaged or truncated" in refused("export", path, "-o", tmp_path / "out.onnx")


def test_recipes(refused: Refused, no_files: list[Path]) -> None:
    for path in no_files:
        assert str(path) in refused("train", path)


@pytest.mark.parametrize("output", ["/dev/null", "/dev/full", "."])
def test_models_are_written_to_files_alone(refused: Refused, output: str) -> None:
    assert output in refused("export", ZOO / "w2a2.safetensors", "-o", output)
