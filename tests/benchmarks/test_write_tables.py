"""Tables of the page come from the available reports, and from those alone."""

from __future__ import annotations

from pathlib import Path

import pytest

import write_tables
from export_cost import ExportCost, ExportCostReport
from qil_deploy.errors import DataError
from qil_deploy.runtime_tests import write_report
from qil_deploy.runtime_tests.child_process import Ended
from qil_deploy.runtime_tests.environment import describe_environment

TEXT = "# Page\n\n<!-- one -->\nold\n<!-- end -->\n\nbetween\n\n<!-- two -->\n<!-- end -->\n"


def test_tables_are_replaced_where_they_stand() -> None:
    assert write_tables.table_names(TEXT) == ["one", "two"]
    expected = "# Page\n\n<!-- one -->\nold\n<!-- end -->\n\nbetween\n\n<!-- two -->\nnew\\1\n<!-- end -->\n"
    assert write_tables.with_tables(TEXT, {"two": "new\\1\n"}) == expected


def test_a_table_without_a_place_is_an_error() -> None:
    with pytest.raises(DataError, match="no markers <!-- three --> "):
        write_tables.with_tables(TEXT, {"three": "new"})


def test_the_page_has_a_place_for_every_report() -> None:
    page = write_tables.PAGE.read_text()
    assert write_tables.table_names(page) == [
        *("resnet18", "alexnet", "mobilenet_v3_large", "efficientnet_b0", "resnet18_wasm", "alexnet_wasm"),
        *("export_cost", "openvino", "step_time", "step_growth"),
    ]


def test_a_report_becomes_a_table(tmp_path: Path) -> None:
    costs = [Ended(exit_code=0, seconds=seconds, peak_bytes=2**30) for seconds in (15.0, 15.1)]
    exports = tuple(
        ExportCost(kind=kind, command="python", cost=cost)
        for kind, cost in zip(("quantized", "frozen"), costs, strict=True)
    )
    report = ExportCostReport(
        schema=ExportCostReport.SCHEMA, network="resnet34", exports=exports, environment=describe_environment()
    )
    write_report(tmp_path / "export_cost.json", report)
    page = tmp_path / "page.md"
    page.write_text("<!-- export_cost -->\n<!-- end -->\n<!-- openvino -->\nas before\n<!-- end -->\n")

    write_tables.main(tmp_path, page=page)

    text = page.read_text()
    assert "| checkpoint | wall time | peak memory | at most 15 s and 2 GiB |\n| --- | ---: | ---: | ---: |" in text
    assert "| resnet34, quantized | 15.0 s | 1.00 GiB | met |" in text
    assert "| resnet34, frozen | 15.1 s | 1.00 GiB | MISSED |" in text
    assert text.endswith("<!-- openvino -->\nas before\n<!-- end -->\n")
