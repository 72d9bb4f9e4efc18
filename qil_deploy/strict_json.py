"""JSON from outside, by the letter of RFC 8259: no NaN, no key twice in an object, and an end to depth and digits."""

from __future__ import annotations

import json
from typing import Any, NoReturn

from .untrusted_text import excerpt


def parse_json(text: str | bytes) -> Any:  # noqa: ANN401 - whatever JSON holds
    """Parse JSON text.

    Raises:
        ValueError: it is no UTF-8, no JSON, nested too deep, has an integer of thousands of digits, NaN or infinity, or
            an object with one key twice; the message is a clause that is fit to be shown.
    """
    try:
        plain = text.decode("utf-8") if isinstance(text, bytes) else text
        return json.loads(plain, object_pairs_hook=_unique, parse_constant=_refuse)
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error
    except ValueError as error:
        raise ValueError(excerpt(str(error))) from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries: dict[str, Any] = {}
    for key, value in pairs:
        if key in entries:
            raise ValueError(f"the key '{excerpt(key, 40)}' stands in one object twice")
        entries[key] = value
    return entries


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no number")
