"""Text from files is displayed as text: no terminal obeys it, it forges no line, and no sentence grows with it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
import safetensors.numpy
from PIL import Image
from safetensors import safe_open

from qil_deploy.pages import TEXT_LENGTH
from qil_deploy.runtime_tests.golden import write_golden
from qil_deploy.untrusted_text import LINE_LENGTH

from .conftest import CLASSES, ZOO, edit_metadata

if TYPE_CHECKING:
    from tests.command_line import Outcome

# Sets a terminal's title, clears its screen, is wrong markup and an emoji to rich, forges a verdict, writes backwards.
SHORT = "\x1b]0;owned\x07\x1b[2J[/red]:bug:\nExact: forged\r\u202e\x9b31m"
LONG = SHORT + "a" * 300_000
TEXTS = pytest.mark.parametrize("text", [SHORT, LONG], ids=["short", "long"])
Tame = Callable[..., "Outcome"]


@pytest.fixture(autouse=True)
def _narrow_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")


@pytest.fixture
def tame(call: Callable[..., Outcome]) -> Callable[..., Outcome]:
    """Return a function that runs a command and requires its output to be harmless."""

    def run(*arguments: object) -> Outcome:
        outcome = call(*arguments)
        assert outcome.code in (0, 1, 2), outcome
        assert "\n" not in outcome.error.strip("\n"), outcome
        for shown in (outcome.shown, outcome.error):
            assert shown.replace("\n", "").isprintable(), arguments
            assert "\nExact: forged" not in shown, arguments
            assert max(map(len, shown.split("\n"))) <= LINE_LENGTH + len("Error: "), arguments
        return outcome

    return run


def edited(content: bytes, path: Path, edit: Callable[[onnx.ModelProto], None]) -> Path:
    model = onnx.load_from_string(content)
    edit(model)
    path.write_bytes(model.SerializeToString())
    return path


def metadata_edits(content: bytes, text: str) -> Iterator[dict[str, Any]]:
    """Yield entries of the metadata that hold `text`, each in one place."""
    about = json.loads(onnx.load_from_string(content).metadata_props[0].value)
    yield {"class_names": [f"{text}{index}" for index in range(10)]}
    for name in ("schema", "data", "format", "input", "weights", "placement", "batch", "preprocessing"):
        yield {name: text}
    yield {"float_parts": [text]}
    yield {"passes": {text: [text] * 20}}
    yield {"left_alone": {text: {text: [text] * 20}}}
    yield {"freezing": {text: text}}
    yield {"certificate": [line | {"name": text, "where": text} for line in about["certificate"]]}
    yield {"layers": [layer | {"name": text} for layer in about["layers"]]}
    yield {"preprocessing": about["preprocessing"] | {"scale": text}}


@TEXTS
@pytest.mark.parametrize("command", ["inspect", "doctor", "verify"])
def test_metadata(tame: Tame, content: bytes, images: Path, tmp_path: Path, text: str, command: str) -> None:
    for entries in metadata_edits(content, text):
        path = edited(content, tmp_path / "m.onnx", lambda model, it=entries: edit_metadata(model, **it))  # type: ignore[misc]
        tame(command, path, *(["--data", images] if command == "verify" else []))


def rename_nodes(model: onnx.ModelProto, text: str) -> None:
    for index, node in enumerate(model.graph.node):
        node.name = f"{text}{index}"


def rename_tensors(model: onnx.ModelProto, text: str) -> None:
    names = [*(tensor.name for tensor in model.graph.initializer)]
    names += [name for node in model.graph.node for name in node.output if name != "logits"]
    new = {name: f"{text if index % 20 == 0 else 't'}{index}" for index, name in enumerate(names)}
    for tensor in model.graph.initializer:
        tensor.name = new[tensor.name]
    for node in model.graph.node:
        node.input[:] = [new.get(name, name) for name in node.input]
        node.output[:] = [new.get(name, name) for name in node.output]


def rename_domain(model: onnx.ModelProto, text: str) -> None:
    model.graph.node[3].domain = text
    model.opset_import.add(domain=text, version=3)


def store_elsewhere(model: onnx.ModelProto, text: str) -> None:
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=text)


ONNX_EDITS: dict[str, Callable[[onnx.ModelProto, str], None]] = {
    "node": rename_nodes,
    "tensor": rename_tensors,
    "operator": lambda model, text: setattr(model.graph.node[3], "op_type", text),
    "domain": rename_domain,
    "attribute": lambda model, text: setattr(
        next(node for node in model.graph.node if node.attribute).attribute[0], "name", text
    ),
    "input": lambda model, text: setattr(model.graph.input[0], "name", text),
    "output": lambda model, text: setattr(model.graph.output[0], "name", text),
    "batch": lambda model, text: setattr(model.graph.input[0].type.tensor_type.shape.dim[0], "dim_param", text),
    "metadata": lambda model, text: setattr(model.metadata_props[0], "value", text),
    "metadata key": lambda model, text: setattr(model.metadata_props[0], "key", text),
    "external data": store_elsewhere,
}


@TEXTS
@pytest.mark.parametrize("edit", ONNX_EDITS)
def test_names_in_onnx(tame: Tame, content: bytes, images: Path, tmp_path: Path, text: str, edit: str) -> None:
    path = edited(content, tmp_path / "m.onnx", lambda model: ONNX_EDITS[edit](model, text))
    for command in (("inspect", path), ("doctor", path), ("verify", path, "--data", images)):
        tame(*command)


@pytest.mark.parametrize("name", ["d[/red]\x1b[2J:bug:\nExact: forged\r\u202e.onnx", os.fsdecode(b"\xff\x1b.onnx")])
def test_names_of_files(tame: Tame, model: Path, images: Path, tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    shutil.copy(model, path)
    report, other = tmp_path / f"{name}.json", tmp_path / "b.json"
    assert tame("verify", path, "--data", images, "--json", report).code == 0
    quick = ("--repeats", "2", "--warmup", "0", "--caches", "warm", "--profile")
    assert tame("bench", path, model, *quick, "--json", other).code == 0
    assert tame("report", report, other, "-o", tmp_path / f"{name}.html").code == 0
    assert tame("inspect", path).code == 0
    assert tame("doctor", path).code == 0
    absent = f"{path}x"
    frozen = ZOO / "w2a2_frozen.safetensors"
    assert tame("export", frozen, "-o", path, "--golden", "1").code == 0
    for refused in (
        *(
            ("inspect", absent),
            ("doctor", absent),
            ("verify", absent),
            ("bench", absent),
            ("report", absent, "-o", path),
        ),
        *(("export", absent, "-o", path), ("sensitivity", absent), ("train", absent)),
        *(("verify", path, path), ("verify", path, f"--{name}"), (name,), ("verify", path, "--threads", name)),
        *(("verify", path, "--target", name), ("verify", path, "--data", name), ("target", "setup", name)),
        *(("verify", path, "--between", name, name), ("verify", path, "--golden", absent)),
        *(("phone", path, "--host", name), ("verify", path, "--model", name)),
        *(("train", "digits_resnet14", "--set", name), ("train", "digits_resnet14", "--set", f"data={name}")),
    ):
        assert tame(*refused).code == 2, refused


def test_names_of_classes_and_images(tame: Tame, content: bytes, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    names = sorted(f"\x1b[2J[bold]:bug:\nExact: forged\u202e{name}" for name in CLASSES)
    for name in names:
        (folder / "test" / name).mkdir(parents=True)
        Image.fromarray(np.zeros((28, 28), np.uint8)).save(folder / "test" / name / "\x1b[2J.png")
    path = edited(content, tmp_path / "m.onnx", lambda model: edit_metadata(model, class_names=names))
    assert tame("verify", path, "--data", folder).code == 0
    assert tame("inspect", path).code == 0
    assert tame("verify", ZOO / "w2a2.onnx", "--data", folder).code == 2
    (folder / "test" / names[0] / "\x1b[2J.png").write_bytes(b"no image")
    assert tame("verify", path, "--data", folder).code == 2


@TEXTS
def test_checkpoints(tame: Tame, tmp_path: Path, text: str) -> None:
    with safe_open(ZOO / "w2a2.safetensors", "np") as stream:
        header = json.loads(stream.metadata()["qil_deploy"])
        tensors = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118 - it is no dict
    headers: list[dict[str, Any]] = [header | {name: text} for name in header]
    headers += [header | {name: header[name] | {text: text}} for name in header if isinstance(header[name], dict)]
    headers.append(header | {"class_names": [text] * 10})
    first, *others = tensors
    renamed = {f"{text}{first}": tensors[first]} | {name: tensors[name] for name in others}
    contents = [({"qil_deploy": json.dumps(each)}, tensors) for each in headers]
    contents += [({"qil_deploy": text}, tensors), ({text: text}, tensors)]
    contents += [({"qil_deploy": json.dumps(header)}, each) for each in (renamed, tensors | renamed)]
    path = tmp_path / "c.safetensors"
    for metadata, content in contents:
        safetensors.numpy.save_file(content, path, metadata)
        tame("export", path, "-o", tmp_path / "m.onnx", "--limit", "2")
        tame("sensitivity", path, "--limit", "2", "--calibration-images", "2", "--bits", "3,1")


@TEXTS
def test_recipes_and_weights(tame: Tame, tmp_path: Path, text: str) -> None:
    quoted = json.dumps(text)
    shipped = (Path(__file__).parents[2] / "training" / "recipes" / "digits_resnet14.toml").read_text()
    recipe = tmp_path / "r.toml"
    for content in (text, f"x = {text}", f"{shipped}\n[{quoted}]\n{quoted} = 1\n", f"{quoted} = {quoted}\n{shipped}"):
        recipe.write_text(content)
        assert tame("train", recipe, "--out", tmp_path / "run").code == 2
    for key in ("data", "seed", "model.name", "model.weights", "float_training.epochs", "augmentation.shift", "x"):
        change = ("--set", f"{key}={quoted}")
        assert tame("train", "digits_resnet14", "--out", tmp_path / "run", *change).code == 2
    weights = tmp_path / "w.safetensors"
    safetensors.numpy.save_file({f"{text}{index}": np.zeros(3, np.float32) for index in range(3)}, weights)
    change = ("--set", f"model.weights={weights}")
    assert tame("train", "digits_resnet14", "--out", tmp_path / "run", *change).code == 2


@TEXTS
def test_golden_vectors(tame: Tame, model: Path, tmp_path: Path, text: str) -> None:
    path = tmp_path / "g.npz"
    write_golden(model, np.zeros((1, 1, 28, 28), np.uint8), "noise", path)
    with np.load(path) as stored:
        arrays = dict(stored)
    about = json.loads(str(arrays["about"]))
    entries = [about | {name: [text, text] if isinstance(about[name], list) else text} for name in about]
    for entry in (*map(json.dumps, entries), text):
        np.savez(path, **(arrays | {"about": np.array(entry)}))
        tame("verify", model, "--golden", path)
        tame("verify", model, "--golden", path, "--target", "native")


def leaves(value: object, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Yield the paths of the values in some JSON; for lists, those in the first item."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from leaves(item, (*path, key))
    elif isinstance(value, list):
        for item in value[:1]:
            yield from leaves(item, (*path, 0))
    else:
        yield path


def replaced(content: dict[str, Any], path: tuple[str | int, ...], text: str) -> dict[str, Any]:
    """Return a copy of some JSON with a text in one place."""
    copy: dict[str, Any] = json.loads(json.dumps(content))
    place: Any = copy
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = text
    return copy


class Page(HTMLParser):
    """Tags of a page, and its texts and attributes."""

    def __init__(self, content: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.texts: list[str] = []
        self.feed(content)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.texts += [value or "" for _, value in attrs]

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


@pytest.fixture(scope="module")
def measured(
    call: Callable[..., Outcome], content: bytes, images: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, dict[str, Any]]:
    """Return the JSON of every command that `report` reads."""
    folder = tmp_path_factory.mktemp("measured")
    model = folder / "m.onnx"
    model.write_bytes(content)
    quick = ("--repeats", "2", "--warmup", "0", "--caches", "warm", "--profile")
    for name, arguments in {
        "verify": ("verify", model, "--data", images),
        "targets": ("verify", model, "--data", images, "--target", "native"),
        "bench": ("bench", model, *quick),
        "doctor": ("doctor", model),
    }.items():
        assert call(*arguments, "--json", folder / f"{name}.json").code == 0
    assert call("report", folder, "-o", folder / "r.html", "--json", folder / "report.json").code == 0
    return {path.stem: json.loads(path.read_text()) for path in folder.glob("*.json")}


@pytest.mark.parametrize("kind", ["verify", "targets", "bench", "doctor", "report"])
def test_reports(tame: Tame, measured: dict[str, dict[str, Any]], tmp_path: Path, kind: str) -> None:
    """Each text of a report in turn is replaced by markup; the page shows it as text, or there is no page."""
    text = f"<script>alert(1)</script>\"'&<!--{SHORT}"
    path, page = tmp_path / "r.json", tmp_path / "r.html"
    pages = 0
    for place in leaves(measured[kind]):
        path.write_text(json.dumps(replaced(measured[kind], place, text)))
        page.unlink(missing_ok=True)
        tame("report", path, "-o", page)
        if page.is_file():
            content = page.read_text()
            shown = Page(content)
            pages += 1
            assert content.replace("\n", "").isprintable(), place
            assert not shown.tags & {"script", "iframe", "object", "link", "form"}, place
            assert not any("\nExact" in text for text in shown.texts), place
    assert pages >= 5


@pytest.mark.parametrize("kind", ["verify", "bench"])
def test_reports_that_would_bury_the_page(
    tame: Tame, measured: dict[str, dict[str, Any]], tmp_path: Path, kind: str
) -> None:
    path, page = tmp_path / "r.json", tmp_path / "r.html"
    for place in leaves(measured[kind]):
        path.write_text(json.dumps(replaced(measured[kind], place, LONG)))
        page.unlink(missing_ok=True)
        tame("report", path, "-o", page)
        if page.is_file():
            assert max(map(len, Page(page.read_text()).texts)) <= max(TEXT_LENGTH + 100, len(LONG) + 500)
    path.write_text(LONG)
    tame("report", path, "-o", page)
    path.write_text(json.dumps({"schema": LONG}))
    tame("report", path, "-o", page)
    path.write_text(json.dumps(measured[kind] | {LONG: LONG}))
    tame("report", path, "-o", page)
