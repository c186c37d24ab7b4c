"""Progress bars of long work."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm


def progress_bar(
    items: Iterable[Any] | None = None, *, total: int, title: str, unit: str = "image", shown: bool = True
) -> tqdm[Any]:
    """tqdm's bar, of `items` or to be moved by hand. A log file gets few lines of it."""
    every = 0.1 if sys.stderr.isatty() else 10  # seconds between updates
    return tqdm(items, title, total, unit=unit, unit_scale=unit == "B", disable=not shown, mininterval=every)
