"""HTML pages out of templates."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import jinja2


def open_template(path: Path, **filters: Callable[..., str]) -> jinja2.Template:
    """The template in a file: what it is given is escaped, and a name that it is not given is an error.

    filters: functions by the names that the template calls them.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([path.parent, Path(__file__).parent]),  # page.css is here
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(filters)
    return environment.get_template(path.name)
