"""Interface of all metrics: count batches of outputs against their labels, and return a value for all of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray


class Metric(Protocol):
    """A running count.

    Attributes:
        name: as in reports.
    """

    @property
    def name(self) -> str:
        """Name in reports."""

    def add(self, outputs: Mapping[str, NDArray[np.float32]], labels: NDArray[Any]) -> None:
        """Count some images.

        Args:
            outputs: by name, each [N, ...], codes as the floats they represent.
            labels: of the same images, [N, ...].

        Raises:
            DataError: labels that do not fit the outputs.
        """

    def value(self) -> float:
        """Return the metric of all images so far, in [0, 1]."""
