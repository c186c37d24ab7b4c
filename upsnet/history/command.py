"""upsnet runs compare RUN RUN [RUN ...] [--out compare.html]"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from upsnet.files import check_target
from upsnet.history.compare import Comparison, Row, compare
from upsnet.history.compare_page import write_comparison
from upsnet.history.run import read_run
from upsnet.runs import existing_run
from upsnet.tables import make_table, print_tables


def main(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN RUN ...", help="Two runs or more: folders, or names in runs/.")
    ],
    out: Annotated[
        Path | None, typer.Option(help="Also write a page with the curves one over the other, as compare.html.")
    ] = None,
) -> None:
    """Say in which settings training runs differ, and what came of them: final and best figures.

    A run that an older version made, or that is still training, is compared as far as it goes, and what it lacks is
    said.
    """
    if out:
        check_target(out)
    comparison = compare([read_run(Path(existing_run(run))) for run in runs])
    show(comparison)
    if out:
        write_comparison(out, comparison)
        print(f"{out}: open it in a browser")


def show(comparison: Comparison) -> None:
    """The tables on the terminal, and what is missing."""
    tables = [_table("settings that differ", comparison, comparison.settings)] if comparison.settings else []
    print_tables(*tables, _table("figures", comparison, comparison.figures))
    if not comparison.settings:
        print("no setting differs, as far as they are known")
    for text in comparison.missing:
        print(" ".join(text.split()))


def _table(title: str, comparison: Comparison, rows: list[Row]) -> Table:
    table = make_table(title, "", *map(escape, comparison.names))
    for name, values in rows:
        table.add_row(escape(name), *map(escape, values))
    return table
