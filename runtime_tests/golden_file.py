"""Files of golden vectors: their writer, and their only reader, which checks sizes before it allocates memory.

One .npz file (arrays, no pickles):

    about         JSON in one string: schema, name and SHA-256 of the model, its format, where the images are from, and
                  "tensors", the names of all that follow, in order of execution
    images        uint8 [N, C, H, W]
    the tensors   by the names that they have in the ONNX graph; the last ones are its outputs, in their order

docs/golden.md says how to check them from another language.

Files come from anywhere. Every entry's size is in the archive's directory, in the array's own header, and in the
unpacked length: the three have to agree, and all entries together may take no more than an honest file of
that many bytes could. Arrays are unpacked to files and mapped, so that memory holds the parts that are looked at.
"""

from __future__ import annotations

import io
import json
import math
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from qil_deploy.errors import DataError, QilDeployError
from qil_deploy.files import atomic_path
from qil_deploy.untrusted_text import excerpt

from .exported_model import ExportedModel
from .reports import ModelFile

SCHEMA: Final = "qil_deploy.golden/1"
ABOUT, IMAGES = "about", "images"
_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
_LONGEST_HEADER: Final = 1 << 16
_LARGEST_ABOUT: Final = 1 << 24
_MOST_ENTRIES: Final = 1 << 16
# Bytes that the arrays of a file may have, and more for each of the archive's own: codes shrink to a tenth or so.
_FREE_BYTES: Final = 1 << 28
_MOST_SHRINKING: Final = 64
_PIECE: Final = 1 << 20
_MAPPED_FROM: Final = 1 << 16
_AGAIN: Final = "write them again with --golden N."


@dataclass(frozen=True, kw_only=True)
class GoldenInfo:
    """Metadata of a file of golden vectors; fields as in the module's docstring."""

    schema: str
    model: str
    sha256: str
    format: str
    images_from: str
    tensors: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class GoldenVectors:
    """Images and their expected results.

    Attributes:
        images: uint8 [N, C, H, W], one at least.
        tensors: by name, in order of execution, the outputs last, each [N, ...]; none where there are images alone.
    """

    images: NDArray[np.uint8]
    tensors: dict[str, NDArray[Any]]


def write_vectors(
    path: Path, model: ExportedModel, images: NDArray[np.uint8], images_from: str, tensors: Mapping[str, NDArray[Any]]
) -> None:
    """Write golden vectors, whole or not at all.

    Args:
        path: the .npz file.
        model: what they are of.
        images: uint8 [N, C, H, W].
        images_from: the name of their data set, or how they were made.
        tensors: by name, in order of execution, the outputs last.

    Raises:
        OutputError: `path` cannot be written.
    """
    info = GoldenInfo(
        schema=SCHEMA,
        model=model.path.name,
        sha256=ModelFile.of(model.path).sha256,
        format=model.format,
        images_from=images_from,
        tensors=tuple(tensors),
    )
    with atomic_path(path) as temporary, temporary.open("wb") as stream:
        arrays: dict[str, Any] = {ABOUT: np.array(json.dumps(asdict(info))), IMAGES: images}
        np.savez_compressed(stream, **(arrays | dict(tensors)))


def read_vectors(path: Path, model: ExportedModel, folder: Path, *, images_alone: bool = False) -> GoldenVectors:
    """Read golden vectors of a model; every array is mapped from a file.

    Args:
        path: the .npz file.
        model: what they have to be of.
        folder: an empty folder where they are unpacked; it has to stay as long as they are used.
        images_alone: whether a .npy file of images will do, too.

    Raises:
        DataError: the file is missing, damaged, too large, of another schema or another model.
    """
    try:
        if not path.is_file():
            raise DataError(
                f"there are no golden vectors {path}; export the model with --golden N to have them written."
            )
        if images_alone and _begins_as_array(path):
            found = GoldenVectors(images=np.load(path, mmap_mode="r", allow_pickle=False), tensors={})
        else:
            info, arrays = _unpack(path, folder)
            _check_origin(path, info, model)
            found = GoldenVectors(images=arrays[IMAGES], tensors={name: arrays[name] for name in info.tensors})
    except QilDeployError:
        raise
    except Exception as error:  # what a damaged file raises is up to zipfile, zlib, numpy and Python's parser
        raise DataError(f"golden vectors {path} are damaged ({excerpt(str(error), 300)}); {_AGAIN}") from error
    _check_arrays(path, found, model)
    return found


def _begins_as_array(path: Path) -> bool:
    with path.open("rb") as stream:
        return stream.read(6) == b"\x93NUMPY"


def _unpack(path: Path, folder: Path) -> tuple[GoldenInfo, dict[str, NDArray[Any]]]:
    """Unpack the entries that a file lists.

    Raises:
        DataError: it is of another schema.
        ValueError: it is damaged; so are other exceptions of libraries.
    """
    with zipfile.ZipFile(path) as archive:
        entries = _entries(archive, path.stat().st_size)
        info = _read_about(path, archive, entries)
        names = (IMAGES, *info.tensors)
        missing = [name for name in names if name not in entries]
        if missing:
            raise ValueError(f"they hold no {excerpt(missing[0])}")
        return info, {
            name: _unpack_array(archive, entries[name], folder / f"{index}.npy") for index, name in enumerate(names)
        }


def _entries(archive: zipfile.ZipFile, size: int) -> dict[str, zipfile.ZipInfo]:
    """Return the entries of an archive by name, after checking their sizes."""
    listed = archive.infolist()
    if len(listed) > _MOST_ENTRIES:
        raise ValueError(f"they have {len(listed):,} entries; at most {_MOST_ENTRIES:,} are read")
    total, most = sum(entry.file_size for entry in listed), _FREE_BYTES + _MOST_SHRINKING * size
    if total > most:
        raise ValueError(f"they hold {total:,} bytes; at most {most:,} are read from a file of {size:,}")
    entries: dict[str, zipfile.ZipInfo] = {}
    for entry in listed:
        name = entry.filename.removesuffix(".npy")
        if name in entries:
            raise ValueError(f"they hold {excerpt(name)} twice")
        if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ValueError(f"{excerpt(name)} is not packed as NumPy packs it")
        _check_header(archive, entry)
        entries[name] = entry
    return entries


def _check_header(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> None:
    """Raise ValueError unless an entry is an array as large as its header says."""
    name = excerpt(entry.filename)
    with archive.open(entry) as packed:
        stream = io.BytesIO(packed.read(_LONGEST_HEADER))
    version = np.lib.format.read_magic(stream)
    if version not in _HEADERS:
        raise ValueError(f"{name} is no array")
    shape, _, dtype = _HEADERS[version](stream)
    if dtype.hasobject:
        raise ValueError(f"{name} is pickled, and pickles are never loaded")
    if min(shape, default=0) < 0 or stream.tell() + math.prod(shape) * dtype.itemsize != entry.file_size:
        raise ValueError(f"{name} is not the array of {dtype} and shape {excerpt(str(list(shape)))} that it says")


def _read_about(path: Path, archive: zipfile.ZipFile, entries: Mapping[str, zipfile.ZipInfo]) -> GoldenInfo:
    if ABOUT not in entries or entries[ABOUT].file_size > _LARGEST_ABOUT:
        raise ValueError(f"they have no entry {ABOUT!r}, which names their model, or it is too large")
    text = np.lib.format.read_array(io.BytesIO(archive.read(entries[ABOUT])), allow_pickle=False)
    content = json.loads(str(text))
    if not isinstance(content, dict):
        raise ValueError("their description is not an object")
    if content.get("schema") != SCHEMA:
        raise DataError(
            f"{path} has schema {excerpt(repr(content.get('schema')))}; this version reads {SCHEMA!r}: write it again "
            "with --golden N, or read it with the version that wrote it."
        )
    names = [field.name for field in fields(GoldenInfo)]
    if set(content) != set(names):
        odd = sorted(set(content) ^ set(names))[0]
        raise ValueError(f"their description has {'no' if odd in names else 'an'} entry {excerpt(odd)}")
    tensors = content.pop("tensors")
    if not isinstance(tensors, list) or not all(isinstance(text, str) for text in (*tensors, *content.values())):
        raise ValueError("their description does not consist of texts and a list of names")
    if len(set(tensors)) != len(tensors) or {ABOUT, IMAGES}.intersection(tensors):
        raise ValueError("a name occurs twice in their list of tensors")
    return GoldenInfo(**content, tensors=tuple(tensors))


def _unpack_array(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, target: Path) -> NDArray[Any]:
    """Unpack an entry completely, so that its checksum is compared; map it."""
    with archive.open(entry) as packed, target.open("wb") as stream:
        while piece := packed.read(_PIECE):
            stream.write(piece)
    if target.stat().st_size != entry.file_size:
        raise ValueError(f"{excerpt(entry.filename)} ends too early")
    if entry.file_size < _MAPPED_FROM:  # nothing, and one number, cannot be mapped
        return np.asarray(np.load(target, allow_pickle=False))
    return np.asanyarray(np.load(target, mmap_mode="r", allow_pickle=False))


def _check_origin(path: Path, info: GoldenInfo, model: ExportedModel) -> None:
    """Raise DataError unless golden vectors belong to a model."""
    if info.sha256 != ModelFile.of(model.path).sha256:
        raise DataError(
            f"golden vectors {path} are of another file than {model.path}: of {excerpt(info.model)} with SHA-256 "
            f"{excerpt(info.sha256, 12)}; export the model again with --golden N."
        )
    if info.tensors[-len(model.outputs) :] != model.output_names:
        what = "logits" if model.has_classes and len(model.outputs) == 1 else excerpt(", ".join(model.output_names))
        raise DataError(f"golden vectors {path} hold no {what} after the other tensors; {_AGAIN}")
    made = {name for node in model.graph.nodes for name in node.outputs}
    unknown = [name for name in info.tensors if name not in made]
    if unknown and model.graph.nodes:  # else ONNX Runtime will say so
        raise DataError(
            f"golden vectors {path} have a tensor {excerpt(unknown[0])}, and {model.path} has none; {_AGAIN}"
        )


def _check_arrays(path: Path, vectors: GoldenVectors, model: ExportedModel) -> None:
    """Raise DataError unless the images fit a model, and every tensor has as many rows as there are images."""
    images = vectors.images
    try:
        model.preprocessing.check(images)
    except DataError as error:
        raise DataError(f"golden vectors {path} do not fit {model.path}: {excerpt(str(error), 400)}") from error
    if len(images) == 0:
        raise DataError(f"golden vectors {path} hold no images; {_AGAIN}")
    for name, tensor in vectors.tensors.items():
        what = f"golden vectors {path} are damaged: {excerpt(name)} is {tensor.dtype}{excerpt(str(list(tensor.shape)))}"
        if tensor.dtype.kind not in "biuf":
            raise DataError(f"{what}, where numbers belong; {_AGAIN}")
        if tensor.shape[:1] != (len(images),) or tensor.size == 0:
            raise DataError(f"{what}, which is not of as many images as there are ({len(images):,}); {_AGAIN}")
