"""The metrics of several Triton servers as those of one."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable, Iterator

import aiohttp

from serving.backend import Member

SCRAPE_SECONDS = 2.0  # in which a Triton must have told its metrics
MOST_METRICS = 4 << 20  # bytes of them
SAMPLE = re.compile(r"(\w+)\{(.*)\} (\S+)")  # Prometheus' text: name, labels, value
OF_MODEL, OF_VERSION = re.compile(r'(^|,)model="'), re.compile(r'(^|,)version="')


async def scrape(member: Member) -> str | None:
    """Prometheus' text; None where it does not come whole and in time."""
    connector = aiohttp.UnixConnector(path=str(member.backend.metrics_socket), force_close=True)
    try:
        async with (
            asyncio.timeout(SCRAPE_SECONDS),
            aiohttp.ClientSession(connector=connector) as session,
            session.get("http://triton/metrics", raise_for_status=True) as response,
        ):
            body = await response.content.read(MOST_METRICS)
            while part := await response.content.read(MOST_METRICS - len(body)):
                body += part
            whole = response.content.at_eof() and (not body or body.endswith(b"\n"))
        return body.decode() if whole else None
    except (aiohttp.ClientError, OSError, TimeoutError, UnicodeDecodeError):
        return None


def merge(serving: str, others: Iterable[tuple[int, str]]) -> str:
    """All that the server of the version in service tells, and of the others, by version, what is of their models: that
    has the label `version`, so that no series is there twice. What is of the machine is told once."""
    families: dict[str, list[str]] = {}
    for version, text in ((0, serving), *others):
        seen = set(families)
        for family, line in _lines(text):
            if line.startswith("#"):
                if family not in seen:
                    families.setdefault(family, []).append(line)
            elif version == 0:
                families.setdefault(family, []).append(line)
            elif (found := SAMPLE.fullmatch(line)) is not None and OF_MODEL.search(found[2]):
                label = "" if OF_VERSION.search(found[2]) else f',version="{version}"'
                families.setdefault(family, []).append(f"{found[1]}{{{found[2]}{label}}} {found[3]}")
    return "".join(f"{line}\n" for lines in families.values() for line in lines)


def _lines(text: str) -> Iterator[tuple[str, str]]:
    """Each line, and the family to which it belongs."""
    family = ""
    for line in text.splitlines():
        if found := re.match(r"# (?:HELP|TYPE) (\S+)", line):
            family = found[1]
        yield family, line
