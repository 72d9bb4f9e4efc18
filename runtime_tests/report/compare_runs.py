"""Comparison with the first run: the same figures of the same model."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, TypeVar

from .deployment import Change
from .figures import Accuracy, Control, Exactness, InstructionCount, Latency, Model, Remark, Run

Row = TypeVar("Row")
_HARDWARE = ("processor", "instruction set", "browser", "ONNX Runtime")


def compare_runs(runs: Sequence[Run]) -> tuple[tuple[Change, ...], tuple[Remark, ...]]:
    """Compare every run with the first.

    Models are matched by digest, else by a name that one file in each run has.

    Returns:
        Pairs of figures, and remarks about models that only one of two runs has.
    """
    changes: list[Change] = []
    remarks: list[Remark] = []
    for run in runs[1:]:
        pairs = _pairs(runs[0], run)
        for before, after in pairs:
            changes += _changes(runs[0], run, before, after)
        for have, lack, index in ((runs[0], run, 0), (run, runs[0], 1)):
            matched = {pair[index].sha256 for pair in pairs}
            alone = sorted({model.name for model in have.models if model.sha256 not in matched})
            if alone:
                text = f"Only {have.name} has {', '.join(alone)}; {lack.name} has no file with that digest or name."
                remarks.append(Remark(text=text, grave=False))
    return tuple(changes), tuple(remarks)


def _pairs(first: Run, run: Run) -> list[tuple[Model, Model]]:
    known = {model.sha256: model for model in first.models}
    pairs = [(known[model.sha256], model) for model in run.models if model.sha256 in known]
    taken = {model.sha256 for _, model in pairs}
    before = _by_name(model for model in first.models if model.sha256 not in taken)
    after = _by_name(model for model in run.models if model.sha256 not in taken)
    return pairs + [(before[name], model) for name, model in after.items() if name in before]


def _by_name(models: Iterable[Model]) -> dict[str, Model]:
    """Return models by name, without ambiguous names."""
    groups: dict[str, list[Model]] = {}
    for model in models:
        groups.setdefault(model.name, []).append(model)
    return {name: group[0] for name, group in groups.items() if len(group) == 1}


def _changes(first: Run, run: Run, before: Model, after: Model) -> Iterator[Change]:
    """Yield every figure that a model has in both runs."""
    change = partial(
        Change, run=run.name, first=first.name, name=after.name, same_file=before.sha256 == after.sha256, remark=None
    )
    if before.bytes is not None and after.bytes is not None:
        yield change(figure="size", setting="", **_step(before.bytes, after.bytes, ratio=True))
    for old, new in _matching(first.accuracies, run.accuracies, before, after, lambda row: (row.backend,)):
        step = _step(old.accuracy, new.accuracy)
        yield change(figure="accuracy", setting=old.backend, **step, remark=_images(old, new))
    for old_row, new_row in _matching(first.exactness, run.exactness, before, after, _comparison):
        setting = f"{new_row.what}, {place(new_row)}"
        step = _step(old_row.differing, new_row.differing)
        yield change(figure="differing", setting=setting, **step, remark=_images(old_row, new_row))
    for slow, fast in _matching(first.latencies, run.latencies, before, after, setting_of):
        step = _step(slow.median, fast.median, ratio=True) | {"overlap": _overlap(slow, fast)}
        remark = _hardware(first, run, fast.target)
        yield change(figure="latency", setting=describe_setting(fast), **step, remark=remark)
    for few, many in _matching(first.instructions, run.instructions, before, after, counted_on):
        step = _step(few.instructions, many.instructions, ratio=True)
        remark = _hardware(first, run, many.target)
        yield change(figure="instructions", setting=describe_count(many), **step, remark=remark)


def _step(before: float, after: float, *, ratio: bool = False) -> dict[str, Any]:
    """Return a figure in both runs, and their ratio if meaningful, as fields of `Change`."""
    old, new = float(before), float(after)
    return {"before": old, "after": new, "ratio": _divide(new, old) if ratio else None, "overlap": None}


def _matching(
    old: Sequence[Row], new: Sequence[Row], before: Model, after: Model, key: Callable[[Row], tuple[object, ...]]
) -> list[tuple[Row, Row]]:
    """Return rows of the two models with the same key; of several of a run, the one over the most images."""
    olds = _by_key(old, before, key)
    return [(olds[name], row) for name, row in _by_key(new, after, key).items() if name in olds]


def _by_key(
    rows: Sequence[Row], model: Model, key: Callable[[Row], tuple[object, ...]]
) -> dict[tuple[object, ...], Row]:
    own = [row for row in rows if getattr(row, "model", None) == model.sha256]
    return {key(row): row for row in sorted(own, key=lambda row: getattr(row, "images", 0))}


def _comparison(row: Exactness) -> tuple[object, ...]:
    return row.target, row.backend, row.level, row.what


def setting_of(row: Latency | Control) -> tuple[object, ...]:
    """Return the key in which two latencies must agree to be comparable."""
    return row.by, row.target, row.threads, row.batch, row.caches


def counted_on(row: InstructionCount) -> tuple[object, ...]:
    """Return the key in which two counts of instructions must agree to be comparable."""
    return row.target, row.batch


def describe_count(row: InstructionCount) -> str:
    """Describe the setting of a count of instructions."""
    return f"{row.target}, batch {row.batch}"


def describe_setting(row: Latency) -> str:
    """Describe the setting of a latency."""
    threads = "1 thread" if row.threads == 1 else f"{row.threads} threads"
    return f"{row.target}, {threads}, batch {row.batch}, caches {row.caches} ({row.by})"


def place(row: Exactness) -> str:
    """Describe where a comparison was made."""
    level = "" if row.level is None else f" ({row.level})"
    return f"{row.backend}{level} on {row.target}"


def _divide(value: float, by: float) -> float | None:
    """Return a ratio; None if it is undefined."""
    ratio = value / by if by else math.inf
    return ratio if math.isfinite(ratio) else None


def _images(old: Accuracy | Exactness, new: Accuracy | Exactness) -> str | None:
    return None if old.images == new.images else f"of {old.images:,} and of {new.images:,} images"


def _overlap(old: Latency, new: Latency) -> bool | None:
    if None in (old.median_low, old.median_high, new.median_low, new.median_high):
        return None
    return not (_above(old.median_low, new.median_high) or _above(new.median_low, old.median_high))


def _above(low: float | None, high: float | None) -> bool:
    return low is not None and high is not None and low > high


def _hardware(first: Run, run: Run, target: str) -> str | None:
    """Describe the differences of a target between two runs."""
    old, new = (_facts(each, target) for each in (first, run))
    other = [name for name in _HARDWARE if old.get(name) != new.get(name)]
    return None if not other else f"not the same {', '.join(other)}"


def _facts(run: Run, target: str) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for environment in run.environments:
        if environment.target == target and environment.measured != ("doctor",):
            for fact in environment.facts:
                found.setdefault(fact.name, set()).add(fact.value)
    return found
