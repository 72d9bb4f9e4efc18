"""Quality metrics of outputs: top-1 for rows of logits, mean IoU for maps of classes, average precision for boxes."""

from __future__ import annotations

from .average_precision import AveragePrecision
from .boxes import BoxDecoder, Detections, box_ious, decoder_in_metadata, decoder_of_metadata, suppress
from .labels import pad_boxes
from .mean_iou import MeanIoU
from .metric import Metric
from .top1 import Top1

__all__ = [
    "AveragePrecision",
    "BoxDecoder",
    "Detections",
    "MeanIoU",
    "Metric",
    "Top1",
    "box_ious",
    "decoder_in_metadata",
    "decoder_of_metadata",
    "pad_boxes",
    "suppress",
]
