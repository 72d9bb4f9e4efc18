"""Models of all runs, each once, and their names on the page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from .figures import Model, Run


def models_of(runs: Sequence[Run]) -> list[Model]:
    """Return every file once; a description read from the file itself takes precedence."""
    found: dict[str, Model] = {}
    for model in (model for run in runs for model in run.models):
        earlier = found.get(model.sha256)
        if earlier is None or (earlier.content is None and model.content is not None):
            found[model.sha256] = model
    return list(found.values())


def model_labels(runs: Sequence[Run]) -> dict[str, str]:
    """Return labels of models: their names, with the beginning of the digest if several share one."""
    models = models_of(runs)
    counts = Counter(model.name for model in models)
    return {
        model.sha256: model.name if counts[model.name] == 1 else f"{model.name} ({model.sha256[:8]})"
        for model in models
    }
