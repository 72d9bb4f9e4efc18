"""ONNX tensors as numpy arrays: element types, shapes, packed integers.

Sizes are checked against the bytes that are there before an array is made of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from qil_deploy.untrusted_text import excerpt

if TYPE_CHECKING:
    from google.protobuf.message import Message

Array = npt.NDArray[Any]

# TensorProto.DataType: number -> (name, bits per element, field that holds the elements if not raw_data).
DATA_TYPES: dict[int, tuple[str, int, str]] = {
    1: ("float32", 32, "float_data"),
    2: ("uint8", 8, "int32_data"),
    3: ("int8", 8, "int32_data"),
    4: ("uint16", 16, "int32_data"),
    5: ("int16", 16, "int32_data"),
    6: ("int32", 32, "int32_data"),
    7: ("int64", 64, "int64_data"),
    9: ("bool", 8, "int32_data"),
    10: ("float16", 16, "int32_data"),
    11: ("float64", 64, "double_data"),
    12: ("uint32", 32, "uint64_data"),
    13: ("uint64", 64, "uint64_data"),
    21: ("uint4", 4, "int32_data"),
    22: ("int4", 4, "int32_data"),
    25: ("uint2", 2, "int32_data"),
    26: ("int2", 2, "int32_data"),
}
_TYPED_FIELDS = ("float_data", "int32_data", "int64_data", "double_data", "uint64_data")

_MAX_RANK = 32


class DefectError(Exception):
    """A defect in a file whose name is not known yet."""


def data_type_name(number: int) -> str:
    """Return numpy's name for an ONNX element type number, as the attribute `to` of Cast gives it.

    Raises:
        ValueError: numpy has no such type.
    """
    name, bits, _ = DATA_TYPES.get(number, ("", 0, ""))
    if bits < 8:
        raise ValueError(f"element type number {number} is no numpy type")
    return name


def bits_of_type(name: str) -> int:
    """Return the bits of one stored element of a type of `DATA_TYPES`, by its name."""
    return next(bits for known, bits, _ in DATA_TYPES.values() if known == name)


def data_type(number: int, where: str) -> tuple[str, int, str]:
    """Look an element type up in `DATA_TYPES`.

    Raises:
        DefectError: the number is no supported type; `where` says whose it is.
    """
    if number not in DATA_TYPES:
        known = ", ".join(f"{key} {name}" for key, (name, _, _) in DATA_TYPES.items())
        raise DefectError(f"{where} has element type number {number}; supported are {known}.")
    return DATA_TYPES[number]


def convert_tensor(tensor: Message, where: str) -> Array:
    """Turn a TensorProto into a read-only array; types below 8 bits become int8 or uint8."""
    if tensor.data_location == 1 or tensor.external_data:
        raise DefectError(f"{where} is stored in another file (external data); store it inside the ONNX file.")
    if tensor.HasField("segment"):
        raise DefectError(f"{where} is one segment of a tensor; store tensors whole.")
    name, bits, typed_field = data_type(tensor.data_type, where)
    shape = _checked_shape(tensor.dims, where)
    count = math.prod(shape)
    filled = [typed for typed in _TYPED_FIELDS if len(getattr(tensor, typed))]
    if tensor.HasField("raw_data") and not filled:
        stored = np.frombuffer(tensor.raw_data, np.uint8)
        _check_size(
            stored.size,
            math.ceil(count * bits / 8),
            f"{where} of shape {_text(shape)} and type {name}",
            "bytes",
        )
        values = _unpack(stored, name, count) if bits < 8 else stored.view(_little_endian(name))
    elif filled in ([], [typed_field]) and not tensor.HasField("raw_data"):
        elements = getattr(tensor, typed_field)
        expected = math.ceil(count * bits / 8) if bits < 8 else count
        _check_size(
            len(elements),
            expected,
            f"{where} of shape {_text(shape)} and type {name}",
            f"entries of {typed_field}",
        )
        values = _from_typed_field(elements, name, bits, count, where)
    else:
        raise DefectError(
            f"{where} of type {name} holds data in {', '.join(filled)}; use raw_data or {typed_field} alone."
        )
    values = values.astype(values.dtype.newbyteorder("="), copy=False).reshape(shape)
    values.flags.writeable = False
    return values


def _checked_shape(dims: Iterable[int], where: str) -> tuple[int, ...]:
    shape = tuple(dims)
    if len(shape) > _MAX_RANK:
        raise DefectError(f"{where} has {len(shape)} dimensions; at most {_MAX_RANK} are supported.")
    if any(not 0 <= size < 2**31 for size in shape):
        raise DefectError(f"{where} has shape {_text(shape)}; sizes must be from 0 to 2**31 - 1.")
    if 0 in shape and math.prod(size for size in shape if size) >= 2**31:
        raise DefectError(f"{where} has shape {_text(shape)}: empty, yet too large for an array.")
    return shape


def _text(shape: Sequence[int]) -> str:
    return excerpt(str(list(shape)))


def _check_size(found: int, expected: int, what: str, unit: str) -> None:
    if found != expected:
        raise DefectError(f"{what} holds {found} {unit} where {expected} belong. The file is damaged; export it again.")


def _little_endian(name: str) -> np.dtype[Any]:
    return np.dtype(name).newbyteorder("<")


def _unpack(stored: npt.NDArray[np.uint8], name: str, count: int) -> Array:
    """Unpack `count` 4-bit or 2-bit elements, low bits first, to int8 (sign-extended) or uint8."""
    bits = int(name[-1])
    codes = np.empty((stored.size, 8 // bits), np.uint8)
    for place, shift in enumerate(range(0, 8, bits)):
        np.right_shift(stored, np.uint8(shift), out=codes[:, place])
    codes &= np.uint8(2**bits - 1)
    elements = codes.reshape(-1)[:count]
    if name.startswith("u"):
        return elements
    sign = np.uint8(1 << (bits - 1))
    elements ^= sign
    elements -= sign  # a negative code wraps to the byte that int8 reads as that code
    return elements.view(np.int8)


def _from_typed_field(elements: Iterable[Any], name: str, bits: int, count: int, where: str) -> Array:
    """Convert a typed protobuf field; int32_data holds one element, or one byte of packed ones, per entry."""
    if name in ("float32", "float64"):
        return np.array(elements, name)
    wide = np.array(elements, np.uint64 if name.startswith("uint") and bits >= 32 else np.int64)
    container = {"float16": "uint16", "bool": "uint8"}.get(name, "uint8" if bits < 8 else name)
    limits = np.iinfo(container)
    # A packed or bit-wise entry may have been written as a signed or as an unsigned number.
    lowest = limits.min if container == name else -(limits.max // 2 + 1)
    if wide.size and (int(wide.min()) < lowest or int(wide.max()) > limits.max):
        raise DefectError(f"{where} holds values from {wide.min()} to {wide.max()}, which {name} cannot.")
    stored = wide.astype(container)
    if bits < 8:
        return _unpack(stored, name, count)
    return stored.view(np.float16) if name == "float16" else stored.astype(name, copy=False)
