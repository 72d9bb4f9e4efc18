"""Check the batches of images that a caller hands over, before anything is done with them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, fx, nn

from qil_deploy.errors import DataError

from .finite import is_finite

_MOST_BYTES = 2**32


def checked_batches(batches: Iterable[object], what: str, model: nn.Module) -> list[Tensor]:
    """Return all batches as tensors on the model's device; those of the caller stay as they are.

    Args:
        batches: inputs of the network, [N, C, H, W] each, in the type of its parameters (float32); or what begins with
            them, as the (images, labels) of a DataLoader. Any iterable, which is gone through once.
        what: what they are for; sentences begin with it.
        model: float, prepared or frozen; of the latter two the shape of an image is known.

    Raises:
        DataError: no batches, or more than 4 GiB; or a batch that is no tensor of images, empty, of another type or
            shape than the network takes, or not finite. The sentence says which batch.
    """
    if isinstance(batches, Tensor | Mapping | str) or not isinstance(batches, Iterable):
        found = f"a tensor of shape {list(batches.shape)}" if isinstance(batches, Tensor) else type(batches).__name__
        raise DataError(f"{what} takes an iterable of batches, but got {found}; put a single batch into a list: [x].")
    reference = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
    shape = image_shape(model)
    result: list[Tensor] = []
    size = 0
    for index, batch in enumerate(batches):
        first = batch[0] if isinstance(batch, Sequence) and len(batch) > 0 else batch
        images = _checked(first, f"{what}: batch {index}", reference.dtype, shape)
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
