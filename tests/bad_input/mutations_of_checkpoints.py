"""Damaged checkpoints: seeded mutations of a valid one's bytes, header, metadata and tensors.

The digest of the tensors is removed wherever more than raw bytes are changed, as if whoever changed them knew it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .hostile_values import DEEP, HOSTILE, Raw, change_tree, pick, to_json

_DTYPES: dict[str, type[np.generic]] = {
    "F64": np.float64,
    "F32": np.float32,
    "I64": np.int64,
    "I32": np.int32,
    "I8": np.int8,
    "U8": np.uint8,
    "BOOL": np.uint8,
}
_NUMBERS: tuple[float, ...] = (
    math.nan, math.inf, -math.inf, 0.0, -0.0, 1.0, -1.0, 2.0, 0.5, 1e-45, 1e-30, 1e30, -1e30, 3.4e38, 100.0, -100.0,
    127.0, 255.0, 256.0, 4095.0, 4096.0, 65535.0, 2.0**31, -(2.0**31), 2.0**62, -(2.0**62),
)  # fmt: skip


@dataclass
class _File:
    """A safetensors file taken apart: its tensors' entries, its own and its model's metadata, and all bytes of tensors.

    `text` and `info_text` replace the whole header, and what is said of the model, where they are not None.
    """

    header: dict[str, Any]
    metadata: Any
    info: dict[str, Any]
    data: bytes
    text: str | None = None
    info_text: str | None = None

    @classmethod
    def read(cls, content: bytes) -> _File:
        length = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + length])
        info = json.loads(header.pop("__metadata__")["qil_deploy"])
        return cls(header, None, info, content[8 + length :])

    def write(self) -> bytes:
        info = to_json(self.info) if self.info_text is None else self.info_text
        metadata = {"qil_deploy": info} if self.metadata is None else self.metadata
        text = to_json({"__metadata__": metadata, **self.header}) if self.text is None else self.text
        header = text.encode("utf-8", "surrogatepass")
        return len(header).to_bytes(8, "little") + header + self.data

    def tensors(self) -> dict[str, tuple[str, list[int], bytes]]:
        """Return (dtype, shape, bytes) of every tensor."""
        return {
            name: (entry["dtype"], entry["shape"], self.data[slice(*entry["data_offsets"])])
            for name, entry in self.header.items()
        }

    def pack(self, tensors: dict[str, tuple[str, list[int], bytes]]) -> None:
        """Pack all tensors anew, one after another."""
        self.header, end = {}, 0
        for name, (dtype, shape, part) in tensors.items():
            self.header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + len(part)]}
            end += len(part)
        self.data = b"".join(part for _, _, part in tensors.values())

    def set(self, name: str, dtype: str, shape: list[int], data: bytes) -> None:
        """Replace one tensor, or add it."""
        self.pack(self.tensors() | {name: (dtype, shape, data)})

    def values(self, name: str) -> NDArray[Any]:
        dtype, shape, data = self.tensors()[name]
        return np.frombuffer(data, _DTYPES[dtype]).reshape(shape).copy()


def mutations(content: bytes, count: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """Yield `count` (description, damaged file), the same ones for the same content, count and seed."""
    rng = np.random.default_rng(seed)
    groups = (None, _OF_THE_HEADER, _OF_THE_INFO, _OF_THE_INFO, _OF_TENSORS, _OF_VALUES, _OF_VALUES)
    for number in range(count):
        group = groups[number % len(groups)]
        if group is None:
            name, damaged = pick(_OF_BYTES, rng)(content, rng)
        else:
            file = _File.read(content)
            name = pick(group, rng)(file, rng)
            damaged = file.write()
        yield f"{number}: {name}", damaged


# The bytes, whatever they mean.


def _cut(content: bytes, rng: np.random.Generator) -> tuple[str, bytes]:
    start = _place(content, rng)
    return f"cut at {start}", content[:start]


def _flip(content: bytes, rng: np.random.Generator) -> tuple[str, bytes]:
    start, changed = _place(content, rng), bytearray(content)
    changed[start] ^= 1 << int(rng.integers(8))
    return f"one bit of byte {start}", bytes(changed)


def _replace(content: bytes, rng: np.random.Generator) -> tuple[str, bytes]:
    start, length = _place(content, rng), int(pick([1, 8, 100, 5000], rng))
    return f"{length} bytes at {start} replaced", content[:start] + rng.bytes(length) + content[start + length :]


def _remove(content: bytes, rng: np.random.Generator) -> tuple[str, bytes]:
    start, length = _place(content, rng), int(pick([1, 8, 100, 5000], rng))
    return f"{length} bytes at {start} removed", content[:start] + content[start + length :]


def _repeat(content: bytes, rng: np.random.Generator) -> tuple[str, bytes]:
    start, length = _place(content, rng), int(pick([1, 8, 100, 5000], rng))
    return f"{length} bytes at {start} twice", content[: start + length] + content[start:]


def _extend(content: bytes, rng: np.random.Generator) -> tuple[str, bytes]:
    length = int(pick([1, 8, 5000], rng))
    return f"{length} bytes behind the end", content + rng.bytes(length)


def _other_header_size(content: bytes, rng: np.random.Generator) -> tuple[str, bytes]:
    true = int.from_bytes(content[:8], "little")
    size = int(pick([0, 1, true - 1, true + 1, len(content), 2**31, 2**62, 2**63, 2**64 - 1], rng))
    return f"a header of {size} bytes", size.to_bytes(8, "little") + content[8:]


def _place(content: bytes, rng: np.random.Generator) -> int:
    """Draw a position: half of the time in the header, else anywhere."""
    return int(rng.integers(pick([8 + int.from_bytes(content[:8], "little"), len(content)], rng)))


# What the file says of its tensors, and of itself.


def _any_entry(file: _File, rng: np.random.Generator) -> str:
    name, file.header = change_tree(file.header, rng)
    return f"header: {name}"


def _other_text(file: _File, rng: np.random.Generator) -> str:
    texts = ["{", "[]", "null", "3", "", DEEP.text, '{"a":1,"a":2}', '{"__metadata__":3}', "\0", "NaN", "[" * 10**6]
    file.text = pick(texts, rng)
    return f"a header of {file.text[:20]!r}"


def _other_metadata(file: _File, rng: np.random.Generator) -> str:
    entries = [{}, {"qil_deploy": 3}, {"qil_deploy": None}, [], "x", {"other": "y"}, {"qil_deploy": {}}]
    file.metadata = pick(entries, rng)
    return f"metadata {file.metadata}"


def _blanks(file: _File, _rng: np.random.Generator) -> str:
    file.text = to_json({"__metadata__": {"qil_deploy": to_json(file.info)}, **file.header}) + " " * 9_000_000
    return "a header of 9 MB of blanks"


def _other_offsets(file: _File, rng: np.random.Generator) -> str:
    name = pick(list(file.header), rng)
    pairs = [[0, 0], [-4, 0], [4, 0], [0, 2**63], [2**62, 2**62 + 4], [0, 1e9], [True, 4], ["0", "4"], [0], None]
    file.header[name]["data_offsets"] = pick(pairs, rng)
    return f"{name} at {file.header[name]['data_offsets']}"


def _impossible_shape(file: _File, rng: np.random.Generator) -> str:
    name = pick(list(file.header), rng)
    shapes = [[0], [-1], [2**62, 4], [1] * 100, [1e9], [2**32, 2**32], [0, 2**63], [True], None, "4", [[4]], [10**30]]
    file.header[name]["shape"] = pick(shapes, rng)
    return f"{name} of shape {str(file.header[name]['shape'])[:40]}"


# What it says of its model.


def _any_info(file: _File, rng: np.random.Generator) -> str:
    name, file.info = change_tree(file.info, rng)
    return f"info: {name}"


def _info_text(file: _File, rng: np.random.Generator) -> str:
    texts = ["{", "[]", "null", "3", "", DEEP.text, '{"schema_version":1}', "\0", "NaN", "9" * 5000]
    file.info_text = pick(texts, rng)
    return f"info {file.info_text[:20]!r}"


def _kind(file: _File, rng: np.random.Generator) -> str:
    file.info["kind"] = pick(["float", "quantized", "frozen"], rng)
    return f"kind {file.info['kind']}"


def _image_size(file: _File, rng: np.random.Generator) -> str:
    side = pick(["channels", "height", "width"], rng)
    size = pick([0, 1, 7, 9, 100, 5000, 10**5, 10**9, 2**31, 2**63, -8, 8.5, "8", None, True], rng)
    file.info["preprocessing"][side] = size
    return f"{side} {size}"


def _pixels(file: _File, rng: np.random.Generator) -> str:
    key = pick(["scale", "zero_point"], rng)
    numbers = [0, 1, -1, 77, 255, 256, 1e-45, 1e-20, 1e20, 1e39, 1e300, math.nan, math.inf, "1", None, Raw("1e999")]
    file.info["preprocessing"][key] = pick(numbers, rng)
    return f"preprocessing {key} = {file.info['preprocessing'][key]}"


def _argument(file: _File, rng: np.random.Generator) -> str:
    argument = pick(["width", "in_channels", "num_classes", "surprise"], rng)
    numbers = [0, 1, 2, 3, 5, 8, 64, 4096, 10**6, 10**9, 2**40, 2**63, 10**30, -4, 4.0, 1e300, "4", [], {}]
    file.info["model_arguments"][argument] = pick(numbers, rng)
    return f"argument {argument} = {file.info['model_arguments'][argument]}"


def _model(file: _File, rng: np.random.Generator) -> str:
    names = ["resnet8", "resnet14", "resnet18", "resnet50", "alexnet", "vgg11_bn", "densenet121", "a:b"]
    file.info["model_name"] = pick(names, rng)
    if pick([True, False], rng):
        file.info["model_arguments"].pop("width", None)
    return f"model {file.info['model_name']} with {file.info['model_arguments']}"


def _config(file: _File, rng: np.random.Generator) -> str:
    key = pick(["weight_bits", "activation_bits", "placement", "train_gamma", "allow_float", "output_scales"], rng)
    value = pick([2, 3, 4, 7, 8, 9, True, False, "paper", "integer", "all", None, "4", 1e9], rng)
    file.info["config"] = dict(file.info["config"] or {}) | {key: value}
    return f"config {key} = {value}"


def _classes(file: _File, rng: np.random.Generator) -> str:
    lists: list[Any] = [[], ["a"], ["a"] * 9, ["a"] * 11, ["a"] * 20_000, ["\x1b[2J"] * 10, [""] * 10, [1] * 10, "ab"]
    file.info["class_names"] = pick(lists, rng)
    return f"classes {str(file.info['class_names'])[:40]}"


def _metric(file: _File, rng: np.random.Generator) -> str:
    name = pick(["accuracy", "test_images", "accuracy_before_freezing", "changed_predictions", "x" * 9000], rng)
    file.info["metrics"][name] = pick(HOSTILE, rng)
    return f"metric {name[:40]} = {str(file.info['metrics'][name])[:40]}"


# The tensors.


def _drop(file: _File, rng: np.random.Generator) -> str:
    tensors = file.tensors()
    name = pick(list(tensors), rng)
    del tensors[name]
    file.pack(tensors)
    return f"{name} missing"


def _rename(file: _File, rng: np.random.Generator) -> str:
    name, other = pick(list(file.header), rng), pick(list(file.header), rng)
    new = pick(["x", "", "\x1b[31m", "a" * 100_000, f"{name}.", name.upper(), "__proto__", "a\0b", other], rng)
    file.header = {new if key == name else key: entry for key, entry in file.header.items()}
    return f"{name} called {new[:40]!r}"


def _reshape(file: _File, rng: np.random.Generator) -> str:
    name = pick(list(file.header), rng)
    shape = file.header[name]["shape"]
    file.header[name]["shape"] = pick([[math.prod(shape)], [1, *shape], [*shape, 1], shape[::-1]], rng)
    return f"{name} of shape {file.header[name]['shape']}"


def _retype(file: _File, rng: np.random.Generator) -> str:
    name = pick(list(file.header), rng)
    names = ["F64", "F32", "F16", "BF16", "I64", "I32", "I8", "U8", "BOOL", "F8_E4M3", "U64", "C64", "Q4"]
    file.header[name]["dtype"] = pick(names, rng)
    return f"{name} called {file.header[name]['dtype']}"


def _convert(file: _File, rng: np.random.Generator) -> str:
    name, dtype = pick(list(file.header), rng), pick(list(_DTYPES), rng)
    with np.errstate(all="ignore"):
        values = file.values(name).astype(_DTYPES[dtype])
    file.set(name, dtype, file.header[name]["shape"], values.tobytes())
    return f"{name} as {dtype}"


def _add(file: _File, rng: np.random.Generator) -> str:
    size = int(pick([0, 1, 1000, 3_000_000], rng))
    file.set("surplus", "F32", [size], bytes(4 * size))
    return f"{size} values more"


def _exchange(file: _File, rng: np.random.Generator) -> str:
    name = pick(list(file.header), rng)
    shape = file.header[name]["shape"]
    other = pick([key for key, entry in file.header.items() if entry["shape"] == shape], rng)
    file.header[name], file.header[other] = file.header[other], file.header[name]
    return f"{name} and {other} exchanged"


def _halve(file: _File, rng: np.random.Generator) -> str:
    name = pick(list(file.header), rng)
    values = file.values(name).reshape(-1)
    file.set(name, file.header[name]["dtype"], [values.size // 2], values[: values.size // 2].tobytes())
    return f"half of {name}"


# Their values; those of scalars, which hold the quantizers, as often as those of all others.


def _value_change(
    change: Callable[[NDArray[Any], np.random.Generator], str],
) -> Callable[[_File, np.random.Generator], str]:
    def apply(file: _File, rng: np.random.Generator) -> str:
        names = list(file.header)
        scalars = [name for name in names if not file.header[name]["shape"]]
        name = pick(pick([names, scalars or names], rng), rng)
        values = file.values(name).reshape(-1)
        with np.errstate(all="ignore"):
            what = change(values, rng) if values.size else "empty"
        file.set(name, file.header[name]["dtype"], file.header[name]["shape"], values.tobytes())
        return f"{name}: {what}"

    return apply


def _one_value(values: NDArray[Any], rng: np.random.Generator) -> str:
    index, number = int(rng.integers(values.size)), pick(_NUMBERS, rng)
    _assign(values, slice(index, index + 1), number)
    return f"value {index} = {number}"


def _all_values(values: NDArray[Any], rng: np.random.Generator) -> str:
    number = pick(_NUMBERS, rng)
    _assign(values, slice(None), number)
    return f"all = {number}"


def _assign(values: NDArray[Any], where: slice, number: float) -> None:
    if np.issubdtype(values.dtype, np.integer):
        limits = np.iinfo(values.dtype)
        finite = 0.0 if math.isnan(number) else number
        values[where] = limits.max if finite >= limits.max else limits.min if finite <= limits.min else int(finite)
    else:
        values[where] = number


def _scaled(values: NDArray[Any], rng: np.random.Generator) -> str:
    factor = pick([-1, 2, 3, 1000, 1e30, 1e-30, 1.5], rng)
    values[:] = (values * factor).astype(values.dtype)
    return f"times {factor}"


def _one_bit(values: NDArray[Any], rng: np.random.Generator) -> str:
    raw = values.view(np.uint8)
    index, bit = int(rng.integers(raw.size)), int(rng.integers(8))
    raw[index] ^= np.uint8(1 << bit)
    return f"bit {bit} of byte {index}"


def _noise(values: NDArray[Any], rng: np.random.Generator) -> str:
    values.view(np.uint8)[:] = rng.integers(0, 256, values.nbytes, np.uint8)
    return "noise"


def _shuffled(values: NDArray[Any], rng: np.random.Generator) -> str:
    rng.shuffle(values)
    return "shuffled"


_OF_BYTES = (_cut, _flip, _flip, _replace, _remove, _repeat, _extend, _other_header_size)
_OF_THE_HEADER = (_any_entry, _other_text, _other_metadata, _blanks, _other_offsets, _impossible_shape)
_OF_THE_INFO = (
    _any_info,
    _any_info,
    _info_text,
    _kind,
    _image_size,
    _pixels,
    _argument,
    _model,
    _config,
    _classes,
    _metric,
)
_OF_TENSORS = (_drop, _rename, _reshape, _retype, _convert, _add, _exchange, _halve)
_OF_VALUES = tuple(
    _value_change(change)
    for change in (_one_value, _one_value, _all_values, _all_values, _scaled, _one_bit, _noise, _shuffled)
)
