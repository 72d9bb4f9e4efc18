"""Damaged run folders: seeded mutations of a run killed in the middle of a phase, each of a separate copy.

A folder holds one line per epoch (`metrics.jsonl`), the recipe, checkpoints of finished phases, and the state of the
present one. Bytes and structure of each are damaged, and what the state says and holds: with its digest as it was,
without any, and with the right one, as if whoever changed it knew how.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from qil_deploy.checkpoint.safetensors_file import file_content

from .hostile_values import DEEP, DIGITS, change_tree, pick, to_json
from .mutations_of_checkpoints import mutations as checkpoint_mutations

Damage = Callable[[Path], None]


def mutations(folder: Path, count: int, seed: int) -> Iterator[tuple[str, Damage]]:
    """Yield `count` (description, function that damages a copy of `folder`), the same for the same arguments."""
    rng = np.random.default_rng(seed)
    for number in range(count):
        name, damage = _CHANGES[number % len(_CHANGES)](folder, rng)
        yield f"{number}: {name}", damage


def _write(name: str, content: bytes) -> Damage:
    def damage(folder: Path) -> None:
        (folder / name).write_bytes(content)

    return damage


def _metrics(folder: Path, rng: np.random.Generator) -> tuple[str, Damage]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    place = int(rng.integers(len(lines)))
    bad = ["{", "[]", "null", "3", "", '"x"', "\0", DEEP.text, DIGITS.text, '{"phase": 3}', "NaN", "{}", "x" * 100_000]
    choice = int(rng.integers(4))
    if choice == 0:
        line = pick(bad, rng)
        name = f"line {place} is {line[:20]!r}"
    elif choice == 1:
        what, entry = change_tree(json.loads(lines[place]), rng)
        line, name = to_json(entry), f"line {place}: {what}"
    elif choice == 2:
        content = "\n".join(lines).encode()[: int(rng.integers(1, 200))]
        return f"metrics cut at {len(content)}", _write("metrics.jsonl", content)
    else:
        return "metrics are noise", _write("metrics.jsonl", rng.bytes(300))
    lines[place] = line
    return name, _write("metrics.jsonl", ("\n".join(lines) + "\n").encode("utf-8", "surrogatepass"))


def _recipe(folder: Path, rng: np.random.Generator) -> tuple[str, Damage]:
    content = (folder / "recipe.json").read_bytes()
    start = int(rng.integers(len(content)))
    contents = {
        "cut": content[:start],
        "empty": b"",
        "noise": rng.bytes(200),
        "not UTF-8": b"\xff\xfe" + content,
        "deep": DEEP.text.encode(),
        "with a NUL": content[:start] + b"\0" + content[start:],
        "of other numbers": content.replace(b"1", b"2"),
    }
    name = pick(list(contents), rng)
    return f"recipe {name} ({start})", _write("recipe.json", contents[name])


def _checkpoint(folder: Path, rng: np.random.Generator) -> tuple[str, Damage]:
    path = pick(sorted(folder.glob("*[!e].safetensors")), rng)  # not the state
    *_, (name, content) = checkpoint_mutations(path.read_bytes(), int(rng.integers(1, 8)), int(rng.integers(2**31)))
    return f"{path.name}: {name}", _write(path.name, content)


def _state_bytes(folder: Path, rng: np.random.Generator) -> tuple[str, Damage]:
    content = (folder / "state.safetensors").read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")
    start = int(rng.integers(pick([header, len(content)], rng)))
    changed = bytearray(content)
    changed[start] ^= 1 << int(rng.integers(8))
    contents = {
        f"cut at {start}": content[:start],
        f"one bit of byte {start}": bytes(changed),
        "empty": b"",
        "noise": rng.bytes(1000),
        "twice": content + content,
    }
    name = pick(list(contents), rng)
    return f"state {name}", _write("state.safetensors", contents[name])


def _state_header(folder: Path, rng: np.random.Generator) -> tuple[str, Damage]:
    """Change the entries of the state's tensors."""
    content = (folder / "state.safetensors").read_bytes()
    length = int.from_bytes(content[:8], "little")
    what, header = change_tree(json.loads(content[8 : 8 + length]), rng)
    text = to_json(header).encode("utf-8", "surrogatepass")
    changed = len(text).to_bytes(8, "little") + text + content[8 + length :]
    return f"state: {what}", _write("state.safetensors", changed)


def _state_position(folder: Path, rng: np.random.Generator) -> tuple[str, Damage]:
    """Change the position in the state."""
    metadata, tensors = _state(folder)
    if pick([True, True, False], rng):
        what, position = change_tree(json.loads(metadata["position"]), rng)
        metadata["position"] = to_json(position).encode("utf-8", "replace").decode()
    else:
        what = pick(["schema", "phase", "position"], rng)
        metadata[what] = pick(
            ["", "x", "{", "[]", "null", DEEP.text, "0", "1", "2", "float", "\x1b[31m", "x" * 9000], rng
        )
        what = f"{what} = {metadata[what][:20]!r}"
    return f"state: {what}", _write("state.safetensors", _digested(tensors, metadata, rng))


def _state_tensors(folder: Path, rng: np.random.Generator) -> tuple[str, Damage]:
    """Change the tensors of the state: of another type or shape, missing, not finite, too many."""
    metadata, tensors = _state(folder)
    name = pick(sorted(tensors), rng)
    value = tensors[name]
    others = ["optimizer.0.99999.momentum_buffer", "optimizer.9.0.x", "x", "model.x", "optimizer.0.-1.x", "average.x"]
    changes: dict[str, dict[str, Tensor]] = {
        "whole numbers": {name: value.long()},
        "of another shape": {name: value.new_zeros((*value.shape, 2))},
        "no numbers": {name: torch.full_like(value, math.nan if value.is_floating_point() else -1)},
        "huge": {name: torch.full_like(value, 2.0**62)},
        "under another name": {pick(others, rng): value},
        "missing": {},
        "and all like it missing": {},
    }
    what = pick(list(changes), rng)
    if what == "missing":
        del tensors[name]
    elif what == "and all like it missing":
        kind = name.partition(".")[0]
        tensors = {key: tensor for key, tensor in tensors.items() if not key.startswith(f"{kind}.")}
    return f"state: {name} {what}", _write("state.safetensors", _digested(tensors | changes[what], metadata, rng))


def _state(folder: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Return the metadata and the tensors of a state."""
    with safe_open(folder / "state.safetensors", framework="pt") as file:
        metadata: dict[str, str] = file.metadata()
        return metadata, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - safe_open is no dict


def _digested(tensors: dict[str, Tensor], metadata: dict[str, str], rng: np.random.Generator) -> bytes:
    """Write a state with its former digest, with none, or with the right one."""
    digest = pick(["old", "none", "right", "right"], rng)
    if digest == "right":
        return file_content(tensors, {key: text for key, text in metadata.items() if key != "sha256"})
    kept = {key: text for key, text in metadata.items() if key != "sha256" or digest == "old"}
    content: bytes = save({name: tensor.clone() for name, tensor in tensors.items()}, metadata=kept)
    return content


def _file_kinds(_folder: Path, rng: np.random.Generator) -> tuple[str, Damage]:
    """Replace a file by a folder, a pipe, a dangling link, or nothing, or a folder by a file."""
    name = pick(
        ["metrics.jsonl", "recipe.json", "state.safetensors", "float.safetensors", "best", "curves", ".lock"], rng
    )
    kind = pick(["folder", "pipe", "link", "missing", "empty file", "unreadable"], rng)

    def damage(folder: Path) -> None:
        path = folder / name
        if path.is_dir():
            shutil.rmtree(path)
        path.unlink(missing_ok=True)
        if kind == "folder":
            path.mkdir()
        elif kind == "pipe":
            os.mkfifo(path)
        elif kind == "link":
            path.symlink_to(folder / "nowhere")
        elif kind == "empty file":
            path.touch()
        elif kind == "unreadable":
            path.write_bytes(b"x")
            path.chmod(0)

    return f"{name}: {kind}", damage


_CHANGES = (
    _metrics,
    _state_position,
    _state_tensors,
    _state_bytes,
    _metrics,
    _recipe,
    _checkpoint,
    _state_header,
    _state_position,
    _state_tensors,
    _file_kinds,
)
