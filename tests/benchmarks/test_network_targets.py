"""The list's networks on targets: which are run, and the rows that the table keeps."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
from torch import Tensor, nn

from network_list import NetworkRow, path_of
from network_targets import main, smallest
from qil_deploy.reports import write_report
from qil_deploy.runtime_tests.targets import TargetResult

CODES = {"timm/resnet18": 500, "timm/resnet10t": 300, "timm/convnext_atto": 10, "timm/vgg11": 400}


class Small(nn.Module):
    """A convolution and a linear layer."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3, stride=4), nn.Linear(4, classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.conv(x).relu().mean((2, 3)))
        return logits


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """Rows of the list for a few networks."""
    for name, codes in CODES.items():
        kind = "float parts" if "convnext" in name else "integers"
        row = NetworkRow(schema=NetworkRow.SCHEMA, name=name, size=64, kind=kind, codes=codes)  # type: ignore[arg-type] # one of the kinds
        write_report(path_of(tmp_path / "rows", name), row)
    return tmp_path / "rows"


def test_the_smallest_in_integers_alone_are_taken(rows: Path) -> None:
    assert smallest(rows, 2) == ["timm/resnet10t", "timm/vgg11"]
    assert smallest(rows, 9) == ["timm/resnet10t", "timm/vgg11", "timm/resnet18"]


def test_what_a_target_has_found_is_kept(rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timm, "create_model", lambda _name, num_classes: Small(num_classes))
    page, out = tmp_path / "page.md", tmp_path / "out"
    page.write_text("# Targets\n\n<!-- network_targets -->\n<!-- end -->\n")
    main(None, targets="native", rows=rows, count=2, out=out, page=page)
    table = page.read_text()
    assert "| model | native |" in table
    assert table.count("| 0 of ") == 2
    assert "timm/vgg11" in table

    def never(*_: object) -> dict[str, TargetResult]:
        raise AssertionError("it was run before")

    monkeypatch.setattr("targets_table.found_on", never)
    main(None, targets="native", rows=rows, count=2, out=out, page=page)
    assert page.read_text() == table
