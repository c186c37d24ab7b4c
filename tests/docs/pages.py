"""The pages that people read, taken apart: commands, links, headings, files and names that they mention."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "plugins_cuda/BENCHMARKS.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]
YESTERDAY = "before"  # begins the heading of a table's first column whose names are allowed to be gone
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)
TOP = "upsnet|plugins_cuda|training|export|serving|eval|tests|docs|triton_repo|\\.ci"
FILE = re.compile(rf"(?<![\w./-])((?:{TOP})/[\w./*-]*[\w/*])")
NAME = re.compile(r"(?:upsnet|plugins_cuda|training|export|serving|eval)(?:\.\w+)+")
SUFFIXES = (".py", ".json", ".yaml", ".md", ".pth", ".manifest", ".html")  # not a Python name


class Block(NamedTuple):
    """A fenced block, or a run of indented lines (language "")."""

    language: str
    text: str


def read(page: Path) -> str:
    """The page without the cells that hold yesterday's names."""
    lines, in_table = [], False
    for line in page.read_text().splitlines():
        in_table = line.startswith("|") and (in_table or line.startswith(f"| {YESTERDAY} "))
        lines.append(re.sub(r"^\|[^|]*\|", "| |", line) if in_table else line)
    return "\n".join(lines) + "\n"


def blocks(text: str) -> list[Block]:
    prose = FENCE.sub("", text)
    indented = [Block("", match[0]) for match in re.finditer(r"(?:^    .*\n)+", prose, re.M)]
    return [Block(*match.groups()) for match in FENCE.finditer(text)] + indented


def inline(text: str) -> list[str]:
    """The code spans of the prose."""
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", FENCE.sub("", text))]


def commands(text: str) -> Iterator[str]:
    """Each line of the shell blocks, a backslash continuing it, and each code span of the prose."""
    for block in blocks(text):
        if block.language in ("", "sh", "bash", "console"):
            yield from (line.strip() for line in block.text.replace("\\\n", " ").splitlines() if line.strip())
    yield from inline(text)


def links(text: str) -> list[str]:
    """Targets of links and pictures within the project."""
    prose = re.sub(r"`[^`]+`", "", FENCE.sub("", text))
    found = re.findall(r"\]\(([^)\s]+)\)", prose) + re.findall(r'(?:src|href)="([^"]+)"', prose)
    return [target for target in found if not re.match(r"[a-z]+:", target)]


def anchors(page: Path) -> set[str]:
    """What a link's #part may name: the headings, as GitHub makes addresses of them."""
    headings = re.findall(r"^#+ (.*)$", FENCE.sub("", page.read_text()), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def files(text: str) -> set[str]:
    """Paths below the top folders, wherever code names them; `*` stands for any name."""
    code = "\n".join([block.text for block in blocks(text)] + inline(text))
    return set(FILE.findall(code))


def names(text: str) -> set[str]:
    """Dotted Python names in code spans, a call's brackets left out."""
    spans = (span.partition("(")[0] for span in inline(text))
    return {span for span in spans if NAME.fullmatch(span) and not span.endswith(SUFFIXES)}
