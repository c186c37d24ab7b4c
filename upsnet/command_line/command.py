"""How every command line of the project behaves, alone as a script or as a command of `upsnet`."""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NoReturn

import typer
from typer.core import TyperCommand

from upsnet.errors import BAD_INPUT, InputError

INTERRUPTED = 130  # 128 and the number of SIGINT, as shells have it


@contextmanager
def refusing() -> Iterator[None]:
    """Bad input, and what the system refuses, ends in one line on stderr and exit status 2; Ctrl-C in one and 130."""
    try:
        yield
    except InputError as error:
        complain(str(error))
    except KeyboardInterrupt:  # the terminal's ^C is not in a log
        with suppress(OSError):
            print("interrupted", file=sys.stderr)
        raise typer.Exit(INTERRUPTED) from None
    except MemoryError:
        complain("no memory is left; give a smaller input, or more memory")
    except OSError as error:
        if error.errno in (None, errno.EPIPE):  # no word of the system's; and `| head` has read enough
            raise
        flush_output()  # where it is the output that cannot be written, this says so
        place = error.filename2 or error.filename
        complain(f"{os.fsdecode(place) if place else 'the output cannot be written'}: {error.strerror}")


def complain(message: str) -> NoReturn:
    with suppress(OSError):  # the disk that is full may be that of stderr
        print(f"error: {message}", file=sys.stderr)
    raise typer.Exit(BAD_INPUT) from None


def flush_output() -> None:
    """InputError's line where stdout leads to a file that cannot be written, or nothing: whoever reads it has ended."""
    if sys.stdout is None:  # closed by whoever started this (`>&-`)
        return
    try:
        sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains once more as it ends
        if error.errno != errno.EPIPE:
            complain(f"the output cannot be written: {error.strerror}")


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
        with refusing():  # what an option's own function says of its value
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
    execute(make_app(command), args=arguments)


def execute(app: typer.Typer, **arguments: Any) -> None:
    """Run a command line and exit. A file's name that is no text of the terminal's encoding is printed escaped."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        with refusing():  # of what comes before and after a command, as its help
            try:
                app(**arguments)
            finally:
                flush_output()
    except typer.Exit as end:
        sys.exit(end.exit_code)
