"""The table on the terminal, and the JSON file. Both work in an image that has only PyTorch."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """With rich where it is installed, else in plain columns."""
    try:
        from upsnet.command_line.tables import make_table, print_tables
    except ImportError:
        widths = [max(len(row[index]) for row in [columns, *rows]) for index in range(len(columns))]
        print(title)
        for row in [columns, *rows]:
            print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
        return
    table = make_table(title, *columns)
    for row in rows:
        table.add_row(*row)
    print_tables(table)


def progress(items: Iterable[T], total: int, what: str) -> Iterator[T]:
    """A bar on stderr where tqdm is installed and someone looks."""
    try:
        from tqdm import tqdm
    except ImportError:
        yield from items
        return
    yield from tqdm(items, total=total, desc=what, unit="case", disable=None)


def write_json(path: Path, value: Any) -> None:  # Any: what JSON can hold
    """Atomically, as `upsnet.files` does; that module needs pydantic, which a bare GPU image may lack."""
    try:
        from upsnet import files
    except ImportError:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(f".{os.getpid()}.tmp")
        temporary.write_text(json.dumps(value, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        temporary.replace(path)
        return
    files.write_json(path, value)
