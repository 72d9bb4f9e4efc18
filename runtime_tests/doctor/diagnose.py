"""Read a file, test it in ONNX Runtime, and collect the findings."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import numpy as np

from qil_deploy.errors import ModelFileError
from qil_deploy.onnx_io import Node
from qil_deploy.reference import operator_of
from qil_deploy.runtime_tests.environment import Environment, describe_environment
from qil_deploy.runtime_tests.kernel_library import KernelLibrary, operators_in
from qil_deploy.runtime_tests.reports import ModelFile
from qil_deploy.untrusted_text import excerpt

from .check_activations import dynamic_quantization, signed_activations
from .check_fake_quantization import fake_quantization
from .check_float_parts import float_findings
from .check_fused_scales import fused_scales
from .check_fusion import unfused_findings
from .check_kernels import kernel_findings
from .check_runtime import runtime_findings
from .check_scale_shapes import scale_shapes
from .check_scales import bad_scales, rounding_by_machine
from .check_sums import sum_findings
from .check_weights import dequantized_by_hand, float_weights, one_scale, packed_weights
from .compare_levels import TensorDifference
from .diagnosis import ComparedOutput, Diagnosis, KernelCount
from .findings import SEVERITIES, Finding, found
from .graphs import Graph
from .inputs import Range
from .read_graphs import Unread, read_graphs
from .try_runtime import Hints, Limits, RuntimeTrial, try_runtime

# Drawn anew by ONNX Runtime, or by an operator's position, which the optimizer changes.
_RANDOM: Final = frozenset(
    {"Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"}
)
_CODES: Final = {"uint8": (0, 255), "int8": (-128, 127)}
# The graph that is executed may be larger than the file: constants are computed, functions written out.
_LARGEST_OPTIMIZED: Final = 2**27
_LARGEST_GROWTH: Final = 8


def diagnose(path: Path, limits: Limits | None = None, kernels: KernelLibrary | None = None) -> Diagnosis:
    """Find what slows down or falsifies the ONNX file at `path` in ONNX Runtime on CPUs.

    Args:
        path: the file.
        limits: on ONNX Runtime's use of resources; by default those of `Limits`.
        kernels: a library of kernels that it is run with, too.

    Raises:
        ConfigError: the named library of kernels is not one.
        ModelFileError: there is no such file, or it is damaged, truncated or no ONNX file.
    """
    unread = Unread()
    written = read_graphs(path, unread)
    choices = {} if kernels is None else kernels.choices_for(operators_in(written[0].file))
    environment = describe_environment()
    with tempfile.TemporaryDirectory() as folder:
        trial = RuntimeTrial()
        if not unread.outside:  # ONNX Runtime might open it
            trial = _tried(path, Path(folder), written, limits or Limits(), kernels)
        executed = _executed(path, trial, unread)
        findings = list(_findings(written, executed, trial, unread, environment))
        if kernels is not None:
            findings += kernel_findings(written[0].file, choices, trial)
        counts = Counter(excerpt(node.op_type) for graph in executed for node in graph.file.nodes)
    return Diagnosis(
        schema=Diagnosis.SCHEMA,
        model=ModelFile.of(path),
        environment=environment,
        loads=trial.optimized is not None,
        quantized=not any(finding.kind == "not-quantized" for finding in findings),
        kernels=tuple(KernelCount(operator=operator, nodes=nodes) for operator, nodes in counts.most_common()),
        findings=tuple(sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity))),
        compared=_compared(trial.outputs),
        with_kernels=_compared(trial.with_kernels),
        kernel_choices=tuple(f"{operator}: {choice}" for operator, choice in choices.items()),
    )


def _tried(
    path: Path, folder: Path, written: Sequence[Graph], limits: Limits, kernels: KernelLibrary | None
) -> RuntimeTrial:
    values = {id(value): value for graph in written for value in graph.file.initializers.values()}
    beside = sum(value.nbytes for value in values.values() if isinstance(value, np.memmap))
    hints = Hints(
        bytes=path.stat().st_size + beside,
        ranges=_input_ranges(written[0]),
        output_steps=_output_steps(written[0]),
        kernels=None if kernels is None else kernels.path,
    )
    try:
        trial = try_runtime(path, folder, hints, limits)
    except OSError as error:
        raise ModelFileError(f"{path} cannot be tried in a process of its own: {error}") from error
    trial.random |= any(node.op_type in _RANDOM for graph in written for node in graph.file.nodes)
    return trial


def _input_ranges(graph: Graph) -> dict[str, Range]:
    """Return the ranges that matter for float inputs: those of the codes to which they are quantized first."""
    ranges = {}
    for info in graph.file.inputs:
        for reader in graph.readers.get(info.name, []):
            numbers = graph.scalars(reader, [1, 2] if len(reader.inputs) > 2 else [1])
            codes = _CODES.get(graph.type_of(reader.outputs[0]))
            if reader.op_type == "QuantizeLinear" and numbers is not None and codes is not None:
                scale, zero_point = (*numbers, 0.0)[:2]
                low, high = sorted((code - zero_point) * scale for code in codes)
                ranges[info.name] = (low, high)
    return ranges


def _output_steps(graph: Graph) -> dict[str, float]:
    """Return the step between two codes of float outputs dequantized from codes."""
    steps = {}
    for info in graph.file.outputs:
        source = graph.source(info.name)
        if source is not None and source.op_type == "DequantizeLinear":
            scale = graph.constant(source, 1)
            if scale is not None and scale.size and np.all(np.isfinite(scale)):
                steps[info.name] = float(np.abs(scale).max())
    return steps


def _executed(path: Path, trial: RuntimeTrial, unread: Unread) -> list[Graph]:
    """Return the graphs that ONNX Runtime executes, with types and shapes; none if it does not load the file."""
    if trial.optimized is None:
        return []
    size, largest = trial.optimized.stat().st_size, _LARGEST_OPTIMIZED + _LARGEST_GROWTH * path.stat().st_size
    if size > largest:
        unread.parts.append(
            f"the graph that is executed: {size:,} bytes, which are computed from {path.stat().st_size:,}."
        )
        return []
    if "types" in trial.failures:
        unread.parts.append(
            f"the graph that is executed, whose types are not known ({trial.failures['types'].reason})."
        )
    try:
        # What cannot be read from the file cannot be read here either, and is reported already.
        return read_graphs(trial.optimized, Unread(), folder=path.parent, types=trial.types, shapes=trial.shapes)
    except ModelFileError as error:
        unread.parts.append(f"the graph that is executed ({error})")
        return []


def _findings(
    written: list[Graph], executed: list[Graph], trial: RuntimeTrial, unread: Unread, environment: Environment
) -> Iterator[Finding]:
    """Yield all findings, whatever their severity."""
    loads = trial.optimized is not None
    known = executed or written
    findings = [
        *packed_weights(known, loads=loads),
        *signed_activations(known, environment.machine),
        *dynamic_quantization(known),
        *one_scale(written),
        *dequantized_by_hand(written),
        *fake_quantization(written, loads=loads),
        *float_weights(executed, written),
        *bad_scales(written),
        *rounding_by_machine(known, written),
        *scale_shapes(written, executed, fails=trial.fails),
        *fused_scales(written, executed),
        *sum_findings(executed),
    ]
    quantized = any(_is_quantized(node) for graph in [*written, *executed] for node in graph.file.nodes)
    if quantized:
        findings += [*float_findings(executed), *unfused_findings(executed, environment.machine)]
    kinds = {finding.kind for finding in findings}
    yield from runtime_findings(trial, kinds)
    yield from findings
    yield from _not_quantized(quantized=quantized or bool(kinds & {"dequantized-by-hand", "fake-quantization"}))
    yield from _unread(unread)


def _is_quantized(node: Node) -> bool:
    return operator_of(node).is_quantized


def _not_quantized(*, quantized: bool) -> list[Finding]:
    return found(
        "not-quantized",
        "note",
        [] if quantized else ["the whole graph"],
        what="nothing in the file is quantized",
        why="int8 is faster: ResNet-18 at 224x224 took 34.5 ms in float32 and 10 ms in int8 (two cores of a Xeon).",
        remedy="Quantize it (docs/training.md), or take it as the float baseline that it is.",
    )


def _unread(unread: Unread) -> Iterator[Finding]:
    yield from found(
        "external-data",
        "unknown",
        [excerpt(sentence) for sentence in (*unread.outside, *unread.external)],
        what="data that belong to the model were not read",
        why="Only files in the model's own folder are opened, and no links that lead out of it: a model may come from "
        "anywhere. What these data would tell is not known."
        + (" ONNX Runtime was not given the file." if unread.outside else ""),
        remedy="Put the data beside the model, under the name that it gives, or save the model with its weights "
        "inside.",
    )
    yield from found(
        "not-looked-into",
        "unknown",
        [excerpt(sentence) for sentence in unread.parts],
        what="parts of the file were not looked into",
        why="Findings may be missing there.",
        remedy="Store weights in types that NumPy has, dense and inside the file, for a full diagnosis.",
    )


def _compared(outputs: Sequence[TensorDifference] | None) -> tuple[ComparedOutput, ...]:
    return tuple(
        ComparedOutput(
            output=excerpt(each.tensor),
            elements=each.elements,
            differing=each.differing,
            largest=each.largest,
            rounding=each.is_rounding,
        )
        for each in outputs or ()
    )
