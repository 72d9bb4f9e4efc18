"""Training batches from folders: equal for any number of workers, and with only the requested images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from qil_deploy.datasets import ImageFolder, find_image_folder, load_images
from qil_deploy.errors import ConfigError, DataError
from qil_deploy.preprocessing import Preprocessing
from qil_deploy.training.data.folder_batches import FolderBatches
from qil_deploy.training.data.memory_batches import Batches, Share, to_input

PREPROCESSING = Preprocessing.from_statistics((3, 16, 16), 0.449, 0.226)
Epoch = list[tuple[Tensor, Tensor]]


@pytest.fixture
def folder(tmp_path: Path, rng: np.random.Generator) -> ImageFolder:
    """Eleven images of three classes and several sizes."""
    for index in range(11):
        path = tmp_path / "train" / f"class {index % 3}" / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (20 + index, 30, 3), np.uint8)).save(path)
    found = find_image_folder(f"imagenet:{tmp_path}", "train")
    assert found is not None
    return found


def batches(
    folder: ImageFolder,
    *,
    crop: bool = True,
    flip: bool = True,
    workers: int = 0,
    share: Share | None = None,
    seed: int = 5,
) -> FolderBatches:
    return FolderBatches(
        folder, PREPROCESSING, batch_size=4, crop=crop, flip=flip, seed=seed, workers=workers, share=share
    )


def assert_equal(first: Epoch, second: Epoch) -> None:
    assert len(first) == len(second)
    for (x, labels), (other_x, other_labels) in zip(first, second, strict=True):
        assert torch.equal(x, other_x)
        assert torch.equal(labels, other_labels)


def test_batches_have_the_form_that_training_wants(folder: ImageFolder) -> None:
    made: Batches = batches(folder)
    assert len(made) == 2
    for x, labels in made.epoch(0):
        assert (x.dtype, x.shape) == (torch.float32, (4, 3, 16, 16))
        assert x.is_contiguous(memory_format=torch.channels_last)
        assert (labels.dtype, labels.shape) == (torch.int64, (4,))
        codes = x / PREPROCESSING.scale + PREPROCESSING.zero_point
        assert (codes - codes.round()).abs().max() < 1e-3  # uint8 still
        assert codes.round().min() >= 0
        assert codes.round().max() <= 255


def test_workers_change_nothing_and_neither_does_the_global_generator(folder: ImageFolder) -> None:
    expected = list(batches(folder).epoch(3))
    torch.manual_seed(1)
    state = torch.get_rng_state()
    assert_equal(list(batches(folder, workers=2).epoch(3)), expected)
    assert_equal(list(batches(folder).epoch(3)), expected)
    assert torch.equal(torch.get_rng_state(), state)


def test_epochs_and_seeds_differ(folder: ImageFolder) -> None:
    first = next(iter(batches(folder).epoch(0)))[0]
    assert not torch.equal(first, next(iter(batches(folder).epoch(1)))[0])
    assert not torch.equal(first, next(iter(batches(folder, seed=6).epoch(0)))[0])


def test_an_epoch_can_be_entered_at_any_batch(folder: ImageFolder) -> None:
    whole = list(batches(folder).epoch(2))
    assert_equal(list(batches(folder).epoch(2, start=1)), whole[1:])
    assert list(batches(folder).epoch(2, start=2)) == []


def test_two_processes_see_together_what_one_does(folder: ImageFolder) -> None:
    whole = list(batches(folder).epoch(0))
    shares = [list(batches(folder, share=Share(rank=rank, of=2)).epoch(0)) for rank in range(2)]
    for (x, labels), *parts in zip(whole, *shares, strict=True):
        for rank, (part_x, part_labels) in enumerate(parts):
            assert torch.equal(part_x, x[rank::2])
            assert torch.equal(part_labels, labels[rank::2])


def test_without_augmentation_images_are_those_of_evaluation(folder: ImageFolder) -> None:
    images = load_images(f"imagenet:{folder.root.parent}", "train", shape=PREPROCESSING.shape)
    expected = to_input(torch.from_numpy(images.images), PREPROCESSING)
    seen = set()
    for x, labels in batches(folder, crop=False, flip=False).epoch(0):
        for image, label in zip(x, labels.tolist(), strict=True):
            (index,) = [number for number, other in enumerate(expected) if torch.equal(image, other)]
            assert label == images.labels[index]
            seen.add(index)
    assert len(seen) == 8  # each at most once


def test_about_half_of_the_images_are_mirrored(folder: ImageFolder) -> None:
    plain, mirrored = 0, 0
    for epoch in range(8):
        pairs = zip(
            batches(folder, crop=False, flip=True).epoch(epoch),
            batches(folder, crop=False, flip=False).epoch(epoch),
            strict=True,
        )
        for (flipped, _), (straight, _) in pairs:
            for image, other in zip(flipped, straight, strict=True):
                plain += int(torch.equal(image, other))
                mirrored += int(torch.equal(image, other.flip(2)))
    assert plain + mirrored == 64
    assert 16 <= mirrored <= 48


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_image_ends_training_with_a_sentence(folder: ImageFolder, workers: int) -> None:
    for index in range(len(folder)):
        folder.path(index).write_bytes(b"no image")
    with pytest.raises(DataError, match=r"\.png is not an image that can be read") as caught:
        next(batches(folder, workers=workers).epoch(0))
    assert "\n" not in str(caught.value)


def test_batches_that_cannot_be_made_are_refused(folder: ImageFolder) -> None:
    with pytest.raises(ConfigError, match="batch_size is 12, but the training set has only 11 images"):
        FolderBatches(folder, PREPROCESSING, batch_size=12, crop=True, flip=True, seed=0)
    with pytest.raises(ConfigError, match="batch_size is 4, which 3 processes cannot share evenly"):
        batches(folder, share=Share(rank=0, of=3))
