"""Weight codes by layer, which the certificate compares with those of a file."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np
from numpy.typing import NDArray


class LayerCodes(Mapping[str, NDArray[np.int8]]):
    """Weight codes of layers by name, computed on access: all at once would fill the memory."""

    def __init__(self, codes: Mapping[str, Callable[[], NDArray[np.int8]]]) -> None:
        self._codes = codes

    def __getitem__(self, name: str) -> NDArray[np.int8]:
        """Compute the codes of one layer."""
        return self._codes[name]()

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names."""
        return iter(self._codes)

    def __len__(self) -> int:
        """Return the number of layers."""
        return len(self._codes)
