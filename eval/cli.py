"""How the command lines of this folder run: alone as scripts, or as commands of `upsnet`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import typer
from typer.core import TyperCommand

from panoptic.errors import InputError


class SpacedCommand(TyperCommand):
    """A command whose list options take several values after one name: `--batch-sizes 1 4`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        lists = {name for option in self.params if getattr(option, "multiple", False) for name in option.opts}
        spread: list[str] = []
        current = ""
        for token in args:
            if token.startswith("--"):
                current = token if token in lists else ""
                first = True
            if current and not token.startswith("--"):
                spread += [token] if first else [current, token]
                first = False
            else:
                spread.append(token)
        return super().parse_args(ctx, spread)


def mount(app: typer.Typer, name: str, command: Callable[..., None]) -> None:
    """Makes a `main` of this folder a command of `app`."""
    app.command(name, cls=SpacedCommand)(command)


def run_script(command: Callable[..., None]) -> None:
    """A script's own command line: exit code 2 and one line on stderr for bad input."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command(cls=SpacedCommand)(command)
    try:
        app()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
