"""Batches: pixels stay on their grid, the order is seeded, and evaluation loses no image."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from qil_deploy.datasets import ImageSet
from qil_deploy.errors import ConfigError
from qil_deploy.preprocessing import Preprocessing
from qil_deploy.training.data.memory_batches import ArrayBatches, Share, random_flip, random_shift, to_input

PREPROCESSING = Preprocessing(channels=3, height=5, width=7, scale=0.0123, zero_point=77)


@pytest.fixture
def data(rng: np.random.Generator) -> ImageSet:
    images = rng.integers(0, 256, (23, 3, 5, 7)).astype(np.uint8)
    return ImageSet(images=images, labels=np.arange(23), class_names=tuple(map(str, range(23))))


def batches(
    data: ImageSet,
    *,
    batch_size: int = 4,
    flip: bool = False,
    shift: int = 0,
    seed: int = 1,
    share: Share = Share(),  # noqa: B008 - frozen
) -> ArrayBatches:
    return ArrayBatches(data, PREPROCESSING, batch_size=batch_size, flip=flip, shift=shift, seed=seed, share=share)


def pixels(x: torch.Tensor) -> NDArray[np.uint8]:
    return np.rint(x.numpy() / PREPROCESSING.scale + PREPROCESSING.zero_point).astype(np.uint8)


def test_input_is_what_preprocessing_says(data: ImageSet) -> None:
    x = to_input(torch.tensor(data.images), PREPROCESSING)
    np.testing.assert_array_equal(x.numpy(), PREPROCESSING.normalize(data.images))
    assert x.is_contiguous(memory_format=torch.channels_last)


def test_an_epoch_takes_every_image_once_but_the_last_few(data: ImageSet) -> None:
    source = batches(data)
    assert len(source) == 5
    epoch = list(source.epoch(0))
    assert [len(labels) for _, labels in epoch] == [4] * 5
    labels = torch.cat([labels for _, labels in epoch]).tolist()
    assert len(set(labels)) == 20
    for x, chosen in epoch:
        np.testing.assert_array_equal(pixels(x), data.images[chosen])


@pytest.mark.parametrize("flip", [False, True])
def test_what_is_drawn_is_what_an_epoch_shows(data: ImageSet, flip: bool) -> None:
    for rank in range(2):
        source = batches(data, flip=flip, share=Share(rank=rank, of=2))
        for index, (x, labels) in enumerate(source.epoch(3)):
            chosen, mirrored = source.drawn(3, index)
            assert torch.equal(chosen, labels)  # images are labelled with their number
            shown = [data.images[i][..., ::-1] if m else data.images[i] for i, m in zip(chosen, mirrored, strict=True)]
            np.testing.assert_array_equal(pixels(x), np.stack(shown))
            assert flip or not mirrored.any()


def test_order_changes_between_epochs_and_repeats_with_the_seed(data: ImageSet) -> None:
    def order(source: ArrayBatches, epoch: int) -> list[int]:
        return [int(label) for _, labels in source.epoch(epoch) for label in labels]

    source = batches(data)
    first, second = order(source, 0), order(source, 1)
    assert first != second
    # Whatever was drawn before.
    assert [order(source, 1), order(batches(data), 1), order(source, 0)] == [second, second, first]
    assert order(batches(data, seed=2), 0) != first


@pytest.mark.parametrize("start", range(6))
def test_an_epoch_goes_on_in_its_middle(data: ImageSet, start: int) -> None:
    source = batches(data, flip=True, shift=2)
    whole, rest = list(source.epoch(3)), list(source.epoch(3, start))
    assert len(rest) == 5 - start
    for (x, labels), (expected_x, expected_labels) in zip(rest, whole[start:], strict=True):
        torch.testing.assert_close(x, expected_x, atol=0, rtol=0)
        assert labels.tolist() == expected_labels.tolist()


@pytest.mark.parametrize("processes", [2, 3, 6])
def test_processes_see_together_what_one_sees(data: ImageSet, processes: int) -> None:
    def epoch(share: Share) -> list[tuple[torch.Tensor, torch.Tensor]]:
        return list(batches(data, batch_size=6, flip=True, shift=1, share=share).epoch(1))

    alone, shares = epoch(Share()), [epoch(Share(rank=rank, of=processes)) for rank in range(processes)]
    for index, (x, labels) in enumerate(alone):
        for rank, share in enumerate(shares):
            torch.testing.assert_close(share[index][0], x[rank::processes], atol=0, rtol=0)
            assert share[index][1].tolist() == labels[rank::processes].tolist()


def test_a_batch_that_cannot_be_shared_evenly_is_refused(data: ImageSet) -> None:
    with pytest.raises(ConfigError, match="batch_size is 4, which 3 processes cannot share evenly"):
        batches(data, share=Share(rank=0, of=3))


def test_a_batch_larger_than_the_set_is_refused(data: ImageSet) -> None:
    with pytest.raises(ConfigError, match="batch_size is 24, but the training set has only 23 images"):
        batches(data, batch_size=24)


def test_flip_mirrors_about_half_of_the_images(data: ImageSet) -> None:
    images = torch.tensor(data.images).repeat(20, 1, 1, 1)
    flipped = random_flip(images, torch.Generator().manual_seed(0))
    mirrored = (flipped == images.flip(3)).flatten(1).all(1)
    assert ((flipped == images).flatten(1).all(1) | mirrored).all()
    assert 0.4 < mirrored.float().mean() < 0.6


@pytest.mark.parametrize("padding", [1, 2])
def test_shift_moves_whole_images_by_whole_pixels(padding: int) -> None:
    images = torch.arange(1, 36, dtype=torch.uint8).reshape(1, 1, 5, 7).repeat(200, 2, 1, 1)
    images[:, 1] += 100
    shifted = random_shift(images, padding, torch.Generator().manual_seed(0))
    padded = torch.nn.functional.pad(images[:1], (padding,) * 4)
    reach = range(2 * padding + 1)
    allowed = {padded[0, :, y : y + 5, x : x + 7].numpy().tobytes() for y in reach for x in reach}
    found = {image.numpy().tobytes() for image in shifted}
    assert found == allowed


def test_augmentation_keeps_images_on_the_uint8_grid(data: ImageSet) -> None:
    for x, labels in batches(data, flip=True, shift=2).epoch(0):
        codes = x / PREPROCESSING.scale + PREPROCESSING.zero_point
        assert torch.allclose(codes, codes.round(), atol=1e-3)
        assert len(labels) == len(x)
        assert set(np.unique(pixels(x))) <= {0, *data.images.ravel().tolist()}
