"""Each entry of a model's metadata replaced by an invalid value, or removed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx
import pytest

from .conftest import ZOO

if TYPE_CHECKING:
    from tests.command_line import Outcome

ENTRIES: dict[str, Any] = json.loads(
    next(entry.value for entry in onnx.load(ZOO / "w2a2.onnx").metadata_props if entry.key == "qil_deploy")
)
ENTRIES["left_alone"] = {"space_to_depth": {"it reads codes, not the image": ["layer1.0.conv1"]}}
ENTRIES["preprocessing"] |= {"mean": [0.286], "std": [0.353], "resize": [32, 32], "interpolation": "bilinear"}
VALUES: dict[str, object] = {
    "null": None,
    "list": [],
    "list of lists": [[]],
    "object": {},
    "text": "x",
    "half of a character": "\ud800",
    "true": True,
    "zero": 0,
    "negative": -1,
    "fraction": 0.5,
    "huge": 10**30,
    "NaN": float("nan"),
    "infinity": float("inf"),
}
LEFT_OUT = object()


def _places(value: object, place: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Yield the paths of entries, for lists only the first."""
    keys: list[Any] = list(value) if isinstance(value, dict) else [0] if isinstance(value, list) and value else []
    for key in keys:
        yield (*place, key)
        yield from _places(value[key], (*place, key))  # type: ignore[index] # it has these keys


PLACES = list(_places(ENTRIES))


def _changed(place: tuple[str | int, ...], value: object) -> dict[str, Any]:
    entries = deepcopy(ENTRIES)
    holder: Any = entries
    for key in place[:-1]:
        holder = holder[key]
    if value is LEFT_OUT:
        del holder[place[-1]]
    else:
        holder[place[-1]] = value
    return entries


@pytest.mark.parametrize("place", PLACES, ids=lambda place: ".".join(map(str, place)))
def test_any_value_anywhere(
    content: bytes, golden: Path, tmp_path: Path, ends: Callable[..., Outcome], place: tuple[str | int, ...]
) -> None:
    path = tmp_path / "model.onnx"
    model = onnx.load_from_string(content)
    first = PLACES.index(place) % 4
    for value in (*list(VALUES.values())[first::4], LEFT_OUT):  # some of them here, the others in the next places
        model.metadata_props[0].value = json.dumps(_changed(place, value))
        path.write_bytes(model.SerializeToString())
        ends("inspect", path)
        ends("verify", path, "--golden", golden)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "null", "NaN", '"x"', "[" * 100_000, "{" * 100_000])
def test_metadata_that_are_no_object(content: bytes, tmp_path: Path, refused: Callable[..., str], text: str) -> None:
    model = onnx.load_from_string(content)
    model.metadata_props[0].value = text
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    for command in ("inspect", "verify"):
        assert f"the metadata of {path} is damaged" in refused(command, path)
