"""Read safetensors files of any origin: the header is checked before a tensor is read.

    8 bytes     length n of the header, little-endian
    n bytes     JSON: {"__metadata__": {TEXT: TEXT}, NAME: {"dtype": ..., "shape": [...], "data_offsets": [begin, end]}}
    the rest    the bytes of all tensors, one after the other

The file is no longer than its tensors, so whoever has checked names, dtypes and shapes knows what memory reading takes.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from qil_deploy.strict_json import parse_json
from qil_deploy.untrusted_text import excerpt

HEADER_LIMIT: Final = 8 << 20  # a network of a thousand layers has a header of half a megabyte
_LENGTH_BYTES: Final = 8
_LARGEST_RANK: Final = 16
_METADATA: Final = "__metadata__"
_DIGEST: Final = "sha256"
_DTYPES: Final = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
    "C64": torch.complex64,
}


class DamagedFileError(ValueError):
    """A defect of a safetensors file, described by a clause that readers put into a sentence of their own."""


@dataclass(frozen=True, kw_only=True)
class TensorEntry:
    """Header entry of one tensor."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @classmethod
    def of(cls, tensor: Tensor) -> TensorEntry:
        """Return the entry of a tensor in memory."""
        return cls(dtype=tensor.dtype, shape=tuple(tensor.shape))

    def __str__(self) -> str:
        """Return dtype and shape, for example `float32 [16, 3, 3, 3]`."""
        shape = excerpt(list(self.shape), 60)
        return f"{str(self.dtype).removeprefix('torch.')} {shape}"


@dataclass(frozen=True, kw_only=True)
class Contents:
    """Header of a file.

    Attributes:
        metadata: texts by name.
        tensors: every tensor by name.
        begins: where the bytes of each begin.
    """

    metadata: Mapping[str, str]
    tensors: Mapping[str, TensorEntry]
    begins: Mapping[str, int]

    @property
    def values(self) -> int:
        """Number of values in all tensors."""
        return sum(math.prod(entry.shape) for entry in self.tensors.values())


def read_contents(path: Path) -> Contents:
    """Read and check the header of a file; no tensor is read.

    Raises:
        DamagedFileError: the file is no safetensors file, is truncated, has a header that is too large or contradicts
            itself, or holds a dtype that no network here has.
        OSError: it cannot be read.
    """
    size = path.stat().st_size
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(_LENGTH_BYTES), "little")
        if size < _LENGTH_BYTES or length > size - _LENGTH_BYTES:
            raise DamagedFileError(
                f"its {size:,} bytes are fewer than its header asks for, or it is no safetensors file"
            )
        if length > HEADER_LIMIT:
            raise DamagedFileError(f"its header has {length:,} bytes; at most {HEADER_LIMIT:,} are read")
        header = _parse(stream.read(length))
    metadata = header.pop(_METADATA, {})
    if not isinstance(metadata, dict) or not all(isinstance(text, str) for text in metadata.values()):
        raise DamagedFileError("its metadata is no table of texts")
    tensors = _entries(header, size - _LENGTH_BYTES - length)
    begins = {name: _LENGTH_BYTES + length + entry["data_offsets"][0] for name, entry in header.items()}
    return Contents(metadata=metadata, tensors=tensors, begins=begins)


def _parse(text: bytes) -> dict[str, Any]:
    try:
        header = parse_json(text)
    except ValueError as error:
        raise DamagedFileError(f"its header is no JSON: {error}") from error
    if not isinstance(header, dict):
        raise DamagedFileError("its header is no JSON object")
    return header


def _entries(header: Mapping[str, Any], size: int) -> dict[str, TensorEntry]:
    """Check that the tensors fill `size` bytes without gap and overlap, and return their entries."""
    spans = sorted((_span(name, entry), name) for name, entry in header.items())
    end = 0
    for (begin, stop), name in spans:
        if begin != end:
            raise DamagedFileError(f"the bytes of tensor '{excerpt(name)}' begin at {begin}, not at {end}")
        end = stop
    if end != size:
        raise DamagedFileError(f"its tensors end at byte {end:,} of {size:,}")
    return {
        name: TensorEntry(dtype=_DTYPES[entry["dtype"]], shape=tuple(entry["shape"])) for name, entry in header.items()
    }


def _span(name: str, entry: Any) -> tuple[int, int]:  # noqa: ANN401 - whatever JSON holds
    """Check one tensor's entry; return where its bytes begin and end."""
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise DamagedFileError(f"tensor '{excerpt(name)}' is not described by dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _DTYPES:
        raise DamagedFileError(f"tensor '{excerpt(name)}' has dtype '{excerpt(dtype, 20)}', which no network here has")
    if not _are_sizes(shape) or len(shape) > _LARGEST_RANK:
        raise DamagedFileError(f"tensor '{excerpt(name)}' has shape {excerpt(shape, 60)}")
    if not _are_sizes(offsets) or len(offsets) != 2:
        raise DamagedFileError(f"tensor '{excerpt(name)}' has offsets {excerpt(offsets, 60)}")
    begin, end = offsets
    wanted = math.prod(shape) * _DTYPES[dtype].itemsize
    if end - begin != wanted:
        raise DamagedFileError(
            f"tensor '{excerpt(name)}' of shape {excerpt(shape, 60)} and dtype {dtype} takes {wanted:,} bytes, not "
            f"{end - begin:,}"
        )
    return begin, end


def _are_sizes(values: object) -> bool:
    return isinstance(values, list) and all(type(value) is int and 0 <= value < 2**48 for value in values)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read all tensors of a file whose contents were checked, and compare them with the digest, if it has one.

    Raises:
        DamagedFileError: the bytes are not those written.
        OSError: the file cannot be read.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata: Mapping[str, str] = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - safe_open is no dict
    except (SafetensorError, ValueError) as error:
        raise DamagedFileError(excerpt(str(error))) from error
    if _DIGEST in metadata and metadata[_DIGEST] != digest(tensors, metadata):
        raise DamagedFileError("its bytes are not those that were written")
    return tensors


def read_into(path: Path, contents: Contents, tensors: Mapping[str, Tensor]) -> None:
    """Read tensors of a file into existing ones of the same dtypes and shapes, on the CPU.

    Unlike `read_tensors`, whose tensors are the file itself in memory, this takes no memory besides them. The digest is
    for the caller to compare (`matches_digest`).

    Args:
        path: the file.
        contents: from `read_contents`.
        tensors: by their names in the file.

    Raises:
        DamagedFileError: the file has become shorter.
        OSError: it cannot be read.
    """
    with path.open("rb") as stream:
        for name, tensor in tensors.items():
            there = tensor.detach()
            target = there if there.is_contiguous() else torch.empty_like(there, memory_format=torch.contiguous_format)
            if target.numel():
                stream.seek(contents.begins[name])
                view = target.reshape(-1).view(torch.uint8).numpy().data
                if stream.readinto(view) != len(view):
                    raise DamagedFileError(f"it ends within tensor '{excerpt(name)}'")
            if target is not there:
                there.copy_(target)


def matches_digest(contents: Contents, tensors: Mapping[str, Tensor]) -> bool:
    """Whether tensors, all those of a file, match its digest; True for a file without one."""
    return not has_digest(contents) or contents.metadata[_DIGEST] == digest(tensors, contents.metadata)


def file_content(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """Return a file with these tensors and metadata, and the digest of both."""
    kept = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    return _with_sorted_header(save(kept, metadata={**metadata, _DIGEST: digest(kept, metadata)}))


def _with_sorted_header(content: bytes) -> bytes:
    """Rewrite the header in a fixed order: safetensors writes metadata in a different order each time."""
    start = _LENGTH_BYTES + int.from_bytes(content[:_LENGTH_BYTES], "little")
    header = json.dumps(json.loads(content[_LENGTH_BYTES:start]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % _LENGTH_BYTES)  # tensors begin at a multiple of eight bytes
    return len(header).to_bytes(_LENGTH_BYTES, "little") + header + content[start:]


def has_digest(contents: Contents) -> bool:
    """Whether a file carries the digest of its tensors and metadata; files of earlier versions do not."""
    return _DIGEST in contents.metadata


def digest(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """Return the SHA-256 of tensors on the CPU (name, dtype, shape and bytes of each) and of metadata."""
    total = hashlib.sha256()
    for key in sorted(metadata.keys() - {_DIGEST}):
        total.update(json.dumps([key, metadata[key]]).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        total.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        total.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()
