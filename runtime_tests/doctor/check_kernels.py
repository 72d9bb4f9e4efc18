"""Findings about a kernel library: changed results of a model, and files without work for it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from qil_deploy.onnx_io import OnnxFile
from qil_deploy.runtime_tests.kernel_library import why_unused

from .check_runtime import counted
from .findings import Finding, found, quoted
from .try_runtime import RuntimeTrial

STEP = "run_kernels"


def kernel_findings(file: OnnxFile, choices: Mapping[str, str], trial: RuntimeTrial) -> Iterator[Finding]:
    """Yield the findings of running a model with a library.

    Args:
        file: the model.
        choices: which sets of kernels the library chose here, by operator.
        trial: what ONNX Runtime did with the model.
    """
    failure = trial.failures.get(STEP)
    if failure is not None and not trial.fails:
        yield from found(
            "kernels-fail",
            "unknown" if failure.is_bound else "blocks",
            [failure.reason],
            what="with the kernel library the file does not run",
            why="ONNX Runtime runs it without; what the library makes of it is not known.",
            remedy="Leave the library out, or install qil-deploy-kernels anew; export the model again if its message "
            "names a node.",
        )
    changed = [] if trial.random else [each for each in trial.with_kernels or () if not each.is_rounding]
    yield from found(
        "kernels-change-result",
        "wrong",
        [f"output {quoted(each.tensor)}: {counted(each)}" for each in changed],
        what="results with the kernel library differ from those without library and optimizer",
        why="Its kernels compute the same codes, so that results are equal up to the rounding of float operators.",
        remedy="If they differ without the library, too, mend what explains that first; else leave the library out, "
        "and report the file.",
    )
    yield from found(
        "kernels-unused",
        "note",
        why_unused(file, choices),
        what="the kernel library has nothing to compute, for some or all of its operators",
        why="The file runs by ONNX Runtime's own kernels there, with the same results.",
        remedy="Nothing has to be done; to use the library all the same, do what is said above.",
    )
