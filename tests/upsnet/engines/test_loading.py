"""`upsnet engine explain` where a GPU is: the engine is loaded in another process. TensorRT and CUDA are the fakes."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

import upsnet
from tests.upsnet.engines.engine_folders import GPU, PROFILE, rewrite, snapshot
from tests.upsnet.tensorrt.engines import build
from tests.upsnet.tensorrt.fake_tensorrt import environment, install, write_plugins
from tests.upsnet.tensorrt.graphs import manifest, write_graph
from upsnet.contract import PLUGINS
from upsnet.engines import check
from upsnet.engines.explain import explain
from upsnet.engines.gpus import GPUS
from upsnet.engines.manifest import ENGINES, EngineManifest, Part, engine_manifest_path, this_platform
from upsnet.errors import InputError
from upsnet.tensorrt.api import Name, open_api

CAPABILITY = (8, 9)
Make = Callable[..., Path]


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Make:
    """An engine's folder, as a fake TensorRT built it; the processes that load it have another one, or the same."""

    def make_engine(name: Name, built_by: str, loaded_by: str = "", capability: tuple[int, int] = CAPABILITY) -> Path:
        monkeypatch.setattr(check, "find_driver", lambda: GPU)
        world = install(monkeypatch, built_by, capability=CAPABILITY)
        folder = tmp_path / "engine"
        folder.mkdir(mode=0o755)
        engine, library = folder / ENGINES[name], write_plugins(folder / PLUGINS)
        library.chmod(0o755)
        model = write_graph(tmp_path / "model.onnx")
        ctypes.CDLL(str(library))
        engine.write_bytes(bytes(build(open_api(name).module, model, (PROFILE,))))
        world.plugins.clear()
        EngineManifest(
            backend=name,
            engine=Part.of(engine),
            bytes=engine.stat().st_size,
            model=Part.of(model),
            libraries=(Part.of(library),),
            builder=open_api(name).version,
            platform=this_platform(),
            compute_capabilities=tuple(GPUS),  # whatever GPU this machine may have
            kernel_abi=1,
            precision="fp32",
            profiles=(PROFILE | {"images": ((1, 32, 32, 3), (1, 64, 64, 3), (4, 96, 96, 3))},),
            network=manifest(),
        ).save(engine_manifest_path(engine))
        for key, value in environment(loaded_by or built_by, 1, capability).items():
            monkeypatch.setenv(key, value)
        return engine

    return make_engine


@pytest.mark.parametrize(("name", "flavour"), [("tensorrt", "11.1"), ("tensorrt-rtx", "rtx")])
def test_it_loads(name: Name, flavour: str, make: Make) -> None:
    engine = make(name, flavour)
    before = snapshot(engine.parent)
    found = explain(engine)
    assert not found.errors and found.verdict == "It loads here."
    assert "kernels: libupsnet_plugins.so" in found.findings[-1].text
    assert snapshot(engine.parent) == before


def test_another_gpu_in_tensorrts_own_words(make: Make) -> None:
    engine = make("tensorrt", "11.1", capability=(7, 5))
    (finding,) = [each for each in explain(engine).findings if each.status == "failed"]
    assert (finding.what, finding.cause) == ("loading", "compute capability")
    assert "incompatible device" in finding.text


def test_the_library_has_not_the_plugins(make: Make) -> None:
    engine = make("tensorrt", "11.1")
    library = write_plugins(engine.with_name(PLUGINS), names=("Another",))
    rewrite(engine, libraries=(Part.of(library),))
    (finding,) = [each for each in explain(engine).findings if each.status == "failed"]
    assert finding.what == "loading" and "lugin" in finding.text and finding.cause == "library missing"


def test_a_plan_that_is_damaged_though_its_hash_is_right(make: Make) -> None:
    engine = make("tensorrt", "11.1")
    content = bytearray(engine.read_bytes())
    content[-5] ^= 1
    engine.write_bytes(content)
    rewrite(engine, engine=Part.of(engine))
    (finding,) = [each for each in explain(engine).findings if each.status == "failed"]
    assert (finding.what, finding.cause) == ("loading", "altered")


def test_no_batch_is_larger_than_the_profile(make: Make) -> None:
    engine = make("tensorrt", "11.1")
    profile = PROFILE | {"images": ((1, 32, 32, 3), (1, 64, 64, 3), (2, 64, 64, 3))}
    rewrite(engine, profiles=(profile,))
    with upsnet.load(engine) as model:
        assert model.manifest.max_batch == 2


def test_the_runtime_says_the_first_of_the_lines_and_leaves_all_as_it_was(make: Make, tmp_path: Path) -> None:
    engine = make("tensorrt", "11.1")
    os.truncate(engine, 3000)
    engine.with_name(PLUGINS).unlink()
    before = snapshot(tmp_path)
    lines = explain(engine).errors
    assert len(lines) == 2
    with pytest.raises(InputError) as error:
        upsnet.load(engine)
    assert str(error.value) == lines[0]
    photo = tmp_path / "photo.png"
    command = ["predict", str(photo), "--run", str(engine), "--out", str(tmp_path / "out")]
    Image.new("RGB", (64, 48)).save(photo)
    tried = subprocess.run([sys.executable, "-m", "upsnet", *command], capture_output=True, text=True)
    assert (tried.returncode, tried.stderr) == (2, f"error: {lines[0]}\n")
    photo.unlink()
    assert snapshot(tmp_path) == before
