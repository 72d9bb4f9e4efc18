"""`sensitivity`: its output, files and recipe, and the requests that it refuses before any work."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from matplotlib.image import imread

from qil_deploy.checkpoint import load_model, read_checkpoint, save_checkpoint
from qil_deploy.training.models.build import build_model
from qil_deploy.training.recipe_file import load_recipe

if TYPE_CHECKING:
    from tests.command_line import Outcome
    from tests.commands.conftest import Run

Call = Callable[..., "Outcome"]
Refused = Callable[..., str]

QUICK = ("--limit", "20", "--calibration-images", "20", "--bits", "4,2")


def test_table_json_picture_and_recipe_of_a_float_network(run: Run, call: Call, tmp_path: Path) -> None:
    files = [tmp_path / "new" / name for name in ("mixed.toml", "plot.png", "report.json")]
    outputs = ("--recipe", files[0], "--plot", files[1], "--json", files[2])
    outcome = call("sensitivity", run.float, *QUICK, "--budget-bits", "4.5", *outputs)
    assert (outcome.code, outcome.error) == (0, "")
    content = json.loads(files[2].read_text())
    assert (content["schema"], content["kind"], content["split"]) == ("qil_deploy.sensitivity/1", "float", "train")
    assert content["baseline"]["kl"] == 0.0
    rows = {layer["name"]: layer for layer in content["layers"]}
    assert list(rows)[:: len(rows) - 1] == ["conv1", "fc"]
    assert (rows["conv1"]["weight_bits"], rows["conv1"]["activation_bits"], rows["conv1"]["trials"]) == (7, 8, [])
    layer = rows["layer1.0.conv1"]
    assert [(trial["width"], trial["weight_bits"], trial["activation_bits"]) for trial in layer["trials"]] == [
        (4, 4, 4),
        (2, 2, 2),
    ]
    kls = " ".join(f"{trial['kl']:.5f}" for trial in layer["trials"])
    assert f" layer1.0.conv1 576 7/8 288 144 {kls} " in outcome.out
    worst = max(rows.values(), key=lambda entry: max((trial["kl"] for trial in entry["trials"]), default=0))
    assert outcome.out.index(f" {worst['name']} ") == min(outcome.out.index(f" {name} ") for name in rows)
    assert "20 images of the training split of digits, intervals set from 20 others (seed 0)" in outcome.out
    proposal = content["proposal"]
    weights = sum(layer["weights"] for layer in content["layers"])
    assert proposal["bytes"] <= proposal["budget"] == int(4.5 * weights / 8)
    assert f" proposed {8 * proposal['bytes'] / weights:.2f} {proposal['bytes']:,} " in outcome.out
    assert outcome.out.endswith(f"Train it with: python -m qil_deploy train {files[0]}")
    assert imread(files[1]).std() > 0.01
    recipe = load_recipe(files[0])
    config = recipe.quant_config(recipe.stages[0])
    assert recipe.name == "mixed"
    for name, bits in proposal["bits"].items():
        assert config.bits_of(name, edge=name in ("conv1", "fc")).model_dump() == bits
    trained = call("train", files[0], "--out", tmp_path / "run", "--set", "stages.0.epochs=1")
    assert trained.code == 0, trained.error
    info, _ = read_checkpoint(tmp_path / "run" / f"{recipe.stages[0].name}.safetensors")
    assert info.config == config


def test_a_quantized_network_without_a_proposal(run: Run, call: Call) -> None:
    outcome = call("sensitivity", run.quantized, *QUICK, "--what", "weights", "--edges", "--threads", "1")
    assert (outcome.code, outcome.error) == (0, "")
    assert " layer1.0.conv1 576 4/4 - 144 - " in outcome.out  # nothing to lower to 4 bits
    assert " conv1 72 7/8 36 18 " in outcome.out
    assert "Proposed" not in outcome.out


def test_the_same_seed_gives_the_same_report(run: Run, call: Call, tmp_path: Path) -> None:
    reports = [tmp_path / f"{index}.json" for index in range(3)]
    for report, seed in zip(reports, ("0", "0", "1"), strict=True):
        arguments = ("--limit", "20", "--calibration-images", "20", "--bits", "2", "--seed", seed, "--json", report)
        assert call("sensitivity", run.quantized, *arguments).code == 0
    first, second, other = (json.loads(report.read_text()) for report in reports)
    assert first == second
    assert first["layers"] != other["layers"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--bits", "four"], "--bits is 'four'; give whole numbers separated by commas, like 4,3,2."),
        (["--bits", "4,1"], "bits are [4, 1]; give whole numbers from 2 to 8."),
        (["--budget-bits", "3", "--budget-bytes", "9"], "--budget-bytes and --budget-bits say the same thing twice"),
        (["--recipe", "mixed.toml"], "--recipe writes down a proposal, which needs --budget-bytes or --budget-bits."),
        (["--budget-bytes", "100"], "a budget of 100 bytes cannot be met: with every layer at its fewest bits"),
        (["--budget-bytes", "100000000"], "a budget of 100,000,000 bytes is met with nothing lowered"),
        (["--budget-bits", "-1"], "a budget of -1.0 bits per weight makes no sense"),
        (["--budget-bits", "3", "--what", "activations"], "a size budget needs weights to be lowered"),
        (["--limit", "5000"], "the training split of digits has 1437; lower --limit or --calibration-images."),
        (["--limit", "1"], "1 images and 256 for calibration are too few"),
    ],
)
def test_wrong_use(arguments: list[str], message: str, run: Run, refused: Refused) -> None:
    assert message in refused("sensitivity", run.float, *arguments)


def test_checkpoints_that_cannot_be_lowered(run: Run, refused: Refused, tmp_path: Path) -> None:
    assert "is frozen, its bits are fixed; name the quantized one" in refused("sensitivity", run.frozen)
    assert "absent.safetensors does not exist" in refused("sensitivity", tmp_path / "absent.safetensors")
    sentence = refused("sensitivity", run.quantized, *QUICK[:4], "--bits", "6,5")
    assert sentence == "no layer would be lowered: all have 6, 5 bits or fewer already; name fewer in --bits."


def test_an_output_below_a_file_is_refused_before_work(run: Run, refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert "cannot write" in refused("sensitivity", run.float, "--plot", tmp_path / "file" / "plot.png")


def test_a_network_of_the_user_is_run_only_where_the_user_names_it(
    run: Run, call: Call, refused: Refused, tmp_path: Path, user_network: str
) -> None:
    info, model = load_model(run.float, build_model)
    path, recipe = tmp_path / "theirs.safetensors", tmp_path / "mixed.toml"
    save_checkpoint(path, info.model_copy(update={"model_name": user_network}), model)
    assert f"name it yourself: --model {user_network}." in refused("sensitivity", path)
    arguments = ("--limit", "20", "--calibration-images", "20", "--bits", "2", "--budget-bits", "4", "--recipe", recipe)
    assert call("sensitivity", path, "--model", user_network, *arguments).code == 0
    assert load_recipe(recipe).model.name == user_network
