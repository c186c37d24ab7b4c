"""Docstrings as the site shows them."""

from __future__ import annotations

import re
from typing import Any

from griffe import Attribute, Class, Extension, Object

SESSION = re.compile(r"(?:^>>> .*\n?(?:^\S.*\n?)*)+", re.M)
COMMENT = re.compile(r"  # (.+)$")


class ReadableDocstrings(Extension):
    """A Python session becomes a block of code, not a quotation; a class's fields, with their comments, a table."""

    def on_object(self, *, obj: Object, **kwargs: Any) -> None:
        if obj.docstring:
            obj.docstring.value = SESSION.sub(_fenced, obj.docstring.value)

    def on_class_members(self, *, cls: Class, **kwargs: Any) -> None:
        fields = [each for each in cls.attributes.values() if each.annotation and each.name[0] != "_"]
        rows = [_row(each) for each in fields if not each.docstring and each.lines and not each.is_alias]
        if rows and cls.docstring:
            table = "\n".join(["| field | type | |", "|---|---|---|", *rows])
            cls.docstring.value += f"\n\n{table}"


def _fenced(session: re.Match[str]) -> str:
    return f"```pycon\n{session[0].strip().replace('  # doctest: +SKIP', '')}\n```\n"


def _row(field: Attribute) -> str:
    comment = COMMENT.search(field.lines[-1])
    cells = (f"`{field.name}`", f"`{field.annotation}`", comment[1] if comment else "")
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
