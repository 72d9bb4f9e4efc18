"""The public names of `qil_deploy` refer to the right objects, whatever was imported before."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module
from pathlib import Path

import qil_deploy


def test_every_public_name_is_there() -> None:
    for name in qil_deploy.__all__:
        assert getattr(qil_deploy, name).__name__ == name


def test_no_module_has_the_name_of_a_function() -> None:
    """Once imported, a module `qil_deploy.freeze` would hide the function of that name."""
    (folder,) = map(Path, qil_deploy.__path__[:1])
    modules = {path.stem for path in folder.iterdir()}
    assert not modules.intersection(qil_deploy.__all__)


def test_the_names_cost_a_device_nothing() -> None:
    program = "import sys, qil_deploy; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_the_training_room_offers_what_a_loop_needs() -> None:
    training = import_module("qil_deploy.training")
    assert set(training.__all__) == {
        "Oscillation",
        "distillation_loss",
        "keep_freed_memory",
        "parameter_groups",
        "recipe_optimizers",
        "weight_parameters",
    }
