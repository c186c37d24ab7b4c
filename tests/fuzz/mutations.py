"""What the fuzz targets do to good inputs, and what they ask of the answer."""

from __future__ import annotations

import copy
import json
import os
import resource
import signal
from collections.abc import Iterator, MutableMapping, MutableSequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from upsnet.errors import InputError

RANDOM = bool(os.environ.get("UPSNET_FUZZ"))
SECONDS = 60  # after which an input counts as a hang
MORE_MEMORY = 4 * 2**30  # bytes; what takes more ends in a MemoryError, which no target lets through

# Put into a document by their numbers, since no JSON writer writes them.
RAW = [
    "1e400",
    "-1e400",
    "NaN",
    "-Infinity",
    "9" * 5000,
    f"1e{'9' * 400}",
    "[" * 1500 + "]" * 1500,
    '"\\ud800"',
    "-0.0",
]
PLAIN: list[Any] = [None, True, False, 0, 1, -1, 2, 255, 2**31, 2**63, 2**64, -(2**63), 0.5, 1.5, 1e300, 5e-324]
TEXTS = ["", " ", "0", "1", "x", "\0", "a\0b", "\n", "a\nb", "../..", "/", ".", "é中\u202e", "nan", "1/0", "x" * 3000]
CONTAINERS: list[Any] = [[], {}, [[]], [None], {"": None}, {"id": 1}, [1, 2, 3], ["x"] * 40]
MARK = "\x01{}\x01"

nasty = st.sampled_from([*PLAIN, *TEXTS, *CONTAINERS, *(MARK.format(index) for index in range(len(RAW)))])


def fuzzed(examples: int) -> settings:
    """The same `examples` inputs each time; with UPSNET_FUZZ (`make fuzz`) others each time, and those that failed."""
    health = list(HealthCheck)
    if RANDOM:
        return settings(max_examples=5 * examples, deadline=None, suppress_health_check=health)
    return settings(max_examples=examples, deadline=None, suppress_health_check=health, derandomize=True, database=None)


@contextmanager
def refused(*names: str) -> Iterator[None]:
    """Inside, nothing is raised but an InputError in one line that holds all of `names`; and it ends in time."""

    def hang(*_: object) -> None:
        raise AssertionError(f"no answer after {SECONDS} s")

    before = signal.signal(signal.SIGALRM, hang)
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MORE_MEMORY, hard))
    signal.alarm(SECONDS)
    try:
        yield
    except InputError as error:
        message = str(error)
        assert message and len(message.splitlines()) == 1, message
        for name in names:
            assert name in message, message
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def dump(document: object) -> str:
    """JSON, with what of `RAW` is in it. Also YAML."""
    text = json.dumps(document)
    for index, raw in enumerate(RAW):
        text = text.replace(json.dumps(MARK.format(index)), raw)
    return text


@st.composite
def mutated(draw: st.DrawFn, document: Any, most: int = 3) -> Any:
    """A copy in which one to `most` values are dropped, doubled, swapped, renamed or replaced by a nasty one."""
    document = copy.deepcopy(document)
    for _ in range(draw(st.integers(1, most))):
        places = list(_places(document))
        if not places:
            return document
        holder, key = draw(st.sampled_from(places))
        action = draw(st.sampled_from(["replace", "replace", "replace", "drop", "double", "rename", "swap"]))
        if action == "replace":
            holder[key] = copy.deepcopy(draw(nasty))
        elif action == "drop":
            del holder[key]
        elif action == "double" and isinstance(holder, list):
            holder.append(copy.deepcopy(holder[key]))
        elif action == "rename" and isinstance(holder, dict):
            holder[draw(st.sampled_from(["", "a\nb", "a.b", "x", f"{key}_"]))] = holder.pop(key)
        else:
            other, place = draw(st.sampled_from(places))
            holder[key], other[place] = copy.deepcopy(other[place]), copy.deepcopy(holder[key])
    return document


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(value, MutableMapping):
        items: list[tuple[Any, Any]] = list(value.items())
    elif isinstance(value, MutableSequence):
        items = list(enumerate(value))
    else:
        return
    for key, child in items:
        yield value, key
        yield from _places(child)


@st.composite
def damaged(draw: st.DrawFn, content: bytes, most: int = 3) -> bytes:
    """The bytes cut short, or with some of them changed, inserted, left out or doubled."""
    for _ in range(draw(st.integers(1, most))):
        at = draw(st.integers(0, max(0, len(content) - 1)))
        length = draw(st.sampled_from([1, 2, 4, 8, 64]))
        new = draw(
            st.one_of(st.binary(min_size=1, max_size=8), st.sampled_from([b"\0" * 4, b"\xff" * 4, b"\n", b"\x80"]))
        )
        action = draw(st.sampled_from(["cut", "change", "change", "insert", "leave out", "double"]))
        if action == "cut":
            content = content[:at]
        elif action == "change":
            content = content[:at] + new + content[at + len(new) :]
        elif action == "insert":
            content = content[:at] + new + content[at:]
        elif action == "leave out":
            content = content[:at] + content[at + length :]
        else:
            content = content[: at + length] + content[at:]
    return content
