"""Names of a package that come with their module when they are first asked for: importing it loads nothing heavy."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from typing import Any


def names(package: str, homes: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """The package's `__getattr__` and `__dir__` (PEP 562).

    homes: name -> its module, or "module:name" where it is called otherwise there.
    """

    def get(name: str) -> Any:  # what each module holds, and the packages' TYPE_CHECKING blocks say
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module, _, attribute = homes[name].partition(":")
        return getattr(importlib.import_module(module), attribute or name)

    return get, lambda: sorted({*vars(sys.modules[package]), *homes})
