"""Invalid reports given to `report`; a page that cannot be written."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.command_line import Outcome

CONTENTS = {
    "empty": b"",
    "noise": bytes(range(256)),
    "half": b'{"schema": "qil_deploy.verify/2", "model": {',
    "a list": b"[]",
    "endless brackets": b"[" * 200_000,
    "another schema": b'{"schema": "somebody/1"}',
    "no more than a schema": b'{"schema": "qil_deploy.verify/2"}',
    "NaN": b'{"schema": NaN}',
}


@pytest.mark.parametrize("name", CONTENTS)
def test_contents_that_are_no_report(call: Callable[..., Outcome], tmp_path: Path, name: str) -> None:
    source = tmp_path / "source.json"
    source.write_bytes(CONTENTS[name])
    outcome = call("report", source, "-o", tmp_path / "page.html")
    assert outcome.code == 2, outcome
    assert "Traceback" not in outcome.error
    assert str(source) in outcome.error or "could not be read" in outcome.out, outcome


def test_paths_that_are_no_report(call: Callable[..., Outcome], tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.json"  # reading it would wait for ever
    os.mkfifo(pipe)
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "absent.json", tmp_path / "folder", pipe, Path("/dev/zero"), Path("/dev/null")):
        outcome = call("report", path, "-o", tmp_path / "page.html")
        assert outcome.code == 2, (path, outcome)
        assert "Traceback" not in outcome.error


def test_pages_go_to_files_alone(model: Path, call: Callable[..., Outcome], tmp_path: Path) -> None:
    source = tmp_path / "doctor.json"
    assert call("doctor", model, "--json", source).code in (0, 1)
    for path in (tmp_path, Path("/dev/full"), source, source / "page.html"):
        outcome = call("report", source, "-o", path)
        assert outcome.code == 2, (path, outcome)
        assert str(path) in outcome.error
