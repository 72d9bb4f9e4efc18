"""Run an exported model on a device and say, tensor by tensor, whether it computes what it should.

This file is all that a device needs besides Python (3.9 or newer), numpy and onnxruntime: copy it, the model and its
golden vectors there, and run

    python device_runner.py MODEL.onnx GOLDEN.npz > report.json

It imports nothing of this project, and it is the worker of every target that runs Python (`targets`). At each
optimization level the golden images go through the file as it is, and once more with every tensor as an output, since a
tensor that is an output may keep the optimizer from fusing. Images alone (`.npy`, uint8 [N, C, H, W]) give digests and
classes, and nothing to compare with. `targets/report.py` says what the report holds; progress goes to standard error.

Exit codes: 0 all equal (or nothing to compare), 1 something differs, 2 it could not be run.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import re
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

SCHEMA = "qil_deploy.device/2"
GOLDEN_SCHEMA = "qil_deploy.golden/1"
METADATA_KEY = "qil_deploy"
METADATA_SCHEMA = 1
LOGITS = "logits"
LEVELS = {
    "disabled": onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL,
    "basic": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "extended": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "all": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL,
}
OLDEST = (1, 24)
CPUINFO = Path("/proc/cpuinfo")
BOARD = Path("/proc/device-tree/model")
WARMUP = 3
FREE_BYTES = 1 << 28
MOST_SHRINKING = 64
LONGEST_REASON = 400


class RunError(Exception):
    """What keeps the model from being run, in a sentence."""


class Model:
    """An ONNX file and the part of its metadata that says how to feed it."""

    def __init__(self, path: Path, threads: int) -> None:
        try:
            self.content = path.read_bytes()
        except OSError as error:
            raise RunError(f"cannot read the model {path}: {error.strerror or error}.") from error
        self.path = path
        self.threads = threads
        self.sha256 = hashlib.sha256(self.content).hexdigest()
        session = self.session("disabled")
        entry = session.get_modelmeta().custom_metadata_map.get(METADATA_KEY)
        if entry is None:
            raise RunError(f"{path} carries no {METADATA_KEY!r} metadata; it was not exported by this project.")
        try:
            about = json.loads(entry)
            schema = about.get("schema")
            self.takes_float = about["input"] == "float"
            self.scale = np.float32(about["preprocessing"]["scale"])
            self.zero_point = np.float32(about["preprocessing"]["zero_point"])
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise RunError(f"the metadata of {path} is damaged ({one_line(error)}); export the model again.") from error
        if schema != METADATA_SCHEMA:
            raise RunError(f"the metadata of {path} has schema {schema!r}; this runner reads {METADATA_SCHEMA}.")
        self.input = session.get_inputs()[0].name
        self.shape = list(session.get_inputs()[0].shape)
        self.fixed_batch = self.shape[0] if isinstance(self.shape[0], int) else None  # images per run; None for any

    def session(self, level: str, outputs: list[str] | None = None) -> onnxruntime.InferenceSession:
        """Load the file at one optimization level, with more of its tensors as outputs."""
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = LEVELS[level]
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 4
        content = with_outputs(self.content, outputs or [])
        try:
            return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime's errors share no base class below Exception
            raise RunError(
                f"ONNX Runtime {onnxruntime.__version__}{too_old()} cannot load {self.path} at level {level!r}: "
                f"{one_line(error)}"
            ) from error

    def run(
        self, session: onnxruntime.InferenceSession, images: NDArray[np.uint8], names: list[str]
    ) -> dict[str, NDArray[Any]]:
        """Return the named tensors for some images; a fixed batch is filled up with blank ones."""
        missing = max((self.fixed_batch or 0) - len(images), 0)
        filled = np.concatenate([images, np.zeros((missing, *images.shape[1:]), np.uint8)])
        x = (filled.astype(np.float32) - self.zero_point) * self.scale if self.takes_float else filled
        try:
            tensors = session.run(names, {self.input: x})
        except Exception as error:  # ONNX Runtime's errors share no base class below Exception
            raise RunError(
                f"ONNX Runtime cannot run {self.path} on {x.dtype}{list(x.shape)}: {one_line(error)}"
            ) from error
        found = {name: np.asarray(tensors[index]) for index, name in enumerate(names)}
        for name, tensor in found.items():
            if tensor.shape[:1] != filled.shape[:1]:
                raise RunError(f"{self.path} returns {name} of shape {list(tensor.shape)} for {len(filled)} images.")
        return {name: tensor[: len(images)] for name, tensor in found.items()}


class TensorTally:
    """Digest of one tensor, and what differs from the golden one, batch by batch."""

    def __init__(self, name: str, expected: NDArray[Any] | None) -> None:
        self.name = name
        self.expected = expected
        self.digest = hashlib.sha256()
        self.dtype = ""
        self.shape: tuple[int, ...] = ()
        self.images = self.elements = self.differing = 0
        self.largest_step = 0.0
        self.index: list[int] | None = None

    def add(self, found: NDArray[Any]) -> None:
        """Count the tensor of the next images, image axis first."""
        self.digest.update(content_of(found))
        self.dtype, self.shape = str(found.dtype), found.shape[1:]
        expected = found if self.expected is None else self.expected[self.images : self.images + len(found)]
        if self.expected is not None:
            self._compare(found, expected)
        self.images += len(found)
        self.elements += expected.size

    def _compare(self, found: NDArray[Any], expected: NDArray[Any]) -> None:
        if found.shape != expected.shape or found.dtype != expected.dtype:
            self.differing += expected.size
            self.index = self.index or [self.images] + [0] * (expected.ndim - 1)
            return
        wrong = found != expected  # NaN differs from everything, itself included
        if not wrong.any():
            return
        self.differing += int(wrong.sum())
        steps = np.abs(found[wrong].astype(np.float64) - expected[wrong].astype(np.float64))
        self.largest_step = max(self.largest_step, float(steps[np.isfinite(steps)].max(initial=0.0)))
        if self.index is None:
            first = [int(axis) for axis in np.argwhere(wrong)[0]]
            self.index = [first[0] + self.images, *first[1:]]

    def result(self) -> dict[str, Any]:
        """Return the tensor's entry of the report."""
        compared = self.expected is not None
        return {
            "tensor": self.name,
            "dtype": self.dtype,
            "shape": [self.images, *self.shape],
            "sha256": self.digest.hexdigest(),
            "elements": self.elements,
            "differing": self.differing if compared else None,
            "largest_step": self.largest_step if compared else None,
            "index": self.index,
        }


def content_of(tensor: NDArray[Any]) -> bytes:
    """Return a tensor's elements in C order, with 0 in place of -0, which is equal to it."""
    canonical = tensor + tensor.dtype.type(0) if tensor.dtype.kind == "f" else tensor
    return np.ascontiguousarray(canonical).tobytes()


def with_outputs(content: bytes, names: list[str]) -> bytes:
    """Return a model's bytes with more of its tensors as graph outputs.

    Protobuf merges what stands behind a message into it: a second graph (field 7 of ModelProto) with outputs alone
    (field 12 of GraphProto), each with a name alone (field 1 of ValueInfoProto).
    """
    if not names:
        return content
    graph = b"".join(_field(12, _field(1, name.encode())) for name in names)
    return content + _field(7, graph)


def _field(number: int, content: bytes) -> bytes:
    """Encode a protobuf field that holds bytes."""
    size, length = len(content), bytearray()
    while size > 127:
        length.append(size & 127 | 128)
        size >>= 7
    return bytes([number << 3 | 2, *length, size]) + content


def read_data(path: Path, model: Model) -> tuple[NDArray[np.uint8], dict[str, NDArray[Any]]]:
    """Return images and golden tensors by name, in order of execution; images alone have none."""
    try:
        about, images, tensors = load_data(path)
    except Exception as error:  # what a damaged file raises is up to zipfile, zlib, numpy and Python's parser
        raise RunError(f"{path} cannot be read as golden vectors or images: {one_line(error)}") from error
    if about is not None:
        check_golden(path, about, model)
    wrong = [name for name, tensor in tensors.items() if tensor.shape[:1] != images.shape[:1]]
    if wrong:
        raise RunError(f"{path} is damaged: {wrong[0]!r} is not of as many images as there are; write it again.")
    sizes = [size if isinstance(size, int) else "*" for size in model.shape[1:]]
    if images.dtype != np.uint8 or images.ndim != 4 or list(images.shape[1:]) != sizes or len(images) == 0:
        raise RunError(
            f"{path} holds {images.dtype} images of shape {list(images.shape)}; {model.path} needs one or more of "
            f"uint8 [N, {', '.join(map(str, sizes))}]."
        )
    return images, tensors


def load_data(path: Path) -> tuple[dict[str, Any] | None, NDArray[Any], dict[str, NDArray[Any]]]:
    """Return what golden vectors say of themselves, their images and tensors; of images alone, the images."""
    with path.open("rb") as stream:
        if stream.read(6) == b"\x93NUMPY":
            return None, np.load(path, allow_pickle=False), {}
    with zipfile.ZipFile(path) as archive:
        sizes = sum(entry.file_size for entry in archive.infolist())
    if sizes > FREE_BYTES + MOST_SHRINKING * path.stat().st_size:
        raise ValueError(f"it holds {sizes:,} bytes, more than golden vectors of its size have")
    with np.load(path, allow_pickle=False) as loaded:
        about = json.loads(str(loaded["about"]))
        names = [str(name) for name in about.get("tensors", [])] if about.get("schema") == GOLDEN_SCHEMA else []
        arrays = {name: loaded[name] for name in ["images", *names]}
    if not all(isinstance(array, np.ndarray) for array in arrays.values()):
        raise ValueError("an entry is no array")
    return about, arrays.pop("images"), arrays


def check_golden(path: Path, about: dict[str, Any], model: Model) -> None:
    """Raise unless golden vectors are of this schema and this file."""
    if about.get("schema") != GOLDEN_SCHEMA:
        raise RunError(f"{path} has schema {about.get('schema')!r}; this runner reads {GOLDEN_SCHEMA!r}.")
    if about.get("sha256") != model.sha256:
        raise RunError(f"{path} holds golden vectors of another file than {model.path}; write them again.")
    if LOGITS not in about.get("tensors", []):
        raise RunError(f"{path} holds no logits; write it again.")


def run_level(
    model: Model, level: str, images: NDArray[np.uint8], golden: dict[str, NDArray[Any]], batch: int
) -> dict[str, Any]:
    """Run all images at one optimization level, as the file is and with every golden tensor as an output."""
    logits = TensorTally(LOGITS, golden.get(LOGITS))
    predictions: list[int] = []
    session = model.session(level)
    for start in range(0, len(images), batch):
        found = model.run(session, images[start : start + batch], [LOGITS])[LOGITS]
        if found.ndim != 2 or found.size == 0:
            raise RunError(f"{model.path} returns logits of shape {list(found.shape)}; a row for each image is needed.")
        logits.add(found)
        predictions += np.where(np.isnan(found).any(axis=1), -1, found.argmax(axis=1)).tolist()
        progress(level, min(start + batch, len(images)), len(images))
    inner = [name for name in golden if name != LOGITS]
    tallies = [TensorTally(name, golden[name]) for name in golden] if inner else []
    if inner:
        session = model.session(level, inner)
        for start in range(0, len(images), batch):
            tensors = model.run(session, images[start : start + batch], list(golden))
            for tally in tallies:
                tally.add(tensors[tally.name])
            progress(f"{level}, every tensor", min(start + batch, len(images)), len(images))
    return {
        "level": level,
        "predictions": predictions,
        "logits": logits.result(),
        "tensors": [tally.result() for tally in tallies],
    }


def measure(model: Model, image: NDArray[np.uint8], repeats: int) -> dict[str, Any] | None:
    """Time single runs at the default level, as the file is."""
    if repeats == 0:
        return None
    session = model.session("all")
    for _ in range(WARMUP):
        model.run(session, image, [LOGITS])
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        model.run(session, image, [LOGITS])
        times.append(1000 * (time.perf_counter() - start))
    return {
        "runs": repeats,
        "images": model.fixed_batch or 1,
        "median_ms": float(np.median(times)),
        "p95_ms": float(np.percentile(times, 95)),
    }


def describe_environment(cpu: str | None = None) -> dict[str, Any]:
    """Say what runs the model."""
    return {
        "onnxruntime": onnxruntime.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "browser": None,
        "machine": platform.machine(),
        "cpu": cpu or cpu_name(),
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        "features": cpu_features(),
    }


def cpu_name(cpuinfo: Path = CPUINFO, board: Path = BOARD) -> str:
    """Return the processor's name, else that of its board, else its instruction set."""
    for line in read_text(cpuinfo).splitlines():
        key, _, value = line.partition(":")
        # x86 says "model name"; older arm kernels say "Hardware".
        if key.strip() in ("model name", "Hardware") and value.strip():
            return value.strip()
    return read_text(board).strip("\0 \n") or platform.processor() or platform.machine() or "unknown"


def read_text(path: Path) -> str:
    """Return what a file of the system says, or nothing where there is none."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def cpu_features() -> list[str]:
    """Return the instruction set extensions that numpy finds when it asks the processor, emulated ones included."""
    core = sys.modules.get("numpy._core._multiarray_umath") or sys.modules.get("numpy.core._multiarray_umath")
    return sorted(name for name, present in getattr(core, "__cpu_features__", {}).items() if present)


def progress(what: str, done: int, total: int) -> None:
    """Tell whoever waits that work goes on."""
    sys.stderr.write(f"progress: {what}: {done} of {total} images\n")
    sys.stderr.flush()


def too_old() -> str:
    """Say so where ONNX Runtime is older than what all of our files can do with."""
    version = tuple(int(part) for part in re.findall(r"\d+", onnxruntime.__version__)[:2])
    return f", older than {'.'.join(map(str, OLDEST))}," if version < OLDEST else ""


def one_line(error: Exception) -> str:
    """Return the beginning of an error's text, without line breaks."""
    text = " ".join(str(error).split())
    return text if len(text) <= LONGEST_REASON else f"{text[:LONGEST_REASON]}..."


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Run an exported model and compare it with its golden vectors.")
    parser.add_argument("model", type=Path, metavar="MODEL.onnx")
    parser.add_argument("data", type=Path, metavar="GOLDEN.npz", help="golden vectors, or uint8 images (.npy)")
    parser.add_argument("--levels", default="all", help=f"of optimization, by commas: {', '.join(LEVELS)} [all]")
    parser.add_argument("--threads", type=int, default=1, help="of ONNX Runtime [1]")
    parser.add_argument("--batch", type=int, default=1, help="images per run [1]")
    parser.add_argument("--repeats", type=int, default=20, help="runs to time; 0 for none [20]")
    parser.add_argument("--cpu", help="name of the processor, where the system names another one, as in an emulator")
    options = parser.parse_args(arguments)
    options.levels = options.levels.split(",")
    unknown = [level for level in options.levels if level not in LEVELS]
    if unknown:
        parser.error(f"--levels names {', '.join(unknown)}; known are {', '.join(LEVELS)}")
    if options.threads < 1 or options.batch < 1 or options.repeats < 0:
        parser.error("--threads and --batch must be at least 1, --repeats at least 0")
    return options


def main(arguments: list[str] | None = None) -> int:
    """Run a model and write the report to the standard output stream; return the exit code."""
    options = parse_arguments(arguments)
    try:
        model = Model(options.model, options.threads)
        images, golden = read_data(options.data, model)
        batch = model.fixed_batch or options.batch
        levels = [run_level(model, level, images, golden, batch) for level in options.levels]
        latency = measure(model, images[:1], options.repeats)
    except RunError as error:
        # What a file says is shown as characters; a terminal would obey some of them.
        sentence = "".join(char if char.isprintable() else ascii(char)[1:-1] for char in str(error))
        sys.stderr.write(f"Error: {sentence}\n")
        return 2
    report = {
        "schema": SCHEMA,
        "model": options.model.name,
        "sha256": model.sha256,
        "images": len(images),
        "compared": bool(golden),
        "threads": options.threads,
        "batch": batch,
        "levels": levels,
        "latency": latency,
        "environment": describe_environment(options.cpu),
    }
    sys.stdout.write(json.dumps(report, allow_nan=False) + "\n")
    return int(any(tensor["differing"] for level in levels for tensor in [level["logits"], *level["tensors"]]))


if __name__ == "__main__":
    sys.exit(main())
