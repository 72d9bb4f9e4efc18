"""A model file written by `qil_deploy.export`: the graph together with its metadata.

The metadata is one JSON object under the key `qil_deploy` of the ONNX file's metadata properties.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from qil_deploy.errors import ConfigError, ModelFileError
from qil_deploy.metrics import BoxDecoder, decoder_of_metadata
from qil_deploy.onnx_io import (
    INPUT_NAME,
    METADATA_KEY,
    NetworkOutput,
    OnnxFile,
    TensorInfo,
    outputs_of_metadata,
    read_metadata,
    read_model,
)
from qil_deploy.preprocessing import Preprocessing
from qil_deploy.untrusted_text import excerpt

from .kernel_library import KernelLibrary
from .sessions import create_session, run_session

FLOAT = "float"  # a float32 baseline
FORMATS = ("qlinear", "qdq", FLOAT)
INPUTS = ("uint8", "float")
_MOST_VALUES = 2**26
_ELEMENT_TYPES = {"tensor(float)": "float32", "tensor(uint8)": "uint8"}

Outputs = dict[str, NDArray[Any]]
"""What a file returns for N images, by name, each [N, ...]."""

Predictor = Callable[[NDArray[np.uint8]], NDArray[Any] | Mapping[str, NDArray[Any]]]
"""From uint8 images [N, C, H, W] to the only output, such as float32 logits [N, classes], or to all outputs by name.

Floats count for an output of codes, too: as what the codes stand for."""


@dataclass(frozen=True, kw_only=True)
class ExportedModel:
    """Properties of an exported model that a runtime needs.

    Attributes:
        path: the ONNX file.
        graph: nodes, initializers, inputs and outputs.
        format: "qlinear", "qdq", or "float" (a float32 baseline).
        input: "uint8" (raw images) or "float" (normalised ones).
        preprocessing: shape of an image and the map from its pixels to the network's input.
        class_names: one name per class, in the order of the logits; for maps, what the channels are, or nothing.
        outputs: what it returns, in order.
        boxes: how the outputs encode boxes, for a detector whose file says so.
        data: name of the data set it was trained on, if the file says so.
        batch: images per run; None for any number.
        float_parts: names of the operators that compute in float, in a file whose network was not quantized as a whole.
    """

    path: Path
    graph: OnnxFile
    format: str
    input: str
    preprocessing: Preprocessing
    class_names: tuple[str, ...]
    outputs: tuple[NetworkOutput, ...]
    data: str | None
    batch: int | None = None
    float_parts: tuple[str, ...] = ()
    boxes: BoxDecoder | None = None

    @property
    def output_names(self) -> tuple[str, ...]:
        """Names of the outputs, in order."""
        return tuple(output.name for output in self.outputs)

    @property
    def has_classes(self) -> bool:
        """Whether its first output is a row of logits, one for each class."""
        return self.outputs[0].kind == "logits"

    @property
    def numbers(self) -> int:
        """Number of values in all outputs for one image."""
        return sum(math.prod(output.shape) for output in self.outputs)

    def values(self, outputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[np.float32]]:
        """Return the float values of outputs, including those of codes."""
        return {output.name: output.values(outputs[output.name]) for output in self.outputs}

    def prepare_input(self, images: NDArray[np.uint8]) -> NDArray[np.uint8] | NDArray[np.float32]:
        """Convert uint8 images [N, C, H, W] to the model's input: unchanged, or normalised float32."""
        if self.input == "float":
            return self.preprocessing.normalize(images)
        self.preprocessing.check(images)
        return images

    def onnx_predictor(
        self, *, threads: int = 1, level: str = "all", at_once: int | None = None
    ) -> Callable[[NDArray[np.uint8]], NDArray[Any]]:
        """Return a function from uint8 images to the first output, such as logits; arguments as of `onnx_runner`."""
        run, name = self.onnx_runner(threads=threads, level=level, at_once=at_once), self.outputs[0].name
        return lambda images: run(images)[name]

    def onnx_runner(
        self,
        *,
        threads: int = 1,
        level: str = "all",
        at_once: int | None = None,
        kernels: KernelLibrary | None = None,
    ) -> Callable[[NDArray[np.uint8]], Outputs]:
        """Return a function from uint8 images to all outputs that runs this file in ONNX Runtime.

        Args:
            threads, level, kernels: of `create_session`.
            at_once: how many images ONNX Runtime may be given at a time; None for any number.

        Raises:
            ConfigError: `threads` or `level` is out of range, or the library cannot be used.
            ModelFileError: ONNX Runtime cannot load the file; or, on a call of the result, cannot run it.
        """
        session = create_session(self.path, threads=threads, level=level, kernels=kernels)

        return lambda images: self.run(session, images, at_once)

    def run(
        self, session: onnxruntime.InferenceSession, images: NDArray[np.uint8], at_once: int | None = None
    ) -> dict[str, NDArray[Any]]:
        """Run a session of this file on any number of uint8 images; return its outputs by name.

        Raises:
            ModelFileError: ONNX Runtime cannot run the file.
        """
        names = [output.name for output in session.get_outputs()]

        def compute(x: NDArray[Any]) -> dict[str, NDArray[Any]]:
            return dict(zip(names, run_session(session, {INPUT_NAME: x}, path=self.path), strict=True))

        return self.in_batches(compute, images, at_once)

    def in_batches(
        self,
        compute: Callable[[NDArray[Any]], Mapping[str, NDArray[Any]]],
        images: NDArray[np.uint8],
        at_once: int | None = None,
    ) -> dict[str, NDArray[Any]]:
        """Return the results of `compute` for all images, in as many calls as the batch size requires.

        Where the file has a fixed batch, the last one is filled up with blank images; where it has none, a call has all
        images, or `at_once` of them at most.
        """
        size = self.batch or at_once or max(len(images), 1)
        missing = 0 if self.batch is None else -len(images) % size
        filled = np.concatenate([images, np.zeros((missing, *images.shape[1:]), np.uint8)]) if missing else images
        starts = range(0, max(len(filled), 1), size)
        results = [compute(self.prepare_input(filled[start : start + size])) for start in starts]
        if len(results) == 1 and not missing:
            return dict(results[0])
        return {name: np.concatenate([result[name] for result in results])[: len(images)] for name in results[0]}


def read_exported_model(path: Path) -> ExportedModel:
    """Read an exported ONNX file and check that its metadata and its graph agree.

    Raises:
        ModelFileError: the file is missing or damaged, carries no metadata of this project, or its input and
            output are not those that the metadata promises.
    """
    graph = read_model(path)
    if "" not in graph.opsets:
        raise ModelFileError(f"{path} names no version of the standard operator set; export the model again.")
    return _describe(path, graph)


def inspect_exported_model(path: Path) -> ExportedModel:
    """Return the same from ONNX Runtime's description of a file, for devices that cannot read it otherwise.

    Its graph has no nodes and no initializers.

    Raises:
        ModelFileError: as `read_exported_model`.
    """
    session = create_session(path, level="disabled")
    inputs, outputs = (
        tuple(
            TensorInfo(tensor.name, _ELEMENT_TYPES.get(tensor.type, tensor.type), tuple(tensor.shape))
            for tensor in tensors
        )
        for tensors in (session.get_inputs(), session.get_outputs())
    )
    graph = OnnxFile(
        path=path,
        nodes=(),
        initializers={},
        stored_types={},
        inputs=inputs,
        outputs=outputs,
        metadata=dict(session.get_modelmeta().custom_metadata_map),
        opsets={},
        ir_version=0,
    )
    return _describe(path, graph)


def _describe(path: Path, graph: OnnxFile) -> ExportedModel:
    """Describe a model by its metadata, and check that its graph agrees with it."""
    if METADATA_KEY not in graph.metadata:
        raise ModelFileError(
            f"{path} carries no {METADATA_KEY!r} metadata, so its preprocessing and classes are unknown; "
            "write it with: python -m qil_deploy.export CHECKPOINT -o MODEL.onnx."
        )
    metadata = read_metadata(graph)
    try:
        model = ExportedModel(
            path=path,
            graph=graph,
            format=metadata["format"],
            input=metadata["input"],
            preprocessing=Preprocessing.from_metadata(metadata["preprocessing"]),
            class_names=_names(metadata["class_names"], may_be_empty="outputs" in metadata),
            outputs=outputs_of_metadata(metadata),
            data=metadata.get("data"),
            batch=metadata.get("batch"),
            float_parts=tuple(metadata.get("float_parts", ())),
            boxes=decoder_of_metadata(metadata),
        )
    except KeyError as error:
        raise ModelFileError(f"the metadata of {path} has no entry {error}; export the model again.") from error
    except (ValueError, TypeError, AttributeError, OverflowError, ConfigError) as error:
        raise ModelFileError(
            f"the metadata of {path} is damaged ({excerpt(str(error), 300)}); export the model again."
        ) from error
    _check(model)
    return model


def _names(value: object, *, may_be_empty: bool) -> tuple[str, ...]:
    if not isinstance(value, list) or not (value or may_be_empty) or not all(isinstance(name, str) for name in value):
        raise TypeError(f"class_names is {excerpt(repr(value))}, not a list of names")
    return tuple(value)


def _check(model: ExportedModel) -> None:
    for name, value, allowed in (("format", model.format, FORMATS), ("input", model.input, INPUTS)):
        if value not in allowed:
            raise ModelFileError(
                f"the metadata of {model.path} says {name} {excerpt(repr(value))}; known are {', '.join(allowed)}."
            )
    shape = model.preprocessing.shape
    values = math.prod(shape) * (model.batch or 1)
    if values > _MOST_VALUES:
        raise ModelFileError(
            f"{model.path} takes {model.batch or 1} images of shape {list(shape)} at once, which is {values:,} values; "
            f"at most {_MOST_VALUES:,} are supported."
        )
    dtype = "uint8" if model.input == "uint8" else "float32"
    image = TensorInfo(INPUT_NAME, dtype, (model.batch, *shape))
    _check_tensors(model.path, "takes", model.graph.inputs, [image])
    promised = [TensorInfo(output.name, output.dtype, (model.batch, *output.shape)) for output in model.outputs]
    _check_tensors(model.path, "returns", model.graph.outputs, promised)


def _check_tensors(path: Path, verb: str, found: Sequence[TensorInfo], promised: Sequence[TensorInfo]) -> None:
    """Raise unless `found` are the tensors `promised`."""

    def describe(tensor: TensorInfo) -> str:
        shape = ("?",) if tensor.shape is None else tensor.shape
        sizes = [str(size) if size == "?" or isinstance(size, int) else "*" for size in shape]
        return f"{tensor.name!r} {tensor.dtype}[{', '.join(sizes)}]"

    if [describe(tensor) for tensor in found] != [describe(tensor) for tensor in promised]:
        raise ModelFileError(
            f"{path} {verb} {excerpt(', '.join(map(describe, found)), 200) or 'nothing'}, but its metadata promises "
            f"{excerpt(', '.join(map(describe, promised)), 200)} (* is any batch); export the model again."
        )
