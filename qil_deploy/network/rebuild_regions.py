"""Poolings whose windows differ, as poolings of parts of the image that are joined.

Along each axis, windows of equal size, divisor and step form a run; a run of rows and a run of columns together are an
ordinary pooling of a part of the image. Nothing is rounded twice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from torch import nn

from .captured_call import CallError, Modules
from .moves import Branches, Concat, Slice

_MOST_REGIONS = 36

Pair: TypeAlias = tuple[int, int]
MakePool: TypeAlias = Callable[[Pair, Pair, int], nn.Module]
"""Returns a pooling of a kernel and stride that divides by a number."""


@dataclass(frozen=True)
class Extent:
    """One window along one axis: its begin and end inside the image, and the number of places it counts."""

    start: int
    stop: int
    count: int


@dataclass
class _Run:
    start: int
    stop: int
    size: int
    count: int
    step: int


def strided_extents(
    size: int, results: int, kernel: int, stride: int, padding: int, *, counts_pads: bool
) -> list[Extent]:
    """Return the windows of a pooling along one axis, as PyTorch counts them."""
    extents = []
    for index in range(results):
        first = index * stride - padding
        last = min(first + kernel, size + padding)
        start, stop = max(first, 0), min(last, size)
        extents.append(Extent(start, stop, last - first if counts_pads else stop - start))
    return extents


def adaptive_extents(size: int, results: int) -> list[Extent]:
    """Return the windows of an adaptive pooling along one axis."""
    ends = [(index * size // results, -(-(index + 1) * size // results)) for index in range(results)]
    return [Extent(start, stop, stop - start) for start, stop in ends]


def pool_regions(rows: Sequence[Extent], columns: Sequence[Extent], shape: Sequence[int], make: MakePool) -> Modules:
    """Return the poolings of all regions, joined.

    Args:
        rows, columns: the windows.
        shape: of the maps, [N, C, H, W].
        make: returns the pooling of one region.

    Raises:
        CallError: there are too many regions.
    """
    runs_of_rows, runs_of_columns = _runs(rows), _runs(columns)
    regions = len(runs_of_rows) * len(runs_of_columns)
    if regions > _MOST_REGIONS:
        raise CallError(f"pools in {regions} regions of windows of several sizes; {_MOST_REGIONS} are lowered at most")
    bands = [
        _part(2, down, shape[2])
        + _joined(
            [
                [
                    *_part(3, across, shape[3]),
                    make((down.size, across.size), (down.step, across.step), down.count * across.count),
                ]
                for across in runs_of_columns
            ],
            3,
        )
        for down in runs_of_rows
    ]
    return _joined(bands, 2)


def _joined(paths: list[Modules], dim: int) -> Modules:
    return paths[0] if len(paths) == 1 else [Branches(paths, Concat(dim))]


def _part(dim: int, run: _Run, size: int) -> Modules:
    return [] if (run.start, run.stop) == (0, size) else [Slice(dim, run.start, run.stop)]


def _runs(extents: Sequence[Extent]) -> list[_Run]:
    runs: list[_Run] = []
    single = True  # whether the last run has one window, and its step is free
    for extent in extents:
        size = extent.stop - extent.start
        last = runs[-1] if runs else None
        if last is not None and (size, extent.count) == (last.size, last.count):
            step = extent.stop - last.stop
            if step > 0 and (single or step == last.step):
                last.stop, last.step, single = extent.stop, step, False
                continue
        runs.append(_Run(extent.start, extent.stop, size, extent.count, size))
        single = True
    return runs
