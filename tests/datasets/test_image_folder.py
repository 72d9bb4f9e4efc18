"""Folders of images, ImageNet's layout among them: which files, which bytes, and batch by batch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from qil_deploy.datasets import find_image_folder, load_batches, load_images, preprocessing_for
from qil_deploy.datasets.image_folder import open_image_folder
from qil_deploy.errors import DataError
from qil_deploy.preprocessing import Preprocessing


@pytest.fixture
def pictures(tmp_path: Path, rng: np.random.Generator) -> Path:
    """Images of many sizes, modes and formats, some deeper than their class, among other files."""
    for split in ("train", "val"):
        for label in ("n01", "n02"):
            folder = tmp_path / split / label
            (folder / "more" / "deeper").mkdir(parents=True)
            pixels = rng.integers(0, 256, (40, 60, 4), np.uint8)
            Image.fromarray(pixels[:, :, :3]).save(folder / "b.JPEG")
            Image.fromarray(pixels[:, :, 0]).save(folder / "gray.png")
            Image.fromarray(pixels, "RGBA").save(folder / "alpha.png")
            Image.fromarray(pixels, "CMYK").save(folder / "more" / "cmyk.jpg")
            Image.fromarray(pixels[:31, :23, :3]).convert("P").save(folder / "more" / "deeper" / "palette.png")
            (folder / "more" / "readme.txt").write_text("no image")
            (folder / "Thumbs.db").write_bytes(b"no image")
        (tmp_path / split / "labels.csv").write_text("no class")
    return tmp_path


def test_files_classes_and_colours_are_those_of_torchvision(pictures: Path) -> None:
    ours = open_image_folder(pictures, "train")
    theirs = ImageFolder(str(pictures / "train"))
    assert ours.class_names == tuple(theirs.classes)
    assert [(str(ours.path(index)), label) for index, label in enumerate(ours.labels.tolist())] == theirs.samples
    assert len(ours) == 10
    for index in range(len(ours)):
        np.testing.assert_array_equal(np.asarray(ours.decode(index, 3)), np.asarray(theirs[index][0]))


@pytest.mark.parametrize("size", [32, 224])
def test_imagenet_is_resized_and_cut_as_torchvision_does(pictures: Path, size: int) -> None:
    test = load_images(f"imagenet:{pictures}", "test", shape=(3, size, size))
    transform = v2.Compose([v2.Resize(round(size * 256 / 224)), v2.CenterCrop(size), v2.PILToTensor()])
    expected = [transform(image).numpy() for image, _ in ImageFolder(str(pictures / "val"))]
    np.testing.assert_array_equal(test.images, np.stack(expected))
    assert load_images(f"imagenet:{pictures}", "test", shape=(1, size, size)).images.shape == (10, 1, size, size)


@pytest.mark.parametrize("name", ["{}", "imagenet:{}"])
@pytest.mark.parametrize("resize", [30, (28, 44)])
def test_pictures_are_resized_and_cut_as_the_networks_preprocessing_says(
    pictures: Path, resize: int | tuple[int, int], name: str
) -> None:
    pixels = replace(
        Preprocessing.from_statistics((3, 24, 28), 0.5, 0.5),
        resize=resize,
        interpolation="bilinear",
        channel_order="RGB",
    )
    transform = v2.Compose([v2.Resize(resize), v2.CenterCrop((24, 28)), v2.PILToTensor()])
    expected = np.stack([transform(image).numpy() for image, _ in ImageFolder(str(pictures / "val"))])
    found = load_images(name.format(pictures), preprocessing=pixels)
    np.testing.assert_array_equal(found.images, expected)
    batches = load_batches(name.format(pictures), preprocessing=pixels, batch_size=4)
    assert batches.shape == (3, 24, 28)
    np.testing.assert_array_equal(np.concatenate([batch.images for batch in batches]), expected)
    silent = replace(pixels, resize=None)
    as_before = load_images(name.format(pictures), shape=(3, 24, 28)).images
    np.testing.assert_array_equal(load_images(name.format(pictures), preprocessing=silent).images, as_before)


def test_imagenet_lies_where_the_environment_says(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QIL_DEPLOY_IMAGENET", str(pictures))
    test = load_images("imagenet")
    assert test.images.shape == (10, 3, 224, 224)
    np.testing.assert_array_equal(test.images, load_images(f"imagenet:{pictures}").images)
    preprocessing = preprocessing_for("imagenet", test)
    assert (preprocessing.shape, preprocessing.zero_point) == ((3, 224, 224), 114)
    monkeypatch.delenv("QIL_DEPLOY_IMAGENET")
    with pytest.raises(DataError, match=r"QIL_DEPLOY_IMAGENET, .*, is not set; .* or write imagenet:FOLDER"):
        load_images("imagenet")
    with pytest.raises(DataError, match="there is no folder nowhere"):
        load_images("imagenet:nowhere")


def test_batches_are_the_images_of_the_whole(pictures: Path) -> None:
    for name, shape in ((f"imagenet:{pictures}", (3, 24, 32)), (str(pictures), (3, 8, 8)), ("digits", (1, 8, 8))):
        whole = load_images(name, "test", shape=shape)
        batches = load_batches(name, "test", shape=shape, batch_size=4)
        assert len(batches) == len(whole)
        assert batches.class_names == whole.class_names
        for _ in range(2):  # as often as wanted
            parts = list(batches)
            assert [len(part) for part in parts[:2]] == [4, 4]
            np.testing.assert_array_equal(np.concatenate([part.images for part in parts]), whole.images)
            np.testing.assert_array_equal(np.concatenate([part.labels for part in parts]), whole.labels)
        assert preprocessing_for(name, batches) == preprocessing_for(name, whole)
        few = batches.first(6)
        assert (len(few), [len(part) for part in few], len(few.labels)) == (6, [4, 2], 6)


def test_batches_know_their_shape_before_they_are_read(pictures: Path) -> None:
    assert load_batches(str(pictures), batch_size=2).shape == (3, 40, 60)
    assert load_batches(f"imagenet:{pictures}", batch_size=2).shape == (3, 224, 224)
    assert load_batches("digits", batch_size=2).shape == (1, 8, 8)
    with pytest.raises(DataError, match="batch_size is 0; it must be at least 1"):
        load_batches("digits", batch_size=0)


def test_only_folders_are_image_folders(pictures: Path) -> None:
    assert find_image_folder("digits", "test") is None
    folder = find_image_folder(str(pictures), "train")
    assert folder is not None
    assert folder.fit == "stretch"
    with pytest.raises(DataError, match="unknown data set 'digit'"):
        find_image_folder("digit", "train")


@pytest.mark.parametrize("damage", ["empty", "truncated", "other"])
@pytest.mark.parametrize("file", ["b.JPEG", "gray.png"])
def test_a_damaged_image_is_named_when_it_is_read(pictures: Path, file: str, damage: str) -> None:
    path = pictures / "val" / "n02" / file
    content = path.read_bytes()
    path.write_bytes({"empty": b"", "truncated": content[: len(content) // 2], "other": b"<html>"}[damage])
    batches = iter(load_batches(str(pictures), "test", shape=(3, 8, 8), batch_size=5))
    assert len(next(batches)) == 5
    with pytest.raises(DataError, match=rf"{file} is not an image that can be read"):
        next(batches)


def test_a_class_without_images_can_be_evaluated_but_not_trained(pictures: Path) -> None:
    for split in ("train", "val"):
        (pictures / split / "n00").mkdir()
    with pytest.raises(DataError, match="has classes without an image: n00; remove them or add images"):
        load_images(str(pictures), "train", shape=(3, 8, 8))
    test = load_images(str(pictures), "test", shape=(3, 8, 8))
    assert test.class_names == ("n00", "n01", "n02")
    assert set(test.labels.tolist()) == {1, 2}
