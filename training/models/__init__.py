"""The networks that recipes name, and their initial weights."""

from __future__ import annotations

from .build import MODELS, build_model, in_memory_format, memory_format_for, model_builder
from .initial_weights import load_initial_weights
from .user_errors import describe_error

__all__ = [
    "MODELS",
    "build_model",
    "describe_error",
    "in_memory_format",
    "load_initial_weights",
    "memory_format_for",
    "model_builder",
]
