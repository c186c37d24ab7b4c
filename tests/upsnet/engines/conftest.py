"""A machine with a GPU and TensorRT, as far as a check can see."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.upsnet.engines.engine_folders import (
    GPU,
    KERNEL_ABI,
    RTX_VERSION,
    TENSORRT_VERSION,
    abi_of,
    compile_library,
    make_engine,
)
from upsnet.engines import check, explain, packages
from upsnet.engines.findings import fine
from upsnet.tensorrt.api import Api, Name


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("g++") is None:
        pytest.skip("needs g++")
    return compile_library(tmp_path_factory.mktemp("library") / "right.so", abi_of(KERNEL_ABI))


@pytest.fixture
def gpu_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    def open_api(name: Name) -> Api:
        version = TENSORRT_VERSION if name == "tensorrt" else RTX_VERSION
        return Api(name, SimpleNamespace(__version__=version))

    monkeypatch.setattr(packages, "open_api", open_api)
    monkeypatch.setattr(check, "find_driver", lambda: GPU)
    monkeypatch.setattr(packages, "cuda_of", lambda backend: "13")
    monkeypatch.setattr(explain, "attempt", lambda engine, backend, device: fine("loading", "loads"))


@pytest.fixture
def engine(tmp_path: Path, library: Path, gpu_machine: None) -> Path:
    return make_engine(tmp_path / "engine", library)
