"""The models that `prepare` and `freeze` return: graphs of classes of their own, which every copy keeps.

What a prepared model does beside its graph it does in `__call__`: its first batch in training mode sets its intervals,
and until they are set it refuses to be evaluated. A forward hook would do the same only until the model is copied, for
torch.fx drops hooks then (decision 0025).
"""

from __future__ import annotations

import math
from typing import Any, Final, NoReturn

from torch import Tensor, distributed, fx

from .batches import checked_batches
from .calibrator import set_intervals
from .errors import DataError, UnsupportedModelError
from .graph import module_of, shape_of
from .layers import BatchNorm

INPUT_GRID: Final = "input_grid"
"""Key in the `meta` of a prepared or frozen model: the `Preprocessing` that it was prepared for."""


class QuantizedModel(fx.GraphModule):
    """A prepared or frozen model: a graph whose nodes say what shapes they make."""

    def __copy__(self) -> fx.GraphModule:
        """Return a model of the same class that shares all tensors."""
        result = type(self)(self, self.graph)
        result.meta = self.meta
        return result

    def __reduce__(self) -> NoReturn:
        """Refuse to be pickled, as by `torch.save(model)`: a graph without shapes would come back."""
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
        """Return the logits of images; the first batch in training mode sets the intervals before.

        Raises:
            UnsupportedModelError: evaluated before its intervals were set.
            DataError: a single image in training mode, of which BatchNorm would see one value per channel; or a first
                batch that intervals cannot be set from.
        """
        images = next(iter((*args, *kwargs.values())), None)
        if self.training and isinstance(images, Tensor) and len(images) == 1:
            refuse_single_values(self, "training", images)
        if not self.calibrated:
            self._calibrate(images)
        return super().__call__(*args, **kwargs)

    def _calibrate(self, images: object) -> None:
        """Set the intervals from the first batch in training mode, where that is right."""
        if not self.training:
            raise UnsupportedModelError(
                "the model's intervals were never set, so what it computes means nothing yet; call "
                "calibrate(model, batches), or train it, before it is evaluated."
            )
        processes = distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1
        if processes > 1 or getattr(self, "_is_replica", False):
            raise UnsupportedModelError(
                "in several processes or replicas each would set intervals from its own share of the first batch; call "
                "calibrate(model, batches), with the same batches in every process, before the model is wrapped."
            )
        set_intervals(self, checked_batches([images], "calibration from the first batch", self))


class FrozenModel(QuantizedModel):
    """A model from `freeze`, which computes with the integers of the exported file."""


def refuse_single_values(model: fx.GraphModule, doing: str, images: Tensor, *, norms_learn: bool = False) -> None:
    """Refuse images of which some BatchNorm in training mode would see one value per channel, which has no variance.

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
