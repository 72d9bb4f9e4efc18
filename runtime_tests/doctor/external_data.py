"""Initializers stored in files beside the model: read from its own folder, and nowhere else.

An ONNX file may name any path. A path out of the model's folder (an absolute path, `..`, a link) is not opened, by
this project or by ONNX Runtime on its behalf: its content would show in the output, and it may be a device that never
ends.
"""

from __future__ import annotations

import math
import os
import stat
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Final

import numpy as np
from google.protobuf.message import DecodeError, Message

from qil_deploy.onnx_io import Array, DefectError, convert_tensor, data_type, parse_message

from .findings import quoted

# ONNX Runtime takes what follows this for an address in its own memory.
_MEMORY: Final = "*/_ORT_MEM_ADDR_/*"
_LONGEST_NUMBER: Final = 18  # digits: 2**63 has 19


class OutsideError(DefectError):
    """Data that must not be opened: outside the model's folder, or in no regular file."""


@dataclass(frozen=True, kw_only=True)
class _Place:
    """Location of a tensor's bytes."""

    path: Path
    offset: int
    bytes: int


def is_external(tensor: Message) -> bool:
    """Whether a TensorProto's elements are stored in another file."""
    return bool(tensor.data_location == 1 or tensor.external_data)


def read_external(tensor: Message, folder: Path) -> Array:
    """Return a TensorProto's elements stored in a file in `folder` or below, mapped into memory, read-only.

    Raises:
        OutsideError: they are elsewhere, or not in a file.
        DefectError: there is no such file, it is too short, or the tensor does not say what it needs to.
    """
    where = f"initializer {quoted(_text(tensor.name))}"
    place = _place(tensor, folder, where)
    name, bits, _ = data_type(tensor.data_type, where)
    shape = tuple(tensor.dims)
    if any(not 0 <= size < 2**31 for size in shape):
        raise DefectError(f"{where} has shape {list(shape)}; sizes must be from 0 to 2**31 - 1.")
    expected = math.ceil(math.prod(shape) * bits / 8)
    if place.bytes != expected:
        raise DefectError(f"{where} has {place.bytes:,} bytes in {place.path.name} where {expected:,} belong.")
    if bits >= 8 and expected:
        stored = np.memmap(place.path, np.uint8, "r", offset=place.offset, shape=(place.bytes,))
        return stored.view(np.dtype(name).newbyteorder("<")).reshape(shape)
    inside = type(tensor)()
    inside.name, inside.data_type = tensor.name, tensor.data_type
    inside.dims.extend(shape)
    with place.path.open("rb") as stream:
        stream.seek(place.offset)
        inside.raw_data = stream.read(place.bytes)
    return convert_tensor(inside, where)


def _place(tensor: Message, folder: Path, where: str) -> _Place:
    entries = _entries(tensor, where)
    path = _path(entries.get("location", ""), folder, where)
    offset, length = (_number(entries.get(key, ""), f"{key} of {where}") for key in ("offset", "length"))
    size, start = path.stat().st_size, offset or 0
    count = size - start if length is None else length
    if count < 0 or start + count > size:
        raise DefectError(f"{where} ends at byte {start + max(count, 0):,} of {path.name}, which has {size:,}.")
    return _Place(path=path, offset=start, bytes=count)


def _entries(tensor: Message, where: str) -> dict[str, str]:
    try:
        pairs = [parse_message("StringStringEntryProto", entry) for entry in tensor.external_data]
    except DecodeError as error:
        raise DefectError(f"{where} does not say where its data lie.") from error
    return {_text(pair.key): _text(pair.value) for pair in pairs}


def _path(location: str, folder: Path, where: str) -> Path:
    """Return the file that a tensor names, in `folder` or below."""
    if not location or "\0" in location:
        raise DefectError(f"{where} names no file that its data lie in.")
    shown = f"{where} lies in {quoted(location)}"
    ways = (PurePosixPath(location), PureWindowsPath(location))
    if location.startswith(_MEMORY) or any(way.root or way.drive or ".." in way.parts for way in ways):
        raise OutsideError(f"{shown}, which is not in the model's own folder.")
    path = folder / location
    if not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder)):
        raise OutsideError(f"{shown}, a link that leads out of the model's folder.")
    try:
        if stat.S_ISREG(path.stat().st_mode):
            return path
    except OSError as error:
        raise DefectError(f"{shown}, which cannot be read: {error.strerror or error}.") from error
    raise OutsideError(f"{shown}, which is a folder, a device or a pipe.")


def _number(text: str, what: str) -> int | None:
    if not text:
        return None
    if not (text.isascii() and text.isdigit()) or len(text) > _LONGEST_NUMBER:
        raise DefectError(f"{what} is {quoted(text)}, which is no number of bytes.")
    return int(text)


def _text(value: str | bytes) -> str:
    return value if isinstance(value, str) else value.decode(errors="backslashreplace")
