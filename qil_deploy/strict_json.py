"""Strict JSON from untrusted sources, as in RFC 8259: no NaN, no duplicate keys, and limits on depth and digits."""

from __future__ import annotations

import json
import math
import sys
from typing import Any, Final, NoReturn

from .untrusted_text import excerpt

_LARGEST: Final = int(sys.float_info.max)


def parse_json(text: str | bytes) -> Any:  # noqa: ANN401 - whatever JSON holds
    """Parse JSON text.

    Raises:
        ValueError: it is no UTF-8, no JSON, nested too deep, has NaN, infinity or a number larger than any float, or an
            object with one key twice; the message is a clause that is fit to be shown.
    """
    try:
        plain = text.decode("utf-8") if isinstance(text, bytes) else text
        return json.loads(
            plain, object_pairs_hook=_unique, parse_constant=_refuse, parse_float=_finite_float, parse_int=_finite_int
        )
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error
    except ValueError as error:
        raise ValueError(excerpt(str(error))) from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries: dict[str, Any] = {}
    for key, value in pairs:
        if key in entries:
            raise ValueError(f"the key '{excerpt(key, 40)}' occurs twice in one object")
        entries[key] = value
    return entries


def _finite_float(text: str) -> float:
    number = float(text)
    return number if math.isfinite(number) else _refuse(text)


def _finite_int(text: str) -> int:
    number = int(text)
    return number if abs(number) <= _LARGEST else _refuse(text)


def _refuse(text: str) -> NoReturn:
    raise ValueError(f"{excerpt(text, 40)} is not a finite float64 number")
