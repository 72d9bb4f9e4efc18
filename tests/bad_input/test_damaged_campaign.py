"""Thousands of damaged inputs: every command ends in an allowed way, errors in a sentence, memory bounded."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SEED = 20190618
COUNTS = {
    "checkpoints": 400,
    "models": 450,
    "golden files": 250,
    "recipes": 300,
    "reports": 200,
    "run folders": 100,
}
MOST_MEMORY = 1 << 30  # over the undamaged input, bytes
LONGEST_SENTENCE = 1000


@pytest.fixture(autouse=True)
def _watch() -> None:
    """Disable the limits in this process: the child has its own on the time and memory of each command."""


@pytest.mark.exhaustive
@pytest.mark.parametrize("kind", COUNTS)
def test_every_damaged_input_ends_in_a_sentence(kind: str, tmp_path: Path) -> None:
    result = tmp_path / "result.jsonl"
    (tmp_path / "inputs").mkdir()
    command = [sys.executable, "-m", "tests.bad_input.run_damaged"]
    arguments = [kind, COUNTS[kind], SEED, tmp_path / "inputs", result]
    done = subprocess.run([*command, *map(str, arguments)], cwd=ROOT, capture_output=True, text=True, check=False)
    endings = [json.loads(line) for line in result.read_text().splitlines()]
    assert done.returncode == 0, (done.returncode, done.stderr[-2000:], endings[-1:])
    whole = [ending for ending in endings if ending["name"] == "undamaged"]
    assert len(endings) - len(whole) >= COUNTS[kind]
    assert all(ending["code"] in (0, 1) for ending in whole), whole
    base = max(ending["peak"] for ending in whole)
    for ending in endings:
        assert ending["code"] in (0, 1, 2), ending
        assert ending["peak"] - base <= MOST_MEMORY, ending
        if ending["code"] == 2:
            _require_a_sentence(ending["error"], ending["name"])
    refused = sum(ending["code"] == 2 for ending in endings)
    assert refused > len(endings) / 4, "what does so little harm tests little"


def _require_a_sentence(error: str, name: str) -> None:
    sentence = error.removeprefix("\n").removesuffix("\n")
    assert sentence.startswith("Error: "), (name, sentence)
    assert sentence.endswith("."), (name, sentence)
    assert len(sentence.removeprefix("Error: ")) <= LONGEST_SENTENCE, (name, len(sentence))
    assert sentence.isprintable(), (name, sentence)
