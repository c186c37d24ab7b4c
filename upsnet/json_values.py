"""Numbers as the JSON files of many makers have them: what counts as one, and the words for what does not."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Mapping
from numbers import Integral, Real

from upsnet.errors import InputError

MOST_ID = (1 << 63) - 1  # of an image or a category: they travel through int64


def whole(value: object) -> int | None:
    """5, and 5.0 as pandas writes it, as an int. None for anything else: text, true, null, 5.5, NaN."""
    if type(value) is int:  # nearly always
        return value
    if isinstance(value, bool):
        return None
    if isinstance(value, Integral):  # numpy's
        return int(value)
    return int(float(value)) if isinstance(value, Real) and float(value).is_integer() else None


def flag(value: object) -> int | None:
    """0 or 1 for 0, 1, 0.0, 1.0, false and true; None for anything else."""
    number = int(value) if isinstance(value, bool) else whole(value)
    return number if number in (0, 1) else None


def finite(value: object) -> float | None:
    """A number that is finite, as it is; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, Real):
        return None
    return value if isinstance(value, Integral) or math.isfinite(value) else None  # type: ignore[return-value]


def complaint(entry: Mapping[str, object], key: str, wanted: str = "an integer") -> str:
    """What is wrong with entry[key], which is not `wanted`, and the cure."""
    if key not in entry:
        return f"key '{key}' is missing"
    value = entry[key]
    text = f"'{key}' is {value!r:.40}, not {wanted}"
    if isinstance(value, str) and value.strip().lstrip("-").isdecimal() and len(value) < 20:
        return f"{text}: it is text; write the number {value.strip()} without quotes"
    return text


def integer(entry: Mapping[str, object], key: str, where: str) -> int:
    """entry[key] as an int. InputError, after `where`, where it is none."""
    value = whole(entry.get(key))
    if value is None:
        raise InputError(f"{where}: {complaint(entry, key)}")
    return value


def breaks_line(text: str) -> bool:
    """Whether it holds a line break or another control character, with which it is no name on one line."""
    return not text.isprintable() and any(unicodedata.category(character) in ("Cc", "Zl", "Zp") for character in text)


def is_visible(text: str) -> bool:
    """Whether it holds more than blanks and characters that show nothing."""
    return any(unicodedata.category(character)[0] not in "CZ" for character in text)
