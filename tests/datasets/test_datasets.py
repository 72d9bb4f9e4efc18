"""Image sets and preprocessing: shapes, splits, and errors for missing or damaged sets."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from qil_deploy.datasets import fashion_mnist, load_images, preprocessing_for
from qil_deploy.errors import DataError
from qil_deploy.preprocessing import Preprocessing


def test_digits_split_into_disjoint_parts_that_cover_the_set() -> None:
    train, test = load_images("digits", "train"), load_images("digits", "test")
    assert len(train) + len(test) == 1797
    assert len(test) == 360
    for images in (train, test):
        assert images.images.dtype == np.uint8
        assert images.images.shape[1:] == (1, 8, 8)
        assert images.labels.dtype == np.int64
        assert len(images.labels) == len(images)
        assert set(images.labels.tolist()) == set(range(10))
        assert (images.images.min(), images.images.max()) == (0, 255)
    assert train.class_names == tuple("0123456789")
    # The same images in the same order, whenever they are loaded.
    np.testing.assert_array_equal(load_images("digits", "test").images, test.images)


def test_first_takes_the_first() -> None:
    test = load_images("digits")
    few = test.first(7)
    assert len(few) == 7
    np.testing.assert_array_equal(few.images, test.images[:7])
    np.testing.assert_array_equal(few.labels, test.labels[:7])


def test_an_unknown_name_is_refused_with_the_known_ones() -> None:
    with pytest.raises(DataError, match=r"unknown data set 'digit': it is none of \['cifar10', .*'imagenet'\]"):
        load_images("digit")


def write_images(folder: Path, classes: dict[str, int], size: tuple[int, int] = (6, 4)) -> None:
    for label, (name, count) in enumerate(classes.items()):
        (folder / name).mkdir(parents=True)
        for index in range(count):
            Image.new("RGB", size, (10 * label, index, 255)).save(folder / name / f"{index}.png")


def test_a_folder_of_images(tmp_path: Path) -> None:
    write_images(tmp_path / "train", {"cat": 2, "dog": 3})
    write_images(tmp_path / "val", {"cat": 1, "dog": 1}, size=(12, 8))
    train = load_images(str(tmp_path), "train")
    assert train.class_names == ("cat", "dog")
    assert train.labels.tolist() == [0, 0, 1, 1, 1]
    assert train.images.shape == (5, 3, 4, 6)
    assert train.images[3, :, 0, 0].tolist() == [10, 1, 255]
    test = load_images(str(tmp_path), "test", shape=(3, 4, 6))
    assert test.images.shape == (2, 3, 4, 6)
    gray = load_images(str(tmp_path), "test", shape=(1, 4, 6))
    assert gray.images.shape == (2, 1, 4, 6)


def test_folders_that_hold_nothing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has no subfolder test or val"):
        load_images(str(tmp_path))
    (tmp_path / "test" / "cat").mkdir(parents=True)
    (tmp_path / "test" / "cat" / "notes.txt").write_text("none")
    with pytest.raises(DataError, match=r"holds no images; expected .*/CLASS/IMAGE with one of \['.bmp'"):
        load_images(str(tmp_path))


def test_a_damaged_image_is_named(tmp_path: Path) -> None:
    write_images(tmp_path / "test", {"cat": 1})
    (tmp_path / "test" / "cat" / "z.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"z\.png is not an image that can be read"):
        load_images(str(tmp_path))


def idx(array: NDArray[np.generic]) -> bytes:
    header = bytes([0, 0, 8, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape)
    return header + array.astype(np.uint8).tobytes()


@pytest.fixture
def fashion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator) -> Path:
    """A small set in the files of Debian's package."""
    monkeypatch.setattr(fashion_mnist, "FASHION_MNIST_FOLDER", tmp_path)
    for prefix in ("train", "t10k"):
        images, labels = rng.integers(0, 256, (5, 28, 28)), rng.integers(0, 10, 5)
        (tmp_path / f"{prefix}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(images)))
        (tmp_path / f"{prefix}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(labels)))
    return tmp_path


@pytest.mark.usefixtures("fashion")
def test_fashion_mnist_is_read_from_idx_files() -> None:
    train, test = load_images("fashion-mnist", "train"), load_images("fashion-mnist", "test")
    assert train.images.shape == test.images.shape == (5, 1, 28, 28)
    assert len(train.class_names) == 10
    assert not np.array_equal(train.images, test.images)


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "truncated": lambda content: content[: len(content) // 2],
    "flipped": lambda content: content[:40] + bytes([content[40] ^ 0xFF]) + content[41:],
    "empty": lambda _: b"",
    "no gzip": lambda _: b"<html>not found</html>",
    "short header": lambda _: gzip.compress(bytes([0, 0, 8, 3, 0, 0])),
    "other dimensions": lambda _: gzip.compress(idx(np.zeros((5, 28), np.uint8))),
    "one byte short": lambda content: gzip.compress(gzip.decompress(content)[:-1]),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damaged_idx_files_are_refused(fashion: Path, kind: str) -> None:
    path = fashion / "t10k-images-idx3-ubyte.gz"
    path.write_bytes(DAMAGE[kind](path.read_bytes()))
    with pytest.raises(DataError, match=r"t10k-images-idx3-ubyte\.gz (cannot be read|is no IDX file)"):
        load_images("fashion-mnist", "test")


def test_a_missing_idx_file_is_named(fashion: Path) -> None:
    (fashion / "train-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(DataError, match=r"train-labels-idx1-ubyte\.gz cannot be read .*install dataset-fashion-mnist"):
        load_images("fashion-mnist", "train")


def test_preprocessing_keeps_the_uint8_grid() -> None:
    train = load_images("digits", "train")
    preprocessing = preprocessing_for("digits", train)
    x = preprocessing.normalize(train.images)
    assert x.dtype == np.float32
    codes = np.rint(x / np.float32(preprocessing.scale)) + preprocessing.zero_point
    np.testing.assert_array_equal(codes, train.images)
    # Close to zero mean and unit variance, as the statistics say.
    assert abs(x.mean()) < 0.01
    assert abs(x.std() - 1) < 0.01
    assert preprocessing.scale == float(np.float32(preprocessing.scale))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"channels": 0}, r"shape \(0, 8, 8\) has no pixels"),
        ({"scale": 0.0}, "scale is 0.0; it must be positive and finite"),
        ({"scale": float("nan")}, "scale is nan"),
        ({"scale": float("inf")}, "scale is inf"),
        ({"zero_point": 256}, r"zero point is 256; it must be in 0\.\.255"),
        ({"zero_point": -1}, "zero point is -1"),
    ],
)
def test_impossible_preprocessing_is_refused(change: dict[str, float], message: str) -> None:
    values = {"channels": 1, "height": 8, "width": 8, "scale": 0.01, "zero_point": 0} | change
    with pytest.raises(DataError, match=message):
        Preprocessing(**values)  # type: ignore[arg-type] # a float where the test wants a wrong one


def test_images_of_another_type_or_shape_are_refused() -> None:
    preprocessing = Preprocessing(channels=1, height=8, width=8, scale=0.01, zero_point=0)
    for images in (np.zeros((2, 1, 8, 8), np.float32), np.zeros((2, 3, 8, 8), np.uint8), np.zeros((1, 8, 8), np.uint8)):
        with pytest.raises(DataError, match=r"the network takes uint8 of shape \[N, 1, 8, 8\]"):
            preprocessing.normalize(images)  # type: ignore[arg-type] # float32 is what is refused
