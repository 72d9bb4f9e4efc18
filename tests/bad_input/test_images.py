"""Folders of images that are unsuitable for verification, and options out of range."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from .conftest import CLASSES

if TYPE_CHECKING:
    from tests.command_line import Outcome

Refused = Callable[..., str]


def _empty(folder: Path) -> None:
    for image in folder.rglob("*.png"):
        image.unlink()


def _no_classes(folder: Path) -> None:
    shutil.rmtree(folder / "test")
    (folder / "test").mkdir()


def _no_split(folder: Path) -> None:
    (folder / "test").rename(folder / "tests")


def _other_classes(folder: Path) -> None:
    (folder / "test" / "a").rename(folder / "test" / "z")


def _content(content: bytes) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / "test" / "a" / "0.png").write_bytes(content)

    return write


def _cut(folder: Path) -> None:
    path = folder / "test" / "a" / "0.png"
    path.write_bytes(path.read_bytes()[:99])


def _pipe(folder: Path) -> None:
    os.mkfifo(folder / "test" / "a" / "1.png")


def _broken_link(folder: Path) -> None:
    (folder / "test" / "a" / "1.png").symlink_to(folder / "absent.png")


def _gigapixels(folder: Path) -> None:
    (folder / "test" / "a" / "1.pgm").write_bytes(b"P5 65535 65535 255\n" + bytes(40))


FOLDERS: dict[str, tuple[Callable[[Path], None], str]] = {
    "no images": (_empty, "holds no images"),
    "no classes": (_no_classes, "holds no images"),
    "no split": (_no_split, "has no subfolder test or val"),
    "other classes": (_other_classes, "has the classes b, c"),
    "text": (_content(b"no picture"), "is not an image that can be read"),
    "no bytes": (_content(b""), "is not an image that can be read"),
    "cut": (_cut, "is not an image that can be read"),
    "pipe": (_pipe, "1.png is no file"),
    "link to nothing": (_broken_link, "1.png is no file"),
    "gigapixels in 60 bytes": (_gigapixels, "is not an image that can be read"),
}


@pytest.mark.parametrize("name", FOLDERS)
def test_folders_are_refused(model: Path, images: Path, refused: Refused, tmp_path: Path, name: str) -> None:
    folder = tmp_path / "pictures"
    shutil.copytree(images, folder)
    damage, message = FOLDERS[name]
    damage(folder)
    sentence = refused("verify", model, "--data", folder)
    assert str(folder) in sentence
    assert message in sentence, sentence


def test_a_name_that_is_not_utf8(
    model: Path, images: Path, call: Callable[..., Outcome], refused: Refused, tmp_path: Path
) -> None:
    folder = tmp_path / os.fsdecode(b"pictures \xff")
    shutil.copytree(images, folder)
    image = folder / "test" / CLASSES[0] / os.fsdecode(b"\xfe.png")
    (folder / "test" / CLASSES[0] / "0.png").rename(image)
    assert call("verify", model, "--data", folder).code == 0
    image.write_bytes(b"")
    assert "is not an image that can be read" in refused("verify", model, "--data", folder)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--limit", 0], "--limit is 0"),
        (["--limit", -1], "--limit is -1"),
        (["--batch-size", 0], "at least 1"),
        (["--threads", 0], "threads is 0"),
        (["--threads", -(2**31)], "threads is -2147483648"),
        (["--between", "reference", "reference"], "compared with itself"),
        (["--target", "nowhere"], "nowhere"),
        (["--target", "native", "--timeout", "nan"], "--timeout is nan"),
        (["--target", "native", "--golden", "absent.npz"], "absent.npz"),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, list) else "",
)
def test_options_out_of_range(model: Path, images: Path, refused: Refused, options: list[object], message: str) -> None:
    data = [] if "--golden" in options else ["--data", images]
    assert message in refused("verify", model, *data, *options)
