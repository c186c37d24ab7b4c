"""The options that all converters have, added to those of a reader of labels."""

from __future__ import annotations

import importlib.util
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from upsnet import DISTRIBUTION
from upsnet.datasets.conversion.compose import Boxes
from upsnet.datasets.conversion.convert import LabelFaults, Rules, convert
from upsnet.datasets.conversion.labels import Overlap, Source
from upsnet.datasets.conversion.summary import print_summary
from upsnet.datasets.conversion.table import Choice
from upsnet.datasets.doctor.check import FOUND_ERRORS
from upsnet.errors import InputError

LISTED = 50  # faults
PACKAGES = ("hotcoco", "yaml", "jinja2")


def converter(read: Callable[..., Source]) -> Callable[..., None]:
    """A command of a reader's parameters (typer's annotations, its docstring is the help) and those of `_write`. A
    parameter that both have, as `classes`, is one option and goes to both."""
    own, common = (dict(inspect.signature(each).parameters) for each in (read, _write))
    del common["source"]
    options = [each for name, each in common.items() if name not in own]

    def main(**given: Any) -> None:
        _check_packages()
        source = read(**{name: given[name] for name in own})
        _write(source, **{name: given[name] for name in common})

    hints = get_type_hints(_write, include_extras=True) | get_type_hints(read, include_extras=True)
    parameters = [each.replace(annotation=hints[each.name]) for each in (*own.values(), *options)]
    main.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    main.__doc__, main.__module__ = read.__doc__, read.__module__
    return main


def _check_packages() -> None:
    """InputError for any package of the extra `data`: who converts needs most of them, one by one is a nuisance."""
    for name in PACKAGES:
        if importlib.util.find_spec(name) is None:
            raise InputError(f"the converters need the package {name}: pip install '{DISTRIBUTION}[data]'")


def _write(
    source: Source,
    *,
    out: Annotated[Path, typer.Option(help="Where the data set goes: OUT/NAME.json, OUT/panoptic_NAME, OUT/NAME.")],
    classes: Annotated[
        Path | None, typer.Option(help="Names of the classes, and ids, colours, isthing: JSON, CSV or text.")
    ] = None,
    stuff: Annotated[list[str] | None, typer.Option(help="These classes are stuff: one segment an image.")] = None,
    things: Annotated[list[str] | None, typer.Option(help="These classes are things.")] = None,
    void: Annotated[list[str] | None, typer.Option(help="Pixels of these classes belong to no category.")] = None,
    background: Annotated[
        str | None, typer.Option(help="Pixels that nothing holds become this stuff class (default: void).")
    ] = None,
    overlap: Annotated[
        Overlap | None, typer.Option(help="Which of two shapes is on top (default: as the format's own tools have it).")
    ] = None,
    boxes: Annotated[Boxes, typer.Option(help="What a box without outline becomes.")] = "refuse",
    name: Annotated[str | None, typer.Option(help="The split's name, where the labels have only one.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="The first images of each split, to try it.")] = None,
    show: Annotated[bool, typer.Option("--show", help="Write OUT/show.html: the photos with their segments.")] = False,
    partial: Annotated[
        bool, typer.Option("--partial", help="Leave out images that cannot be converted, and list them.")
    ] = False,
    replace: Annotated[
        bool, typer.Option("--replace", help="An earlier conversion of this name, and OUT/show.html.")
    ] = False,
    copy: Annotated[
        bool, typer.Option("--copy", help="Copy the photos (default: hard links, where possible).")
    ] = False,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes; default: one for each core.")] = None,
) -> None:
    choice = Choice(things or (), stuff or (), void or (), background, classes)
    rules = Rules(overlap, boxes, name, limit, partial, replace, copy, workers)
    try:
        made = convert(source, out, choice, rules)
    except LabelFaults as error:
        for fault in error.faults[:LISTED]:
            print(f"  {fault}", file=sys.stderr)
        if len(error.faults) > LISTED:
            print(f"  and {len(error.faults) - LISTED} more", file=sys.stderr)
        raise
    print_summary(source, made)
    page = out / "show.html"
    if show or (replace and page.is_file()):  # which would show what was there before
        from upsnet.datasets.page.page import write_page

        print(write_page(page, [each.checkup for each in made]))
    if any(each.checkup.tally.errors for each in made):
        raise typer.Exit(FOUND_ERRORS)
