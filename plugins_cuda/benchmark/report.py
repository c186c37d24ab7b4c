"""The table on the terminal, also in an image that has only PyTorch."""

from __future__ import annotations

from collections.abc import Sequence


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """With rich where it is installed, else in plain columns."""
    try:
        from upsnet.tables import make_table, print_tables
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
