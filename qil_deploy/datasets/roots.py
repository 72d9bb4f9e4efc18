"""Folders of data sets: downloaded ones, and those too large to download."""

from __future__ import annotations

import os
from pathlib import Path

from qil_deploy.errors import DataError

DATA_VARIABLE = "QIL_DEPLOY_DATA"
IMAGENET_VARIABLE = "QIL_DEPLOY_IMAGENET"


def data_root() -> Path:
    """Return the folder of downloaded data sets: `QIL_DEPLOY_DATA`, by default `~/.cache/qil_deploy`."""
    named = os.environ.get(DATA_VARIABLE)
    return Path(named) if named else Path.home() / ".cache" / "qil_deploy"


def imagenet_root(name: str) -> Path | None:
    """Return the folder of `imagenet` (which `QIL_DEPLOY_IMAGENET` names) or `imagenet:FOLDER`, None for other names.

    Raises:
        DataError: the variable is not set, or there is no such folder.
    """
    kind, separator, folder = name.partition(":")
    if kind != "imagenet":
        return None
    folder = folder if separator else os.environ.get(IMAGENET_VARIABLE, "")
    if not folder:
        raise DataError(
            f"the environment variable {IMAGENET_VARIABLE}, which gives the folder of data set 'imagenet', is not set; "
            "set it to the folder that holds train/ and val/, or write imagenet:FOLDER."
        )
    if not Path(folder).is_dir():
        raise DataError(f"data set {name!r}: there is no folder {folder}; it has to hold train/CLASS and val/CLASS.")
    return Path(folder)
