"""Inputs of every kind that commands read, whole and damaged, and the commands that read them.

Each kind makes its undamaged input once and then yields damaged ones, each with the command lines to run over it; the
same ones for the same count and seed.
"""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import onnx
from PIL import Image

from qil_deploy.runtime_tests.golden import write_golden
from tests.bad_input import (
    mutations_of_checkpoints,
    mutations_of_golden_files,
    mutations_of_models,
    mutations_of_recipes,
    mutations_of_reports,
    mutations_of_run_folders,
)
from tests.bad_input.conftest import CLASSES, ZOO, edit_metadata
from tests.command_line import call_command

TINY_RUN = """
name = "tiny"
data = "digits"
train_images = 600
[model]
name = "resnet8"
width = 4
[float_training]
epochs = 2
batch_size = 256
[[stages]]
weight_bits = 4
activation_bits = 4
epochs = 2
batch_size = 256
"""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One input and the command that reads it.

    Attributes:
        name: what was damaged.
        place: writes the input where the commands look for it.
        commands: arguments of the command line, one list each.
    """

    name: str
    place: Callable[[], object]
    commands: list[list[str]]


def _of_files(
    path: Path, content: bytes, damaged: Iterator[tuple[str, bytes]], commands: list[list[str]]
) -> Iterator[Case]:
    """Yield the undamaged file first, then the damaged ones, each with the next of `commands` in turn."""
    yield Case(name="undamaged", place=partial(path.write_bytes, content), commands=commands)
    turns = itertools.cycle(commands)
    for name, changed in damaged:
        yield Case(name=name, place=partial(path.write_bytes, changed), commands=[next(turns)])


def _model(folder: Path) -> Path:
    """Write ResNet-20 with 2 bits, with classes that the folder of images has."""
    path = folder / "good.onnx"
    model = onnx.load(ZOO / "w2a2.onnx")
    edit_metadata(model, class_names=list(CLASSES), data=None)
    path.write_bytes(model.SerializeToString())
    return path


def _images(folder: Path) -> Path:
    """Write a folder of images, one per class."""
    rng = np.random.default_rng(3)
    for name in CLASSES:
        (folder / "images" / "test" / name).mkdir(parents=True)
        pixels = rng.integers(0, 256, (28, 28), np.uint8)
        Image.fromarray(pixels).save(folder / "images" / "test" / name / "0.png")
    return folder / "images"


def checkpoints(folder: Path, count: int, seed: int) -> Iterator[Case]:
    """Quantized checkpoints, given to every command that reads one."""
    content = (ZOO / "w4a4.safetensors").read_bytes()
    path, model, images = folder / "damaged.safetensors", _model(folder), _images(folder)
    commands = [
        ["export", str(path), "-o", str(folder / "out.onnx"), "--no-freezing-report"],
        ["verify", str(model), "--checkpoint", str(path), "--data", str(images), "--limit", "2"],
        ["sensitivity", str(path), "--limit", "4", "--calibration-images", "4", "--bits", "2"],
    ]
    return _of_files(path, content, mutations_of_checkpoints.mutations(content, count, seed), commands)


def models(folder: Path, count: int, seed: int) -> Iterator[Case]:
    """Exported models, given to every command that reads one and measures no time."""
    path, images = folder / "damaged.onnx", _images(folder)
    content = _model(folder).read_bytes()
    commands = [
        ["inspect", str(path)],
        ["verify", str(path), "--data", str(images), "--limit", "2"],
        ["doctor", str(path)],
    ]
    return _of_files(path, content, mutations_of_models.mutations(content, count, seed), commands)


def golden_files(folder: Path, count: int, seed: int) -> Iterator[Case]:
    """Golden vectors."""
    path, model = folder / "damaged.golden.npz", _model(folder)
    write_golden(model, np.random.default_rng(4).integers(0, 256, (2, 1, 28, 28), np.uint8), "noise", path)
    content = path.read_bytes()
    commands = [["verify", str(model), "--golden", str(path)]]
    return _of_files(path, content, mutations_of_golden_files.mutations(content, count, seed), commands)


def recipes(folder: Path, count: int, seed: int) -> Iterator[Case]:
    """Recipes; those that are still valid would train for their full length, and end here before they do."""
    from qil_deploy.training import train

    def end(*_: object, **__: object) -> None:
        raise SystemExit(0)

    train.train = end  # type: ignore[assignment] # in a process of its own
    path = folder / "damaged.toml"
    text = (ZOO.parents[1] / "training" / "recipes" / "digits_resnet14.toml").read_text()
    commands = [["train", str(path), "--out", str(folder / "run")]]
    return _of_files(path, text.encode(), mutations_of_recipes.mutations(text, count, seed), commands)


def reports(folder: Path, count: int, seed: int) -> Iterator[Case]:
    """JSON of commands, given to `report`."""
    path, model, images = folder / "damaged.json", _model(folder), _images(folder)
    written = {"verify": ["--data", str(images)], "doctor": [], "inspect": [], "bench": ["--repeats", "3"]}
    for command, options in written.items():
        outcome = call_command(command, model, *options, "--json", folder / f"{command}.json")
        assert outcome.code in (0, 1), outcome
    commands = [["report", str(path), "-o", str(folder / "page.html")]]
    names = ("verify", "bench", "doctor")
    for index, name in enumerate(names):
        content = (folder / f"{name}.json").read_bytes()
        share = len(range(index, count, len(names)))
        yield from _of_files(path, content, mutations_of_reports.mutations(content, share, seed + index), commands)


def run_folders(folder: Path, count: int, seed: int) -> Iterator[Case]:
    """Folders of runs that were killed in the middle, resumed."""
    from qil_deploy.training.recipe_file import load_recipe
    from tests.training.conftest import train_until_killed

    recipe, whole, run = folder / "tiny.toml", folder / "whole", folder / "run"
    recipe.write_text(TINY_RUN)
    train_until_killed(load_recipe(recipe), whole, 7)

    def place(damage: Callable[[Path], None]) -> None:
        shutil.rmtree(run, ignore_errors=True)
        shutil.copytree(whole, run, symlinks=True)
        damage(run)

    commands = [["train", str(recipe), "--out", str(run), "--resume", "--no-report"]]
    yield Case(name="undamaged", place=partial(place, lambda _: None), commands=commands)
    for name, damage in mutations_of_run_folders.mutations(whole, count, seed):
        yield Case(name=name, place=partial(place, damage), commands=commands)


KINDS: dict[str, Callable[[Path, int, int], Iterator[Case]]] = {
    "checkpoints": checkpoints,
    "models": models,
    "golden files": golden_files,
    "recipes": recipes,
    "reports": reports,
    "run folders": run_folders,
}
