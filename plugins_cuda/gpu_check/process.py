"""Commands with a time limit, of which nothing stays behind but their output."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from upsnet.files import signals_wait

ROOT = Path(__file__).resolve().parents[2]
GRACE_S = 5.0  # between being asked to end and being killed: profilers then write what they have
OURS = ("upsnet", "plugins_cuda", "training", "export", "serving", "eval", "tests")  # a module of these must be there
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Skip(Exception):
    """A step that cannot be done here; the text says why."""


class Interrupted(BaseException):
    """A signal asked the check to end."""


@dataclass(frozen=True)
class Ended:
    """How a command ended. status: its exit status; None when it was stopped after `seconds`."""

    status: int | None
    lines: list[str]  # its output, without empty lines
    log: Path
    seconds: float

    @property
    def last(self) -> str:
        return self.lines[-1] if self.lines else "no output"

    def fault(self) -> str:
        """What to say of a command that did not end with 0."""
        how = f"stopped after {self.seconds:.0f} s, at" if self.status is None else f"exit status {self.status}"
        return f"{how}: {self.last} (see {self.log})"


def run_logged(
    command: Sequence[str], log: Path, deadline: float, environment: Mapping[str, str] | None = None
) -> Ended:
    """Runs it in the project's folder, until time.monotonic() is `deadline` at most. When it ends, is stopped or is
    interrupted, all that it started ends with it, so that nothing holds the GPU. Its output is in `log` as it comes."""
    seconds = max(deadline - time.monotonic(), 0)
    with log.open("wb") as stream, contextlib.ExitStack() as stack:
        with signals_wait(SIGNALS):  # else what has just begun would be nobody's
            process = subprocess.Popen(
                list(command),
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                cwd=ROOT,
                env={**os.environ, "PYTHONUNBUFFERED": "1", **(environment or {})},
                process_group=0,
            )
            stack.callback(_end_group, process)
        status = None
        with contextlib.suppress(subprocess.TimeoutExpired):
            status = process.wait(seconds)
        lines = _lines(log)  # before it is asked to end, which may make it say more
    return Ended(status, lines, log, seconds)


def must_pass(command: Sequence[str], log: Path, deadline: float, environment: Mapping[str, str] | None = None) -> str:
    """The last line of a command that must end with 0. Skip where Python lacks a package."""
    ended = run_logged(command, log, deadline, environment)
    if ended.status == 0:
        return ended.last
    missing = re.fullmatch(r"ModuleNotFoundError: No module named '([^'.]+).*", ended.last)
    if missing and missing[1] not in OURS:
        raise Skip(f"{missing[1]} is not installed (see {log})")
    raise RuntimeError(ended.fault())


def _lines(log: Path) -> list[str]:
    return [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """A command that still runs is asked first. What it left in its group is killed."""
    with contextlib.suppress(ProcessLookupError):
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(GRACE_S)
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Inside, the first of SIGNALS raises Interrupted, and further ones are ignored: the check is ending already."""

    def interrupt(number: int, _: object) -> None:
        for each in SIGNALS:
            signal.signal(each, signal.SIG_IGN)
        raise Interrupted(signal.Signals(number).name)

    before = {number: signal.signal(number, interrupt) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
