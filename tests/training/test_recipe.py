"""Recipes: valid content, changes from the command line, and the recipes in the package."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

import qil_deploy.training
from qil_deploy.config import LayerOverride
from qil_deploy.errors import ConfigError
from qil_deploy.network.preparation import prepare
from qil_deploy.preprocessing import Preprocessing
from qil_deploy.training.models.build import MODELS, build_model
from qil_deploy.training.optimizers import rate_factor
from qil_deploy.training.recipe import recipe_from_dict
from qil_deploy.training.recipe_file import load_recipe
from qil_deploy.training.recipe_sections import INTERVAL_LEARNING_RATE

SHIPPED = sorted(path.stem for path in (Path(qil_deploy.training.__file__).parent / "recipes").glob("*.toml"))

TEXT = """
name = "test"
data = "digits"
[model]
name = "resnet8"
width = 4
[float_training]
epochs = 2
[[stages]]
weight_bits = 4
activation_bits = 3
epochs = 1
[[stages]]
weight_bits = 2
activation_bits = 2
epochs = 1
frozen_epochs = 1
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "recipe.toml").write_text(TEXT)
    return tmp_path / "recipe.toml"


STAGE = {"weight_bits": 4, "activation_bits": 4, "epochs": 1}


def content() -> dict[str, Any]:
    return {
        "name": "test",
        "data": "digits",
        "model": {"name": "resnet8"},
        "float_training": {"epochs": 1},
        "stages": [STAGE],
    }


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_recipes_load_by_name_and_can_be_built(name: str) -> None:
    recipe = load_recipe(Path(name))
    assert recipe.name == name
    assert recipe.model.name in MODELS
    assert recipe.stages
    for stage in recipe.stages:
        recipe.quant_config(stage)
    assert (recipe.stages[-1].frozen_epochs > 0) is (recipe.placement == "integer")


# Images as the recipe has them; the data set need not be here.
SHAPES = {"digits": (1, 8, 8), "fashion-mnist": (1, 28, 28), "cifar10": (3, 32, 32), "imagenet": (3, 224, 224)}


@pytest.mark.parametrize("name", SHIPPED)
def test_networks_of_shipped_recipes_can_be_quantized(name: str) -> None:
    recipe = load_recipe(Path(name))
    channels, height, width = SHAPES[recipe.data]
    size = recipe.image_size
    shape = (channels, size or height, size or width)
    network = build_model(recipe.model.name, {"in_channels": channels, "num_classes": 10})
    grid = Preprocessing.from_statistics(shape, 0.5, 0.25)
    prepare(network, recipe.quant_config(recipe.stages[-1]), torch.zeros(1, *shape), input_grid=grid)


def test_the_papers_networks_bits_and_schedule_ship() -> None:
    names = [
        f"imagenet_{network}{which}" for network in ("alexnet", "resnet18", "resnet34") for which in ("", "_paper")
    ]
    for name in names:
        recipe = load_recipe(Path(name))
        assert (recipe.data, recipe.placement) == ("imagenet", "paper")
        assert [(stage.weight_bits, stage.activation_bits) for stage in recipe.stages] == [
            (5, 5), (4, 4), (3, 3), (2, 2)
        ]  # fmt: skip


@pytest.mark.parametrize(("network", "factor"), [("alexnet", 0.1), ("resnet18", 1.0), ("resnet34", 1.0)])
def test_the_papers_recipe_is_what_is_known_of_it(network: str, factor: float) -> None:
    recipe = load_recipe(Path(f"imagenet_{network}_paper"))
    assert recipe.distillation is None
    for section, epochs, rate, falls in (
        (recipe.float_training, 120, 0.4, (30, 60, 85, 95, 105)),
        *((stage, 90, 0.04, (20, 40, 60, 80)) for stage in recipe.stages),
    ):
        assert (section.epochs, section.batch_size, section.weight_decay) == (epochs, 1024, 1e-4)
        assert section.learning_rate == pytest.approx(rate * factor)
        batches = 1_281_167 // 1024
        for fall, epoch in enumerate(falls):
            before, at = (rate_factor(epoch * batches - early, epochs * batches, section) for early in (1, 0))
            assert (before, at) == pytest.approx((0.1**fall, 0.1 ** (fall + 1)))
    assert all(stage.interval_optimizer == "sgd" for stage in recipe.stages)
    assert all(stage.interval_learning_rate == pytest.approx(stage.learning_rate / 100) for stage in recipe.stages)


def test_our_recipes_for_imagenet_have_a_teacher_and_decay_less_at_fewer_bits() -> None:
    for network in ("alexnet", "resnet18", "resnet34"):
        recipe = load_recipe(Path(f"imagenet_{network}"))
        assert recipe.distillation is not None
        assert (recipe.distillation.teacher, recipe.distillation.temperature) == ("float", 1.0)
        assert [stage.weight_decay for stage in recipe.stages] == [1e-4, 1e-4, 5e-5, 2.5e-5]


def test_recipes_ship() -> None:
    assert {"fashion_mnist_resnet20", "fashion_mnist_alexnet", "cifar10_resnet20"} <= set(SHIPPED)


def test_defaults_and_stage_names(path: Path) -> None:
    recipe = load_recipe(path)
    assert [stage.name for stage in recipe.stages] == ["w4a3", "w2a2"]
    assert recipe.placement == "integer"
    assert recipe.model.width == 4
    assert recipe.stages[0].frozen_epochs == 0
    # A quantized stage starts from a trained network: gentler than float training.
    assert recipe.stages[0].learning_rate < recipe.float_training.learning_rate
    assert recipe.quant_config(recipe.stages[1]).weight_bits == 2


def test_overrides_gamma_and_gradient_reach_the_quantization() -> None:
    values = {"overrides": {"layer1.*": {"weight_bits": 6}}, "train_gamma": True, "placement": "paper"}
    recipe = recipe_from_dict(content() | values | {"gradient_scaling": 0.2, "returning_weights": True}, "here")
    config = recipe.quant_config(recipe.stages[0])
    assert config.overrides == {"layer1.*": LayerOverride(weight_bits=6)}
    assert config.train_gamma
    assert config.gradient_scaling == 0.2
    assert config.returning_weights
    assert config.placement == "paper"


def test_changes_are_applied_over_the_file(path: Path) -> None:
    changes = ("seed=7", "stages.1.epochs=9", "model.width = 5", "data=fashion-mnist", "augmentation.flip=true")
    recipe = load_recipe(path, changes)
    assert recipe.seed == 7
    assert recipe.stages[1].epochs == 9
    assert recipe.model.width == 5
    assert recipe.data == "fashion-mnist"
    assert recipe.augmentation.flip


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("seed", "--set 'seed' must be key=value"),
        ("stages.5.epochs=1", r"--set 'stages\.5\.epochs=1': the recipe has no 'stages\.5\.epochs'"),
        ("stages.first.epochs=1", "the recipe has no 'stages.first.epochs'"),
        ("name.first=1", "the recipe has no 'name.first'"),
        ("sed=1", "sed: there is no such key"),
        ("model.depth=1", "model.depth: there is no such key"),
        ("stages.0.weight_bits=9", "weight_bits: .*less than or equal to 8 .found 9"),
        ("seed=1.5", "seed: .*integer"),
    ],
)
def test_changes_that_are_refused(path: Path, change: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load_recipe(path, (change,))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"speed": 1}, "recipe here: speed: there is no such key"),
        ({"float_training": {"epochs": -1}}, "float_training.epochs: .* greater than or equal to 0 .found -1"),
        ({"float_training": {"epochs": 1, "learning_rate": 0}}, "learning_rate: .* greater than 0"),
        ({"float_training": {"epochs": 1, "learning_rate": float("inf")}}, "learning_rate: .* finite"),
        ({"float_training": {"epochs": 1, "warmup": 1.0}}, "warmup: .* less than 1"),
        ({"float_training": {"epochs": 1, "batch_size": 0}}, "batch_size: .* greater than or equal to 1"),
        ({"model": {"name": "resnet8", "width": 0}}, "model.width"),
        ({"placement": "mixed"}, "placement: .*'paper' or 'integer'"),
        ({"stages": content()["stages"] * 2}, r"stages \['w4a4', 'w4a4'\] repeat; give each stage other bits"),
        ({"stages": [{"weight_bits": 8, "activation_bits": 8, "epochs": 1}]}, "would saturate the int16 sums"),
        ({"overrides": {"fc": {"weight_bits": 1}}}, "overrides.fc.weight_bits"),
        ({"overrides": {"fc": {"bits": 4}}}, "overrides.fc.bits: there is no such key"),
        ({"gradient_scaling": 2.5}, "gradient_scaling: .*less than or equal to 2 .found 2.5"),
        ({"stages": [STAGE | {"oscillation": "stop"}]}, "oscillation: .*'none', 'count', 'freeze' or 'dampen'"),
        ({"stages": [STAGE | {"oscillation_threshold": [0.1]}]}, "oscillation_threshold"),
        ({"stages": [STAGE | {"oscillation_momentum": 1.0}]}, "oscillation_momentum: .*less than 1"),
    ],
)
def test_content_that_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        recipe_from_dict(content() | change, "here")


def test_a_missing_recipe_names_those_that_ship(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot be read .*; shipped recipes: .*fashion_mnist_resnet20"):
        load_recipe(tmp_path / "none.toml")


def test_text_that_is_no_toml(tmp_path: Path) -> None:
    path = tmp_path / "broken.toml"
    for text in (b"name = ", b"\xff\xfe"):
        path.write_bytes(text)
        with pytest.raises(ConfigError, match=r"broken\.toml is not valid TOML"):
            load_recipe(path)


def test_a_recipe_without_data(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text('name = "a"')
    with pytest.raises(ConfigError, match="data: this key is missing; model: this key is missing"):
        load_recipe(tmp_path / "a.toml")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"float_training": {"epochs": 1, "learning_rate": 1e300}}, "learning_rate: .*less than or equal to"),
        ({"float_training": {"epochs": 1, "weight_decay": 1e300}}, "weight_decay: .*less than or equal to"),
        ({"float_training": {"epochs": 1, "gradient_norm": 1e300}}, "gradient_norm: .*less than or equal to"),
        ({"float_training": {"epochs": 10**9}}, "epochs: .*less than or equal to 1000000"),
        ({"float_training": {"epochs": True}}, "epochs: .*valid integer"),
        ({"float_training": {"epochs": 1.0}}, "epochs: .*valid integer"),
        ({"float_training": {"epochs": 1, "warmup": "0.1"}}, "warmup: .*valid number"),
        ({"float_training": {"epochs": 1, "batch_size": 2**70}}, "batch_size: .*less than or equal to"),
        ({"float_training": {"epochs": 1, "milestones": [0.5] * 2000}}, "milestones: .*at most 1000 items"),
        ({"seed": 2**63}, "seed: .*less than 9223372036854775808"),
        ({"seed": True}, "seed: .*valid integer"),
        ({"image_size": 10**9}, "image_size: .*less than or equal to 8192"),
        ({"mean": 0.5}, "one of mean and std without the other; give both"),
        ({"mean": [0.5, math.nan], "std": [0.2, 0.2]}, "mean.*finite number"),
        ({"mean": [], "std": []}, "mean.*at least 1 item"),
        ({"mean": "0.5", "std": 0.2}, "mean.*valid number"),
        ({"model": {"name": "resnet8", "width": 10**9}}, "width: .*less than or equal to 65536"),
        ({"model": {"name": "a\0b"}}, r"model\.name: it holds a NUL character, .*found 'a\\x00b'"),
        ({"model": {"name": "resnet8", "weights": "a\0b"}}, r"model\.weights: it holds a NUL character"),
        ({"data": "a\0b"}, "data: it holds a NUL character"),
        ({"data": ""}, "data: .*at least 1 character"),
        ({"data": "x" * 10**6}, r"data: .*at most 600 characters .found 'x+\.\.\. \(1,000,002 characters\)"),
        ({"augmentation": {"shift": 10**9}}, "shift: .*less than or equal to 8192"),
        ({"allow_float": 1}, "allow_float: .*valid boolean"),
        ({"overrides": {"x" * 5000: {"weight_bits": 2}}}, "at most 1000 characters"),
        ({"stages": [{"weight_bits": 2.0, "activation_bits": 2, "epochs": 1}]}, "weight_bits: .*valid integer"),
        (
            {
                "stages": [
                    {"weight_bits": 2, "activation_bits": 2, "epochs": 1, "learning_rate": 5e-324, "frozen_epochs": 1}
                ]
            },
            "frozen epochs would have the interval_learning_rate inf",
        ),
        (
            {
                "stages": [
                    {
                        "weight_bits": 2,
                        "activation_bits": 2,
                        "epochs": 1,
                        "learning_rate": 1e-20,
                        "interval_learning_rate": 0.0,
                        "output_scale_learning_rate": 1e20,
                        "frozen_epochs": 1,
                    }
                ]
            },
            r"frozen epochs would have the output_scale_learning_rate 2e\+37",
        ),
        ({f"key{number}": number for number in range(1000)}, "key3: there is no such key .*; and 996 more"),
        ({"\x1b[31m" + "x" * 10**5: 1}, r"\\x1b\[31mx+\.\.\. "),
    ],
)
def test_content_that_no_run_could_carry_out(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        recipe_from_dict(content() | change, "here")
    assert len(str(caught.value)) < 1000
    assert "\x1b" not in str(caught.value)


FOREIGN = (
    "",
    ".",
    "..",
    "../x",
    "/root",
    "a/b",
    "a\\b",
    "a:b",
    " a",
    "a ",
    "a.",
    "con",
    "NUL.txt",
    "LPT1",
    "x" * 101,
)


@pytest.mark.parametrize("name", [*FOREIGN, "a\0b", "a\nb", "\x1b[31m", "\u202eabc"])
def test_names_that_are_no_folder_of_runs(name: str) -> None:
    with pytest.raises(ConfigError, match=r"name: .*(the name of the run's folder|at least 1 character)"):
        recipe_from_dict(content() | {"name": name}, "here")


@pytest.mark.parametrize("name", ["tiny", "a b", "v1.2", "a_b-c", "é", "console", "<i>&amp;", "x" * 100, "w4 (2)"])
def test_names_that_are_a_folder(name: str) -> None:
    assert recipe_from_dict(content() | {"name": name}, "here").name == name


def test_frozen_epochs_have_rates_of_their_own() -> None:
    stage = {
        "weight_bits": 4,
        "activation_bits": 4,
        "epochs": 3,
        "batch_size": 32,
        "frozen_epochs": 2,
        "weight_decay": 0.5,
    }
    rates = {"learning_rate": 0.02, "interval_learning_rate": 0.003, "frozen_learning_rate": 0.002}
    recipe = recipe_from_dict(content() | {"stages": [stage | rates]}, "here")
    section = recipe.stages[0].frozen_section()
    assert (section.epochs, section.batch_size, section.weight_decay) == (2, 32, 0.5)
    assert (section.learning_rate, section.gradient_norm, section.warmup) == (0.002, 1.0, 0.05)
    assert section.interval_learning_rate == 0.003 * 0.002 / 0.02
    assert section.output_scale_learning_rate == 0.003 * 0.002 / 0.02
    rates["output_scale_learning_rate"] = 0.001
    recipe = recipe_from_dict(content() | {"stages": [stage | rates]}, "here")
    assert recipe.stages[0].frozen_section().output_scale_learning_rate == 0.001 * 0.002 / 0.02
    kept = {"learning_rate": 0.02, "interval_learning_rate": 0.0, "frozen_learning_rate": 0.002}
    recipe = recipe_from_dict(content() | {"stages": [stage | kept]}, "here")
    assert recipe.stages[0].frozen_section().output_scale_learning_rate == INTERVAL_LEARNING_RATE * 0.002 / 0.02


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"x = " + b"[" * 10**5, "it is nested too deep"),
        (b"x = " + b"{a=" * 10**4, "it is nested too deep"),
        (b"seed = " + b"9" * 5000, "Exceeds the limit"),
        (TEXT.encode("utf-16"), "'utf-8' codec can't decode"),
        (TEXT.encode() + b"#" * 2**20, "it has more than 1,048,576 bytes"),
        (b'name = "a"\nname = "b"', "Cannot overwrite a value"),
        (b"\0", "is not valid TOML"),
    ],
)
def test_files_that_no_parser_should_choke_on(tmp_path: Path, text: bytes, message: str) -> None:
    (tmp_path / "a.toml").write_bytes(text)
    with pytest.raises(ConfigError, match=rf"recipe .*a\.toml is not valid TOML: .*{message}|{message}") as caught:
        load_recipe(tmp_path / "a.toml")
    assert len(str(caught.value)) < 1000


def test_the_mark_of_an_editor_in_front_is_no_part_of_a_recipe(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_bytes(TEXT.encode("utf-8-sig"))
    assert load_recipe(tmp_path / "a.toml").name == "test"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("seed=" + "9" * 5000, "Exceeds the limit"),
        ("x=" + "[" * 10**5, "it is nested too deep"),
        (".".join("a" * 10**4) + "=1", "the recipe has no 'a"),
        ("stages.-1.epochs=1", "the recipe has no 'stages.-1.epochs'"),
        ("stages.٣.epochs=1", "the recipe has no"),
        ("stages." + "9" * 5000 + ".epochs=1", "the recipe has no"),
        ("seed=nan", "seed: .*valid integer"),
        ("float_training.learning_rate=inf", "learning_rate: .*finite"),
        ("float_training.learning_rate=1e300", "learning_rate: .*less than"),
        ("name=../x", "name: it is the name of the run's folder"),
        ("\x1b[31m=1", r"\\x1b\[31m: there is no such key"),
        ("\x1b[31m", r"--set '\\x1b\[31m' must be key=value"),
    ],
)
def test_changes_that_no_run_could_carry_out(path: Path, change: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load_recipe(path, (change,))
    assert len(str(caught.value)) < 1000
    assert "\x1b" not in str(caught.value)
