"""The tables of docs/mixed-precision.md contain the results that `sensitivity` reported."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import sensitivity_table
from tables import Rows


def lowered(kl: float) -> dict[str, float]:
    return {"kl": kl, "kl_error": 0.0, "loss": 0.5, "accuracy": 90.0}


def report(divergences: dict[str, list[float]], widths: tuple[int, ...]) -> dict[str, object]:
    """Return a report in which the last layer keeps its bits and the others are proposed at 2."""
    last = list(divergences)[-1]
    bits = {
        name: {"weight_bits": 4, "activation_bits": 8} if name == last else {"weight_bits": 2, "activation_bits": 2}
        for name in divergences
    }
    layers = [
        {
            "name": name,
            "weights": 1000 * len(name),
            "trials": [{"width": width, **lowered(kl)} for width, kl in zip(widths, found, strict=True)],
        }
        for name, found in divergences.items()
    ]
    layers.insert(0, {"name": "edge", "weights": 9, "trials": []})
    bits["edge"] = {"weight_bits": 7, "activation_bits": 8}
    proposal = {"bytes": 77, "summed_kl": 0.25, "bits": bits, "measured": lowered(0.5)}
    proposal["uniform"] = [{"width": width, "bytes": 1234, "measured": lowered(width)} for width in widths]
    return {"bytes": 2000, "baseline": lowered(0.0), "layers": layers, "proposal": proposal}


def reports() -> dict[str, dict[str, object]]:
    return {
        "float": report({"a": [0.1, 0.2, 0.3], "bb": [0.1, 0.2, 0.4]}, (4, 3, 2)),
        "w4a4": report({"a": [0.6, 0.5], "bb": [0.1, 0.2]}, (3, 2)),
    }


def test_layers_stand_in_the_order_of_the_float_network() -> None:
    rows = sensitivity_table.layer_rows(reports())
    assert rows == Rows(
        headings=(
            "layer",
            "weights",
            *("float, 4 bits", "float, 3 bits", "float, 2 bits", "float, proposed"),
            *("w4a4, 3 bits", "w4a4, 2 bits", "w4a4, proposed"),
        ),
        cells=[
            ["bb", "2,000", "0.10000", "0.20000", "0.40000", "4/8", "0.10000", "0.20000", "4/8"],
            ["a", "1,000", "0.10000", "0.20000", "0.30000", "2/2", "0.60000", "0.50000", "2/2"],
        ],
    )


def test_proposals_stand_beside_single_widths() -> None:
    cells = sensitivity_table.together_rows(reports()).cells
    assert [row[:3] for row in cells] == [
        ["float", "nothing lowered", "2,000 B"],
        ["float", "proposed (summed KL 0.25000)", "77 B"],
        *(["float", f"all at {width} bits", "1,234 B"] for width in (4, 3, 2)),
        ["w4a4", "nothing lowered", "2,000 B"],
        ["w4a4", "proposed (summed KL 0.25000)", "77 B"],
        *(["w4a4", f"all at {width} bits", "1,234 B"] for width in (3, 2)),
    ]
    assert cells[1][3:] == ["0.50000", "0.5000", "90.00 %"]


def test_what_was_measured_is_not_measured_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands = []

    def write(command: list[str], *, check: bool) -> None:
        assert check
        commands.append(command)
        path = Path(command[command.index("--json") + 1])
        path.write_text(json.dumps(reports()[path.stem]))

    monkeypatch.setattr(subprocess, "run", write)
    page = tmp_path / "page.md"
    page.write_text("<!-- sensitivity_layers -->\n<!-- end -->\n<!-- sensitivity_together -->\n<!-- end -->\n")
    for _ in range(2):
        sensitivity_table.main(out=tmp_path, page=page)
    assert [command[:3] for command in commands] == [[sys.executable, "-m", "qil_deploy"]] * 2
    assert [Path(command[4]).is_file() for command in commands] == [True, True]
    assert [command[command.index("--bits") + 1] for command in commands] == ["4,3,2", "3,2"]
    assert [command[3] for command in commands] == ["sensitivity", "sensitivity"]
    assert "| bb | 2,000 | 0.10000 |" in page.read_text()
    assert "| w4a4 | all at 2 bits | 1,234 B | 2.00000 | 0.5000 | 90.00 % |" in page.read_text()
