"""Findings about whether ONNX Runtime loads and runs a model, and whether its optimizer changes the results."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from typing import Final

import onnxruntime

from .compare_levels import TensorDifference
from .findings import Finding, found, quoted
from .try_runtime import Failure, RuntimeTrial

_TOO_NEW_OPERATORS: Final = re.compile(r"Opset (\d+) is under development.*?for domain (\S+) is till opset (\d+)")
_TOO_NEW_FORMAT: Final = re.compile(r"Unsupported model IR version: (\d+), max supported IR version: (\d+)")
_UNKNOWN_OPERATOR: Final = re.compile(r"is not a registered function/op|No Op registered for")
# Findings that explain why the optimizer changes results.
_EXPLAINING: Final = (
    "scale-axis", "scale-shape", "bias-scale", "int32-overflow", "bad-scale", "float-weights", "int16-saturation",
)  # fmt: skip
_ADVICE: Final = (
    "Load the file with optimizations disabled (SessionOptions.graph_optimization_level) until the cause is mended."
)


def runtime_findings(trial: RuntimeTrial, kinds: Collection[str]) -> Iterator[Finding]:
    """Yield the findings of loading and running a model.

    Args:
        trial: what ONNX Runtime did with it.
        kinds: of all other findings.
    """
    if "optimize" in trial.failures:
        yield from _not_loaded(trial)
    elif "run" in trial.failures:
        yield from _not_run(trial, trial.failures["run"])
    elif "run_plain" in trial.failures:
        yield from _run_optimized_alone(trial, trial.failures["run_plain"])
    elif trial.outputs is not None:
        yield from _changed_results(trial, trial.outputs, kinds)


def _not_loaded(trial: RuntimeTrial) -> Iterator[Finding]:
    failure = trial.failures["optimize"]
    remedy = _unloadable_remedy(failure)
    if "load_plain" in trial.done:
        valid = "It loads with graph optimizations disabled, so the file is valid and the optimizer stumbles"
        remedy = f"{valid}. {remedy}" if failure.is_bound else f"{valid}: change what the findings below name."
    yield from found(
        "does-not-load",
        "blocks",
        [_told(failure, "loading and optimizing the file")],
        what=f"ONNX Runtime {onnxruntime.__version__} does not load the file",
        why="Nothing can be said about what would be executed.",
        remedy=remedy,
    )


def _unloadable_remedy(failure: Failure) -> str:
    if failure.how == "hung":
        return (
            "Look for functions that call each other, or constants that are computed from small ones: they grow when "
            "the file is loaded. If the model is large, give it longer with --timeout."
        )
    if failure.how == "memory":
        return (
            "Look for constants that are computed from small ones (Expand, Tile, Concat): they grow when the file is "
            "loaded. If the model is large, give it more with --memory."
        )
    if match := _TOO_NEW_OPERATORS.search(failure.reason):
        return (
            f"Export the model with operator set {match[3]} of {match[2]} at most, or use a newer ONNX Runtime: this "
            f"one does not know version {match[1]}."
        )
    if match := _TOO_NEW_FORMAT.search(failure.reason):
        return (
            f"Save the model with IR version {match[2]} at most (model.ir_version), or use a newer ONNX Runtime: this "
            f"one does not know version {match[1]}."
        )
    if _UNKNOWN_OPERATOR.search(failure.reason):
        return (
            "Export the model with operators of the standard or of com.microsoft alone, or load the library that has "
            "this one (SessionOptions.register_custom_ops_library)."
        )
    return "Correct what the message names: a missing file, an unknown operator or domain, or an invalid graph."


def _not_run(trial: RuntimeTrial, failure: Failure) -> Iterator[Finding]:
    if failure.is_bound or ("run_plain" in trial.failures and trial.failures["run_plain"].is_bound):
        yield from _not_compared(failure)
        return
    both = "run_plain" in trial.failures
    yield from found(
        "does-not-run",
        "blocks",
        [_told(failure, "running it once")],
        what=f"ONNX Runtime {onnxruntime.__version__} loads the file, but fails when it runs it",
        why=f"One inference was tried, on {_on(trial)}.",
        remedy="It fails with optimizations disabled, too: correct what the message names. If other sizes of free "
        "dimensions are needed, fix them in the file."
        if both
        else f"It runs with optimizations disabled, so the optimizer stumbles: change what the findings below name. "
        f"{_ADVICE}",
    )


def _run_optimized_alone(trial: RuntimeTrial, failure: Failure) -> Iterator[Finding]:
    if failure.is_bound:
        yield from _not_compared(failure)
        return
    yield from found(
        "optimizer-changes-result",
        "wrong",
        [_told(failure, "running it once without optimizations")],
        what="the file runs with ONNX Runtime's optimizer alone",
        why=f"Without it, as on other runtimes, it fails; one inference was tried, on {_on(trial)}. What the optimizer "
        "makes of an invalid file need not be what was meant.",
        remedy="Correct what the message names.",
    )


def _not_compared(failure: Failure) -> Iterator[Finding]:
    yield from found(
        "not-compared",
        "unknown",
        [_told(failure, "running it once")],
        what="no inference was made, so that results with and without the optimizer were not compared",
        why="Whether ONNX Runtime's optimizer changes the results is not known.",
        remedy="Give it longer with --timeout, or more memory with --memory; or try smaller inputs.",
    )


def _changed_results(
    trial: RuntimeTrial, outputs: tuple[TensorDifference, ...], kinds: Collection[str]
) -> Iterator[Finding]:
    changed = [each for each in outputs if not each.is_rounding]
    if trial.random:
        yield from found(
            "not-compared",
            "note",
            [f"output {quoted(each.tensor)}" for each in changed],
            what="the model draws random numbers",
            why="It gives other results for the same input, so that nothing could be compared.",
            remedy="Nothing, if it is meant to.",
        )
        return
    explained = [kind for kind in _EXPLAINING if kind in kinds]
    places = [f"output {quoted(each.tensor)}: {counted(each)}" for each in changed]
    first = trial.first if trial.first is not None and changed else None
    if first is not None and first.tensor not in {each.tensor for each in outputs}:
        places.append(f"first inside the network at {quoted(first.tensor)}: {counted(first)}")
    if first is not None and first.is_single_steps and not explained:
        yield from found(
            "optimizer-changes-result",
            "inexact",
            places,
            what="results with ONNX Runtime's optimizer differ from those without it: rounding grows on the way",
            why=f"One inference was made each way, on {_on(trial)}. They differ first by single steps of codes, where "
            "sums are rounded in another order; so they will between machines.",
            remedy="Nothing, if accuracy does not suffer. If results must be equal everywhere, choose scales whose "
            "ratios make no ties (docs/numerics.md, Rescales).",
        )
        return
    yield from found(
        "optimizer-changes-result",
        "wrong",
        places,
        what="results with ONNX Runtime's optimizer differ from those without it by more than rounding",
        why=f"One inference was made each way, on {_on(trial)}. "
        + (f"Explained by: {', '.join(explained)}." if explained else "No other finding explains it."),
        remedy=f"Mend what explains it. {_ADVICE}"
        if explained
        else f"{_ADVICE} Compare layer by layer from the first.",
    )


def counted(difference: TensorDifference) -> str:
    """Describe the difference of a tensor in words."""
    if difference.unlike == difference.elements and not difference.largest:
        return "another shape, or no finite numbers"
    text = f"{difference.differing:,} of {difference.elements:,} differ, by up to {difference.largest:.4g}"
    if difference.unlike:
        text += f"; {difference.unlike:,} are finite in one of the two alone"
    return text


def _told(failure: Failure, what: str) -> str:
    return failure.reason if failure.how == "failed" else f"{what}: {failure.reason}"


def _on(trial: RuntimeTrial) -> str:
    return ", ".join(trial.inputs) or "random input"
