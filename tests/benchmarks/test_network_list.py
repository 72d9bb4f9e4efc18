"""The list of networks: the outcome for one of each kind, and the table of it."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from torch import Tensor, nn

import network_list
from network_list import NetworkRow, examine, main, rows_of, summary
from qil_deploy.commands.predictors import record_codes
from qil_deploy.reports import read_report


class Small(nn.Module):
    """A convolution, an activation and a linear layer."""

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.conv, self.activation = nn.Conv2d(3, 4, 3, stride=4), activation
        self.head = nn.Linear(4, network_list.CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.activation(self.conv(x)).mean((2, 3)))  # type: ignore[no-any-return] # a tensor


class Random(nn.Module):
    """A network that draws random numbers."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3)) + torch.rand(1)


NETWORKS = {"integers": nn.ReLU(), "float parts": nn.GELU()}


@pytest.fixture(autouse=True)
def networks(monkeypatch: pytest.MonkeyPatch) -> None:
    def create(name: str, num_classes: int) -> nn.Module:  # noqa: ARG001 - as timm's
        return Small(NETWORKS[name]) if name in NETWORKS else Random()

    monkeypatch.setattr(timm, "create_model", create)


@pytest.mark.parametrize("kind", NETWORKS)
def test_every_code_is_compared_in_every_backend(kind: str) -> None:
    row = examine(f"timm/{kind}")
    assert (row.kind, row.differing, row.layers) == (kind, 0, 2)
    assert row.bytes > 0
    # Outputs alone where something stays in float; else codes of the convolution, the pooling and its flat copy, too.
    assert row.codes == (40 if kind == "float parts" else 40 + 4 * (4 * 16 * 16 + 4 + 4))
    assert row.remark == ("1 gelu" if kind == "float parts" else "")


def test_a_network_that_differs_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        network_list,
        "record_codes",
        lambda model, x: {name: tensor + tensor.dtype.type(1) for name, tensor in record_codes(model, x).items()},
    )
    row = examine("timm/integers")
    backends = 1 + 2 * 4
    assert row.differing == row.codes * backends


def test_refusals_stand_in_the_table() -> None:
    row = examine("timm/random")
    assert row.kind == "refused"
    assert "random" in row.remark
    assert rows_of([row]).cells[0][2] == "refused"


def test_what_is_known_is_not_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page, out = tmp_path / "page.md", tmp_path / "runs"
    page.write_text("# Networks\n\n<!-- networks -->\n<!-- end -->\n")
    monkeypatch.setattr(network_list, "ALL", ("timm/integers", "timm/random"))
    main(["timm/integers"], out=out, page=None)
    known = read_report(network_list.path_of(out, "timm/integers"), NetworkRow)
    monkeypatch.setattr(network_list, "examine", lambda name: NetworkRow(**(vars(known) | {"name": name})))
    main(None, out=out, page=page)
    table = page.read_text()
    assert table.count("| timm/") == 2
    assert "timm: 2 networks, 2 in integers alone, 0 with float parts, 0 refused." in table
    assert "torchvision: 0 networks" in summary([known])
