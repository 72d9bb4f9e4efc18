"""Checkpoints: models and what is known about them in safetensors, read strictly."""

from __future__ import annotations

from .checkpoint import Builder, example_input, load_model, load_tensors, read_checkpoint, save_checkpoint
from .info import METADATA_KEY, CheckpointInfo, read_info
from .safetensors_file import DamagedFileError, file_content, has_digest, read_contents, read_tensors
from .values import check_values, scalars_of

__all__ = [
    "METADATA_KEY",
    "Builder",
    "CheckpointInfo",
    "DamagedFileError",
    "check_values",
    "example_input",
    "file_content",
    "has_digest",
    "load_model",
    "load_tensors",
    "read_checkpoint",
    "read_contents",
    "read_info",
    "read_tensors",
    "save_checkpoint",
    "scalars_of",
]
