"""Golden vectors: a few images with every code that the integer graph computes from them, to compare any runtime with.

One .npz file (arrays, no pickles), computed by the integer reference from the exported file itself:

    about         JSON in one string: schema, name and SHA-256 of the model, its format, where the images are from, and
                  "tensors", the names of all that follow, in order of execution
    images        uint8 [N, C, H, W]
    the tensors   by the names that they have in the ONNX graph; the last one is the logits

docs/golden.md says how to check them from another language.
"""

from __future__ import annotations

import json
import math
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from qil_deploy.errors import ConfigError, DataError, ModelFileError
from qil_deploy.exported_names import OUTPUT_NAME
from qil_deploy.files import atomic_path
from qil_deploy.reference import IntegerReference

from .backends import GOLDEN, REFERENCE, CodeReader, ExecutedGraph, code_reader, onnx_backend_name
from .differences import Comparison, compare_codes
from .exported_model import ExportedModel, read_exported_model
from .reports import ModelFile
from .sessions import OPTIMIZATION_LEVELS

SCHEMA: Final = "qil_deploy.golden/1"
# Of all arrays, unpacked: a small zip archive can hold more than fits into memory.
_MOST_BYTES: Final = 2**31
_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


@dataclass(frozen=True, kw_only=True)
class GoldenInfo:
    """What a file of golden vectors says about itself; fields as in the module's docstring."""

    schema: str
    model: str
    sha256: str
    format: str
    images_from: str
    tensors: tuple[str, ...]


def golden_path(model: Path) -> Path:
    """Return where the golden vectors of a model are written: beside it."""
    return model.with_suffix(".golden.npz")


def write_golden(model: Path, images: NDArray[np.uint8], images_from: str, path: Path) -> None:
    """Compute and write the golden vectors of an exported model, whole or not at all.

    Args:
        model: the ONNX file, `qlinear` or `qdq`.
        images: uint8 [N, C, H, W].
        images_from: the name of their data set, or how else they came to be.
        path: the .npz file.

    Raises:
        DataError: no images, or images that do not fit the model.
        ModelFileError: the integer reference cannot compute the model.
        OutputError: `path` cannot be written.
    """
    exported = read_exported_model(model)
    if exported.float_parts:
        raise ModelFileError(
            f"{model} has float parts, whose values depend on the kernel; golden vectors are for integer models."
        )
    if len(images) == 0:
        raise DataError(f"there are no images to make golden vectors of {model} from.")
    tensors = exported.in_batches(IntegerReference(exported.graph).run_all, images)
    in_file = {name for node in exported.graph.nodes for name in node.outputs}
    tensors = {name: tensor for name, tensor in tensors.items() if name in in_file and name != OUTPUT_NAME} | {
        OUTPUT_NAME: tensors[OUTPUT_NAME]
    }
    info = GoldenInfo(
        schema=SCHEMA,
        model=model.name,
        sha256=ModelFile.of(model).sha256,
        format=exported.format,
        images_from=images_from,
        tensors=tuple(tensors),
    )
    with atomic_path(path) as temporary, temporary.open("wb") as stream:
        arrays: dict[str, Any] = {"about": np.array(json.dumps(asdict(info))), "images": images}
        np.savez_compressed(stream, **(arrays | tensors))


def check_golden(
    model: Path,
    path: Path,
    *,
    against: str = onnx_backend_name("all"),
    threads: int = 1,
    others: Mapping[str, CodeReader] | None = None,
) -> Comparison:
    """Compare a backend with golden vectors, code by code.

    Args:
        model: the ONNX file.
        path: its golden vectors.
        against: the backend: ONNX Runtime at some level, the integer reference, or one of `others`.
        threads: threads of ONNX Runtime.
        others: what computes every code of further backends, by their names.

    Raises:
        ModelFileError: the model cannot be read or run.
        DataError: the golden vectors are missing, damaged, or of another model.
        ConfigError: no such backend, or no threads.
    """
    exported = read_exported_model(model)
    _, images, tensors = read_golden(path, exported)
    known = (REFERENCE, *map(onnx_backend_name, OPTIMIZATION_LEVELS), *(others or {}))
    if against not in known:
        raise ConfigError(
            f"there is no backend {against!r} to compare with golden vectors; there are {', '.join(known)}."
        )
    graph = ExecutedGraph.of(exported)
    found = code_reader(exported, graph, against, threads=threads, others=others or {})(images)
    return compare_codes(graph, (GOLDEN, against), (tensors, found), range(len(images)))


def read_golden(path: Path, model: ExportedModel) -> tuple[GoldenInfo, NDArray[np.uint8], dict[str, NDArray[Any]]]:
    """Read golden vectors: what they say about themselves, the images, and the tensors by name.

    Raises:
        DataError: they are missing, damaged, of another model, or too large.
    """
    if not path.is_file():
        raise DataError(f"there are no golden vectors {path}; export the model with --golden N to have them written.")
    try:
        _check_sizes(path)
        with np.load(path, allow_pickle=False) as arrays:
            content = json.loads(str(arrays["about"]))
            if content.get("schema") != SCHEMA:
                raise DataError(f"{path} has schema {content.get('schema')!r}; this version reads {SCHEMA!r}.")
            texts = {name: str(value) for name, value in content.items()}
            del texts["tensors"]
            info = GoldenInfo(**texts, tensors=tuple(map(str, content["tensors"])))
            images = arrays["images"]
            tensors = {name: arrays[name] for name in info.tensors}
    except Exception as error:  # what a damaged archive raises is up to zipfile, zlib, numpy and Python's parser
        raise DataError(f"golden vectors {path} are damaged ({error}); write them again with --golden N.") from error
    if info.sha256 != ModelFile.of(model.path).sha256:
        raise DataError(
            f"golden vectors {path} are of another file than {model.path}: of {info.model} with SHA-256 "
            f"{info.sha256[:12]}...; export the model again with --golden N."
        )
    try:
        model.preprocessing.check(images)
    except DataError as error:
        raise DataError(f"golden vectors {path} do not fit {model.path}: {error}") from error
    if OUTPUT_NAME not in tensors or len(images) == 0:
        raise DataError(
            f"golden vectors {path} hold no {'images' if len(images) == 0 else 'logits'}; write them again."
        )
    return info, images, tensors


def _check_sizes(path: Path) -> None:
    """Raise ValueError unless every array of an .npz file is as large as its header says, and all fit into memory."""
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        total = sum(entry.file_size for entry in entries)
        if total > _MOST_BYTES:
            raise ValueError(f"they hold {total:,} bytes, at most {_MOST_BYTES:,} are read")
        for entry in entries:
            with archive.open(entry) as stream:
                version = np.lib.format.read_magic(stream)
                if version not in _HEADERS:
                    raise ValueError(f"{entry.filename} is no array")
                shape, _, dtype = _HEADERS[version](stream)
                if dtype.hasobject:
                    raise ValueError(f"{entry.filename} is pickled, and pickles are never loaded")
                size = math.prod(shape) * dtype.itemsize
                if stream.tell() + size != entry.file_size:
                    raise ValueError(
                        f"{entry.filename} is not the array of {dtype} and shape {list(shape)} that it says"
                    )
