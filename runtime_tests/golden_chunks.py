"""Golden vectors, or images alone, read in chunks, so that only a few images are in memory."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .affordable import require_affordable
from .compare_tensors import digest_bytes
from .exported_model import ExportedModel
from .golden_file import read_vectors

_CHUNK_BYTES = 4 * 2**20
_HASHED_IMAGES = 256


@dataclass(frozen=True, kw_only=True)
class GoldenChunks:
    """Images and golden tensors, as arrays that are mapped from files.

    Attributes:
        images: uint8 [N, C, H, W].
        tensors: by name, in order of execution, the outputs last; none where there are images alone.
        outputs: names of the model's outputs.
        counts: how many images each chunk has.
    """

    images: NDArray[np.uint8]
    tensors: dict[str, NDArray[Any]]
    outputs: tuple[str, ...]
    counts: tuple[int, ...]
    _digests: dict[str, str] = field(default_factory=dict)

    @property
    def inner(self) -> tuple[str, ...]:
        """Names of the tensors before the outputs; none if there are only outputs."""
        return tuple(name for name in self.tensors if name not in self.outputs)

    def chunk(self, index: int) -> bytes:
        """Return a chunk's images and its part of each tensor, concatenated, in C order, little-endian."""
        start = sum(self.counts[:index])
        end = start + self.counts[index]
        arrays: list[NDArray[Any]] = [self.images, *self.tensors.values()]
        return b"".join(array[start:end].astype(array.dtype.newbyteorder("<")).tobytes() for array in arrays)

    def digest(self, name: str) -> str:
        """Return the SHA-256 of a tensor's elements, as `device_runner.py` computes it."""
        if name not in self._digests:
            digest = hashlib.sha256()
            for start in range(0, len(self.images), _HASHED_IMAGES):
                digest.update(digest_bytes(self.tensors[name][start : start + _HASHED_IMAGES]))
            self._digests[name] = digest.hexdigest()
        return self._digests[name]


def open_golden(path: Path, model: ExportedModel, batch: int, folder: Path) -> GoldenChunks:
    """Open golden vectors (.npz) or images (.npy) of a model.

    Args:
        path: the file.
        model: what they are of.
        batch: images per run; chunks hold whole batches.
        folder: where the arrays of an .npz are unpacked; it has to stay as long as they are used.

    Raises:
        DataError: the file is missing, damaged, or not of this model.
        ModelFileError: the model takes more than a file may ask for.
    """
    vectors = read_vectors(path, model, folder, images_alone=True)
    require_affordable(model)
    images, tensors = vectors.images, vectors.tensors
    each = sum(array[:1].nbytes for array in (images, *tensors.values()))
    size = max(_CHUNK_BYTES // max(each * batch, 1), 1) * batch
    counts = tuple(min(size, len(images) - start) for start in range(0, len(images), size))
    return GoldenChunks(images=images, tensors=tensors, outputs=model.output_names, counts=counts)
