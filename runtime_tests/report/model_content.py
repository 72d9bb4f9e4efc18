"""Description of a model from its own file, if the measured file can still be found."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from qil_deploy.errors import ModelFileError
from qil_deploy.onnx_io import read_metadata
from qil_deploy.runtime_tests.exported_model import read_exported_model
from qil_deploy.runtime_tests.reports import ModelFile

from .figures import CertificateLine, Model, ModelContent


def read_content(file: Model, folder: Path) -> tuple[ModelContent | None, str | None]:
    """Read a model's metadata from the file that its report names, or from one beside the report.

    Only a file of the reported size and digest is read.

    Args:
        file: as in the report.
        folder: of the report.

    Returns:
        What the file says, or a sentence on why that is unknown.
    """
    candidates = dict.fromkeys((Path(file.path), folder / file.path, folder / file.name))
    found = [path for path in candidates if _is_of_size(path, file.bytes)]
    for path in found:
        try:
            if ModelFile.of(path).sha256 == file.sha256:
                return _read(path), None
        except OSError as error:
            return None, f"{file.name} cannot be read: {error.strerror or error}."
        except ModelFileError as error:
            return None, f"The file says nothing of itself: {error}"
    if found or _exists(candidates):
        return None, f"The file {file.name} is another one by now."
    return None, f"The file {file.name} was not found."


def _is_of_size(path: Path, size: int | None) -> bool:
    # A report may name anything, a device or a pipe too: only a model of that size is opened.
    try:
        return path.suffix == ".onnx" and path.is_file() and size in (None, path.stat().st_size)
    except (OSError, ValueError):
        return False


def _exists(paths: Iterable[Path]) -> bool:
    return any(_is_of_size(path, None) for path in paths)


def _read(path: Path) -> ModelContent:
    """Raise ModelFileError unless the file has metadata that `export` would write."""
    exported = read_exported_model(path)
    metadata = read_metadata(exported.graph)
    try:
        return ModelContent(
            format=exported.format,
            input=exported.input,
            weights=metadata.get("weights", "float32"),
            opset=exported.graph.opsets[""],
            weight_bits=tuple(layer["weight_bits"] for layer in metadata.get("layers", ())),
            certificate=tuple(
                CertificateLine(
                    name=line["name"], worst=float(line["worst"]), bound=float(line["bound"]), where=line["where"]
                )
                for line in metadata.get("certificate", ())
            ),
        )
    except KeyError as error:
        raise ModelFileError(f"the metadata of {path} has no entry {error}; export the model again.") from error
