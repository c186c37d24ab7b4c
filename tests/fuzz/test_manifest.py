"""Manifests, of files and of servers, as anybody may have edited them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given

from tests.conftest import FakePredictor
from tests.fuzz.mutations import damaged, dump, fuzzed, mutated, refused
from upsnet.manifest import Manifest
from upsnet.model import Model

GOOD = FakePredictor("x").manifest.model_dump(mode="json")


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("manifest") / "model.manifest.json"


def check(path: Path) -> None:
    with refused(str(path)):
        manifest = Manifest.load(path)
        manifest.save(path)
        assert Manifest.load(path) == manifest
        predictor = FakePredictor("x")
        predictor.manifest = manifest
        assert repr(Model(predictor)).startswith("<Model ")


@fuzzed(200)
@given(mutated(GOOD))
def test_values(path: Path, document: Any) -> None:
    path.write_text(dump(document))
    check(path)


@fuzzed(100)
@given(damaged(json.dumps(GOOD).encode()))
def test_bytes(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    check(path)
