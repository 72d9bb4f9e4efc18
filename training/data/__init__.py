"""The images of a run as batches for training: from memory or from a folder."""

from __future__ import annotations

from .memory_batches import ArrayBatches, Batches, Share, check_batch_size, seeded, to_input
from .run_data import RunData, load_run_data

__all__ = ["ArrayBatches", "Batches", "RunData", "Share", "check_batch_size", "load_run_data", "seeded", "to_input"]
