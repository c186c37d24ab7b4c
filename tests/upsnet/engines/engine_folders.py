"""Engines' folders for tests: small files that begin as the real ones do, a library that was compiled, a manifest."""

from __future__ import annotations

import hashlib
import os
import struct
import subprocess
from pathlib import Path
from typing import Any

from tests.conftest import FakePredictor
from upsnet.contract import PLUGINS
from upsnet.driver import Driver, Gpu
from upsnet.engines.kinds import RTX, RTX_CAPABILITIES, TENSORRT
from upsnet.engines.manifest import ENGINES, Backend, EngineManifest, Part, engine_manifest_path, this_platform

TENSORRT_VERSION, RTX_VERSION = "10.13.3.9", "1.7.1.116"
GPU = Driver(has_gpu=True, cuda=(13, 0), gpus=(Gpu("NVIDIA A10", "86", 24 * 2**30),))
NO_GPU = Driver("there is no NVIDIA GPU")
KERNEL_ABI = 3
PROFILE = {
    "images": ((1, 32, 32, 3), (1, 64, 64, 3), (4, 64, 64, 3)),
    "sizes": ((1, 2), (1, 2), (4, 2)),
    "scales": ((1,), (1,), (4,)),
}


def plan(backend: Backend, version: str = "", size: int = 4096, capabilities: tuple[str, ...] = ("86", "89")) -> bytes:
    """As long as it says, with the header that TensorRT's have, and the name of an operator of ours."""
    rtx = backend == "tensorrt-rtx"
    number = [int(part) for part in (version or (RTX_VERSION if rtx else TENSORRT_VERSION)).split(".")]
    bits = sum(1 << RTX_CAPABILITIES.index(each) for each in capabilities)
    head = struct.pack("<4sIQQ4B4sQ", RTX if rtx else TENSORRT, 0, 2, size, *number, b"vtrt", bits)
    return head + b"PanopticFusion" + bytes(index % 251 for index in range(size - len(head) - 14))


def compile_library(file: Path, text: str, *options: str) -> Path:
    source = file.with_suffix(".cpp")
    source.write_text(text)
    environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    command = ["g++", "-shared", "-fPIC", str(source), "-o", str(file), *options]
    subprocess.run(command, check=True, env=environment)
    source.unlink()
    file.chmod(0o755)
    return file


def abi_of(number: int) -> str:
    return f'extern "C" int upsnet_kernel_abi() {{ return {number}; }}'


def make_engine(folder: Path, library: Path, backend: Backend = "tensorrt", /, **changes: Any) -> Path:
    """The engine's file, which lies in a folder of its own with its library and its manifest."""
    folder.mkdir(mode=0o755)
    engine = folder / ENGINES[backend]
    engine.write_bytes(plan(backend))
    (folder / PLUGINS).write_bytes(library.read_bytes())
    (folder / PLUGINS).chmod(0o755)
    facts: dict[str, Any] = {
        "backend": backend,
        "engine": Part.of(engine),
        "bytes": engine.stat().st_size,
        "model": Part(file="model.onnx", sha256="0" * 64),
        "libraries": (Part.of(folder / PLUGINS),),
        "builder": TENSORRT_VERSION if backend == "tensorrt" else RTX_VERSION,
        "built_with": {"cuda": "13.0"},
        "built": "2026-11-29T22:00:00+00:00",
        "platform": this_platform(),
        "gpu": "NVIDIA A10",
        "compute_capabilities": ("86",),
        "kernel_abi": KERNEL_ABI,
        "precision": "fp16",
        "layers": {"CONVOLUTION": {"HALF": 53, "FLOAT": 2}},
        "plugins": {"PanopticFusion": {"HALF": 1}},
        "profiles": (PROFILE,),
        "seconds": 312.4,
        "network": FakePredictor("fake").manifest,
    }
    EngineManifest(**(facts | changes)).save(engine_manifest_path(engine))
    return engine


def rewrite(engine: Path, /, **changes: Any) -> None:
    """The engine's manifest, with other values."""
    path = engine_manifest_path(engine)
    EngineManifest.load(path).model_copy(update=changes).save(path)


def snapshot(folder: Path) -> dict[str, tuple[int, int, str]]:
    """Every file with its mode, time and content; of a large one, its size."""
    return {
        str(path.relative_to(folder)): (
            path.lstat().st_mode,
            path.lstat().st_mtime_ns,
            hashlib.sha256(path.read_bytes()).hexdigest()
            if path.is_file() and path.stat().st_size < 2**24
            else str(path.lstat().st_size),
        )
        for path in sorted(folder.rglob("*"))
    }
