"""ONNX Runtime sessions on the CPU: threads, graph optimizations, and errors in sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from qil_deploy.errors import ConfigError, ModelFileError
from qil_deploy.onnx_io import loadable

from .kernel_library import KernelLibrary

OPTIMIZATION_LEVELS: Mapping[str, onnxruntime.GraphOptimizationLevel] = MappingProxyType(
    {
        "disabled": onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL,
        "basic": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC,
        "extended": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
        "all": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL,
    }
)
_FATAL = 4
_OLDEST = (1, 24)  # the first that loads 2-bit tensors
_UNPACKED = "w must be a constant"  # said by libraries that took no packed weights where nothing is optimized


def create_session(
    path: Path,
    *,
    threads: int = 1,
    level: str = "all",
    content: bytes | None = None,
    folder: Path | None = None,
    cpus: Sequence[int] = (),
    profile: Path | None = None,
    kernels: KernelLibrary | None = None,
) -> onnxruntime.InferenceSession:
    """Load an ONNX file for ONNX Runtime's CPU execution provider.

    The session's threads sleep between runs instead of spinning, so that several sessions of one process can take turns
    without taking each other's cores.

    Args:
        path: the ONNX file.
        threads: how many threads one operator may use.
        level: graph optimizations, one of `OPTIMIZATION_LEVELS` ("all" is ONNX Runtime's own default).
        content: what to load instead of the file's own bytes, such as the same model with more outputs.
        folder: where the external data that `content` names are; by default, where `path` is.
        cpus: logical processors to pin the threads to, one for each; the first is that of the thread that calls
            `run`, which its owner has to pin.
        profile: beginning of the path of the profile that the session's `end_profiling` writes; None for none.
        kernels: the library that computes low-bit convolutions; None for ONNX Runtime's own kernels.

    Raises:
        ConfigError: `threads` or `level` is out of range, or the library cannot be used.
        ModelFileError: there is no such file, or ONNX Runtime cannot load it at this level.
    """
    if threads < 1:
        raise ConfigError(f"threads is {threads}; it must be at least 1.")
    if level not in OPTIMIZATION_LEVELS:
        raise ConfigError(f"unknown optimization level {level!r}; choose from {', '.join(OPTIMIZATION_LEVELS)}.")
    require_model_file(path)
    options = session_options(threads=threads, level=level, cpus=cpus, profile=profile)
    if kernels is not None:
        kernels.register(options)
    if content is not None:
        place = str((folder or path.parent).resolve())
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", place)
    try:
        # Without the fallback, which prints to the screen and tries the same again.
        return onnxruntime.InferenceSession(
            content or loadable(path), options, providers=["CPUExecutionProvider"], enable_fallback=0
        )
    except Exception as error:  # ONNX Runtime's errors share no base class below Exception
        remedy = "Export the model again, or check that the file is complete."
        if kernels is not None and _UNPACKED in str(error):
            remedy = "The kernel library is of an earlier version: build it anew, leave it out, or optimize the graph."
        raise ModelFileError(
            f"ONNX Runtime {onnxruntime.__version__}{_too_old()} cannot load {path} at optimization level {level!r}: "
            f"{_one_line(error)}. {remedy}"
        ) from error


def require_model_file(path: Path) -> None:
    """Raise ModelFileError unless `path` is a file."""
    if path.is_dir():
        raise ModelFileError(f"{path} is a folder; name a model file in it.")
    if not path.is_file():
        raise ModelFileError(f"there is no model file {path}; export one or correct the path.")


def session_options(
    *, threads: int = 1, level: str = "all", cpus: Sequence[int] = (), profile: Path | None = None
) -> onnxruntime.SessionOptions:
    """Return the options of `create_session`."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = OPTIMIZATION_LEVELS[level]
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = _FATAL
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if len(cpus) > 1:  # ONNX Runtime counts processors from 1
        options.add_session_config_entry("session.intra_op_thread_affinities", ";".join(str(n + 1) for n in cpus[1:]))
    if profile is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile)
    return options


def run_session(
    session: onnxruntime.InferenceSession, inputs: Mapping[str, NDArray[Any]], *, path: Path
) -> list[NDArray[Any]]:
    """Run a session once and return all of its outputs, in the graph's order.

    Raises:
        ModelFileError: ONNX Runtime refuses the inputs or fails while running; the message names `path`.
    """
    try:
        return [np.asarray(output) for output in session.run(None, dict(inputs))]
    except Exception as error:  # ONNX Runtime's errors share no base class below Exception
        shapes = ", ".join(f"{name} {array.dtype}{list(array.shape)}" for name, array in inputs.items())
        raise ModelFileError(f"ONNX Runtime cannot run {path} on {shapes}: {_one_line(error)}.") from error


def _too_old() -> str:
    """Add a sentence if ONNX Runtime is older than the first version that loads all of our files."""
    version = tuple(int(part) for part in onnxruntime.__version__.split(".")[:2] if part.isdecimal())
    return f", older than {'.'.join(map(str, _OLDEST))}," if version < _OLDEST else ""


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".")
