"""Unexpected values, and a way to insert one anywhere into a tree of JSON."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Raw:
    """JSON text that no value produces, inserted into the document unchanged."""

    text: str


DEEP = Raw("[" * 5000 + "]" * 5000)
DIGITS = Raw("9" * 5000)

SCALARS: tuple[object, ...] = (
    None,
    True,
    False,
    0,
    1,
    -1,
    2,
    3,
    255,
    256,
    2**31,
    2**53,
    2**63,
    2**64,
    10**9,
    10**30,
    0.5,
    -0.5,
    -0.0,
    1e-45,
    1e-300,
    1e39,
    1e300,
    math.nan,
    math.inf,
    -math.inf,
    "",
    "0",
    "4",
    "nan",
    "../x",
    "/etc/passwd",
    "a\0b",
    "\x1b[31mred\x1b[0m\a",
    "\u202egnp.exe",
    "\ud800",
    "é" * 300,
    "x" * 300_000,
    "os:system",
    "{{7*7}}<script>alert(1)</script>",
    DIGITS,
)
HOSTILE: tuple[object, ...] = (*SCALARS, [], {}, [[]], [None] * 100, {"a": {"b": {}}}, list(range(1000)), DEEP)


def pick(values: Sequence[Any], rng: np.random.Generator) -> Any:  # noqa: ANN401 - one of the values
    """Draw one of some values."""
    return values[int(rng.integers(len(values)))]


def places(tree: object, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the path of every entry of a tree of dicts and lists."""
    children = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    found: list[tuple[Any, ...]] = []
    for key, child in children:
        found += [(*path, key), *places(child, (*path, key))]
    return found


def change_tree(tree: Any, rng: np.random.Generator) -> tuple[str, Any]:  # noqa: ANN401 - whatever JSON holds
    """Return a changed copy of a tree of dicts and lists, and a description of the change."""
    changed = copy.deepcopy(tree)
    spots = places(changed)
    path = pick(spots, rng)
    parent = changed
    for key in path[:-1]:
        parent = parent[key]
    key, old = path[-1], parent[path[-1]]
    name = ".".join(map(str, path))
    action = int(rng.integers(10))
    if action == 0:
        del parent[key]
        return f"{name} removed", changed
    if action == 1 and isinstance(parent, dict):
        parent["surprise"] = old
        return f"{name} twice under other names", changed
    if action == 2 and isinstance(parent, list):
        parent += [old] * 3
        return f"{name} repeated", changed
    if action == 3 and isinstance(old, int | float) and not isinstance(old, bool):
        parent[key] = old + int(rng.integers(-2, 3)) * 10 ** int(rng.integers(4))
        return f"{name} = {parent[key]}", changed
    if action == 4:
        other = pick(spots, rng)
        value = tree
        for step in other:
            value = value[step]
        parent[key] = copy.deepcopy(value)
        return f"{name} = what {'.'.join(map(str, other))} is", changed
    value = pick(HOSTILE, rng)
    parent[key] = value
    return f"{name} = {str(value)[:40]!r}", changed


def to_json(tree: Any) -> str:  # noqa: ANN401 - whatever JSON holds
    """Write a tree as JSON, `Raw` texts as they are, and NaN and infinity as Python does."""
    raw: list[str] = []

    def mark(value: object) -> object:
        if isinstance(value, Raw):
            raw.append(value.text)
            return f"RAW{len(raw) - 1}WAR"
        if isinstance(value, dict):
            return {str(key): mark(child) for key, child in value.items()}
        return [mark(child) for child in value] if isinstance(value, list | tuple) else value

    text = json.dumps(mark(tree))
    for index, replacement in enumerate(raw):
        text = text.replace(f'"RAW{index}WAR"', replacement)
    return text
