"""The images of a run: training batches, from memory or from a folder, and the test set, read batch by batch."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import nn

from qil_deploy.accuracy import top1_percent
from qil_deploy.datasets import (
    ImageBatches,
    ImageFolder,
    ImageSet,
    find_image_folder,
    load_batches,
    load_images,
    preprocessing_for,
    resize_images,
)
from qil_deploy.errors import ConfigError, DataError
from qil_deploy.integers import predictions
from qil_deploy.network import evaluation_mode
from qil_deploy.preprocessing import Preprocessing
from qil_deploy.training.memory import require_memory
from qil_deploy.training.recipe import Recipe
from qil_deploy.training.recipe_sections import QuantizerOnlySection
from qil_deploy.training.teacher import Teacher, load_teacher

from .folder_batches import FolderBatches
from .memory_batches import ArrayBatches, Batches, Share
from .unlabelled import unlabelled_images

EVALUATION_BATCH = 250


@dataclass(frozen=True, kw_only=True)
class RunData:
    """Training and test data of a run.

    Attributes:
        recipe: the run's.
        train: the training set, in memory or as a folder.
        test: the test set.
        preprocessing: shape of an image, and the map from its pixels to the network's input.
        workers: processes that decode the images of a folder.
        teacher: the float network that is quantized, in a recipe with `quantizer_only`.
    """

    recipe: Recipe
    train: ImageSet | ImageFolder
    test: ImageBatches
    preprocessing: Preprocessing
    workers: int
    teacher: Teacher | None = None

    @property
    def class_names(self) -> tuple[str, ...]:
        """One name per class."""
        return self.test.class_names

    def batches(self, batch_size: int, seed: int, share: Share) -> Batches:
        """Return training batches.

        Raises:
            ConfigError: a batch larger than the set, or one that the processes cannot share evenly.
        """
        augmentation = self.recipe.augmentation
        if isinstance(self.train, ImageSet):
            return ArrayBatches(
                self.train,
                self.preprocessing,
                batch_size=batch_size,
                flip=augmentation.flip,
                shift=augmentation.shift,
                seed=seed,
                share=share,
            )
        return FolderBatches(
            self.train,
            self.preprocessing,
            batch_size=batch_size,
            crop=augmentation.crop,
            flip=augmentation.flip,
            seed=seed,
            workers=self.workers,
            share=share,
        )

    def accuracy(self, model: nn.Module, accelerator: Accelerator) -> float:
        """Top-1 accuracy on the test set, in percent; every process takes its share of the images."""
        right = 0
        size = self.test.batch_size
        with evaluation_mode(model):  # once: a frozen model folds its integers when it leaves training mode
            for start in range(accelerator.process_index * size, self.test.count, accelerator.num_processes * size):
                batch = self.test.read(start, min(start + size, self.test.count))
                right += int((predictions(model, batch.images, self.preprocessing) == batch.labels).sum())
        total = accelerator.reduce(torch.tensor(float(right), device=accelerator.device), "sum")
        return top1_percent(int(total), self.test.count)

    def predictions(self, model: nn.Module) -> NDArray[np.int64]:
        """Class of each test image, int64 [N]."""
        return np.concatenate([predictions(model, batch.images, self.preprocessing) for batch in self.test])


def load_run_data(recipe: Recipe, workers: int) -> RunData:
    """Load, or open, the data set of a recipe.

    Raises:
        DataError: it is unknown or missing, or its splits have other classes.
        ConfigError: the recipe asks for an augmentation that its kind of data set does not have.
        CheckpointError: the float checkpoint of a recipe with `quantizer_only` cannot be used.
    """
    if recipe.quantizer_only is not None:
        return _unlabelled_data(recipe, recipe.quantizer_only)
    folder = find_image_folder(recipe.data, "train")
    size = recipe.image_size
    train: ImageSet | ImageFolder
    if folder is None:
        _refuse(recipe, "augmentation.crop", recipe.augmentation.crop, "folders of images")
        train = load_images(recipe.data, "train")
        if recipe.train_images is not None:
            train = train.first(recipe.train_images)
        if size is not None:
            require_memory(
                float(len(train)) * train.images.shape[1] * size**2,
                f"{len(train):,} training images of image_size {size}",
                "give a smaller one, or train_images",
            )
            train = replace(train, images=resize_images(train.images, (train.images.shape[1], size, size)))
        channels, height, width = train.images.shape[1:]
    else:
        _refuse(recipe, "augmentation.shift", recipe.augmentation.shift, "data sets in memory")
        _refuse(recipe, "train_images", recipe.train_images, "data sets in memory")
        train = folder
        channels, height, width = folder.default_shape() if size is None else (3, size, size)
    if recipe.augmentation.shift >= max(height, width):
        raise ConfigError(
            f"recipe {recipe.name} sets augmentation.shift to {recipe.augmentation.shift}, which moves images of "
            f"{height}x{width} pixels out of sight; give less."
        )
    test = load_batches(recipe.data, "test", shape=(channels, height, width), batch_size=EVALUATION_BATCH)
    _check_classes(train.class_names, test.class_names)
    return RunData(
        recipe=recipe,
        train=train,
        test=test,
        preprocessing=_preprocessing(recipe, test),
        workers=workers,
    )


def _preprocessing(recipe: Recipe, images: ImageBatches) -> Preprocessing:
    if recipe.mean is None or recipe.std is None:
        return preprocessing_for(recipe.data, images)
    try:
        return Preprocessing.from_statistics(images.shape, recipe.mean, recipe.std)
    except DataError as error:
        raise ConfigError(f"recipe {recipe.name}: {error}") from error


def _unlabelled_data(recipe: Recipe, section: QuantizerOnlySection) -> RunData:
    """Load other images to train on; of the recipe's own data set only the test images are read."""
    _refuse(recipe, "augmentation.crop", recipe.augmentation.crop, "folders of images with labels")
    teacher = load_teacher(section, recipe)
    preprocessing = teacher.info.preprocessing
    test = load_batches(recipe.data, "test", preprocessing=preprocessing, batch_size=EVALUATION_BATCH)
    _check_classes(teacher.info.class_names, test.class_names)
    train = unlabelled_images(section, teacher, recipe.seed)
    return RunData(recipe=recipe, train=train, test=test, preprocessing=preprocessing, workers=0, teacher=teacher)


def _refuse(recipe: Recipe, key: str, value: object, wanted: str) -> None:
    """Raise if a recipe sets a key that belongs to another kind of data set."""
    if value:
        raise ConfigError(f"recipe {recipe.name} sets {key} for data set {recipe.data!r}; it is for {wanted}.")


def _check_classes(train: tuple[str, ...], test: tuple[str, ...]) -> None:
    """Raise DataError if the labels of both sets have different meanings."""
    if train != test:
        raise DataError(
            f"the training images have the classes {', '.join(train)}, but the test images "
            f"{', '.join(test)}; both need the same."
        )
