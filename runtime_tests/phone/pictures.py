"""Data with which the page draws a file's outputs on its pictures: boxes, or a class for each pixel.

A file with a decoder of boxes is a detector. A map without one is drawn as the class of every pixel, its largest
channel, unless the file has names for another number of classes than the map has channels. Rows of logits are not
drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Final

import numpy as np

from qil_deploy.errors import ConfigError
from qil_deploy.metrics import BoxDecoder
from qil_deploy.onnx_io import NetworkOutput
from qil_deploy.runtime_tests.exported_model import ExportedModel
from qil_deploy.untrusted_text import excerpt

PICTURES: Final = 4
"""How many images are drawn, the first ones."""
_LONGEST_NAME: Final = 40


def pictures_in_job(model: ExportedModel) -> dict[str, Any] | None:
    """Return the entry of a job; None for a file whose outputs are not drawn.

    Args:
        model: the file; a decoder that does not fit its outputs is ignored.
    """
    decoder = model.boxes
    drawn = _outputs_of(decoder, model.outputs) if decoder is not None else _map_of_classes(model)
    if drawn is None:
        return None
    return {
        "count": PICTURES,
        "decoder": None if decoder is None else asdict(decoder),
        "outputs": [{"name": each.name, "scale": each.scale, "zero_point": each.zero_point} for each in drawn],
        "class_names": [excerpt(name, _LONGEST_NAME) for name in model.class_names],
        "channel_order": model.preprocessing.channel_order,
    }


def _outputs_of(decoder: BoxDecoder, outputs: Sequence[NetworkOutput]) -> list[NetworkOutput] | None:
    """Return the outputs that a decoder reads, in its order; None if they do not fit it."""
    by_name = {output.name: output for output in outputs}
    try:
        decoder.decode({name: np.zeros((0, *output.shape)) for name, output in by_name.items()})
    except ConfigError:
        return None
    return [by_name[name] for name in decoder.outputs]


def _map_of_classes(model: ExportedModel) -> list[NetworkOutput] | None:
    first = model.outputs[0]
    named = len(model.class_names)
    is_map = len(first.shape) == 3 and first.shape[0] > 1 and first.kind != "logits"
    return [first] if is_map and named in (0, first.shape[0]) else None
