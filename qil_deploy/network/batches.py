"""Check batches of images from a caller before they are used."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import torch
from torch import Tensor, fx, nn

from qil_deploy.errors import DataError
from qil_deploy.preprocessing import Preprocessing

from .finite import is_finite

INPUT_GRID: Final = "input_grid"
"""Key in the `meta` of a prepared or frozen model: the `Preprocessing` that it was prepared with."""

_MOST_BYTES = 2**32
_FAR_OUTSIDE = 8.0
"""Widths of the input's range: augmentation and noise stay below, pixels that were never normalised do not."""


def checked_batches(batches: Iterable[object], what: str, model: nn.Module) -> list[Tensor]:
    """Return all batches as tensors on the model's device; the caller's stay unchanged.

    Args:
        batches: inputs of the network, [N, C, H, W] each, in the type of its parameters (float32); or what begins with
            them, such as the (images, labels) of a DataLoader. Any iterable; it is read once.
        what: what they are for; sentences begin with it.
        model: float, prepared or frozen; for the latter two the shape of an image is known.

    Raises:
        DataError: no batches, or more than 4 GiB; or a batch that is no tensor of images, empty, of another type or
            shape than the network takes, not finite, or, for a prepared or frozen model, far outside the range of
            normalised pixels. The sentence says which batch.
    """
    if isinstance(batches, Tensor | Mapping | str) or not isinstance(batches, Iterable):
        found = f"a tensor of shape {list(batches.shape)}" if isinstance(batches, Tensor) else type(batches).__name__
        raise DataError(f"{what} takes an iterable of batches, but got {found}; put a single batch into a list: [x].")
    reference = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
    shape = image_shape(model)
    grid = model.meta.get(INPUT_GRID) if isinstance(model, fx.GraphModule) else None
    result: list[Tensor] = []
    size = 0
    for index, batch in enumerate(batches):
        first = batch[0] if isinstance(batch, Sequence) and len(batch) > 0 else batch
        images = _checked(first, f"{what}: batch {index}", reference.dtype, shape)
        if grid is not None:
            require_normalised(images, f"{what}: batch {index}", grid)
        result.append(images.to(reference.device))
        size += images.numel() * images.element_size()
        if size > _MOST_BYTES:
            raise DataError(
                f"{what} keeps all batches in memory, and the first {index + 1} have {size:,} bytes; a few hundred "
                "images are plenty: itertools.islice(batches, 8)."
            )
    if not result:
        raise DataError(f"{what} needs at least one batch of images; a generator that was used before has none left.")
    return result


def image_shape(model: nn.Module) -> tuple[int, ...] | None:
    """Return the shape of one image, [C, H, W], that a prepared or frozen model takes; None for any other model."""
    if not isinstance(model, fx.GraphModule):
        return None
    shapes = [node.meta.get("shape") for node in model.graph.nodes if node.op == "placeholder"]
    return None if len(shapes) != 1 or shapes[0] is None else tuple(shapes[0][1:])


def require_normalised(images: Tensor, which: str, grid: Preprocessing) -> None:
    """Refuse images far outside the range of normalised pixels, such as raw pixels.

    Values somewhat outside pass: augmentation and noise make them, and the integer graph clips them.

    Args:
        images: finite, at least one value.
        which: what they are; the sentence begins with it.
        grid: the map from pixels to the network's input.

    Raises:
        DataError: a value lies outside that range by more than eight times its width.
    """
    lowest, highest = grid.input_range
    least, most = images.min().item(), images.max().item()
    if max(lowest - least, most - highest) > _FAR_OUTSIDE * (highest - lowest):
        raise DataError(
            f"{which} has values from {least:.6g} to {most:.6g}, but pixels are normalised to {lowest:.6g} to "
            f"{highest:.6g} (input_grid); give images as preprocessing.normalize makes them from uint8 pixels."
        )


def _checked(images: object, which: str, dtype: torch.dtype, shape: tuple[int, ...] | None) -> Tensor:
    if not isinstance(images, Tensor):
        raise DataError(
            f"{which} is of type {type(images).__name__!r}; give tensors of images, or tuples that begin with one."
        )
    if images.dtype != dtype:
        advice = "preprocessing.normalize makes them from uint8 pixels" if not images.is_floating_point() else "cast it"
        raise DataError(f"{which} is {_name(images.dtype)}, but the network takes {_name(dtype)}; {advice}.")
    wanted = ["N", "C", "H", "W"] if shape is None else ["N", *shape]
    if images.ndim != len(wanted) or (shape is not None and tuple(images.shape[1:]) != shape):
        raise DataError(
            f"{which} has shape {list(images.shape)}; the network takes [{', '.join(map(str, wanted))}], N images each."
        )
    if images.numel() == 0:
        raise DataError(f"{which} is empty; leave it out.")
    if not is_finite(images):
        count = int((~images.isfinite()).sum())
        raise DataError(
            f"{which} has NaN or infinity in {count:,} of {images.numel():,} values; leave it out or mend it."
        )
    return images


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
