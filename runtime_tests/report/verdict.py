"""The verdict, for whoever signs off: counts of required comparisons, in words."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from .compare_runs import place
from .deployment import ModelVerdict, Verdict
from .figures import Exactness, Model, Remark, Run
from .text import plural

EQUAL, DIFFERS, INCOMPLETE, NOT_COMPARED = "equal", "differs", "incomplete", "not compared"
_SHOWN = 3


def judge(runs: Sequence[Run], remarks: Sequence[Remark] = ()) -> Verdict:
    """Return the verdict on every model of every run, and on all of them; `remarks` are about the runs as a whole."""
    models = [_judge(run, model) for run in runs for model in run.models]
    compared = [each for each in models if each.status != NOT_COMPARED]
    count = sum(each.compared for each in models)
    wrong = [each for each in models if each.status == DIFFERS]
    if wrong:
        differing = sum(each.differing for each in wrong)
        where = ", ".join(dict.fromkeys(f"{each.name} on {', '.join(_wrong_targets(runs, each))}" for each in wrong))
        sentence = (
            f"Differs: {differing:,} of {count:,} numbers that had to be equal to those of the integer reference are "
            f"not: {where}."
        )
        return Verdict(status=DIFFERS, sentence=sentence, models=tuple(models))
    files = len({each.model for each in compared})
    targets = len({target for each in compared for target in each.targets})
    nothing_differs = (
        f"{count:,} numbers of {plural(files, 'model')} on {plural(targets, 'target')} were compared with the "
        "integer reference, and none differs"
    )
    gaps = _gaps(models, [*remarks, *(remark for run in runs for remark in run.remarks)])
    if not count:
        sentence = "Nothing was compared with the integer reference, so nothing can be said about exactness."
        return Verdict(status=NOT_COMPARED, sentence=" ".join([sentence, *gaps]), models=tuple(models))
    if gaps:
        sentence = f"Incomplete: {nothing_differs}, but not all that was asked for could be. {' '.join(gaps)}"
        return Verdict(status=INCOMPLETE, sentence=sentence, models=tuple(models))
    return Verdict(status=EQUAL, sentence=f"Equal: {nothing_differs}.", models=tuple(models))


def _wrong_targets(runs: Sequence[Run], verdict: ModelVerdict) -> Iterable[str]:
    """Return the targets on which a model differs in its run."""
    rows = [row for run in runs if run.name == verdict.run for row in run.exactness if row.model == verdict.model]
    return dict.fromkeys(row.target for row in rows if row.must_equal and row.differing)


def _gaps(models: Sequence[ModelVerdict], remarks: Sequence[Remark]) -> list[str]:
    """Return sentences about gaps that may hide a difference."""
    broken = [each.name for each in models if each.status == INCOMPLETE]
    grave = sum(remark.grave for remark in remarks)
    sentences = [f"A target failed for {', '.join(dict.fromkeys(broken))}."] if broken else []
    if grave:
        sentences.append(f"Read the {plural(grave, 'remark')} below first.")
    return sentences


def _judge(run: Run, model: Model) -> ModelVerdict:
    """Return the verdict on one model of one run."""
    rows = [row for row in run.exactness if row.model == model.sha256]
    bound = [row for row in rows if row.must_equal and row.elements]
    failed = [each for each in run.not_run if each.model == model.sha256 and each.failed]
    skipped = [each for each in run.not_run if each.model == model.sha256 and not each.failed]
    compared, differing = sum(row.elements for row in bound), sum(row.differing for row in bound)
    if differing:
        status = DIFFERS
    elif failed:
        status = INCOMPLETE
    else:
        status = EQUAL if compared else NOT_COMPARED
    measured = any(row.model == model.sha256 for row in run.accuracies)
    sentences = [_counts(bound, differing) if bound else _nothing(rows, measured=measured)]
    sentences += list(dict.fromkeys(row.first for row in bound if row.first is not None))[:_SHOWN]
    sentences += [f"{each.target} failed: {each.reason}" for each in failed]
    if skipped:
        sentences.append(f"Not run: {', '.join(each.target for each in skipped)}.")
    return ModelVerdict(
        run=run.name,
        model=model.sha256,
        name=model.name,
        status=status,
        compared=compared,
        differing=differing,
        targets=tuple(dict.fromkeys(row.target for row in bound)),
        sentences=tuple(sentences),
    )


def _counts(rows: Sequence[Exactness], differing: int) -> str:
    """Describe the comparisons, and their differences."""
    kinds = []
    for what in ("codes", "logits"):
        own = [row for row in rows if row.what == what]
        if own:
            images = _range(row.images for row in own)
            kinds.append(f"{sum(row.elements for row in own):,} {what} of {images}")
    targets = ", ".join(dict.fromkeys(row.target for row in rows))
    levels = ", ".join(dict.fromkeys(row.level for row in rows if row.level is not None))
    others = [row.backend for row in rows if row.level is None]
    how = f"ONNX Runtime at {levels}" if levels else ""
    how = " and ".join([*([how] if how else []), *dict.fromkeys(others)])
    references = " or ".join(dict.fromkeys(row.reference for row in rows))
    text = f"{' and '.join(kinds)} were compared with the {references} on {targets} ({how})"
    if not differing:
        return f"{text}; none differs."
    places = dict.fromkeys(place(row) for row in rows if row.differing)
    return f"{text}; {differing:,} differ: {', '.join(places)}."


def _nothing(rows: Sequence[Exactness], *, measured: bool) -> str:
    """Explain why nothing was compared; `measured`: whether the accuracy was measured."""
    if rows:
        return "Nothing had to be equal: the file has float parts, whose last bits depend on the machine."
    if measured:
        return "Nothing was compared bit for bit: it is a float32 baseline, of which the accuracy was measured."
    return "Nothing was compared: the model was timed or examined only."


def _range(numbers: Iterable[int]) -> str:
    distinct = sorted(set(numbers))
    text = (
        " and ".join(f"{number:,}" for number in distinct)
        if len(distinct) <= 2
        else (f"{distinct[0]:,} to {distinct[-1]:,}")
    )
    return f"{text} image{'' if distinct == [1] else 's'}"
