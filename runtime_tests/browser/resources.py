"""What the server hands out: files of the page, of the runtime and of models, each with its type."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from .server import Resource

PAGE: Final = Path(__file__).parent / "page"
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".mjs": "text/javascript; charset=utf-8",
    ".wasm": "application/wasm",
    ".json": "application/json",
}
BYTES = "application/octet-stream"


def page_resources(files: Mapping[str, str], runtime: Mapping[str, Path]) -> dict[str, Resource]:
    """Return files of the page, by the names that are asked for, and those of ONNX Runtime Web."""
    return {name: file_resource(PAGE / file) for name, file in files.items()} | {
        name: file_resource(path) for name, path in runtime.items()
    }


def file_resource(path: Path) -> Resource:
    """Serve a file, read when it is asked for."""
    return Resource(content_type=_TYPES[path.suffix], read=path.read_bytes)


def bytes_resource(content: bytes, suffix: str | None = None) -> Resource:
    """Serve bytes that are there already."""
    return Resource(content_type=BYTES if suffix is None else _TYPES[suffix], read=lambda: content)
