"""The tables on the terminal, which all look alike."""

from __future__ import annotations

import sys

from rich.box import SIMPLE
from rich.console import Console
from rich.markup import escape
from rich.table import Table


def make_table(title: str, *headings: str, left: int = 1) -> Table:
    """The first `left` columns hold words and start at the left; the others hold figures and end at the right.

    Without headings: columns of words, as many as the rows have.
    """
    table = Table(title=escape(title) or None, box=SIMPLE, padding=(0, 1, 0, 0), title_justify="left")
    table.show_header = bool(headings)
    for index, heading in enumerate(headings):
        table.add_column(heading, justify="left" if index < left else "right", overflow="fold")
    return table


def print_tables(*tables: Table) -> None:
    """Print the tables. In a file or a log, lines are not folded to 80 columns."""
    Console(width=None if sys.stdout.isatty() else 200).print(*tables)
