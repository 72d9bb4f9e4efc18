"""Types of the values of recipes: their constraints, and the error sentences."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

LARGEST_IMAGE_SIDE = 8192
# Rates become float32, and so do their products with weights.
LARGEST_RATE = 1e30
_RESERVED_NAMES = {"con", "prn", "aux", "nul", *(f"{port}{number}" for port in ("com", "lpt") for number in range(10))}

Epochs = Annotated[int, Field(ge=0, le=1_000_000, strict=True)]
Images = Annotated[int, Field(ge=1, le=2**40, strict=True)]
Positive = Annotated[float, Field(gt=0, le=LARGEST_RATE, allow_inf_nan=False, strict=True)]
NotNegative = Annotated[float, Field(ge=0, le=LARGEST_RATE, allow_inf_nan=False, strict=True)]
Share = Annotated[float, Field(gt=0, lt=1, strict=True)]
Temperature = Annotated[float, Field(ge=1e-6, le=1e6, allow_inf_nan=False, strict=True)]
Switch = Annotated[bool, Field(strict=True)]
IntervalOptimizer = Literal["adam", "sgd"]
Statistics = NotNegative | Annotated[tuple[NotNegative, ...], Field(min_length=1, max_length=1000)]


def _without_nul(text: str) -> str:
    if "\0" in text:
        raise ValueError("it holds a NUL character, which no name of a file can")
    return text


def _names_a_folder(text: str) -> str:
    if (
        not text.isprintable()
        or set(text) & set("/\\:")
        or text != text.strip(" .")
        or len(text.encode("utf-8", "replace")) > 100
        or text.partition(".")[0].lower() in _RESERVED_NAMES
    ):
        raise ValueError(
            "it is the name of the run's folder: at most 100 printable characters, no slash, backslash or colon, no "
            "dot or blank at either end, and none of the names that Windows reserves"
        )
    return text


Name = Annotated[str, Field(min_length=1, max_length=600), AfterValidator(_without_nul)]
"""Of a file, a folder, a data set or a network."""

Overrides = Annotated[dict[Annotated[str, Field(max_length=1000)], dict[str, int]], Field(max_length=10_000)]

FolderName = Annotated[str, Field(min_length=1), AfterValidator(_names_a_folder)]
"""Of the folder of a run."""
