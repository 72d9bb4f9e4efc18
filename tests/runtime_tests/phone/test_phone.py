"""The phone's page: from opening it to the result in the report, and every way to get none."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import typer
from numpy.typing import NDArray
from typer.testing import CliRunner

from qil_deploy.commands.phone import phone_command, qr_code
from qil_deploy.errors import ConfigError, QilDeployError, TargetError
from qil_deploy.reports import read_report
from qil_deploy.runtime_tests.golden import write_golden
from qil_deploy.runtime_tests.phone import verify_on_phone as phone_module
from qil_deploy.runtime_tests.phone import wait_for_result
from qil_deploy.runtime_tests.phone.verify_on_phone import Address, choose_address, network_address, verify_on_phone
from qil_deploy.runtime_tests.phone.web_runtime import runtime_state
from qil_deploy.runtime_tests.targets import RunOptions, TargetsReport
from tests.runtime_tests.every_operator import GRID, write_network
from tests.runtime_tests.patience import Clock

if TYPE_CHECKING:
    from playwright.sync_api import Page

OpenPhone = Callable[..., "Page"]
WriteModel = Callable[..., Path]
OPTIONS = RunOptions(levels=("disabled", "all"), threads=2, repeats=5, timeout=60)
ADDRESS = re.compile(r"http://127\.0\.0\.1:\d+/[\w-]+/")


@pytest.fixture
def golden(write_model: WriteModel, images: NDArray[np.uint8], tmp_path: Path) -> tuple[Path, Path]:
    """A small model and golden vectors of three images."""
    model = write_model()
    write_golden(model, images[:3], "noise", tmp_path / "golden.npz")
    return model, tmp_path / "golden.npz"


@dataclass
class Command:
    """A running `phone` command, and the address that it printed."""

    process: subprocess.Popen[str]
    url: str

    def end(self) -> tuple[int, str, str]:
        """Return exit code and later output, after the command has ended by itself."""
        out, err = self.process.communicate(timeout=300)
        return self.process.returncode, out, err


@pytest.fixture
def command(golden: tuple[Path, Path]) -> Iterator[Callable[..., Command]]:
    """Return a function that starts the command and waits for its address."""
    reason = runtime_state()
    if reason is not None:
        pytest.skip(f"ONNX Runtime Web: {reason}")
    processes = []

    def start(*options: object) -> Command:
        arguments = [sys.executable, "-m", "qil_deploy", "phone", golden[0], "--golden", golden[1], *options]
        process = subprocess.Popen(
            list(map(str, arguments)),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            cwd=golden[0].parent,
        )
        processes.append(process)
        assert process.stdout is not None
        for line in process.stdout:
            found = ADDRESS.search(line)
            if found:
                return Command(process, found.group())
        raise AssertionError(process.communicate())

    yield start
    for process in processes:
        process.kill()
        process.wait()


def test_from_opening_the_page_to_the_result_in_the_report(
    command: Callable[..., Command], open_phone: OpenPhone, tmp_path: Path
) -> None:
    running = command("--threads", 2, "--repeats", 5, "--json", tmp_path / "phone.json")
    page = open_phone(running.url)
    start = page.get_by_role("button", name="Start")
    page.locator("#start:enabled").wait_for()  # once the page knows what it is to do
    assert "model.onnx: 3 images" in page.locator("#about").inner_text()
    assert page.locator("#results").is_hidden()
    # A thumb finds it, and nothing is wider than the screen.
    box = start.bounding_box()
    assert box is not None
    assert box["height"] >= 48
    assert box["width"] >= 300

    start.tap()

    page.get_by_text("the computer has it").wait_for()
    verdict = page.locator("#verdict")
    assert re.fullmatch(r"All [\d,]+ codes equal\.", verdict.inner_text())
    assert verdict.get_attribute("aria-live") == "polite"
    assert page.locator("#levels tr").count() == 4
    facts = page.locator("#facts").inner_text()
    assert re.search(r"over 5 runs\s+median [\d.]+ ms, 95 % within [\d.]+ ms", facts)
    assert re.search(r"Threads\s+2\s", facts)
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    assert page.get_by_role("button", name="Done").is_disabled()

    code, out, err = running.end()
    assert code == 0, err
    assert "Exact: every code and logit is that of the integer reference." in out
    report = read_report(tmp_path / "phone.json", TargetsReport)
    assert report.exact is True
    (target,) = report.targets
    assert target.target == "phone"
    assert target.codes is not None
    shown = int(re.sub(r"\D", "", verdict.inner_text()))
    assert target.codes.compared_elements == shown
    assert target.codes.environment.browser == page.evaluate("navigator.userAgent")
    assert target.codes.latency is not None

    arguments = [sys.executable, "-m", "qil_deploy", "report", tmp_path / "phone.json", "-o", tmp_path / "report.html"]
    subprocess.run(list(map(str, arguments)), check=True, timeout=300)
    assert ">phone" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_what_differs_is_named_on_the_page_and_in_the_report(
    command: Callable[..., Command], open_phone: OpenPhone, golden: tuple[Path, Path], tmp_path: Path
) -> None:
    with np.load(golden[1]) as stored:
        arrays: dict[str, Any] = dict(stored)
    name = json.loads(str(arrays["about"]))["tensors"][2]
    arrays[name] = arrays[name].copy()
    arrays[name][1, 2, 3, 0] += 3
    np.savez(golden[1], **arrays)
    running = command("--json", tmp_path / "phone.json", "--repeats", 0)
    page = open_phone(running.url)
    page.get_by_role("button", name="Start").tap()
    page.get_by_text("the computer has it").wait_for()
    assert f"The first tensor that differs is {name}: 1 of" in page.locator("#verdict").inner_text()
    assert "first at [1, 2, 3, 0]" in page.locator("#verdict").inner_text()
    code, out, _ = running.end()
    assert code == 1
    assert f"phone, level all: '{name}' is the first tensor that differs" in out
    assert read_report(tmp_path / "phone.json", TargetsReport).exact is False


@contextmanager
def served(golden: tuple[Path, Path], address: Address, options: RunOptions = OPTIONS) -> Iterator[tuple[str, Any]]:
    """Serve the page in a thread; give its address and the future report."""
    urls: list[str] = []
    ready = threading.Event()

    def announce(url: str) -> None:
        urls.append(url)
        ready.set()

    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(verify_on_phone, *golden, options, address, announce=announce)
        future.add_done_callback(lambda _: ready.set())
        ready.wait(300)
        yield (urls[0] if urls else ""), future


def test_several_outputs_are_shown_by_name(open_phone: OpenPhone, tmp_path: Path) -> None:
    """A row of floats, and codes: a map, boxes as a detector makes them, features."""
    images = np.random.default_rng(5).integers(0, 256, (4, *GRID.shape), np.uint8)
    model, golden = write_network(tmp_path / "several.onnx", "codes", images), tmp_path / "golden.npz"
    write_golden(model, images[:2], "noise", golden)
    with np.load(golden) as stored:
        arrays: dict[str, Any] = dict(stored)
    arrays["boxes"] = arrays["boxes"].copy()
    arrays["boxes"][1, 2, 3, 0] ^= 1
    np.savez(golden, **arrays)
    with served((model, golden), Address(name="phone.test"), replace(OPTIONS, repeats=0)) as (url, future):
        page = open_phone(url)
        page.get_by_role("button", name="Start").tap()
        page.get_by_text("the computer has it").wait_for()
        facts = page.locator("#facts").inner_text()
        assert re.search(r"Output row, float32 \[7\]\s+0 of 28 differ", facts)
        assert re.search(r"Output map, uint8 \[5, 16, 16\]\s+0 of 5,120 differ", facts)
        assert re.search(r"Output boxes, uint8 \[6, 8, 8\]\s+2 of 1,536 differ", facts)
        assert "The first tensor that differs is boxes: 1 of 768 elements" in page.locator("#verdict").inner_text()
        assert page.evaluate("document.documentElement.scrollWidth") == 360
        report: TargetsReport = future.result(300)
    assert report.exact is False
    assert report.targets[0].codes is not None
    assert report.targets[0].codes.differing > 0


def test_over_plain_http_one_thread_has_to_do_and_the_page_says_why(
    golden: tuple[Path, Path], open_phone: OpenPhone
) -> None:
    with served(golden, Address(name="phone.test")) as (url, future):
        page = open_phone(url, dark=True)
        page.get_by_role("button", name="Start").tap()
        page.get_by_text("the computer has it").wait_for()
        assert page.evaluate("crossOriginIsolated || isSecureContext") is False
        facts = page.locator("#facts").inner_text()
        assert "browsers allow more only to pages that came over HTTPS or from the device itself (2 were" in facts
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(22, 23, 27)"
        report: TargetsReport = future.result(300)
    assert report.exact is True
    codes = report.targets[0].codes
    assert codes is not None
    assert codes.threads == 1
    assert "threads" not in codes.environment.features


def test_a_page_that_fails_says_why_and_may_try_again(golden: tuple[Path, Path], open_phone: OpenPhone) -> None:
    with served(golden, Address()) as (url, future):
        page = open_phone(url)
        page.route("**/model-with-outputs.onnx", lambda route: route.fulfill(status=200, body=b"no model"))
        page.get_by_role("button", name="Start").tap()
        page.get_by_text(re.compile("It did not work: ONNX Runtime Web .* cannot load the model")).wait_for()
        page.unroute("**/model-with-outputs.onnx")
        page.get_by_role("button", name="Try again").tap()
        page.get_by_text("the computer has it").wait_for()
        assert future.result(300).exact is True


def test_a_result_that_cannot_be_is_refused_and_a_right_one_after_it_is_taken(
    golden: tuple[Path, Path], open_phone: OpenPhone
) -> None:
    with served(golden, Address()) as (url, future):
        page = open_phone(url)
        page.route("**/result", lambda route: route.continue_(post_data=b"{}"))
        page.get_by_role("button", name="Start").tap()
        page.get_by_text("It did not work: The result was refused: what the browser sent has schema None").wait_for()
        page.unroute("**/result")
        page.get_by_role("button", name="Try again").tap()
        page.get_by_text("the computer has it").wait_for()
        assert future.result(300).exact is True


def test_the_last_words_of_a_page_that_gave_up_are_kept(
    golden: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    if runtime_state() is not None:
        pytest.skip(f"ONNX Runtime Web: {runtime_state()}")
    said = threading.Event()
    monkeypatch.setattr(wait_for_result, "time", Clock(said.is_set))
    with served(golden, Address(), replace(OPTIONS, timeout=2)) as (url, future):
        request = urllib.request.Request(f"{url}failure", data=b"out of memory")  # noqa: S310 - our own server
        urllib.request.urlopen(request, timeout=120).close()  # noqa: S310 - likewise
        said.set()
        with pytest.raises(TargetError, match=r"sent nothing for 2 seconds\. .* Its last words: out of memory"):
            future.result(300)


@pytest.mark.usefixtures("interruptible")
def test_a_page_whose_command_has_ended_says_so(command: Callable[..., Command], open_phone: OpenPhone) -> None:
    running = command()
    page = open_phone(running.url)
    page.get_by_role("button", name="Start").wait_for()
    running.process.send_signal(signal.SIGINT)
    running.end()
    page.get_by_role("button", name="Start").tap()
    page.get_by_text(re.compile("It did not work: ")).wait_for()


@pytest.mark.usefixtures("interruptible")
@pytest.mark.skipif(os.name == "nt", reason="Ctrl-C is a signal elsewhere")
def test_ctrl_c_ends_with_a_sentence(command: Callable[..., Command], tmp_path: Path) -> None:
    running = command("--json", tmp_path / "phone.json")
    with urllib.request.urlopen(running.url, timeout=120) as response:  # noqa: S310 - our own server
        assert b"Does this device compute the same?" in response.read()
    running.process.send_signal(signal.SIGINT)
    code, _, err = running.end()
    assert code == 2
    assert "Error: stopped by hand before a result came; nothing was written." in err
    assert not (tmp_path / "phone.json").exists()


def test_nobody_answers(command: Callable[..., Command]) -> None:
    code, out, err = command("--timeout", 1).end()
    assert code == 2
    assert "Only this machine reaches it." in out
    assert "adb reverse tcp:" in out
    assert "Error: the page has sent nothing for 1 seconds. Give it longer with --timeout" in err


def test_it_listens_on_loopback_unless_it_is_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose_address(host=None, lan=False, port=0) == Address(host="127.0.0.1", name="127.0.0.1", port=0)
    assert choose_address(host="10.0.0.7", lan=False, port=80) == Address(host="10.0.0.7", name="10.0.0.7", port=80)
    monkeypatch.setattr(phone_module, "network_address", lambda: "192.0.2.77")
    assert choose_address(host=None, lan=True, port=9) == Address(host="192.0.2.77", name="192.0.2.77", port=9)
    everywhere = choose_address(host="0.0.0.0", lan=False, port=9)  # noqa: S104 - what is refused to nobody
    assert (everywhere.host, everywhere.name) == ("0.0.0.0", "192.0.2.77")  # noqa: S104 - likewise
    with pytest.raises(ConfigError, match="--lan finds the --host"):
        choose_address(host="10.0.0.7", lan=True, port=0)
    for port in (-1, 2**16):
        with pytest.raises(ConfigError, match=f"--port is {port}; ports go from 0"):
            choose_address(host=None, lan=False, port=port)


def test_a_machine_in_no_network_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(phone_module, "_ELSEWHERE", ("255.255.255.255", 9))
    with pytest.raises(TargetError, match=r"seems to be in no network .*name its address with --host"):
        network_address()


def test_wrong_use_is_refused_before_anything_is_served(
    golden: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qil_deploy.runtime_tests.phone.web_runtime.runtime_files", dict)
    monkeypatch.setattr(phone_module, "runtime_files", dict)
    app = typer.Typer()
    app.command()(phone_command)
    model, vectors = golden
    np.save(tmp_path / "images.npy", np.zeros((1, 3, 8, 8), np.uint8))
    for options, sentence in (
        ((tmp_path / "absent.onnx",), "does not exist"),
        ((model,), "does not say which data set"),
        ((model, "--golden", tmp_path / "absent.npz"), "there are no golden vectors"),
        ((model, "--golden", tmp_path / "images.npy"), "holds images alone, nothing to compare with"),
        ((model, "--golden", vectors, "--data", "digits"), "--golden brings its own images"),
        ((model, "--golden", vectors, "--threads", 0), "--threads is 0; it must be at least 1"),
        ((model, "--golden", vectors, "--repeats", -1), "--repeats is -1; it must be at least 0"),
        ((model, "--golden", vectors, "--timeout", 0), "--timeout is 0; it must be more than 0 seconds"),
        ((model, "--golden", vectors, "--timeout", "nan"), "--timeout is nan"),
        ((model, "--golden", vectors, "--port", 2**16), "--port is 65536"),
        ((model, "--golden", vectors, "--host", "192.0.2.254"), "cannot serve on 192.0.2.254"),
        ((model, "--golden", vectors, "--json", tmp_path), "is a folder; name a file to write"),
    ):
        result = CliRunner().invoke(app, [str(option) for option in options])
        assert isinstance(result.exception, QilDeployError), sentence
        assert sentence in str(result.exception)


def test_without_the_runtime_it_says_how_to_set_it_up(
    golden: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QIL_DEPLOY_TARGETS", str(tmp_path))
    with pytest.raises(TargetError, match="cannot be used: it is not set up; run: python -m qil_deploy target setup"):
        verify_on_phone(*golden, OPTIONS, Address(), announce=lambda _: None)


def test_the_code_that_is_drawn_is_the_address() -> None:
    segno = pytest.importorskip("segno")
    url = "http://192.168.0.17:43211/AbCdEfGhIjKlMnOpQrStUv/"
    drawing = qr_code(url)
    assert drawing.style == "bright_white on black"
    rows = drawing.plain.rstrip("\n").split("\n")
    upper = [[letter in "█▀" for letter in row] for row in rows]
    lower = [[letter in "█▄" for letter in row] for row in rows]
    light = [row for pair in zip(upper, lower, strict=True) for row in pair]
    expected = [[module == 0 for module in row] for row in segno.make(url, micro=False).matrix_iter(border=2)]
    assert light[: len(expected)] == expected
