"""How the front says no, and how it passes on Triton's no."""

from __future__ import annotations

import re

import grpc

from serving.record import Outcome

CODES = {
    Outcome.INVALID: grpc.StatusCode.INVALID_ARGUMENT,
    Outcome.TOO_LARGE: grpc.StatusCode.INVALID_ARGUMENT,  # asking again would not help, as RESOURCE_EXHAUSTED says
    Outcome.BUSY: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Outcome.DEADLINE: grpc.StatusCode.DEADLINE_EXCEEDED,
    Outcome.CANCELLED: grpc.StatusCode.CANCELLED,
    Outcome.FORBIDDEN: grpc.StatusCode.PERMISSION_DENIED,
    Outcome.UNAVAILABLE: grpc.StatusCode.UNAVAILABLE,
    Outcome.FAILED: grpc.StatusCode.INTERNAL,
}
RESTARTING = "the server is restarting; retry"
# In Triton's errors where a model's process has died, and where it stops under a request, which it calls INTERNAL.
STOPPED = ("is not healthy", "Server not ready", "is not ready", "stopped accepting")
# In those that it calls INTERNAL, and that are the request's fault: a region that is too small, JSON of another form.
CALLERS = ("bytes to hold the results", "attempt to access ")
LONGEST = 500  # characters of an error: gRPC carries it in a header


class Refused(Exception):
    """A request that gets no answer of the model. The message is one line for its caller: no path, no traceback."""

    def __init__(
        self, outcome: Outcome, message: str, retry_after: float | None = None, code: grpc.StatusCode | None = None
    ) -> None:
        super().__init__(message)
        self.outcome, self.message = outcome, " ".join(message.split())
        self.retry_after = retry_after  # seconds, where it is worth asking again
        self.code = code or CODES[outcome]


def clean(message: str) -> str:
    """An error of Triton as one line for a stranger: without paths, names of memory regions and tracebacks."""
    message = re.sub(r"^(\[request id: [^\]]*\]\s*)+", "", message)
    message = message.split("At:\n")[0]  # the Python backend appends where it was
    message = re.sub(r"'?(?<![\w.])/[\w.+~-]+(/[\w.+~:-]*)*'?", "(a path)", message)
    message = re.sub(r"upsnet-[\w-]+|'[0-9a-f]{32}'", "(a region)", message)
    line = " ".join(message.split())
    return line if len(line) <= LONGEST else line[: LONGEST - 1] + "…"


def blame(message: str) -> Outcome:
    """Whose fault an error is that Triton calls its own. In any other the words may be the caller's: not by them."""
    if any(words in message for words in STOPPED):
        return Outcome.UNAVAILABLE
    return Outcome.INVALID if any(words in message for words in CALLERS) else Outcome.FAILED


def of_triton(code: grpc.StatusCode, message: str) -> Refused:
    """What the caller is told of an error that Triton gave."""
    known = {
        grpc.StatusCode.UNAVAILABLE: Outcome.UNAVAILABLE,
        grpc.StatusCode.INVALID_ARGUMENT: Outcome.INVALID,
        grpc.StatusCode.NOT_FOUND: Outcome.INVALID,
        grpc.StatusCode.UNIMPLEMENTED: Outcome.INVALID,
        grpc.StatusCode.ALREADY_EXISTS: Outcome.INVALID,
        grpc.StatusCode.DEADLINE_EXCEEDED: Outcome.DEADLINE,
        grpc.StatusCode.CANCELLED: Outcome.CANCELLED,
    }
    outcome = known.get(code) or blame(message)
    if code not in known and outcome != Outcome.FAILED:
        code = CODES[outcome]
    if outcome == Outcome.UNAVAILABLE:
        return Refused(outcome, RESTARTING, retry_after=1.0)
    return Refused(outcome, clean(message) or code.name.lower(), code=code)
