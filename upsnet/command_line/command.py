"""How every command line of the project behaves, alone as a script or as a command of `upsnet`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import typer
from typer.core import TyperCommand

from upsnet.errors import InputError

BAD_INPUT = 2


class Command(TyperCommand):
    """Bad input ends in one line on stderr and exit status 2; list options take several values: `--batch-sizes 1 4`.

    Typer's own lists want the option's name before each value, which is allowed too.
    """

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

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except InputError as error:
            print(f"error: {error}", file=sys.stderr)
            raise typer.Exit(BAD_INPUT) from None


def make_app(command: Callable[..., None]) -> typer.Typer:
    """A command line of one function with typer's annotations."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command(cls=Command)(command)
    return app


def run(command: Callable[..., None], arguments: Sequence[str] | None = None, name: str | None = None) -> None:
    """Run it on `arguments` (default: the process's) and exit. `name`: what the usage line calls it."""
    make_app(command)(args=arguments, prog_name=name)
