from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.upsnet.zoo.server import Files, serving
from upsnet.zoo import download


@pytest.fixture
def files(monkeypatch: pytest.MonkeyPatch) -> Iterator[Files]:
    """A server that no proxy of this machine stands before, and attempts that do not wait."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(download, "WAIT", 0.0)
    monkeypatch.setattr(download, "BLOCK", 100_000)
    with serving(Files()) as found:
        yield found
