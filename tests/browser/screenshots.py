"""What the pages look like, on one page to be looked at."""

from __future__ import annotations

import base64
import html
from pathlib import Path
from typing import TYPE_CHECKING

from upsnet.files import write_text

if TYPE_CHECKING:
    from playwright.sync_api import Page

STYLE = "body{font:16px/1.4 sans-serif;margin:2em auto;max-width:82em}img{max-width:100%;border:1px solid #888}"


class Screenshots:
    """In the order in which they are taken."""

    def __init__(self) -> None:
        self.taken: dict[str, bytes] = {}

    def take(self, page: Page, title: str, whole: bool = True) -> None:
        """The whole page, or what is in the window, with one line of what is to be seen."""
        self.taken[title] = page.screenshot(full_page=whole)

    def write(self, path: Path) -> None:
        """One HTML file; nothing, where nothing was taken."""
        if not self.taken:
            return
        pictures = (
            f"<h2>{html.escape(title)}</h2>\n<img alt='' src='data:image/png;base64,{base64.b64encode(png).decode()}'>"
            for title, png in self.taken.items()
        )
        head = f"<!doctype html><html lang=en><meta charset=utf-8><title>Pages</title><style>{STYLE}</style>"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, "\n".join([head, "<h1>Pages</h1>", *pictures, "</html>\n"]))
