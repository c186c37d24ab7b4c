"""An engine's manifest: values that no build writes are refused by name; older manifests are taken."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.upsnet.engines.engine_folders import PROFILE, make_engine
from upsnet.engines.check import check_engine
from upsnet.engines.manifest import EngineManifest, engine_manifest_path
from upsnet.errors import InputError

Facts = dict[str, Any]
FIGURES = {"data": "x", "images": 4, "batch": 1, "reference": "pytorch", "pq": 0.4, "difference": 0.0, "identical": 1.0}


@pytest.fixture
def described(tmp_path: Path) -> Path:
    """A manifest; its engine and library are stand-ins."""
    (library := tmp_path / "library.so").write_bytes(b"\x7fELF")
    return engine_manifest_path(make_engine(tmp_path / "engine", library))


def put(**values: object) -> Callable[[Facts], None]:
    return lambda facts: facts.update(values)


def put_in(key: str, **values: object) -> Callable[[Facts], None]:
    return lambda facts: facts[key].update(values)


def profile(**shapes: object) -> Callable[[Facts], None]:
    return put(profiles=[PROFILE | shapes])


def figures(**values: object) -> Callable[[Facts], None]:
    return put(parity=[FIGURES | values])


def deep(levels: int) -> object:
    return [deep(levels - 1)] if levels else 0


# name: the edit, words of the line
WRONG: dict[str, tuple[Callable[[Facts], object], str]] = {
    "plugins without libraries": (
        put(libraries=[]),
        "plugins are PanopticFusion, and libraries has no libupsnet_plugins.so",
    ),
    "libraries deleted": (lambda facts: facts.pop("libraries"), "plugins are PanopticFusion, and libraries"),
    "a library twice": (lambda facts: facts.update(libraries=facts["libraries"] * 2), "libraries names one twice"),
    "no profiles": (put(profiles=[]), "profiles is empty, and an engine of tensorrt has one at least"),
    "profiles deleted": (lambda facts: facts.pop("profiles"), "profiles is empty"),
    "a negative ABI": (put(kernel_abi=-1), "kernel_abi: "),
    "no ABI's number": (put(kernel_abi=True), "kernel_abi: "),
    "a huge ABI": (put(kernel_abi=10**400), "kernel_abi: "),
    "an ABI in words": (put(kernel_abi="2"), "kernel_abi: "),
    "a word for a version": (put(version=True), "version: Input should be 1"),
    "a version with a point": (put(version=1.0), "version: Input should be 1"),
    "another version": (put(version=2), "version: Input should be 1"),
    "no hash": (put_in("model", sha256="xxxxxxxxxx"), "model.sha256: "),
    "a hash in capitals": (put_in("engine", sha256="A" * 64), "engine.sha256: "),
    "a hash and a line": (put_in("engine", sha256="0" * 64 + "\n"), "engine.sha256: "),
    "no name": (put_in("engine", file=""), "engine.file: "),
    "bytes as a word": (put(bytes=True), "bytes: "),
    "no bytes": (put(bytes=0), "bytes: "),
    "bytes beyond any file": (put(bytes=2**63), "bytes: "),
    "another backend": (put(backend="caffe"), "backend: "),
    "an empty builder": (put(builder=""), "builder: "),
    "a date in words": (put(built="yesterday"), "built: "),
    "a platform's number": (put(platform=1), "platform: "),
    "a compute capability with a point": (put(compute_capabilities=["8.6"]), "compute_capabilities.0: "),
    "a compute capability's number": (put(compute_capabilities=[86]), "compute_capabilities.0: "),
    "a compute capability of one figure": (put(compute_capabilities=["8"]), "compute_capabilities.0: "),
    "yes for true": (put(version_compatible="yes"), "version_compatible: "),
    "a negative count": (put(layers={"CONVOLUTION": {"HALF": -1}}), "layers.CONVOLUTION.HALF: "),
    "a count that is none": (put(plugins={"PanopticFusion": {"HALF": True}}), "plugins.PanopticFusion.HALF: "),
    "half a photo": (profile(scales=((1,), (1.5,), (4,))), "profiles.0.scales.1.0: "),
    "more photos than memory": (profile(scales=((1,), (1,), (2**40,))), "profiles.0.scales.2.0: "),
    "two shapes": (profile(scales=((1,), (4,))), "profiles.0.scales.2: "),
    "shapes without numbers": (profile(images=((), (), ())), "profiles: a shape of images has 4 numbers"),
    "images without colours": (profile(images=((1, 32, 32),) * 3), "profiles: a shape of images has 4 numbers"),
    "a time that is none": (put(seconds=float("nan")), "seconds: "),
    "endless": (put(seconds=float("inf")), "seconds: "),
    "a time before the start": (put(seconds=-1), "seconds: "),
    "a mean that is none": (put(pixel_mean=[0.0, 0.0, float("nan")]), "pixel_mean.2: "),
    "a PQ in percent": (figures(pq=40.0), "parity.0.pq: "),
    "more pixels than there are": (figures(identical=1.1), "parity.0.identical: "),
    "a difference that is none": (figures(difference=float("nan")), "parity.0.difference: "),
    "negative photos": (figures(images=-1), "parity.0.images: "),
    "options in options": (put(options={"a": deep(300)}), "options is deeper than 32"),
    "a deep configuration": (put(configuration={"a": deep(300)}), "configuration is deeper than 32"),
}


@pytest.mark.parametrize("way", WRONG)
def test_a_wrong_value_is_refused_by_name(way: str, described: Path) -> None:
    edit, words = WRONG[way]
    facts = json.loads(described.read_text())
    edit(facts)
    described.write_text(json.dumps(facts))
    with pytest.raises(InputError) as error:
        EngineManifest.load(described)
    line = str(error.value)
    assert line.startswith(f"{described}: {words}") and line.endswith("; build the engine again with `make engine`")
    with pytest.raises(InputError, match=r"its manifest model\.plan\.json cannot be used"):
        check_engine(described.with_suffix(""))


OLD = (
    "version",
    "built_with",
    "built",
    "gpu",
    "compute_capabilities",
    "version_compatible",
    "kernel_abi",
    "layers",
    "options",
    "seconds",
    "parity",
)


@pytest.mark.parametrize("key", [*OLD, "all of them"])
def test_a_key_that_older_versions_left_out_may_be_absent(key: str, described: Path) -> None:
    facts = json.loads(described.read_text())
    for each in OLD if key == "all of them" else (key,):
        facts.pop(each)
    described.write_text(json.dumps(facts))
    assert EngineManifest.load(described).backend == "tensorrt"


def test_what_builds_write_is_taken(described: Path) -> None:
    facts = json.loads(described.read_text())
    small: Facts = {"libraries": [], "plugins": {}}
    for changes in (
        small,  # a network without operators of its own
        small | {"backend": "torch-tensorrt", "plugins": {"PanopticFusion": {"HALF": 1}}},  # which it holds itself
        small | {"backend": "onnxruntime", "profiles": [], "compute_capabilities": []},
        {"parity": [FIGURES | {"difference": -0.01, "pq": 1}]},
        {"profiles": [PROFILE, PROFILE], "compute_capabilities": ["86", "120"]},
        {"configuration": {"model": {"stages": [[1, 2], [3, 4]]}}, "options": {"level": 3}},
        {"unknown": 1},  # of a newer version, which keeps its number for new keys
    ):
        described.write_text(json.dumps(facts | changes))
        loaded = EngineManifest.load(described)
        loaded.save(described)
        assert EngineManifest.load(described) == loaded
