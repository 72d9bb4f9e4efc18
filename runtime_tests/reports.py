"""Parts that several reports share (`qil_deploy.reports` writes and reads them)."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

_PIECE = 1 << 20


@dataclass(frozen=True, kw_only=True)
class ModelFile:
    """File that a report is about.

    Attributes:
        path: as it was given.
        bytes: its size.
        sha256: hexadecimal digest of its content.
        kernels: which set of the kernel library computed it; '' where none did.
    """

    path: str
    bytes: int
    sha256: str
    kernels: str = ""

    @property
    def label(self) -> str:
        """Label that distinguishes it from other files, and from the same file with other kernels."""
        return f"{self.path.removesuffix('.onnx')} [{self.kernels}]" if self.kernels else self.path

    @classmethod
    def of(cls, path: Path) -> ModelFile:
        """Describe the file at `path`, which must exist."""
        digest = hashlib.sha256()
        with path.open("rb") as stream:  # piece by piece: hashlib has no function for it in Python 3.10
            while piece := stream.read(_PIECE):
                digest.update(piece)
        return cls(path=str(path), bytes=path.stat().st_size, sha256=digest.hexdigest())
