"""Figures that are compared with official ones."""

from __future__ import annotations

from typing import Any

import pytest


def near(value: Any, expected: Any) -> None:
    """The same keys, and figures within 1e-9."""
    if isinstance(expected, dict):
        assert value.keys() == expected.keys()
        for key in expected:
            near(value[key], expected[key])
    elif expected is None:
        assert value is None
    else:
        assert value == pytest.approx(expected, rel=0, abs=1e-9)
