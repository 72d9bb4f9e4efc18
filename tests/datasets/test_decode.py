"""Image files of every depth and form: scaled to 8 bits as stated, or refused by name; never clipped."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from qil_deploy.datasets import load_images
from qil_deploy.datasets.decode import decode_image
from qil_deploy.errors import DataError

Pixels = NDArray[np.uint16]


@pytest.fixture
def deep(rng: np.random.Generator) -> Pixels:
    """16-bit grey of 5x7 pixels, black and white among them."""
    values = rng.integers(0, 65536, (5, 7), np.uint16)
    values[0, :2] = 0, 65535
    return values


def png(path: Path, colour: int, samples: NDArray[np.uint16]) -> Path:
    """Write a PNG of 16 bits, which Pillow can write only in grey."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    height, width = samples.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples)
    header = struct.pack(">IIBBBBB", width, height, 16, colour, 0, 0, 0)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunks)
    return path


def tiff(path: Path, samples: NDArray[np.generic], **tags: int) -> Path:
    """Write a grey TIFF with any bits per sample, sample format, photometric interpretation and width."""
    content = samples.tobytes()
    height, width = samples.shape
    numbers = {256: tags.get("width", width), 257: height, 258: tags["bits"], 259: 1, 262: tags.get("photometric", 1)}
    numbers |= {273: 8, 277: 1, 278: height, 279: len(content), 339: tags.get("format", 1)}
    entries = b"".join(struct.pack("<HHII", number, 4, 1, value) for number, value in sorted(numbers.items()))
    directory = struct.pack("<H", len(numbers)) + entries + bytes(4)
    path.write_bytes(b"II*\0" + struct.pack("<I", 8 + len(content)) + content + directory)
    return path


def save(image: Image.Image, path: Path) -> Path:
    image.save(path)
    return path


def pgm(path: Path, largest: int, samples: Pixels) -> Path:
    height, width = samples.shape
    path.write_bytes(f"P5 {width} {height} {largest}\n".encode() + samples.astype(">u2").tobytes())
    return path


SIXTEEN: dict[str, Callable[[Path, Pixels], Path]] = {
    "PNG, grey": lambda folder, deep: save(Image.fromarray(deep), folder / "x.png"),
    "PNG, grey and alpha": lambda folder, deep: png(folder / "x.png", 4, np.stack([deep, deep], -1)),
    "PNG, colour": lambda folder, deep: png(folder / "x.png", 2, np.stack([deep] * 3, -1)),
    "PNG, colour and alpha": lambda folder, deep: png(folder / "x.png", 6, np.stack([deep] * 4, -1)),
    "TIFF, little-endian": lambda folder, deep: save(Image.fromarray(deep), folder / "x.tif"),
    "TIFF, big-endian": lambda folder, deep: save(Image.fromarray(deep.astype(">u2")), folder / "x.tif"),
    "TIFF, white is zero": lambda folder, deep: tiff(folder / "x.tif", 65535 - deep, bits=16, photometric=0),
    "PGM": lambda folder, deep: pgm(folder / "x.pgm", 65535, deep),
}


@pytest.mark.parametrize("form", SIXTEEN)
@pytest.mark.parametrize("channels", [1, 3])
def test_sixteen_bits_keep_the_upper_eight(tmp_path: Path, deep: Pixels, form: str, channels: int) -> None:
    found = np.asarray(decode_image(SIXTEEN[form](tmp_path, deep), channels))
    np.testing.assert_array_equal(found, deep >> 8 if channels == 1 else np.stack([deep >> 8] * 3, -1))


def test_eight_bits_in_sixteen_come_back_unchanged(tmp_path: Path) -> None:
    levels = np.arange(256, dtype=np.uint16).reshape(16, 16)
    path = save(Image.fromarray(257 * levels), tmp_path / "x.png")
    np.testing.assert_array_equal(np.asarray(decode_image(path, 1)), levels)


def test_twelve_bits_are_twelve_bits(tmp_path: Path, deep: Pixels) -> None:
    twelve = deep[:, :6] >> 4
    pairs = twelve.reshape(-1, 2)  # three bytes hold two numbers
    packed = np.stack([pairs[:, 0] >> 4, (pairs[:, 0] & 15) << 4 | pairs[:, 1] >> 8, pairs[:, 1] & 255], -1)
    path = tiff(tmp_path / "x.tif", packed.astype(np.uint8).reshape(5, 9), bits=12, width=6)
    np.testing.assert_array_equal(np.asarray(decode_image(path, 1)), twelve >> 4)


def test_a_folder_of_sixteen_bit_images_is_not_white(tmp_path: Path, rng: np.random.Generator) -> None:
    for label in "ab":
        folder = tmp_path / "test" / label
        folder.mkdir(parents=True)
        Image.fromarray(rng.integers(0, 65536, (8, 8), np.uint16)).save(folder / "0.png")
    for shape in ((1, 8, 8), (3, 8, 8)):
        images = load_images(str(tmp_path), "test", shape=shape).images
        assert 100 < images.mean() < 155
        assert (images == 255).mean() < 0.1


REFUSED: dict[str, tuple[Callable[[Path, Pixels], Path], str]] = {
    "floats": (lambda folder, deep: save(Image.fromarray(deep.astype(np.float32)), folder / "x.tif"), "holds floats"),
    "32 bits": (lambda folder, deep: tiff(folder / "x.tif", deep.astype(np.uint32), bits=32), "holds 32-bit integers"),
    "32 bits, dark": (lambda folder, deep: tiff(folder / "x.tif", deep.astype("<u4") >> 8, bits=32), "32-bit integers"),
    "32 bits, signed": (lambda folder, deep: save(Image.fromarray(deep.astype(np.int32)), folder / "x.tif"), "signed"),
    "16 bits, signed": (lambda folder, deep: tiff(folder / "x.tif", deep.astype("<i2"), bits=16, format=2), "signed"),
    "8 bits, signed": (lambda folder, deep: tiff(folder / "x.tif", deep.astype("i1"), bits=8, format=2), "signed"),
}


@pytest.mark.parametrize("form", REFUSED)
def test_numbers_of_unknown_range_are_refused_by_name(tmp_path: Path, deep: Pixels, form: str) -> None:
    write, message = REFUSED[form]
    path = write(tmp_path, deep)
    for channels in (1, 3):
        with pytest.raises(DataError) as refused:
            decode_image(path, channels)
        assert str(path) in str(refused.value)
        assert message in str(refused.value)
        assert "save it as 8-bit or 16-bit unsigned integers" in str(refused.value)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"])
def test_every_mode_of_eight_bits_is_what_pillow_makes_of_it(
    tmp_path: Path, rng: np.random.Generator, mode: str
) -> None:
    image = Image.fromarray(rng.integers(0, 256, (6, 5, 3), np.uint8)).convert(mode)
    path = save(image, tmp_path / "x.tif")
    for channels, wanted in ((1, "L"), (3, "RGB")):
        np.testing.assert_array_equal(np.asarray(decode_image(path, channels)), np.asarray(image.convert(wanted)))


def test_of_several_frames_the_first_is_taken(tmp_path: Path, rng: np.random.Generator) -> None:
    frames = [Image.fromarray(rng.integers(0, 256, (6, 5, 3), np.uint8)) for _ in range(3)]
    for name in ("x.png", "x.tif"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
        np.testing.assert_array_equal(np.asarray(decode_image(tmp_path / name, 3)), np.asarray(frames[0]))


@pytest.mark.parametrize("name", ["x.png", "x.jpg", "x.tif", "x.webp"])
def test_pictures_stand_upright(tmp_path: Path, name: str) -> None:
    grey = np.zeros((16, 32), np.uint8)
    grey[:, 16:] = 255  # white on the right, and at the top once it is turned
    for orientation, turned in {1: grey, 3: grey[::-1, ::-1], 6: np.rot90(grey, -1), 8: np.rot90(grey)}.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        Image.fromarray(grey).save(tmp_path / name, exif=exif)
        found = np.asarray(decode_image(tmp_path / name, 1)).astype(int)
        assert found.shape == turned.shape
        assert np.abs(found - turned).max() < 64  # JPEG and WebP lose a little


def test_sixteen_bits_stand_upright(tmp_path: Path, deep: Pixels) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(deep).save(tmp_path / "x.png", exif=exif)
    np.testing.assert_array_equal(np.asarray(decode_image(tmp_path / "x.png", 1)), np.rot90(deep >> 8, -1))
