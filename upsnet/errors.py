"""The one exception that means "your input, not our code"."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the operators need InputError on machines that have PyTorch alone
    from pydantic import ValidationError


BAD_INPUT = 2  # exit status
MOST_PARTS = 20  # of a line


class InputError(Exception):
    """Bad input. The message is ONE line that names the file, image or tensor, and the cure where there is one.

    A line break in it, as a file's name may hold, becomes a space.
    """

    def __str__(self) -> str:
        return " ".join(super().__str__().splitlines())


class ServerError(InputError):
    """A server, or the way to it, failed: another photo would not help. `status`: gRPC's word for it (UNAVAILABLE)."""

    def __init__(self, message: str, status: str = "") -> None:
        super().__init__(message)
        self.status = status


def reworded(error: InputError, message: str) -> InputError:
    """With another message; a ServerError stays one."""
    return ServerError(message, error.status) if isinstance(error, ServerError) else InputError(message)


def first_line(error: BaseException) -> str:
    """An exception's message without its further lines; its type where it has none."""
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def one_line(error: ValidationError) -> str:
    """A pydantic error as one line: `resize.short_side: Input should be greater than 0; name: Field required`."""
    parts = []
    for item in error.errors(include_url=False, include_context=False, include_input=False)[:MOST_PARTS]:
        where = ".".join(str(step) for step in item["loc"])
        message = item["msg"].removeprefix("Value error, ")
        parts.append(f"{where}: {message}" if where else message)
    if error.error_count() > MOST_PARTS:
        parts.append(f"and {error.error_count() - MOST_PARTS} more")
    return "; ".join(parts)
