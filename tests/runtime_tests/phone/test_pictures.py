"""Pictures on the page: a detector's boxes, as NumPy decodes them, or the class of every pixel."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from qil_deploy import Preprocessing, QuantConfig, calibrate, freeze, prepare
from qil_deploy.errors import DataError
from qil_deploy.export import export_onnx
from qil_deploy.metrics import BoxDecoder, Detections
from qil_deploy.runtime_tests.exported_model import ExportedModel, read_exported_model
from qil_deploy.runtime_tests.golden import write_golden
from qil_deploy.runtime_tests.phone.pictures import pictures_in_job
from qil_deploy.runtime_tests.phone.server import PageServer, Service, page_resources
from qil_deploy.runtime_tests.phone.verify_on_phone import Address, verify_on_phone
from qil_deploy.runtime_tests.targets import RunOptions

if TYPE_CHECKING:
    from playwright.sync_api import Page

OpenPhone = Callable[..., "Page"]
SIZE = 16
GRID = Preprocessing(channels=3, height=SIZE, width=SIZE, scale=0.0123, zero_point=128)
DECODER = BoxDecoder(outputs=("far", "near"), strides=(8, 4), classes=2, score=0.2)
NAMES = ("a <b>bold</b> thing", "other")
SHOWN_SCORE, NAMED = 0.3, 8
RELATIVE = 1e-12
"""Of the two decoders: exp and tanh are a browser's own, and may differ in a last bit."""


class Maps(nn.Module):
    """A detector's maps, or one map of classes."""

    def __init__(self, *, detects: bool) -> None:
        super().__init__()
        self.stem, self.detects = nn.Conv2d(3, 8, 3, padding=1), detects
        self.near, self.far, self.classes = nn.Conv2d(8, 6, 1), nn.Conv2d(8, 6, 1), nn.Conv2d(8, 3, 1)

    def forward(self, x: Tensor) -> Tensor | dict[str, Tensor]:
        x = F.relu(self.stem(x))
        if not self.detects:
            logits: Tensor = self.classes(F.max_pool2d(x, 2))
            return logits
        return {"near": self.near(F.max_pool2d(x, 4)), "far": self.far(F.max_pool2d(x, 8))}


@pytest.fixture
def write_maps(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that exports a network of maps and writes golden vectors beside it."""

    def write(
        images: NDArray[np.uint8], *, detects: bool, class_names: tuple[str, ...], boxes: BoxDecoder | None = None
    ) -> Path:
        torch.manual_seed(0)
        x = torch.from_numpy(GRID.normalize(images))
        prepared = prepare(Maps(detects=detects), QuantConfig(outputs="codes"), x[:1], input_grid=GRID)
        calibrate(prepared, [x])
        path = tmp_path / "maps.onnx"
        export_onnx(freeze(prepared), path, preprocessing=GRID, class_names=class_names, boxes=boxes)
        write_golden(path, images, "noise", tmp_path / "golden.npz")
        return path

    return write


@pytest.fixture
def pixels() -> NDArray[np.uint8]:
    """Five images, more than the page draws."""
    return np.random.default_rng(0).integers(0, 256, (5, *GRID.shape), np.uint8)


def decoded_there(page: Page, decoder: BoxDecoder, maps: Mapping[str, NDArray[Any]]) -> list[dict[str, Any]]:
    """Return the results of the page's decoder for the maps [C, H, W] of one image."""
    given = [{"dims": maps[name].shape, "data": maps[name].ravel().tolist()} for name in decoder.outputs]
    found: list[dict[str, Any]] = page.evaluate(
        """async ([decoder, maps]) => {
          const { decode } = await import(new URL("boxes.js", document.baseURI));
          return decode(decoder, maps.map(({ dims, data }) => ({ dims, data: Float32Array.from(data) })));
        }""",
        [asdict(decoder), given],
    )
    return found


def require_equal(found: list[dict[str, Any]], expected: Detections) -> None:
    assert len(found) == len(expected) > 0
    assert [each["class"] for each in found] == expected.classes.tolist()
    np.testing.assert_allclose([each["score"] for each in found], expected.scores, rtol=RELATIVE)
    np.testing.assert_allclose([each["box"] for each in found], expected.boxes, rtol=RELATIVE, atol=RELATIVE)


def refuse(_content: bytes) -> None:
    raise DataError("nothing is sent here.")


@pytest.mark.parametrize("anchors", [False, True])
def test_boxes_are_those_of_numpy(open_phone: OpenPhone, *, anchors: bool) -> None:
    service = Service(resources=page_resources("index.html", {}), accept=refuse, largest_result=0)
    with PageServer(service) as server:
        page = open_phone(server.url("127.0.0.1"))
        for seed, (score, overlap) in enumerate([(0.05, 0.5), (0.6, 0.1), (0.0, 1.0)]):
            rng = np.random.default_rng(seed)
            sizes = tuple(((float(w), float(h)), (7.0, 5.5)) for w, h in rng.uniform(2, 40, (2, 2))) if anchors else ()
            decoder = BoxDecoder(
                outputs=("a", "b"), strides=(8, 16), classes=3, anchors=sizes, score=score, overlap=overlap
            )
            shapes = {"a": (decoder.channels(0), 24, 20), "b": (decoder.channels(1), 5, 7)}
            maps = {name: rng.normal(0, 1.5, shape).astype(np.float32) for name, shape in shapes.items()}
            maps["a"][0, 0, 0] = 1e30  # no box without end
            (expected,) = decoder.decode({name: values[None] for name, values in maps.items()})
            require_equal(decoded_there(page, decoder, maps), expected)


def run_page(open_phone: OpenPhone, model: Path, see: Callable[[Page], None]) -> None:
    """Serve a model with its golden vectors, start the page, and look at it when the result is sent."""
    urls: list[str] = []
    ready = threading.Event()

    def announce(url: str) -> None:
        urls.append(url)
        ready.set()

    options = RunOptions(levels=("all",), batch=2, repeats=0, timeout=60)
    with ThreadPoolExecutor(1) as pool:
        data = model.parent / "golden.npz"
        future = pool.submit(verify_on_phone, model, data, options, Address(), announce=announce)
        future.add_done_callback(lambda _: ready.set())
        ready.wait(60)
        page = open_phone(urls[0])
        page.get_by_role("button", name="Start").tap()
        page.get_by_text("the computer has it").wait_for()
        assert page.evaluate("document.documentElement.scrollWidth") == 360
        see(page)
        assert future.result(30).exact is True


def values_of(model: ExportedModel, pixels: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
    return model.values(model.onnx_runner()(pixels))


def colour_at(page: Page, image: int, x: float, y: float) -> list[int]:
    """Return red, green and blue of the canvas of an image, at a place in pixels of the image."""
    colour: list[int] = page.evaluate(
        """([image, x, y, size]) => {
          const canvas = document.querySelectorAll("#pictures canvas")[image];
          const at = [x, y].map((place) => Math.floor((place * canvas.width) / size));
          return [...canvas.getContext("2d").getImageData(...at, 1, 1).data].slice(0, 3);
        }""",
        [image, x, y, SIZE],
    )
    return colour


def test_a_detectors_boxes_are_drawn(
    open_phone: OpenPhone, write_maps: Callable[..., Path], pixels: NDArray[np.uint8]
) -> None:
    path = write_maps(pixels, detects=True, class_names=NAMES, boxes=DECODER)
    model = read_exported_model(path)
    expected = DECODER.decode(values_of(model, pixels))

    def see(page: Page) -> None:
        captions = page.locator("#pictures figcaption")
        assert captions.count() == page.locator("#pictures canvas").count() == 4
        for image, detections in enumerate(expected[:4]):
            shown = detections.scores >= SHOWN_SCORE
            assert shown.any()
            words = [
                f"{NAMES[cls]} {score:.2f}"
                for cls, score in zip(detections.classes[shown], detections.scores[shown], strict=True)
            ]
            spans = captions.nth(image).locator("span")
            assert [spans.nth(index).inner_text() for index in range(spans.count())] == words[:NAMED]
            assert captions.nth(image).inner_text().endswith(f"and {len(words) - NAMED} more") == (len(words) > NAMED)
            # The best box is drawn last; its left side has the colour of its class, where it is inside the image.
            left, top, _, bottom = detections.boxes[0]
            middle = (max(top, 0) + min(bottom, SIZE)) / 2
            if 0 <= left < SIZE:
                spot = spans.nth(0).locator("i").evaluate("(spot) => getComputedStyle(spot).backgroundColor")
                assert colour_at(page, image, left, middle) == [int(part) for part in re.findall(r"\d+", spot)]

    run_page(open_phone, path, see)


def test_classes_of_pixels_are_drawn_over_the_picture(
    open_phone: OpenPhone, write_maps: Callable[..., Path], pixels: NDArray[np.uint8]
) -> None:
    path = write_maps(pixels, detects=False, class_names=("sky", "sea", "land"))
    model = read_exported_model(path)
    (values,) = values_of(model, pixels).values()
    classes = values.argmax(axis=1)
    assert len(np.unique(classes)) > 1

    def see(page: Page) -> None:
        captions = page.locator("#pictures figcaption")
        assert captions.count() == 4
        colours: dict[int, list[int]] = {}
        for image in range(4):
            spans = captions.nth(image).locator("span")
            for index, cls in enumerate(np.unique(classes[image])):
                share = 100 * np.mean(classes[image] == cls)
                name, number = spans.nth(index).inner_text().removesuffix(" %").split(" ")
                assert name == model.class_names[cls]
                assert abs(int(number) - share) <= 0.5
                spot = spans.nth(index).locator("i").evaluate("(spot) => getComputedStyle(spot).backgroundColor")
                colours[cls] = [int(part) for part in re.findall(r"\d+", spot)]
            for row, column in ((0, 0), (5, 9), (15, 3)):
                over = np.array(colours[classes[image, row // 2, column // 2]])
                blend = 0.45 * pixels[image, :, row, column] + 0.55 * over
                np.testing.assert_allclose(colour_at(page, image, column + 0.5, row + 0.5), blend, atol=2)

    run_page(open_phone, path, see)


def test_nothing_is_drawn_of_other_files(
    write_maps: Callable[..., Path], write_model: Callable[..., Path], pixels: NDArray[np.uint8]
) -> None:
    """Rows of logits, maps of other classes, and decoders that do not fit their outputs."""
    assert pictures_in_job(read_exported_model(write_model())) is None
    unnamed = read_exported_model(write_maps(pixels, detects=False, class_names=()))
    named = pictures_in_job(unnamed)
    assert named is not None
    assert named["class_names"] == []
    assert pictures_in_job(replace(unnamed, class_names=("one", "two"))) is None
    detector = read_exported_model(write_maps(pixels, detects=True, class_names=(), boxes=DECODER))
    job = pictures_in_job(detector)
    assert job is not None
    assert [output["name"] for output in job["outputs"]] == ["far", "near"]
    assert pictures_in_job(replace(detector, boxes=replace(DECODER, classes=3))) is None
    assert pictures_in_job(replace(detector, boxes=replace(DECODER, outputs=("far", "absent")))) is None
