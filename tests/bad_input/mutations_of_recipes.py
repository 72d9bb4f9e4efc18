"""Damaged recipes: seeded mutations of a valid one's values, structure and bytes."""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from .hostile_values import Raw, change_tree, pick

_NUMBERS: tuple[str, ...] = (
    "1e300", "-1e300", "1e39", "1e-300", "5e-324", "nan", "inf", "-inf", "0", "-0.0", "-1", "1", "2", "0.5", "1.5",
    "1_000_000_000", "9" * 5000, "0x" + "f" * 5000, str(2**63), str(2**64), str(2**64 - 1), "-9223372036854775809",
    "true", '"0.1"', "1979-05-27", "[]", "{}", "[[[]]]", "''",
)  # fmt: skip
_NAMES: tuple[str, ...] = (
    "../x", "../../etc/x", "/etc/x", "a/b", "a\\b", "", ".", "..", " ", "con", "NUL.txt", "a\0b", "\x1b[31mred",
    "a\nb", "x" * 300, "x" * 300_000, "é" * 80, "\u202ereversed", "~", "$HOME", "*", "a:b", "os:system",
    "a..b:c", ":", "..x:y", "imagenet:/", "imagenet:", "https://example.org/x", "/dev/zero", "/proc/self/mem",
    "digits", "noise", "torchvision",
)  # fmt: skip
_TEXT_KEYS = (
    "name",
    "data",
    "placement",
    "model.name",
    "model.weights",
    "quantizer_only.weights",
    "quantizer_only.images",
)


def mutations(text: str, count: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """Yield `count` (description, damaged recipe), the same ones for the same text, count and seed."""
    rng = np.random.default_rng(seed)
    content = tomllib.loads(text)
    for number in range(count):
        change = _CHANGES[number % len(_CHANGES)]
        name, damaged = change(text, content, rng)
        yield f"{number}: {name}", damaged


def _any_value(_text: str, content: dict[str, Any], rng: np.random.Generator) -> tuple[str, bytes]:
    name, changed = change_tree(content, rng)
    return name, to_toml(changed).encode("utf-8", "surrogatepass")


def _number(text: str, _content: dict[str, Any], rng: np.random.Generator) -> tuple[str, bytes]:
    """Replace a number by another one, or by a value of another type."""
    lines = text.splitlines()
    places = [place for place, line in enumerate(lines) if "=" in line and line.split("=")[1].strip()[:1].isdecimal()]
    place, number = pick(places, rng), pick(_NUMBERS, rng)
    key = lines[place].split("=")[0].strip()
    lines[place] = f"{key} = {number}"
    return f"{key} = {number[:40]}", "\n".join(lines).encode()


def _new_number(text: str, _content: dict[str, Any], rng: np.random.Generator) -> tuple[str, bytes]:
    """Set a number that the recipe leaves at its default."""
    top = ("seed", "image_size", "train_images")
    stage = (
        "batch_size", "learning_rate", "weight_decay", "interval_learning_rate", "output_scale_learning_rate", "warmup",
        "milestones", "decay", "label_smoothing",
        "gradient_norm", "average", "batchnorm_batches", "frozen_epochs", "frozen_learning_rate",
        "frozen_gradient_norm", "weight_bits", "activation_bits", "from_float",
        "calibration_batches",
    )  # fmt: skip
    number = pick(_NUMBERS, rng)
    if pick([True, False], rng):
        key = pick(top, rng)
        return f"{key} = {number[:40]}", f"{key} = {number}\n{text}".encode()
    key = pick(stage, rng)
    return f"last stage: {key} = {number[:40]}", f"{text}\n{key} = {number}\n".encode()


def _name(text: str, _content: dict[str, Any], rng: np.random.Generator) -> tuple[str, bytes]:
    """Set a name that refers to something else."""
    key, name = pick(_TEXT_KEYS, rng), pick(_NAMES, rng)
    changed: dict[str, Any] = tomllib.loads(text)
    node = changed
    *parents, last = key.split(".")
    for parent in parents:
        node = node.setdefault(parent, {})
    node[last] = name
    return f"{key} = {name[:40]!r}", to_toml(changed).encode("utf-8", "surrogatepass")


def _structure(text: str, _content: dict[str, Any], rng: np.random.Generator) -> tuple[str, bytes]:
    depth = int(pick([300, 5000, 100_000], rng))
    parts = {
        "nested lists": f"x = {'[' * depth}{']' * depth}\n{text}",
        "nested tables": f"x = {'{a=' * depth}1{'}' * depth}\n{text}",
        "a long dotted key": f"{'.'.join('a' * min(depth, 5000))} = 1\n{text}",
        "a long table name": f"{text}\n[{'.'.join('a' * min(depth, 5000))}]\nx = 1\n",
        "a key twice": f'name = "a"\n{text}',
        "a table twice": f"{text}\n[model]\nname = 'resnet8'\n",
        "many stages": text + "[[stages]]\nweight_bits = 2\nactivation_bits = 3\nepochs = 1\n" * 3000,
        "many overrides": text
        + "[stages.overrides]\n"
        + "".join(f"l{i} = {{ weight_bits = 2 }}\n" for i in range(9000)),
        "many keys": "".join(f"key{i} = {i}\n" for i in range(20_000)) + text,
        "stages as a table": text.replace("[[stages]]", "[stages]", 1),
        "an open string": text + '\nx = """',
        "too large": text + "#" * 3_000_000,
        "nothing": "",
        "a comment": "# " + text.replace("\n", " "),
    }
    name = pick(list(parts), rng)
    return f"{name} ({depth})", parts[name].encode()


def _encoding(text: str, _content: dict[str, Any], rng: np.random.Generator) -> tuple[str, bytes]:
    name = pick(["utf-16", "utf-32", "utf-16-be", "latin-1", "utf-8-sig", "cp037", "utf-7"], rng)
    return f"encoded as {name}", f"# ä\n{text}".encode(name)


def _bytes(text: str, _content: dict[str, Any], rng: np.random.Generator) -> tuple[str, bytes]:
    content = bytearray(text.encode())
    for _ in range(int(pick([1, 1, 3, 30], rng))):
        content[int(rng.integers(len(content)))] = int(rng.integers(256))
    start = int(rng.integers(len(content)))
    if pick([True, False, False], rng):
        return f"cut at {start}", bytes(content[:start])
    return f"bytes changed, {start} exchanged", bytes(content[start:] + content[:start]) if start % 3 == 0 else bytes(
        content
    )


def to_toml(content: dict[str, Any]) -> str:
    """Write a tree as TOML, every table inline; values without a TOML form become invalid text."""
    return "".join(f"{_key(key)} = {_value(value)}\n" for key, value in content.items())


def _key(key: object) -> str:
    return json.dumps(str(key))


def _value(value: object) -> str:
    if isinstance(value, Raw):
        return value.text
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_key(key)} = {_value(child)}" for key, child in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_value(child) for child in value) + "]"
    if isinstance(value, float) and math.isnan(value):
        return "nan"
    return "null" if value is None else json.dumps(value, ensure_ascii=False).replace("Infinity", "inf")


_CHANGES: tuple[Callable[[str, dict[str, Any], np.random.Generator], tuple[str, bytes]], ...] = (
    _any_value,
    _number,
    _new_number,
    _name,
    _any_value,
    _number,
    _new_number,
    _name,
    _structure,
    _encoding,
    _bytes,
)
