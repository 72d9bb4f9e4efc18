"""The folder of a run: lock it, and check that its content belongs to this run."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from pydantic import ValidationError

from qil_deploy.checkpoint import CheckpointInfo
from qil_deploy.errors import CheckpointError, ConfigError, QilDeployError
from qil_deploy.files import ensure_writable, remove_unfinished, write_text
from qil_deploy.folder_lock import locked_folder

from .metrics_file import mend_last_line
from .recipe import Recipe

RECIPE_NAME = "recipe.json"
BEST_NAME = "best"


@contextlib.contextmanager
def claimed_folder(recipe: Recipe, folder: Path, *, resume: bool) -> Iterator[None]:
    """Lock the folder of a run until the block ends, and remove unfinished files of killed runs.

    Raises:
        ConfigError: as `check_folder`.
        DataError: a line of its metrics is damaged.
        OutputError: another process holds the folder, or it cannot be written.
    """
    ensure_writable(folder / RECIPE_NAME)
    with locked_folder(folder):
        check_folder(recipe, folder, resume=resume)
        for place in (folder, folder / BEST_NAME):
            remove_unfinished(place)
        mend_last_line(folder)
        write_text(folder / RECIPE_NAME, _content(recipe))
        yield


def check_folder(recipe: Recipe, folder: Path, *, resume: bool) -> None:
    """Check that a run of this recipe may begin in a folder, or resume there.

    Raises:
        ConfigError: it holds a run (and `resume` is false), or one of another recipe.
    """
    kept = folder / RECIPE_NAME
    if resume and kept.is_file() and not _is_kept(kept, recipe):
        raise ConfigError(f"{folder} holds a run of another recipe (see {kept.name}); choose another --out.")
    if not resume and any(folder.glob("*.safetensors")):
        raise ConfigError(f"{folder} already holds a run; continue it with --resume or choose another --out.")


def check_finished(path: Path, found: CheckpointInfo, expected: CheckpointInfo, metrics: tuple[str, ...]) -> None:
    """Check that the checkpoint of a finished phase belongs to this run.

    Args:
        path: of the checkpoint.
        found: its information.
        expected: the information that this run would write; metrics are not compared.
        metrics: names that it must have.

    Raises:
        CheckpointError: it is of another run, or its metrics are missing.
    """
    for key in ("kind", "model_name", "config", "preprocessing", "data", "class_names"):
        if getattr(found, key) != getattr(expected, key):
            raise CheckpointError(
                f"{path} is not of this run: its {key} differs from what the recipe asks for; move it away, or choose "
                "another --out."
            )
    missing = [name for name in metrics if name not in found.metrics]
    if missing:
        raise CheckpointError(f"{path} does not say its {' and '.join(missing)}; remove it to train its phase again.")


def _is_kept(path: Path, recipe: Recipe) -> bool:
    """Whether a file holds this recipe, written by this version or by one that knew fewer keys."""
    content = path.read_bytes()
    if content == _content(recipe).encode():
        return True
    try:
        return Recipe.model_validate_json(content) == recipe
    except (ValidationError, QilDeployError):
        return False


def _content(recipe: Recipe) -> str:
    return recipe.model_dump_json(indent=2) + "\n"
