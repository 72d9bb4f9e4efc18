"""The page as a parser sees it: balanced, self-contained, escaped, and with the important sentences."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from xml.etree.ElementTree import Element, fromstring

import pytest

from qil_deploy.reports import read_report, write_report
from qil_deploy.runtime_tests.report import DeploymentReport, collect, render
from qil_deploy.runtime_tests.report.chart import Chart, Mark
from qil_deploy.runtime_tests.report.page import TEMPLATES

from .conftest import backend, counted, device, model, on_targets, ran, timed, verified

Write = Callable[..., Path]

NET = model()
HOSTILE = """<script>alert("1")</script><b>&amp;' x"""
VOID = {"meta"}
INLINE = {"b", "code"}


class Page(HTMLParser):
    """Checks that tags are balanced; collects text, attributes and tags."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self._open: list[str] = []
        self._texts: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    @property
    def text(self) -> str:
        return " ".join("".join(self._texts).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag
        if tag not in INLINE:
            self._texts.append(" ")

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] != "style":
            self._texts.append(data)


def everything(write: Write, name: str = NET.path, *, differing: int = 0) -> DeploymentReport:
    """Return two runs with content in every section."""
    file = replace(NET, path=name)
    targets = on_targets(
        file,
        ran(f"arm{name}", device(file, differing=differing)),
        ran("wasm", None, skipped=f"{name} is not set up."),
        ran("board", None, failed=f"{name} stopped answering."),
        exact=False,
    )
    warned = replace(verified(file, backend("ONNX Runtime (all)"), backend(name, accuracy=0.5)), warnings=(name,))
    first = write("first", warned, targets, timed(file, model("other.onnx", "b"), warnings=(name,)), counted(file))
    second = write(f"second {name.replace('/', '')}", verified(file), timed(file, factor=2.0))
    return collect([first, second])


def test_the_page_needs_nothing_but_itself(write: Write) -> None:
    text = render(everything(write))
    page = Page(text)
    assert "//" not in text
    assert "url(" not in text
    assert "@import" not in text
    assert not {"script", "link", "iframe", "img", "object", "embed", "form"} & set(page.tags)
    ids = {value for name, value in page.attributes if name == "id"}
    links = [value for name, value in page.attributes if name in ("src", "href", "xlink:href", "action")]
    assert links
    assert all(link[0] == "#" and link[1:] in ids for link in links)
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert ("lang", "en") in page.attributes


def test_names_are_escaped(write: Write) -> None:
    page = Page(render(everything(write, HOSTILE)))
    assert "script" not in page.tags
    for sentence in (
        f"arm{HOSTILE}",
        f"{HOSTILE} is not set up.",
        f"{HOSTILE} stopped answering.",
        f"bench: {HOSTILE}",
    ):
        assert sentence in page.text
    assert "Browser/1 <telephone>" in page.text


def test_the_verdict_comes_first_and_names_what_differs(write: Write) -> None:
    page = Page(render(everything(write, differing=9)))
    start = page.text.split("Models Exactness")[0]  # the links to the sections
    assert (
        "Differs: 9 of 3,240 numbers that had to be equal to those of the integer reference are not: net.onnx" in start
    )
    assert "net.onnx (aaaaaaaaaaaa) in first: differs." in start
    assert "9 of 600 elements of conv1, by 2 at most, first at [1, 5]." in start
    assert "net.onnx (aaaaaaaaaaaa) in second modelsnet.onnx: equal." in start
    assert "board failed: models/net.onnx stopped answering." in start
    assert "other.onnx (bbbbbbbbbbbb) in first: not compared." in start
    assert page.text.index("differs.") < page.text.index("not compared.")


def test_every_section_has_its_figures(write: Write) -> None:
    text = Page(render(everything(write))).text
    for sentence in (
        "The file net.onnx was not found.",
        "90.00 % of 50",
        "50.00 % of 50",
        "native, 1 thread, batch 1, caches warm (bench)",
        "1.00 ms (1.00 to 1.00), p95 1.01",
        "Latency as a ratio to net.onnx",
        "net.onnx once more, first 1.00 (1.00 to 1.00)",
        "QLinearConv 3 812.5 75.0 %",
        "What makes these times doubtful",
        "2 times, intervals apart",
        "Not measured: doctor was not run on these models.",
        "skipped models/net.onnx is not set up.",
        "failed models/net.onnx stopped answering.",
        "arm64:cortex-a53, batch 1",
        "net.onnx, first 1.000 million",
        "1,000,000 1 (the first) 0.20 %",
        "a proxy for the work",
        "failed it crashed.",
        "Fast 9000",
        "governor performance",
        "qil_deploy.bench/2",
    ):
        assert sentence in text


def test_what_is_missing_is_said_to_be(write: Write) -> None:
    timed_only = Page(render(collect([write("a", timed(NET))]))).text
    assert "Not measured: nothing was compared with the integer reference." in timed_only
    assert "Runs compared" not in timed_only
    verified_only = Page(render(collect([write("b", verified(NET))]))).text
    assert "Latency and memory Not measured." in verified_only
    assert "Nothing that was asked for is missing." in verified_only
    apart = collect([write("c", verified(NET)), write("d", verified(model("x.onnx", "b")))])
    assert "No figure is in two runs." in Page(render(apart)).text


def test_what_may_hide_a_difference_is_read_first(write: Write) -> None:
    folder = write("run", verified(NET))
    (folder / "damaged <1>.json").write_text("{")
    page = Page(render(collect([folder])))
    assert page.text.index("Read this first") < page.text.index("Models Exactness")
    assert "damaged <1>.json cannot be read as a report" in page.text


def test_the_page_of_what_was_read_back_is_the_same(write: Write, tmp_path: Path) -> None:
    report = everything(write)
    write_report(tmp_path / "r.json", report)
    assert render(read_report(tmp_path / "r.json", DeploymentReport)) == render(report)


def drawn(chart: Chart) -> Element:
    """Return a chart as drawn on the page."""
    return fromstring(TEMPLATES.get_template("chart.html.jinja").module.figure(chart))  # type: ignore[attr-defined] # noqa: S314 - our own


@pytest.mark.parametrize("dots", [False, True])
def test_pictures_stay_inside_their_frame_whatever_the_values(dots: bool) -> None:
    values = (0.0, 1e-300, 0.3, 7.0, 1e300, 1.7e308)
    marks = [Mark(label="m", text="t", value=value, low=value / 2, high=value, tail=value) for value in values]
    for shown in ([marks[index]] for index in range(len(marks))):
        for shape in drawn(Chart("title", shown, "ms", dots)).iter():
            for name in ("x", "x1", "x2", "cx", "width"):
                share = re.fullmatch(r"([\d.]+)%", shape.get(name, "0%"))
                assert share is not None
                assert 0 <= float(share[1]) <= 100


def test_bars_are_as_long_as_their_values() -> None:
    marks = [Mark(label="a", text="", value=0.5, low=0.4, high=0.6), Mark(label="b", text="", value=2.0)]
    figure = drawn(Chart("title", marks, "ms"))
    bars = [each.get("width") for each in figure.iter("rect") if each.get("class") == "c0"]
    assert bars == ["25.000%", "100.000%"]
    whisker = next(each for each in figure.iter("line"))
    assert (whisker.get("x1"), whisker.get("x2")) == ("20.000%", "30.000%")
    assert [each.text for each in figure.iter("text")] == ["0", "1", "2 ms"]
