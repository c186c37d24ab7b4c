"""Engines of the stand-in, each another model, and what is true of a repository at every moment."""

from __future__ import annotations

import os
import re
from pathlib import Path

import onnx
import pytest

from serving.layout import CANDIDATES, CONFIGS, MODELS, config_name, is_managed, latest_version, version_configs
from serving.repository import Parts, check_parts
from serving.rollouts.record import Record, read_record
from serving.rollouts.steps import version_digests
from tests.serving.conftest import Exported
from upsnet.files import sha256
from upsnet.manifest import Manifest

PINNED = re.compile(r"version_policy \{ specific \{ versions: \[ (\d+) \] \} \}")
LATEST = "version_policy { latest { num_versions: 1 } }"


def make_engine(exported: Exported, folder: Path, name: str = "another") -> Path:
    """An engine's folder: the stand-in, but for a word in its metadata."""
    folder.mkdir(parents=True)
    model = onnx.load(exported.model)
    model.doc_string = name
    onnx.save(model, folder / "model.onnx")
    manifest = Manifest.load(exported.manifest_path)
    digest = sha256(folder / "model.onnx")
    manifest.model_copy(update={"onnx_sha256": digest, "name": name}).save(folder / "model.manifest.json")
    return folder


@pytest.fixture(scope="session")
def engine(exported: Exported, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_engine(exported, tmp_path_factory.mktemp("engines") / "another")


@pytest.fixture(scope="session")
def parts(engine: Path) -> Parts:
    return check_parts(engine / "model.onnx", engine / "model.manifest.json")


def check_truth(repository: Path) -> Record | None:
    """What every moment must leave: one version in service, the same for both models, whole and unchanged, and a
    record that says so. None where the repository is not a managed one yet."""
    record = read_record(repository) if is_managed(repository) else None
    highest = int(latest_version(repository).name)
    read: set[int] = set()
    for model in MODELS:
        for name in CONFIGS:
            text = (repository / model / name).read_text()
            found = PINNED.search(text)
            assert found or LATEST in text
            read.add(int(found[1]) if found else highest)
    assert len(read) == 1, "one version of both models"
    serving = read.pop()
    for model in MODELS:
        assert (repository / model / str(serving) / "model.py").is_file()
    if record is None:
        return None
    assert record.serving == serving
    for version in record.kept:
        assert version_digests(repository, version) == record.arrival(version).digests
        for model in MODELS:
            assert (repository / model / str(version) / "model.py").is_file()
            for name in CONFIGS:
                text = (version_configs(repository, version) / config_name(model, name)).read_text()
                assert PINNED.findall(text) == [str(version)]
    for model in MODELS:
        for name in CANDIDATES:
            place = repository / model / name
            if place.is_symlink():
                assert PINNED.findall(place.read_text()) == [str(record.candidate or 0)]
            else:  # the very first step links them
                assert record.candidate is None
    return record


def entries(repository: Path) -> set[str]:
    """All names in a repository, links not followed."""
    found = set()
    for above, folders, files in os.walk(repository):
        found |= {str(Path(above, name).relative_to(repository)) for name in (*folders, *files)}
    return found
