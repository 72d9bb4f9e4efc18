"""The passes that rewrite a captured graph to the written one: one rule per file, listed in `pipeline`."""

from __future__ import annotations

from .pipeline import LoweredModel, lower
from .rule import Notes

__all__ = ["LoweredModel", "Notes", "lower"]
