"""Golden vectors, or images alone, read piece by piece: however many there are, only a few are in memory."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from shutil import copyfileobj
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qil_deploy.errors import DataError
from qil_deploy.exported_names import OUTPUT_NAME

from .exported_model import ExportedModel
from .golden import SCHEMA
from .reports import ModelFile

_CHUNK_BYTES = 4 * 2**20
_HASHED_IMAGES = 256


@dataclass(frozen=True, kw_only=True)
class GoldenChunks:
    """Images and golden tensors, as arrays that are mapped from files.

    Attributes:
        images: uint8 [N, C, H, W].
        tensors: by name, in order of execution, the logits last; none where there are images alone.
        counts: how many images each chunk has.
    """

    images: NDArray[np.uint8]
    tensors: dict[str, NDArray[Any]]
    counts: tuple[int, ...]

    @property
    def inner(self) -> tuple[str, ...]:
        """Names of the tensors in front of the logits; none where the logits stand alone."""
        return tuple(name for name in self.tensors if name != OUTPUT_NAME)

    def chunk(self, index: int) -> bytes:
        """Return a chunk's images and then its part of each tensor, one behind the other, in C order, little-endian."""
        start = sum(self.counts[:index])
        end = start + self.counts[index]
        arrays: list[NDArray[Any]] = [self.images, *self.tensors.values()]
        return b"".join(array[start:end].astype(array.dtype.newbyteorder("<")).tobytes() for array in arrays)

    def digest(self, name: str) -> str:
        """Return the SHA-256 of a tensor's elements."""
        digest = hashlib.sha256()
        for start in range(0, len(self.images), _HASHED_IMAGES):
            digest.update(np.ascontiguousarray(self.tensors[name][start : start + _HASHED_IMAGES]).tobytes())
        return digest.hexdigest()


def open_golden(path: Path, model: ExportedModel, batch: int, folder: Path) -> GoldenChunks:
    """Open golden vectors (.npz) or images (.npy) of a model.

    Args:
        path: the file.
        model: what they are of.
        batch: images per run; chunks hold whole batches.
        folder: where the arrays of an .npz are unpacked; it has to stay as long as they are used.

    Raises:
        DataError: the file is missing, damaged, or not of this model.
    """
    try:
        arrays = _map_arrays(path, folder)
        about = json.loads(str(arrays["about"])) if "about" in arrays else None
        images = arrays["images"]
        names = [] if about is None else [str(name) for name in about["tensors"]]
        tensors = {name: arrays[name] for name in names}
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} cannot be read as golden vectors or images: {error}.") from error
    if about is not None:
        _check_about(path, about, model)
    _check_arrays(path, images, tensors, model)
    each = sum(array[:1].nbytes for array in (images, *tensors.values()))
    size = max(_CHUNK_BYTES // max(each * batch, 1), 1) * batch
    counts = tuple(min(size, len(images) - start) for start in range(0, len(images), size))
    return GoldenChunks(images=images, tensors=tensors, counts=counts)


def _map_arrays(path: Path, folder: Path) -> dict[str, NDArray[Any]]:
    if not zipfile.is_zipfile(path):
        return {"images": np.load(path, mmap_mode="r", allow_pickle=False)}
    return dict(_unpack(path, folder))


def _unpack(path: Path, folder: Path) -> Iterator[tuple[str, NDArray[Any]]]:
    """Unpack the arrays of an .npz under numbers, since their names may be anything, and map them."""
    with zipfile.ZipFile(path) as archive:
        for index, member in enumerate(archive.infolist()):
            unpacked = folder / f"{index}.npy"
            with archive.open(member) as source, unpacked.open("wb") as target:
                copyfileobj(source, target)
            # Scalars cannot be mapped.
            name = member.filename.removesuffix(".npy")
            yield name, np.load(unpacked, mmap_mode=None if name == "about" else "r", allow_pickle=False)


def _check_about(path: Path, about: dict[str, Any], model: ExportedModel) -> None:
    if about.get("schema") != SCHEMA:
        raise DataError(f"{path} has schema {about.get('schema')!r}; this version reads {SCHEMA!r}.")
    if about.get("sha256") != ModelFile.of(model.path).sha256:
        raise DataError(f"{path} holds golden vectors of another file than {model.path}; write them again.")
    if OUTPUT_NAME not in about["tensors"]:
        raise DataError(f"{path} holds no logits; write it again.")


def _check_arrays(
    path: Path, images: NDArray[np.uint8], tensors: dict[str, NDArray[Any]], model: ExportedModel
) -> None:
    shape = model.preprocessing.shape
    if images.dtype != np.uint8 or images.shape[1:] != shape or len(images) == 0:
        raise DataError(
            f"{path} holds {images.dtype} images of shape {list(images.shape)}; {model.path} needs one or more of "
            f"uint8 [N, {', '.join(map(str, shape))}]."
        )
    for name, tensor in tensors.items():
        if tensor.shape[:1] != images.shape[:1]:
            raise DataError(f"{path} is damaged: {name!r} is not of as many images as there are; write it again.")
