"""Run ONNX Runtime on a model in processes of its own, with limits on time and memory (runtime_steps.py)."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from qil_deploy.errors import ConfigError
from qil_deploy.runtime_tests.child_process import Ended, run_apart
from qil_deploy.runtime_tests.memory_limit import is_out_of_memory
from qil_deploy.untrusted_text import excerpt, printable

from .compare_levels import TensorDifference
from .runtime_steps import OPTIMIZED, Request

_MODULE: Final = "qil_deploy.runtime_tests.doctor.runtime_steps"
_SEED: Final = 0
_PYTHON_FAILED: Final = 1  # an exception in our own part of the process, or no such module
_REASON_START: Final = 120
_REASON_END: Final = 420
_MOST_MEMORY: Final = 2**60
_LEAST_MEMORY: Final = 2**30
_MEMORY_PER_BYTE: Final = 8  # what loading, optimizing and writing a model takes, generously


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits on ONNX Runtime for one model.

    Attributes:
        seconds: of each process that tries it.
        memory: bytes beyond what such a process always takes; None for a gibibyte and eight times the model's size.
    """

    seconds: float = 120.0
    memory: int | None = None

    def __post_init__(self) -> None:
        """Validate the numbers.

        Raises:
            ConfigError: one of them is not positive, or too large.
        """
        if not self.seconds > 0:
            raise ConfigError(f"the timeout is {self.seconds:g} seconds; it must be positive.")
        if self.memory is not None and not 0 < self.memory <= _MOST_MEMORY:
            raise ConfigError(
                f"the memory is {self.memory:,} bytes; it must be positive, and at most {_MOST_MEMORY:,}."
            )


@dataclass(frozen=True, kw_only=True)
class Hints:
    """Properties of a file that are needed to try it.

    Attributes:
        bytes: its size, with the data beside it.
        ranges: of float inputs, by name.
        output_steps: between two codes, for float outputs made from codes, by name.
        kernels: a library of kernels that it is run with, too; None for none.
    """

    bytes: int
    ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    output_steps: Mapping[str, float] = field(default_factory=dict)
    kernels: Path | None = None


@dataclass(frozen=True, kw_only=True)
class Failure:
    """Failure of a step.

    Attributes:
        how: "failed" (ONNX Runtime said why), "crashed", "hung", "memory", or "undrawn" (no input was drawn for it).
        reason: in ONNX Runtime's words, or what stopped it.
    """

    how: str
    reason: str

    @property
    def is_bound(self) -> bool:
        """Whether it was stopped by one of our own limits."""
        return self.how in ("hung", "memory", "undrawn")


@dataclass
class RuntimeTrial:
    """Results of running ONNX Runtime on a model.

    Attributes:
        failures: by step (runtime_steps.py), of those that failed.
        done: names of the steps that did not.
        optimized: the graph that it executes; None if it does not load the model.
        types, shapes: of the tensors of that graph, where ONNX Runtime tells them.
        inputs: what the model was run on, in words.
        outputs: how much its results differ from those without the optimizer; None if that was not compared.
        with_kernels: how much its results with a library of kernels differ from those without library and optimizer;
            None if that was not compared.
        first: where outputs differ by more than rounding, the first tensor inside that differs.
        random: whether its results for the same input vary anyway.
    """

    failures: dict[str, Failure] = field(default_factory=dict)
    done: list[str] = field(default_factory=list)
    optimized: Path | None = None
    types: dict[str, str] = field(default_factory=dict)
    shapes: dict[str, Sequence[int | str | None]] = field(default_factory=dict)
    inputs: tuple[str, ...] = ()
    outputs: tuple[TensorDifference, ...] | None = None
    with_kernels: tuple[TensorDifference, ...] | None = None
    first: TensorDifference | None = None
    random: bool = False

    @property
    def fails(self) -> bool:
        """Whether ONNX Runtime does not load the model, or fails when it runs it."""
        return any(step in self.failures and not self.failures[step].is_bound for step in ("optimize", "run"))


def try_runtime(path: Path, folder: Path, hints: Hints, limits: Limits) -> RuntimeTrial:
    """Let ONNX Runtime load, optimize and run the model at `path`.

    Args:
        path: the model.
        folder: an empty folder for what it writes, which must outlive the result.
        hints: what the file says about itself.
        limits: on time and memory.

    Raises:
        OSError: no process can be started.
    """
    request = Request(
        model=str(path),
        folder=str(folder),
        steps=["optimize", "types", "run_plain", "run", *([] if hints.kernels is None else ["run_kernels"])],
        memory=limits.memory or _LEAST_MEMORY + _MEMORY_PER_BYTE * hints.bytes,
        seed=_SEED,
        ranges=dict(hints.ranges),
        output_steps=dict(hints.output_steps),
        kernels="" if hints.kernels is None else str(hints.kernels.absolute()),
    )
    trial = RuntimeTrial()
    _do(request, trial, limits.seconds)
    if "optimize" in trial.done:
        trial.optimized = folder / OPTIMIZED
    else:
        _do(replace(request, steps=["load_plain"]), trial, limits.seconds)
    return trial


def _do(request: Request, trial: RuntimeTrial, seconds: float) -> None:
    """Run steps in as few processes as they survive, and record the results in `trial`."""
    folder, steps = Path(request.folder), request.steps
    while steps:
        written = folder / "request.json"
        written.write_text(json.dumps(asdict(replace(request, steps=steps))), encoding="utf-8")
        ended = _run_steps(written, seconds)
        answers = [_read(folder / f"{step}.json") for step in steps]
        finished = answers.index(None) if None in answers else len(answers)
        for step, answer in zip(steps[:finished], answers, strict=False):
            _note(trial, step, answer or {}, request.memory)
        if finished == len(steps) or (ended is not None and ended.exit_code == 0):
            return  # or the others are not tried without the first
        trial.failures[steps[finished]] = _stopped(ended, seconds, request.memory)
        steps = steps[finished + 1 :] if steps[finished] != "optimize" else []


def _run_steps(request: Path, seconds: float) -> Ended | None:
    """Return the end of the process; None if it had to be stopped."""
    try:
        return run_apart([sys.executable, "-P", "-m", _MODULE, str(request)], timeout=seconds)
    except TimeoutError:
        return None


def _stopped(ended: Ended | None, seconds: float, memory: int) -> Failure:
    """Explain what stopped a process during a step.

    Raises:
        OSError: it was not the step.
    """
    if ended is None:
        return Failure(how="hung", reason=f"it was stopped after {seconds:g} seconds")
    if is_out_of_memory(ended.errors):
        return Failure(how="memory", reason=_too_much(memory))
    words = f": {excerpt(ended.last_words)}" if ended.last_words else ""
    if ended.exit_code == _PYTHON_FAILED:
        raise OSError(f"it failed{words}")
    ending = ended.signal or f"exit code {ended.exit_code}"
    return Failure(how="crashed", reason=f"its process ended with {ending}{words}")


def _too_much(memory: int) -> str:
    return f"it asked for more than {memory / 2**20:,.0f} MiB"


def _shortened(reason: str) -> str:
    """Return beginning and end of ONNX Runtime's message, without its source paths in between."""
    if len(reason) <= _REASON_START + _REASON_END:
        return printable(reason)
    return f"{printable(reason[:_REASON_START])} ... {printable(reason[-_REASON_END:])}"


def _read(path: Path) -> dict[str, Any] | None:
    try:
        answer = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None  # it did not get that far
    return answer if isinstance(answer, dict) else None


def _note(trial: RuntimeTrial, step: str, answer: dict[str, Any], memory: int) -> None:
    if "error" in answer:
        how, reason = answer["how"], _shortened(answer["error"])
        trial.failures[step] = Failure(how=how, reason=_too_much(memory) if how == "memory" else reason)
        return
    trial.done.append(step)
    trial.types.update(answer.get("types", {}))
    trial.shapes.update({name: tuple(shape) for name, shape in answer.get("shapes", {}).items()})
    trial.inputs = tuple(answer.get("inputs", trial.inputs))
    trial.random |= answer.get("random", False)
    if "outputs" in answer:
        trial.outputs = tuple(TensorDifference(**each) for each in answer["outputs"])
    if "with_kernels" in answer:
        trial.with_kernels = tuple(TensorDifference(**each) for each in answer["with_kernels"])
    if answer.get("first") is not None:
        trial.first = TensorDifference(**answer["first"])
