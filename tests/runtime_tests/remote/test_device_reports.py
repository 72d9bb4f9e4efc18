"""Invalid reports from a device are refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from qil_deploy.errors import TargetError
from qil_deploy.runtime_tests import device_program
from qil_deploy.runtime_tests.targets import find_target, run_on_target

from .conftest import FAST, python, run

# What may come back instead of the report of a run: a change to what it prints, and what is said of that.
BAD_REPORTS = {
    "schema": ("report['schema'] = 'x/1'", "brought back no report: .* has schema 'x/1'"),
    "other model": (
        "report['sha256'] = 64 * '0'",
        "did not send a report of this run: sha256 is '0000.*, and has to be ",
    ),
    "no levels": (
        "report['levels'] = []",
        r"did not send a report of this run: levels is \(\), and has to be \('all',\)",
    ),
    "escapes": (
        r"report['environment']['cpu'] = 'x\x1b[2J'",
        "did not send a report of this run: environment has a text that is too long or cannot be p",
    ),
    "equal, with other codes": (
        "report['levels'][0]['tensors'][0]['sha256'] = 64 * '0'",
        r"did not send a report of this run: level all, '.*', sha256 is '0000",
    ),
    "a tensor left out": (
        "del report['levels'][0]['tensors'][0]",
        "did not send a report of this run: level all, tensors is",
    ),
    "fewer images": ("report['images'] = 1", "did not send a report of this run: images is 1"),
    "a browser's": (
        "report['environment']['browser'] = 'x'",
        "did not send a report of this run: environment, browser known is True",
    ),
    "field": ("del report['threads']", "brought back no report: .* is damaged"),
    "text": ("report = 'hello'", "brought back no report: .* has schema None"),
}


@pytest.mark.parametrize("case", BAD_REPORTS)
def test_reports_that_are_wrong_are_refused(
    ssh: str, golden: tuple[Path, Path], case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    change, message = BAD_REPORTS[case]
    worker = (
        "import contextlib, io, json, sys\nfrom qil_deploy.runtime_tests.device_runner import main\n"
        "with contextlib.redirect_stdout(io.StringIO()) as text:\n"
        f"    main()\nreport = json.loads(text.getvalue())\n{change}\nprint(json.dumps(report))\n"
    )
    device_program.write_device_program(tmp_path / "package.zip")
    monkeypatch.setattr(device_program, "write_device_program", lambda path: path.write_text(worker))
    with pytest.raises(TargetError, match=f"target {ssh} {message}"):
        run_on_target(
            find_target(ssh, python(tmp_path / "py", f"export PYTHONPATH={tmp_path}/package.zip")), *golden, FAST
        )


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("import os; os.kill(os.getpid(), 4)", "failed: the run was ended by signal 4 (SIGILL)."),
        ("raise SystemExit('it is broken')", "brought back no report: "),
        ("raise SystemExit(7)", "failed with exit code 7."),
    ],
)
def test_runs_that_fail_end_with_a_sentence(
    ssh: str,
    golden: tuple[Path, Path],
    script: str,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(device_program, "write_device_program", lambda path: path.write_text(script))
    assert run(ssh, golden).startswith(message)
