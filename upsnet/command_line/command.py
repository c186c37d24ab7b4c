"""How every command line of the project behaves, alone as a script or as a command of `upsnet`."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import typer
from typer.core import TyperCommand

from upsnet.errors import InputError

BAD_INPUT = 2


@contextmanager
def refusing() -> Iterator[None]:
    """Bad input, and a file that the system refuses, ends in one line on stderr and exit status 2."""
    try:
        try:
            yield
        except OSError as error:
            if error.filename is None:  # no file's
                raise
            raise InputError(f"{os.fsdecode(error.filename)}: {error.strerror}") from None
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(BAD_INPUT) from None


# Any below: typer has no public name for the context of its own copy of click.
class Command(TyperCommand):
    """List options take several values, `--batch-sizes 1 4`, besides typer's own way, the name before each value.

    An empty word is refused: it is a shell's variable that was never set, and as a path it would be this folder.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if "" in args:
            where = f"after {args[args.index('') - 1]}" if args[0] else "at the beginning"
            with refusing():
                raise InputError(f"there is an empty word ('') {where}: is a variable of the shell not set?")
        lists = {name for option in self.params if getattr(option, "multiple", False) for name in option.opts}
        spread: list[str] = []
        current = ""
        for token in args:
            if token.startswith("--"):
                current = token if token in lists else ""
            elif current and spread[-1] != current:
                spread.append(current)
            spread.append(token)
        return super().parse_args(ctx, spread)

    def invoke(self, ctx: Any) -> Any:
        with refusing():
            return super().invoke(ctx)


def make_app(command: Callable[..., None]) -> typer.Typer:
    """A command line of one function with typer's annotations."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command(cls=Command)(command)
    return app


def run(command: Callable[..., None], arguments: Sequence[str] | None = None) -> None:
    """Run it on `arguments` (default: the process's) and exit."""
    make_app(command)(args=arguments)
