"""Recipes with a teacher: the phases that learn from it, its table of logits, resuming, and refusals."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from qil_deploy.checkpoint import load_model, save_checkpoint
from qil_deploy.datasets import load_images
from qil_deploy.errors import CheckpointError, ConfigError
from qil_deploy.preprocessing import Preprocessing
from qil_deploy.training import distillation_teacher
from qil_deploy.training import train as train_module
from qil_deploy.training.data.memory_batches import to_input
from qil_deploy.training.distillation_teacher import DistillationTeacher
from qil_deploy.training.models.build import build_model
from qil_deploy.training.pictures.html_report import write_html_report
from qil_deploy.training.recipe import Recipe, recipe_from_dict
from qil_deploy.training.train import train

from .conftest import train_until_killed

STAGE: dict[str, Any] = {"epochs": 2, "batch_size": 256}
W4, W2 = {"weight_bits": 4, "activation_bits": 4}, {"weight_bits": 2, "activation_bits": 2}
FILES = ["float", "w4a4", "w2a2", "w2a2_frozen"]


def content(**changes: object) -> dict[str, Any]:
    return {
        "name": "tiny",
        "data": "digits",
        "model": {"name": "resnet8", "width": 4},
        "augmentation": {"flip": True},
        "float_training": STAGE,
        "distillation": {"temperature": 2.0},
        "stages": [STAGE | W4, STAGE | W2 | {"frozen_epochs": 2}],
    } | changes


def recipe(**changes: object) -> Recipe:
    return recipe_from_dict(content(**changes), "test")


def short(**changes: object) -> Recipe:
    """One epoch of each."""
    stage = STAGE | W4 | {"epochs": 1}
    return recipe(**{"float_training": STAGE | {"epochs": 1}, "stages": [stage]} | changes)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "finished"
    train(recipe(), folder)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {name: (folder / f"{name}.safetensors").read_bytes() for name in FILES}


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_quantized_and_frozen_phases_learn_from_the_float_network(finished: Path, tmp_path: Path) -> None:
    train(recipe(distillation=None), tmp_path / "run")
    taught, alone = contents(finished), contents(tmp_path / "run")
    assert taught["float"] == alone["float"]
    assert all(taught[name] != alone[name] for name in FILES[1:])
    assert [line.get("teacher") for line in lines(finished)] == [None] * 2 + ["float"] * 6
    assert all("teacher" not in line for line in lines(tmp_path / "run"))


# 5 steps an epoch, 10 a phase: in an epoch of each kind of phase that has a teacher.
@pytest.mark.parametrize("step", [13, 34])
def test_a_run_goes_on_from_any_step(finished: Path, tmp_path: Path, step: int) -> None:
    train_until_killed(recipe(), tmp_path / "run", step)
    train(recipe(), tmp_path / "run", resume=True)
    assert contents(tmp_path / "run") == contents(finished)


def test_nothing_is_left_of_the_rehearsal(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train_module, "rehearse", lambda _run: None)
    train(recipe(), tmp_path / "run")
    assert contents(tmp_path / "run") == contents(finished)


def test_a_weight_of_0_leaves_the_labels_alone(tmp_path: Path) -> None:
    stage = STAGE | W4 | {"epochs": 1}
    train(short(stages=[stage | {"distillation_weight": 0.0}]), tmp_path / "off")
    train(short(distillation=None), tmp_path / "none")
    train(short(distillation={"weight": 0.0}, stages=[stage | {"distillation_weight": 1.0}]), tmp_path / "on")
    off, none, on = ((tmp_path / name / "w4a4.safetensors").read_bytes() for name in ("off", "none", "on"))
    assert off == none != on


def test_a_stage_may_have_a_weight_and_a_temperature_of_its_own() -> None:
    changed = STAGE | W2 | {"frozen_epochs": 1, "distillation_weight": 0.5, "distillation_temperature": 8.0}
    found = recipe(stages=[STAGE | W4, changed])
    lessons = [found.distillation_of(each) for each in (*found.stages, found.stages[1].frozen_section())]
    assert [(each.weight, each.temperature) for each in lessons if each is not None] == [(1, 2), (0.5, 8), (0.5, 8)]
    assert found.distillation_of(found.float_training) is None


def watch(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """Return a list that collects the inputs of the teacher's network."""
    asked: list[Tensor] = []
    true_answer = DistillationTeacher._answer

    def answer(self: DistillationTeacher, network: Any, x: Tensor) -> Tensor:  # noqa: ANN401 - handed through
        asked.append(x)
        return true_answer(self, network, x)

    monkeypatch.setattr(DistillationTeacher, "_answer", answer)
    monkeypatch.setattr(train_module, "rehearse", lambda _run: None)
    return asked


@pytest.mark.parametrize("flip", [False, True])
def test_logits_are_computed_once_per_image_for_all_phases(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flip: bool
) -> None:
    asked = watch(monkeypatch)
    train(recipe(augmentation={"flip": flip}), tmp_path / "run")
    images = torch.cat(asked)
    assert len(images) == 1437 * (1 + flip)
    grid = load_model(tmp_path / "run" / "float.safetensors", build_model)[0].preprocessing
    expected = to_input(torch.tensor(load_images("digits", "train").images), grid)
    variants = [expected, expected.flip(3)] if flip else [expected]
    found = {row.numpy().tobytes() for row in images.contiguous()}
    assert found == {row.numpy().tobytes() for variant in variants for row in variant.contiguous()}


def test_looked_up_logits_are_those_of_the_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compared = 0
    true_logits_for = DistillationTeacher.logits_for

    def both(self: DistillationTeacher, batches: Any) -> Any:  # noqa: ANN401 - handed through
        looked_up = true_logits_for(self, batches)
        assert looked_up != self.logits_of_batch

        def compare(x: Tensor, position: Any) -> Tensor:  # noqa: ANN401 - as above
            nonlocal compared
            found = looked_up(x, position)
            torch.testing.assert_close(found, self.logits_of_batch(x, position), atol=1e-4, rtol=1e-4)
            compared += 1
            return found

        return compare

    monkeypatch.setattr(DistillationTeacher, "logits_for", both)
    train(recipe(), tmp_path / "run")
    assert compared == 30


@pytest.mark.parametrize(
    ("changes", "limit"),
    [
        ({"augmentation": {"flip": True, "shift": 1}}, None),
        ({}, 2 * 4 * 10 * 1437 - 1),
        ({"stages": [STAGE | W4 | {"epochs": 1}]}, None),
    ],
    ids=["shifted", "too large", "few epochs"],
)
def test_otherwise_the_teacher_reads_every_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], limit: int | None
) -> None:
    asked = watch(monkeypatch)
    if limit is not None:
        monkeypatch.setattr(distillation_teacher, "LARGEST_TABLE", limit)
    chosen = recipe(**changes)
    train(chosen, tmp_path / "run")
    steps = 5 * sum(stage.epochs + stage.frozen_epochs for stage in chosen.stages)
    assert [len(x) for x in asked] == [256] * steps
    assert asked[0].is_contiguous()


@pytest.mark.parametrize("kind", ["float", "w4a4", "w2a2_frozen"])
def test_any_checkpoint_may_teach_the_float_network_too(
    finished: Path, tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    teacher = str(finished / f"{kind}.safetensors")
    train(short(model={"name": "resnet14", "width": 4}, distillation={"teacher": teacher}), tmp_path / "run")
    assert [line["teacher"] for line in lines(tmp_path / "run")] == [teacher] * 2
    name = {"float": "float", "w4a4": "quantized", "w2a2_frozen": "frozen"}[kind]
    printed = " ".join(capsys.readouterr().out.split())
    assert f", a {name} resnet8, " in printed
    assert printed.count("Teacher: ") == 1


def test_float_training_may_leave_another_teacher_out(finished: Path, tmp_path: Path) -> None:
    float_training = STAGE | {"distillation_weight": 0.0}
    teacher = {"teacher": str(finished / "w4a4.safetensors")}
    train(recipe(distillation=teacher, float_training=float_training, stages=[]), tmp_path / "run")
    assert (tmp_path / "run" / "float.safetensors").read_bytes() == contents(finished)["float"]


def test_a_teacher_reads_images_normalised_its_own_way(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same weights with other statistics: the network must read the values that it was trained on."""
    read: list[Tensor] = []
    teacher = finished / "float.safetensors"
    _, model = load_model(teacher, build_model)
    model.register_forward_pre_hook(lambda _module, arguments: read.append(arguments[0].clone()))
    info = load_model(teacher, build_model)[0]
    monkeypatch.setattr(distillation_teacher, "load_model", lambda _path, _build: (info, model))
    asked = watch(monkeypatch)
    section = {"teacher": str(teacher)}
    changes: dict[str, Any] = {"augmentation": {"shift": 1}, "stages": [], "float_training": STAGE | {"epochs": 1}}
    train(recipe(distillation=section, mean=0.1, std=0.7, **changes), tmp_path / "run")
    other = Preprocessing.from_statistics((1, 8, 8), 0.1, 0.7)
    pixels = torch.cat(asked) / other.scale + other.zero_point
    expected = to_input(pixels.round(), info.preprocessing)
    torch.testing.assert_close(torch.cat(read), expected, atol=1e-5, rtol=1e-5)


def test_folders_are_answered_batch_by_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for split in ("train", "test"):
        for label in "ab":
            folder = tmp_path / "images" / split / label
            folder.mkdir(parents=True)
            for index in range(4):
                Image.new("RGB", (12, 12), (20 * index, 0, 200 * (label == "a"))).save(folder / f"{index}.png")
    asked = watch(monkeypatch)
    stage = STAGE | {"batch_size": 4}
    train(recipe(data=str(tmp_path / "images"), float_training=stage, stages=[stage | W4]), tmp_path / "run")
    assert [len(x) for x in asked] == [4] * 4


def test_the_report_names_the_teacher(finished: Path) -> None:
    report = write_html_report(finished)
    assert report.distillation is not None
    assert (report.distillation.teacher, report.distillation.weight, report.distillation.temperature) == ("float", 1, 2)
    page = " ".join((finished / "report.html").read_text().split())
    assert "a teacher, the float network of this run: temperature 2, weight 1." in page


def test_teachers_of_other_images_or_classes_are_refused(finished: Path, tmp_path: Path) -> None:
    info, model = load_model(finished / "float.safetensors", build_model)
    others = {
        r"has images of shape \[1, 8, 9\], but the recipe \[1, 8, 8\]": replace(info.preprocessing, width=9),
        "has the classes ten, .*, but the recipe 0, 1, 2": ("ten", *"123456789"),
    }
    for index, (message, value) in enumerate(others.items()):
        key = "preprocessing" if index == 0 else "class_names"
        path = tmp_path / f"{index}.safetensors"
        save_checkpoint(path, info.model_copy(update={key: value}), model)
        with pytest.raises(CheckpointError, match=rf"distillation\.teacher .*{index}\.safetensors {message}.*; name a"):
            train(short(distillation={"teacher": str(path)}), tmp_path / "run")
    with pytest.raises(CheckpointError, match=r"nowhere\.safetensors does not exist"):
        train(short(distillation={"teacher": str(tmp_path / "nowhere.safetensors")}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


OWN_NETWORK = """
from torch import nn
def teacher(in_channels, num_classes): return nn.Sequential(nn.Conv2d(in_channels, num_classes, 8), nn.Flatten())
"""


def test_a_teacher_of_the_users_is_built_where_the_recipe_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"teachers_of_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(OWN_NETWORK)
    monkeypatch.syspath_prepend(tmp_path)
    own = recipe(model={"name": f"{name}:teacher"}, distillation=None, stages=[])
    path = train(own, tmp_path / "teacher").float_result.checkpoint
    with pytest.raises(ConfigError, match="which is code outside this project"):
        train(short(distillation={"teacher": str(path)}), tmp_path / "refused")
    train(short(distillation={"teacher": str(path), "model": f"{name}:teacher"}), tmp_path / "run")
    assert lines(tmp_path / "run")[-1]["teacher"] == str(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"distillation": {"temperature": 0.0}}, r"distillation\.temperature: .*greater than .* 0.000001 .found 0\.0"),
        ({"distillation": {"temperature": "4"}}, r"distillation\.temperature: .*valid number"),
        ({"distillation": {"weight": -1.0}}, r"distillation\.weight: .*greater than or equal to 0 .found -1\.0"),
        ({"distillation": {"alpha": 1.0}}, r"distillation\.alpha: there is no such key"),
        ({"distillation": {"teacher": ""}}, r"distillation\.teacher: .*at least 1 character"),
        ({"distillation": {"model": "a:b"}}, "model a:b with teacher 'float', which is built by model.name"),
        (
            {"distillation": None, "stages": [STAGE | W4 | {"distillation_weight": 0.5}]},
            "distillation_weight of w4a4 without the section distillation; add it, or leave the key out",
        ),
        (
            {"float_training": STAGE | {"distillation_weight": 0.5}},
            "distillation_weight of float_training, but the teacher is the float network itself; leave the key out",
        ),
    ],
)
def test_recipes_that_no_run_could_carry_out(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        recipe(**changes)


def test_quantizer_only_has_a_teacher_of_its_own() -> None:
    found = content(quantizer_only={"weights": "x", "images": "noise"})
    del found["float_training"]
    with pytest.raises(ConfigError, match=r"distillation with quantizer_only, whose float network is the teacher"):
        recipe_from_dict(found, "test")
