"""Backends of a verification: all of them, those that must be equal, and those that are compared node by node."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from qil_deploy.errors import ConfigError
from qil_deploy.reference import IntegerReference

from .backends import REFERENCE, UNFROZEN, exact_levels, onnx_backend_name
from .exported_model import FLOAT, ExportedModel, Predictor
from .kernel_library import KernelLibrary

UNOPTIMIZED = "disabled"
DEFAULT_LEVEL = "all"


def reference_of(model: ExportedModel, threads: int) -> tuple[str, Predictor]:
    """Return name and predictor of the reference for all comparisons."""
    if model.format == FLOAT:
        return onnx_backend_name(DEFAULT_LEVEL), model.onnx_runner(threads=threads, level=DEFAULT_LEVEL)
    if model.float_parts:
        return onnx_backend_name(UNOPTIMIZED), model.onnx_runner(threads=threads, level=UNOPTIMIZED)
    reference = IntegerReference(model.graph)
    return REFERENCE, lambda images: model.in_batches(reference.run_outputs, images)


def onnx_predictors(
    model: ExportedModel, levels: Sequence[str], threads: int, at_once: int | None, kernels: KernelLibrary | None
) -> dict[str, Predictor]:
    """Return ONNX Runtime at every level by name, without kernels and, given a library of them, also with it."""
    if model.format == FLOAT:
        return {}
    libraries = (None,) if kernels is None else (None, kernels)
    return {
        onnx_backend_name(level, kernels=library is not None): model.onnx_runner(
            threads=threads, level=level, at_once=at_once, kernels=library
        )
        for library in libraries
        for level in levels
    }


def with_and_without_kernels(level: str) -> tuple[str, str]:
    """Return the names of ONNX Runtime at a level, without and with kernels."""
    return onnx_backend_name(level), onnx_backend_name(level, kernels=True)


def check_others(others: Mapping[str, Predictor], levels: Sequence[str]) -> dict[str, Predictor]:
    """Return further backends.

    Raises:
        ConfigError: one has the name of another backend.
    """
    taken = {REFERENCE, *map(onnx_backend_name, levels)}.intersection(others)
    if taken:
        raise ConfigError(f"backend names {sorted(taken)} are taken; give the other backends other names.")
    return dict(others)


def required_backends(
    model: ExportedModel,
    predictors: Collection[str],
    others: Collection[str],
    must_equal: Collection[str] | None,
) -> frozenset[str]:
    """Return the backends that must equal the reference: the named ones, or by default all exact ones.

    Raises:
        ConfigError: there is none, or no backend of a name.
    """
    if model.format == FLOAT:
        return frozenset()
    if must_equal is not None:
        required = frozenset(must_equal)
        unknown = sorted(required.difference(predictors))
        if unknown:
            raise ConfigError(f"must_equal names {unknown}; the backends are {', '.join(predictors)}.")
    else:
        if model.float_parts:
            return frozenset()
        exact = (name for level in exact_levels(model.format) for name in with_and_without_kernels(level))
        candidates = {*exact, *others} - {UNFROZEN}
        required = frozenset(candidates.intersection(predictors))
    if not required:
        raise ConfigError(
            f"nothing in this verification of a {model.format} model has to equal the integer reference; "
            "add level 'all' or name a backend in must_equal."
        )
    return required


def pairs_to_compare(
    pivot: str, others: Collection[str], required: Collection[str], between: tuple[str, str] | None
) -> tuple[tuple[str, str], ...]:
    """Return the backends that may have to be compared node by node.

    Raises:
        ConfigError: `between` names a backend that there is not, or one twice.
    """
    if between is None:
        return tuple((pivot, name) for name in others if name in required)
    unknown = [name for name in between if name not in {pivot, *others}]
    if unknown:
        raise ConfigError(
            f"there is no backend {unknown[0]!r} to compare node by node; there are {', '.join((pivot, *others))}."
        )
    if between[0] == between[1]:
        raise ConfigError(f"{between[0]!r} is to be compared with itself; name two backends.")
    return (between,)
