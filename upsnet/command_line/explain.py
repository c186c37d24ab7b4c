"""`upsnet engine explain`: what an engine is, where it runs, and why it does not load here."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from upsnet.device import AUTO
from upsnet.engines.explain import Explanation, explain
from upsnet.errors import BAD_INPUT, InputError
from upsnet.runs import find_run
from upsnet.tables import make_table, print_tables

MARKS = {"ok": "[green]ok[/]", "failed": "[red]failed[/]", "not checked": "[yellow]not checked[/]"}


def main(
    engine: Annotated[Path, typer.Argument(help="An engine's file, or its folder, or a run's.", show_default=False)],
    size: Annotated[str | None, typer.Option(help="A photo that it must hold: height x width, as 480x640.")] = None,
    device: Annotated[str, typer.Option(help="What it is to run on: auto, cpu, cuda or cuda:N.")] = AUTO,
    load: Annotated[bool, typer.Option(help="Try to load the libraries and the engine, in other processes.")] = True,
    json: Annotated[bool, typer.Option("--json", help="Print all of it as JSON.")] = False,
) -> None:
    """Say what an engine is, where it runs, and, where it does not load, why, and what mends it. Writes nothing.

    Exit status 2, and one line on stderr for each cause: it does not load here. What can't be checked here is named.
    """
    found = explain(Path(find_run(engine)), device, photo_size(size), load)
    if json:
        print(to_json(found))
    else:
        show(found)
    for each in found.errors:
        print(f"error: {each}", file=sys.stderr)
    if found.errors:
        raise typer.Exit(BAD_INPUT)


def photo_size(text: str | None) -> tuple[int, int] | None:
    """InputError for anything but two numbers, as 480x640."""
    if text is None:
        return None
    found = re.fullmatch(r"([1-9]\d{0,5})x([1-9]\d{0,5})", text)
    if found is None:
        raise InputError(f"--size {text}: give height x width of a photo in pixels, as 480x640")
    return int(found[1]), int(found[2])


def to_json(found: Explanation) -> str:
    import json

    return json.dumps(found.model_dump(mode="json"), indent=1)


def show(found: Explanation) -> None:
    tables = []
    for title, lines in (("What it is", found.description), ("Where it runs", found.requirements)):
        if lines:
            table = make_table(title)
            for heading, text in lines.items():
                table.add_row(escape(heading), escape(text))
            tables.append(table)
    table = make_table("What was checked here", "", "", "", left=3)
    table.show_header = False
    for each in found.findings:
        cure = f"\n[bold]{escape(each.cure)}[/]" if each.cure else ""
        table.add_row(MARKS[each.status], escape(each.what), escape(each.text) + cure)
    print_tables(*tables, table)
    print(found.verdict)
    if found.others:
        print(f"Also there: {', '.join(found.others)}; name one to have it explained.")
