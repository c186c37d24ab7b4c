from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.upsnet.bulk.two_nodes import Nodes


@pytest.fixture(scope="session")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    pytest.importorskip("ray")
    cluster = Nodes(tmp_path_factory.mktemp("ray"))
    yield cluster
    cluster.close()
