"""hotcoco, an evaluation library in Rust (MIT): the engine of AP, and of PQ and mIoU from files.

It is no part of the base installation, and everything that does not need it works without it.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from typing import Any

from upsnet import DISTRIBUTION
from upsnet.errors import InputError

REFUSALS = (ValueError, KeyError, TypeError, OverflowError, OSError)  # what hotcoco raises for input it cannot take


def is_installed() -> bool:
    return importlib.util.find_spec("hotcoco") is not None


def load(threads: int = 1) -> Any:
    """The package. InputError, with the cure, where it is not installed.

    threads: on how many cores it works, unless RAYON_NUM_THREADS was set, or this process has used it before.
    """
    if not is_installed():
        raise InputError(f"this needs the package hotcoco: pip install '{DISTRIBUTION}[metrics]'")
    os.environ.setdefault("RAYON_NUM_THREADS", str(threads))
    return importlib.import_module("hotcoco")
