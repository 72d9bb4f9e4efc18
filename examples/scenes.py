"""Drawn scenes to train on: disks, squares and triangles with stripes, on textures, with labels and boxes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

CLASSES = ("disk", "square", "triangle")
COLOURS = np.array([[40, 40, 48], [240, 90, 80], [80, 170, 250], [250, 200, 70]], np.uint8)
"""Of labels in pictures, the background first."""
_MOST_SHAPES = 4
_MOST_OVERLAP = 0.05


@dataclass(frozen=True, kw_only=True)
class Scenes:
    """Images with their labels.

    Attributes:
        images: uint8 [N, 3, H, W].
        labels: int64 [N, H, W], 0 for the background, 1 + index in `CLASSES` for shapes.
        boxes: for each image float32 [K, 5]: left, top, right, bottom and index in `CLASSES`.
    """

    images: np.ndarray
    labels: np.ndarray
    boxes: list[np.ndarray]


def draw_scenes(count: int, size: int, seed: int) -> Scenes:
    """Return `count` scenes of `size` x `size` pixels, always the same for the same seed."""
    rng = np.random.default_rng(seed)
    images, labels, boxes = np.empty((count, 3, size, size), np.uint8), np.empty((count, size, size), np.int64), []
    for index in range(count):
        images[index], labels[index], found = _draw(size, rng)
        boxes.append(found)
    return Scenes(images=images, labels=labels, boxes=boxes)


def _draw(size: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    image, labels = _texture(size, rng), np.zeros((size, size), np.int64)
    boxes = []
    for _ in range(rng.integers(1, _MOST_SHAPES + 1)):
        cls = int(rng.integers(len(CLASSES)))
        inside = _shape(cls, size, rng)
        if (labels[inside] > 0).mean() > _MOST_OVERLAP:
            continue
        image[:, inside] = _texture(size, rng)[:, inside]
        labels[inside] = 1 + cls
        rows, columns = np.flatnonzero(inside.any(axis=1)), np.flatnonzero(inside.any(axis=0))
        boxes.append([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1, cls])
    noise = rng.normal(0, 12, image.shape)
    return np.clip(image + noise, 0, 255).astype(np.uint8), labels, np.array(boxes, np.float32).reshape(-1, 5)


def _shape(cls: int, size: int, rng: np.random.Generator) -> np.ndarray:
    """Return which pixels belong to a shape of a random place, size and angle."""
    radius = size * rng.uniform(0.1, 0.27)
    middle = rng.uniform(0.8 * radius, size - 0.8 * radius, 2)
    angle = rng.uniform(0, 2 * np.pi)
    y, x = np.mgrid[:size, :size] + 0.5 - middle[:, None, None]
    u, v = np.cos(angle) * x + np.sin(angle) * y, np.cos(angle) * y - np.sin(angle) * x
    sides = [np.cos(turn) * u + np.sin(turn) * v for turn in (0, 2 * np.pi / 3, 4 * np.pi / 3)]
    disc, square = u**2 + v**2 < radius**2, np.maximum(np.abs(u), np.abs(v)) < 0.8 * radius
    inside: np.ndarray = (disc, square, np.max(sides, axis=0) < 0.55 * radius)[cls]
    return inside


def _texture(size: int, rng: np.random.Generator) -> np.ndarray:
    """Return stripes of two colours, float [3, size, size]."""
    first, second = rng.uniform(20, 235, (2, 3, 1, 1))
    angle, period = rng.uniform(0, np.pi), rng.uniform(4, 24)
    y, x = np.mgrid[:size, :size]
    wave = 0.5 + 0.5 * np.sin(2 * np.pi / period * (np.cos(angle) * x + np.sin(angle) * y) + rng.uniform(0, 6))
    texture: np.ndarray = first + (second - first) * wave * rng.uniform(0.2, 0.9)
    return texture


def write_rows(path: str, rows: list[list[np.ndarray]], scale: int = 3) -> None:
    """Write pictures uint8 [H, W, 3], all of one size, as rows of one PNG file with gaps between them."""
    height, width = (scale * side for side in rows[0][0].shape[:2])
    sheet = np.full((len(rows) * (height + 6) + 6, len(rows[0]) * (width + 6) + 6, 3), 255, np.uint8)
    for row, pictures in enumerate(rows):
        for column, picture in enumerate(pictures):
            large = picture.repeat(scale, axis=0).repeat(scale, axis=1)
            top, left = 6 + row * (height + 6), 6 + column * (width + 6)
            sheet[top : top + height, left : left + width] = large
    Image.fromarray(sheet).save(path)
