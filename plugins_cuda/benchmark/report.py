"""The table and the progress bar on the terminal. Both work in an image that has only PyTorch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

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
