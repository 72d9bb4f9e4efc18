"""Files that are no models, given to every command that reads one."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

if TYPE_CHECKING:
    from tests.command_line import Outcome

Refused = Callable[..., str]
COMMANDS = ("inspect", "doctor", "bench", "verify", "phone")

CONTENTS: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda _: b"",
    "half": lambda content: content[: len(content) // 2],
    "one byte less": lambda content: content[:-1],
    "noise": lambda _: np.random.default_rng(0).bytes(1 << 16),
    "text": lambda _: b"not an ONNX file\n" * 9,
    "zip archive": lambda _: b"PK\x03\x04" * 99,
    "zeros": lambda _: bytes(1 << 16),
    # A graph of 2 GB and one of 2**63 bytes, of which 99 are there.
    "huge length": lambda _: b"\x08\x0a\x3a\xff\xff\xff\xff\x07" + b"x" * 99,
    "endless length": lambda _: b"\x08\x0a\x3a\xff\xff\xff\xff\xff\xff\xff\xff\x7f" + b"x" * 99,
    # Groups in groups, which every parser has to descend into.
    "deep nesting": lambda content: content + b"\x9b\x06" * 200_000,
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("damage", CONTENTS)
def test_contents_that_are_no_model(
    content: bytes, refused: Refused, tmp_path: Path, damage: str, command: str
) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(CONTENTS[damage](content))
    assert str(path) in refused(command, path)


@pytest.mark.parametrize("command", COMMANDS)
def test_paths_that_are_no_file(refused: Refused, tmp_path: Path, command: str) -> None:
    pipe = tmp_path / "pipe.onnx"  # reading it would wait for ever
    os.mkfifo(pipe)
    loop = tmp_path / "loop.onnx"
    loop.symlink_to(loop)
    long = tmp_path / ("x" * 300)
    for path in (tmp_path / "absent.onnx", tmp_path, pipe, loop, long, Path("/dev/zero"), Path("/dev/null")):
        assert str(path) in refused(command, path)


@pytest.mark.parametrize("command", COMMANDS[:-1])
def test_a_model_whose_name_is_not_utf8(
    model: Path, call: Callable[..., Outcome], golden: Path, tmp_path: Path, command: str
) -> None:
    path = tmp_path / os.fsdecode(b"mod\xffel.onnx")
    model.rename(path)
    options = {"verify": ["--golden", golden], "bench": ["--repeats", 1, "--caches", "warm"]}.get(command, [])
    outcome = call(command, path, *options)
    assert outcome.code == 0, outcome


@pytest.mark.parametrize("option", ["--golden", "--data"])
def test_what_stands_beside_a_model_may_be_missing(model: Path, refused: Refused, tmp_path: Path, option: str) -> None:
    assert "absent" in refused("verify", model, option, tmp_path / "absent")
