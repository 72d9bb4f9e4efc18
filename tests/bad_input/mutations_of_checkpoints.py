"""Damaged checkpoints: seeded mutations of a good one, of its bytes, its header, what it says, and its tensors.

The digest of the tensors is removed wherever more than raw bytes are changed, as if whoever changed them knew it.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .hostile_values import DEEP, HOSTILE, Raw, change_tree, to_json

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
    """A safetensors file taken apart: the header without its metadata, the metadata, and all bytes of tensors."""

    header: dict[str, Any]
    metadata: dict[str, Any]
    info: dict[str, Any]
    data: bytes

    @classmethod
    def read(cls, content: bytes) -> _File:
        length = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + length])
        metadata = header.pop("__metadata__")
        return cls(header, metadata, json.loads(metadata["qil_deploy"]), content[8 + length :])

    def write(self, info: str | None = None) -> bytes:
        metadata = {"qil_deploy": to_json(self.info) if info is None else info}
        return _joined(to_json({"__metadata__": metadata, **self.header}), self.data)

    def set(self, name: str, dtype: str, shape: list[int], data: bytes) -> None:
        """Replace one tensor, or add it."""
        tensors = {key: (entry["dtype"], entry["shape"], self.bytes(key)) for key, entry in self.header.items()}
        tensors[name] = (dtype, shape, data)
        self.pack(tensors)

    def pack(self, tensors: dict[str, tuple[str, list[int], bytes]]) -> None:
        """Write all tensors anew, one behind the other."""
        self.header, self.data = {}, b""
        parts, end = [], 0
        for key, (dtype, shape, part) in tensors.items():
            self.header[key] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + len(part)]}
            end += len(part)
            parts.append(part)
        self.data = b"".join(parts)

    def bytes(self, name: str) -> bytes:
        begin, end = self.header[name]["data_offsets"]
        return self.data[begin:end]

    def values(self, name: str) -> NDArray[Any]:
        entry = self.header[name]
        return np.frombuffer(self.bytes(name), _DTYPES[entry["dtype"]]).reshape(entry["shape"]).copy()


def _joined(header: str, data: bytes) -> bytes:
    text = header.encode("utf-8", "surrogatepass")
    return len(text).to_bytes(8, "little") + text + data


def mutations(content: bytes, count: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """Yield `count` (what was done, the damaged file), the same ones for the same content, count and seed."""
    rng = np.random.default_rng(seed)
    kinds = (_change_bytes, _change_header, _change_info, _change_info, _change_tensors, _change_values, _change_values)
    for number in range(count):
        name, damaged = kinds[number % len(kinds)](content, rng)
        yield f"{number}: {name}", damaged


def _pick(values: Any, rng: np.random.Generator) -> Any:  # noqa: ANN401 - of any sequence
    return values[int(rng.integers(len(values)))]


def _change_bytes(content: bytes, rng: np.random.Generator) -> tuple[str, bytes]:
    header = 8 + int.from_bytes(content[:8], "little")
    start = int(rng.integers(_pick([header, len(content)], rng)))
    length = int(_pick([1, 1, 8, 100, 5000], rng))
    choice = int(rng.integers(7))
    if choice == 0:
        return f"cut at {start}", content[:start]
    if choice == 1:
        changed = bytearray(content)
        changed[start] ^= 1 << int(rng.integers(8))
        return f"one bit of byte {start}", bytes(changed)
    if choice == 2:
        return f"{length} bytes at {start} replaced", content[:start] + rng.bytes(length) + content[start + length :]
    if choice == 3:
        return f"{length} bytes at {start} removed", content[:start] + content[start + length :]
    if choice == 4:
        return f"{length} bytes at {start} twice", content[: start + length] + content[start:]
    if choice == 5:
        sizes = [0, 1, header - 9, header - 7, len(content), 2**31, 2**62, 2**63, 2**64 - 1]
        size = int(_pick(sizes, rng))
        return f"a header of {size} bytes", size.to_bytes(8, "little") + content[8:]
    return f"{length} bytes behind the end", content + rng.bytes(length)


def _change_header(content: bytes, rng: np.random.Generator) -> tuple[str, bytes]:
    """Change what the file says of its tensors, without the bytes of these."""
    file = _File.read(content)
    choice = int(rng.integers(6))
    if choice == 0:
        name, header = change_tree(file.header, rng)
        file.header = header
        return f"header: {name}", file.write()
    if choice == 1:
        text = _pick(["{", "[]", "null", "3", "", DEEP.text, '{"a":1,"a":2}', '{"__metadata__":3}', "\0", "NaN"], rng)
        return f"a header of {text[:20]!r}", _joined(text, file.data)
    if choice == 2:
        metadata = _pick([{}, {"qil_deploy": 3}, {"qil_deploy": None}, [], "x", {"other": "y"}, {"qil_deploy": {}}], rng)
        return f"metadata {metadata}", _joined(to_json({"__metadata__": metadata, **file.header}), file.data)
    if choice == 3:
        text = to_json({"__metadata__": file.metadata, **file.header})
        return "a header of 9 MB of blanks", _joined(text + " " * 9_000_000, file.data)
    name = _pick(list(file.header), rng)
    entry = file.header[name]
    if choice == 4:
        entry["data_offsets"] = _pick(
            [[0, 0], [-4, 0], [4, 0], [0, 2**63], [2**62, 2**62 + 4], [0, 1e9], [True, 4], ["0", "4"], [0], None], rng
        )
        return f"{name} at {entry['data_offsets']}", file.write()
    entry["shape"] = _pick(
        [[0], [-1], [2**62, 4], [1] * 100, [1e9], [2**32, 2**32], [0, 2**63], [True], None, "4", [[4]], [10**30]], rng
    )
    return f"{name} of shape {str(entry['shape'])[:40]}", file.write()


def _change_info(content: bytes, rng: np.random.Generator) -> tuple[str, bytes]:
    """Change what the checkpoint says of its model."""
    file = _File.read(content)
    choice = int(rng.integers(12))
    if choice == 0:
        text = _pick(["{", "[]", "null", "3", "", DEEP.text, '{"schema_version":1}', "\0", "NaN", "9" * 5000], rng)
        return f"info {text[:20]!r}", file.write(text)
    if choice == 1:
        kind = _pick(["float", "quantized", "frozen"], rng)
        file.info["kind"] = kind
        return f"kind {kind}", file.write()
    if choice == 2:
        size = _pick([0, 1, 7, 9, 100, 5000, 10**5, 10**9, 2**31, 2**63, -8, 8.5, "8", None, True], rng)
        side = _pick(["channels", "height", "width"], rng)
        file.info["preprocessing"][side] = size
        return f"{side} {size}", file.write()
    if choice == 3:
        value = _pick([0, 1, 2, 3, 5, 8, 64, 4096, 10**6, 10**9, 2**40, 2**63, 10**30, -4, 4.0, 1e300, "4", [], {}], rng)
        argument = _pick(["width", "in_channels", "num_classes", "surprise"], rng)
        file.info["model_arguments"][argument] = value
        return f"argument {argument} = {value}", file.write()
    if choice == 4:
        model = _pick(["resnet8", "resnet14", "resnet18", "resnet50", "alexnet", "vgg11_bn", "densenet121", "a:b"], rng)
        file.info["model_name"] = model
        return f"model {model}", file.write()
    if choice == 5:
        key = _pick(["weight_bits", "activation_bits", "placement", "train_gamma", "allow_float", "output_scales"], rng)
        value = _pick([2, 3, 4, 7, 8, 9, True, False, "paper", "integer", "all", None, "4", 1e9], rng)
        file.info["config"] = dict(file.info["config"] or {}) | {key: value}
        return f"config {key} = {value}", file.write()
    if choice == 6:
        classes = _pick([[], ["a"], ["a"] * 9, ["a"] * 11, ["a"] * 20_000, ["\x1b[2J"] * 10, [""] * 10, [1] * 10, "ab"], rng)
        file.info["class_names"] = classes
        return f"{len(classes)} classes {str(classes)[:20]}", file.write()
    if choice == 7:
        metrics = _pick(["accuracy", "test_images", "accuracy_before_freezing", "changed_predictions", "x" * 9000], rng)
        file.info["metrics"][metrics] = _pick(HOSTILE, rng)
        return f"metric {metrics[:40]} = {str(file.info['metrics'][metrics])[:40]}", file.write()
    if choice == 8:
        key = _pick(["scale", "zero_point"], rng)
        file.info["preprocessing"][key] = _pick(
            [0, 1, -1, 77, 255, 256, 1e-45, 1e-20, 1e20, 1e39, 1e300, math.nan, math.inf, "1", None, Raw("1e999")], rng
        )
        return f"preprocessing {key} = {file.info['preprocessing'][key]}", file.write()
    name, info = change_tree(file.info, rng)
    file.info = info
    return f"info: {name}", file.write()


def _change_tensors(content: bytes, rng: np.random.Generator) -> tuple[str, bytes]:
    """Rename, reshape, retype, drop, add and exchange tensors."""
    file = _File.read(content)
    names = list(file.header)
    name, other = _pick(names, rng), _pick(names, rng)
    entry = file.header[name]
    values = file.values(name)
    choice = int(rng.integers(8))
    if choice == 0:
        tensors = {key: (item["dtype"], item["shape"], file.bytes(key)) for key, item in file.header.items()}
        del tensors[name]
        file.pack(tensors)
        return f"{name} missing", file.write()
    if choice == 1:
        renamed = _pick(["x", "", "\x1b[31m", "a" * 100_000, f"{name}.", name.upper(), "__proto__", "a\0b", other], rng)
        file.header = {renamed if key == name else key: item for key, item in file.header.items()}
        return f"{name} called {renamed[:40]!r}", file.write()
    if choice == 2:
        shape = _pick([[values.size], [1, *values.shape], [*values.shape, 1], list(values.shape[::-1])], rng)
        entry["shape"] = shape
        return f"{name} of shape {shape}", file.write()
    if choice == 3:
        dtype = _pick(["F64", "F32", "F16", "BF16", "I64", "I32", "I8", "U8", "BOOL", "F8_E4M3", "U64", "C64", "Q4"], rng)
        entry["dtype"] = dtype
        return f"{name} called {dtype}", file.write()
    if choice == 4:
        dtype = _pick(list(_DTYPES), rng)
        with np.errstate(all="ignore"):
            file.set(name, dtype, entry["shape"], values.astype(_DTYPES[dtype]).tobytes())
        return f"{name} as {dtype}", file.write()
    if choice == 5:
        size = int(_pick([0, 1, 1000, 3_000_000], rng))
        file.set("surplus", "F32", [size], bytes(4 * size))
        return f"{size} values more", file.write()
    if choice == 6:
        same = [key for key in names if file.header[key]["shape"] == entry["shape"] and key != name] or [name]
        chosen = _pick(same, rng)
        file.header[name], file.header[chosen] = file.header[chosen], file.header[name]
        return f"{name} and {chosen} exchanged", file.write()
    half = values.reshape(-1)[: values.size // 2]
    file.set(name, entry["dtype"], [half.size], half.tobytes())
    return f"half of {name}", file.write()


def _change_values(content: bytes, rng: np.random.Generator) -> tuple[str, bytes]:
    """Change values of one tensor; scalars, which hold the quantizers, as often as all others."""
    file = _File.read(content)
    names = list(file.header)
    scalars = [name for name in names if not file.header[name]["shape"]]
    name = _pick(_pick([names, scalars or names], rng), rng)
    entry, values = file.header[name], file.values(name)
    if not values.size:
        return f"{name} is empty", file.write()
    change = copy.copy(values.reshape(-1))
    with np.errstate(all="ignore"):
        what = _VALUE_CHANGES[int(rng.integers(len(_VALUE_CHANGES)))](change, rng)
    file.set(name, entry["dtype"], entry["shape"], change.astype(values.dtype).tobytes())
    return f"{name}: {what}", file.write()


def _one_value(values: NDArray[Any], rng: np.random.Generator) -> str:
    index, number = int(rng.integers(values.size)), _pick(_NUMBERS, rng)
    _assign(values, slice(index, index + 1), number)
    return f"value {index} = {number}"


def _all_values(values: NDArray[Any], rng: np.random.Generator) -> str:
    number = _pick(_NUMBERS, rng)
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
    factor = _pick([-1, 2, 3, 1000, 1e30, 1e-30, 1.5], rng)
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


_VALUE_CHANGES: tuple[Callable[[NDArray[Any], np.random.Generator], str], ...] = (
    _one_value,
    _one_value,
    _all_values,
    _all_values,
    _scaled,
    _one_bit,
    _noise,
    _shuffled,
)
