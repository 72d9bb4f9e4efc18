"""Top-1 accuracy, computed in one way: equal counts give equal floats, which can be compared exactly."""

from __future__ import annotations


def top1_fraction(right: int, images: int) -> float:
    """Return the share of images whose largest logit is that of their label, in [0, 1]."""
    return right / images


def top1_percent(right: int, images: int) -> float:
    """Return the same share in percent: `100 * (right / images)`; `100 * right / images` may differ in the last bit."""
    return 100.0 * top1_fraction(right, images)
