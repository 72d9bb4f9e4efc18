"""Metadata of an exported ONNX file: one JSON object under `METADATA_KEY` of its metadata properties.

Files come from anywhere. Whatever a reader takes from the object has its type and range checked here, once; an entry
that is left out is left to the reader that needs it.
"""

from __future__ import annotations

import json
from typing import Any, NoReturn

from qil_deploy.errors import ModelFileError
from qil_deploy.untrusted_text import excerpt

from .model_file import OnnxFile
from .names import METADATA_KEY, METADATA_SCHEMA

_LARGEST = 2**31 - 1  # of any size, code or count


def read_metadata(model: OnnxFile) -> dict[str, Any]:
    """Return the metadata object of a file; an empty one if it has none.

    Raises:
        ModelFileError: it is no JSON object, of another schema, or an entry has a type or value that it cannot have.
    """
    try:
        metadata = json.loads(model.metadata.get(METADATA_KEY, "{}"))
    except (ValueError, RecursionError) as error:
        raise ModelFileError(
            f"the metadata of {model.path} is damaged ({excerpt(str(error))}); export the model again."
        ) from error
    _check(metadata, {}, "it", model)
    if METADATA_KEY in model.metadata:
        _check_schema(metadata, model)
    _check(metadata, _METADATA, "it", model)
    return dict(metadata)


def _check_schema(metadata: dict[str, Any], model: OnnxFile) -> None:
    found = metadata.get("schema")
    if type(found) is not int or found != METADATA_SCHEMA:
        raise ModelFileError(
            f"the metadata of {model.path} has schema {excerpt(repr(found), 60)}; this version of qil_deploy reads "
            f"{METADATA_SCHEMA}: read it with the version that exported it, or export the model again."
        )


def _check(value: object, rule: object, where: str, model: OnnxFile) -> None:
    """Check a value by a rule: a dict of rules by key, a list with the rule of every item, or a test and its name."""
    if isinstance(rule, dict):
        if not isinstance(value, dict):
            _refuse(value, "an object", where, model)
        for key in rule.keys() & value.keys():
            _check(value[key], rule[key], repr(key) if where == "it" else f"{key!r} of {where}", model)
    elif isinstance(rule, list):
        if not isinstance(value, list):
            _refuse(value, "a list", where, model)
        for index, item in enumerate(value):
            _check(item, rule[0], f"entry {index} of {where}", model)
    elif isinstance(rule, tuple):
        test, name = rule
        if not test(value):
            _refuse(value, name, where, model)


def _refuse(value: object, wanted: str, where: str, model: OnnxFile) -> NoReturn:
    raise ModelFileError(
        f"the metadata of {model.path} is damaged ({where} is {excerpt(repr(value), 60)}, where {wanted} belongs); "
        "export the model again."
    )


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value <= _LARGEST


def _is_size(value: object) -> bool:
    return type(value) is int and 1 <= value <= _LARGEST


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= _LARGEST**2


def _is_names(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


_TEXT = (lambda value: isinstance(value, str), "text")
_COUNT = (_is_count, f"a whole number from 0 to {_LARGEST}")
_SIZE = (_is_size, f"a whole number from 1 to {_LARGEST}")
_NUMBER = (_is_number, "a finite number")
_MAYBE_SIZE = (lambda value: value is None or _is_size(value), "null or a whole number of at least 1")
_MAYBE_TEXT = (lambda value: value is None or isinstance(value, str), "null or text")

_ONE_OR_TWO_SIZES = (
    lambda value: _is_size(value) or (isinstance(value, list) and len(value) == 2 and all(map(_is_size, value))),
    "a whole number of at least 1, or two",
)

_NODES = (
    lambda value: isinstance(value, dict) and all(isinstance(nodes, list) for nodes in value.values()),
    "an object of lists",
)

_REASONS = (
    lambda value: (
        isinstance(value, dict)
        and all(isinstance(reasons, dict) and all(map(_is_names, reasons.values())) for reasons in value.values())
    ),
    "an object of objects of lists of text",
)

_METADATA: dict[str, object] = {
    "placement": _TEXT,
    "weights": _TEXT,
    "data": _MAYBE_TEXT,
    "batch": _MAYBE_SIZE,
    "float_parts": [_TEXT],
    "outputs": [{"name": _TEXT, "shape": [_SIZE], "kind": _TEXT, "scale": _NUMBER, "zero_point": _COUNT}],
    "boxes": {
        "outputs": [_TEXT],
        "strides": [_SIZE],
        "classes": _SIZE,
        "anchors": [[[_NUMBER]]],
        "score": _NUMBER,
        "overlap": _NUMBER,
    },
    "preprocessing": {
        **dict.fromkeys(("channels", "height", "width"), _SIZE),
        "scale": _NUMBER,
        "zero_point": _COUNT,
        "mean": [_NUMBER],
        "std": [_NUMBER],
        "channel_order": _TEXT,
        "resize": _ONE_OR_TWO_SIZES,
        "interpolation": _TEXT,
    },
    "layers": [{"name": _TEXT, "weight_bits": _COUNT, "largest_input_code": _COUNT, "weight_shape": [_SIZE]}],
    "passes": _NODES,
    "left_alone": _REASONS,
    "permuted": [_TEXT],
    "certificate": [{"name": _TEXT, "worst": _NUMBER, "bound": _NUMBER, "where": _TEXT}],
}
