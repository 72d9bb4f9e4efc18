"""Reports are read back as they were written; any other content of a file leads to a sentence."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest

from qil_deploy.errors import DataError
from qil_deploy.reports import read_report, read_report_of, write_report


@dataclass(frozen=True)
class Apple:
    SCHEMA: ClassVar[str] = "apple/1"

    schema: str
    weight: float
    seeds: tuple[int, ...]
    name: str | None


@dataclass(frozen=True)
class Pear:
    SCHEMA: ClassVar[str] = "pear/1"

    schema: str
    count: int


APPLE = '{"schema": "apple/1", "weight": %s, "seeds": [1, 2], "name": null}'


def test_a_report_comes_back_as_the_class_its_schema_names(tmp_path: Path) -> None:
    reports = (Apple("apple/1", 1.5, (1, 2), "a\ud800"), Pear("pear/1", 3))
    for report in reports:
        write_report(tmp_path / "r.json", report)
        assert read_report_of(tmp_path / "r.json", (Apple, Pear)) == report
        assert read_report(tmp_path / "r.json", type(report)) == report


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "1" + "0" * 400, "-1e400"])
def test_numbers_that_are_no_finite_float64_are_refused(tmp_path: Path, number: str) -> None:
    path = tmp_path / "r.json"
    path.write_text(APPLE % number)
    with pytest.raises(DataError, match=r"r\.json (cannot be read|is damaged).*is not a finite float64 number"):
        read_report(path, Apple)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[" * 100_000, "cannot be read as a report: it is nested too deep"),
        (b"\xff\xfe", "cannot be read as a report"),
        (b"[]", r"has schema None; 'apple/1', 'pear/1' was expected"),
        (b'{"schema": "fig/1"}', r"has schema 'fig/1'; 'apple/1', 'pear/1' was expected"),
        (b'{"schema": "pear/1", "count": true}', "is damaged: report.count must be of type int, and is True"),
        (
            b'{"schema": "pear/1"}',
            "is damaged: report must be an object with the entries of its schema, and has no count",
        ),
        (
            b'{"schema": "apple/1", "weight": 1, "seeds": [1, 2, "x"], "name": null}',
            r"is damaged: report\.seeds\[2\] must be of type int, and is 'x'",
        ),
        (
            b'{"schema": "apple/1", "weight": 1, "seeds": [1], "name": null, "colour": "red"}',
            "report must be an object with the entries schema, weight, seeds, name, and has colour",
        ),
    ],
)
def test_what_is_no_report_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "r.json").write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_report_of(tmp_path / "r.json", (Apple, Pear))
