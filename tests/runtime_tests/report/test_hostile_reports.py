"""Reading a report with any change ends in one of our errors, or in a page."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qil_deploy.errors import DataError
from qil_deploy.reports import write_report
from qil_deploy.runtime_tests.report import collect, render

from .conftest import counted, device, model, on_targets, ran, timed, verified

NET = model()
REPORTS: list[Any] = [
    verified(NET),
    on_targets(NET, ran("arm", device(NET, differing=2)), exact=False),
    timed(NET, model("slow.onnx", "b")),
    device(NET),
    counted(NET),
]
VALUES: st.SearchStrategy[Any] = st.one_of(
    st.sampled_from([None, True, [], {}, [1], "", "<b>", "\ud800", "a\0b", "/dev/zero", "../..", "native", "all"]),
    st.sampled_from([0, -1, 2**63, 10**300, 10**400, 0.5, -0.0, 5e-324, 1.7e308, float("nan"), float("inf")]),
)


def places(value: object, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the paths of all values in decoded JSON."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in items:
        yield (*path, key)
        yield from places(child, (*path, key))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hostile")


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), index=st.integers(0, len(REPORTS)), value=VALUES)
def test_a_report_with_any_value_anywhere_ends_in_a_sentence_or_a_page(
    folder: Path, data: st.DataObject, index: int, value: object
) -> None:
    if index < len(REPORTS):
        content = json.loads(json.dumps(asdict(REPORTS[index])))
    else:
        write_report(folder / "0.json", REPORTS[0])
        write_report(folder / "1.json", REPORTS[2])
        write_report(folder / "2.json", REPORTS[4])
        content = json.loads(json.dumps(asdict(collect([folder / f"{number}.json" for number in range(3)]))))
    *way, last = data.draw(st.sampled_from(list(places(content))))
    holder = content
    for key in way:
        holder = holder[key]
    holder[last] = value
    path = folder / "changed.json"
    path.write_text(json.dumps(content))
    try:
        report = collect([path])
    except DataError:
        return
    assert render(report).startswith("<!DOCTYPE html>")
    write_report(folder / "again.json", report)
    assert collect([folder / "again.json"]).verdict == report.verdict
