"""Engines that the fake TensorRT builds, for tests of what runs them."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.upsnet.tensorrt.fake_tensorrt import World, install, write_plugins
from tests.upsnet.tensorrt.graphs import expected, manifest, write_graph
from upsnet.contract import PLUGINS
from upsnet.driver import Driver
from upsnet.engines.manifest import ENGINES, EngineManifest, Part, Profile, engine_manifest_path, this_platform
from upsnet.geometry import NetworkBatch
from upsnet.runtimes.tensorrt import TensorRTPredictor, TensorRTRTXPredictor
from upsnet.tensorrt.api import Name, make_logger, open_api

SMALL: Profile = {
    "images": ((1, 32, 32, 3), (1, 32, 32, 3), (1, 64, 64, 3)),
    "sizes": ((1, 2), (1, 2), (1, 2)),
    "scales": ((1,), (1,), (1,)),
}
LARGE: Profile = {
    "images": ((1, 32, 32, 3), (1, 64, 96, 3), (4, 96, 96, 3)),
    "sizes": ((1, 2), (1, 2), (4, 2)),
    "scales": ((1,), (1,), (4,)),
}
SHAPES = [(1, 64, 96), (2, 64, 96), (1, 32, 32), (4, 96, 96), (1, 96, 64)]
Make = Callable[..., Path]


def build(trt: Any, model: Path, profiles: tuple[Profile, ...], flags: tuple[str, ...] = ()) -> Any:
    logger = make_logger(open_api("tensorrt-rtx" if trt._world.flavour.rtx else "tensorrt"))
    builder = trt.Builder(logger)
    network, config = builder.create_network(0), builder.create_builder_config()
    parser = trt.OnnxParser(network, logger)
    assert parser.parse(model.read_bytes()), [parser.get_error(index).desc() for index in range(parser.num_errors)]
    for flag in flags:
        config.set_flag(trt.BuilderFlag[flag])
    for shapes in profiles:
        profile = builder.create_optimization_profile()
        for name, each in shapes.items():
            profile.set_shape(name, *each)
        config.add_optimization_profile(profile)
    return builder.build_serialized_network(network, config)


def same(predictor: TensorRTPredictor, batch: NetworkBatch) -> bool:
    answer, wanted = predictor.predict(batch), expected(batch)
    return all(
        each.dtype == right.dtype and np.array_equal(each, right) for each, right in zip(answer, wanted, strict=True)
    )


# Fixtures, for a folder's conftest.py


@pytest.fixture(params=["11.1"])
def world(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> World:
    monkeypatch.setattr("upsnet.engines.check.find_driver", lambda: Driver("no GPU"))
    monkeypatch.setattr("upsnet.tensorrt.cuda.gpu_problem", lambda: "this machine has no NVIDIA GPU that is visible")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return install(monkeypatch, request.param, capability=(8, 9))  # TensorRT-RTX knows no 9.0


@pytest.fixture
def make(world: World, tmp_path: Path) -> Make:
    """An engine's folder: the plan, as the fake builds it, its library and its manifest."""

    def make_engine(
        profiles: tuple[Profile, ...] = (SMALL, LARGE), flags: tuple[str, ...] = (), images: int | None = None
    ) -> Path:
        name: Name = "tensorrt-rtx" if world.flavour.rtx else "tensorrt"
        api = open_api(name)
        library = write_plugins(tmp_path / PLUGINS)
        model = write_graph(tmp_path / "model.onnx", **({"images": images} if images else {}))
        ctypes.CDLL(str(library))
        engine = tmp_path / ENGINES[name]
        engine.write_bytes(bytes(build(api.module, model, profiles, flags)))
        world.forget_libraries()  # as in the process that opens it later
        EngineManifest(
            backend=name,
            engine=Part.of(engine),
            bytes=engine.stat().st_size,
            model=Part.of(model),
            libraries=(Part.of(library),),
            builder=api.version,
            platform=this_platform(),
            version_compatible="VERSION_COMPATIBLE" in flags,
            precision="fp32",
            profiles=profiles,
            network=manifest(),
        ).save(engine_manifest_path(engine))
        return engine

    return make_engine


@pytest.fixture
def predictor(make: Make, world: World) -> Iterator[TensorRTPredictor]:
    with closing((TensorRTRTXPredictor if world.flavour.rtx else TensorRTPredictor)(make())) as opened:
        yield opened
    assert world.cuda.misuses == []
