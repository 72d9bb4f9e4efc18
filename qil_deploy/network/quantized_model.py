"""The models that `prepare` and `freeze` return: graphs of their own classes, which every copy keeps.

What a prepared model does besides its graph is in `__call__`: its first batch in training mode sets its intervals,
and until they are set it refuses to be evaluated. A forward hook would do the same only until the model is copied, as
torch.fx then drops hooks (decision 0025).
"""

from __future__ import annotations

import math
from typing import Any, Final, NoReturn

from torch import Tensor, distributed, fx, nn

from qil_deploy.errors import DataError, UnsupportedModelError
from qil_deploy.quantizers import InputQuantizer

from .batches import INPUT_GRID, checked_batches
from .calibrator import set_intervals
from .graph import module_of, shape_of
from .layers import BatchNorm
from .outputs import returned_of

CONFIG: Final = "config"
"""Key in the `meta` of a prepared or frozen model: the `QuantConfig` that it was prepared with."""


class QuantizedModel(fx.GraphModule):
    """A prepared or frozen model: a graph whose nodes carry the shapes of their results."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - as in the base class
        """Return the float network's form of output for images: logits, or tensors in the same containers.

        Raises:
            DataError: images of integers: raw pixels would count as normalised ones.
        """
        images = _images(args, kwargs)
        if isinstance(images, Tensor) and not images.is_floating_point():
            raise DataError(
                f"the model takes images as float32, but these are {str(images.dtype)[6:]}; preprocessing.normalize "
                "makes them from uint8 pixels."
            )
        return returned_of(self.graph).restore(super().__call__(*args, **kwargs))

    def __copy__(self) -> fx.GraphModule:
        """Return a model of the same class that shares all tensors."""
        result = type(self).__new__(type(self))  # which makes a new class, so that Python would not call __init__
        fx.GraphModule.__init__(result, self, self.graph)
        for name, buffer in self.named_buffers(recurse=False):
            result.register_buffer(name, buffer)
        result.meta = self.meta
        return result

    def __reduce__(self) -> NoReturn:
        """Refuse to be pickled, as by `torch.save(model)`: the graph would lose its shapes."""
        raise UnsupportedModelError(
            "a prepared or frozen model cannot be pickled whole; write it with qil_deploy.save_checkpoint, or save its "
            "state_dict() and load that into a model prepared in the same way."
        )


class PreparedModel(QuantizedModel):
    """A model from `prepare`, with fake quantization, to be trained.

    Attributes:
        calibrated: whether its intervals were set, bool scalar.
    """

    calibrated: Tensor

    def __call__(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - as in the base class
        """Return outputs as the float network does; the first batch in training mode sets the intervals first.

        Raises:
            UnsupportedModelError: evaluated before its intervals were set.
            DataError: a single image in training mode, which gives BatchNorm one value per channel; or a first
                batch that intervals cannot be set from.
        """
        images = _images(args, kwargs)
        if self.training and isinstance(images, Tensor) and len(images) == 1:
            refuse_single_values(self, "training", images)
        if not self.calibrated:
            self._calibrate(images)
        return super().__call__(*args, **kwargs)

    def _calibrate(self, images: object) -> None:
        """Set the intervals from the first batch in training mode, if that is possible."""
        if not self.training:
            raise UnsupportedModelError(
                "the model's intervals were never set, so its results mean nothing yet; call "
                "calibrate(model, batches), or train it, before it is evaluated."
            )
        processes = distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1
        if processes > 1 or getattr(self, "_is_replica", False):
            raise UnsupportedModelError(
                "in several processes or replicas each would set intervals from its own share of the first batch; call "
                "calibrate(model, batches), with the same batches in every process, before the model is wrapped."
            )
        set_intervals(self, checked_batches([images], "calibration from the first batch", self))


def keeps_float(model: nn.Module) -> bool:
    """Tell whether a prepared or frozen model is in `paper` placement: its image is not quantized."""
    return not any(isinstance(module, InputQuantizer) for module in model.modules())


class FrozenModel(QuantizedModel):
    """A model from `freeze`, which computes with the integers of the exported file."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - as in the base class
        """Return outputs as the float network does, computed in integers.

        Raises:
            DataError: images of another shape than the model is for: the windows of its poolings are constants.
        """
        images = _images(args, kwargs)
        shape = self.meta[INPUT_GRID].shape
        if isinstance(images, Tensor) and tuple(images.shape[1:]) != shape:
            raise DataError(
                f"the frozen model takes images [N, {', '.join(map(str, shape))}], but these are {list(images.shape)}."
            )
        return super().__call__(*args, **kwargs)

    def fold(self) -> None:
        """Update the integers of a model in training mode from its parameters."""
        for module in self.modules():
            fold = getattr(module, "fold_to_buffers", None)
            if module.training and callable(fold):
                fold()


def _images(args: tuple[Any, ...], kwargs: dict[str, Any]) -> object:
    """Return the images that a model is called with."""
    return next(iter((*args, *kwargs.values())), None)


def refuse_single_values(model: fx.GraphModule, doing: str, images: Tensor, *, norms_learn: bool = False) -> None:
    """Refuse batches that give a BatchNorm in training mode a single value per channel, which has no variance.

    Args:
        model: with shapes on its nodes.
        doing: what is going on; the sentence begins with it.
        images: [N, C, H, W].
        norms_learn: whether every BatchNorm is going to be in training mode.

    Raises:
        DataError: naming the BatchNorm.
    """
    for node in model.graph.nodes:
        if node.op == "call_module" and len(images) * math.prod(shape_of(node)[2:]) == 1:
            norm = module_of(model, node)
            if isinstance(norm, BatchNorm) and (norms_learn or norm.training):
                raise DataError(
                    f"{doing}: of a batch of one image, {node.target!r} ({type(norm).__name__}) sees one value per "
                    "channel, which has no variance; give at least two images per batch (a DataLoader with "
                    "drop_last=True leaves out a smaller last batch)."
                )
