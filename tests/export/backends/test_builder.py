"""The builder against fakes of TensorRT 10.9 to 11.1 and of TensorRT-RTX: what it is told, and what becomes of it."""

from __future__ import annotations

import importlib.metadata
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from typer.testing import CliRunner

from export import engine
from export.backends import tensorrt_builder
from export.backends.tensorrt_builder import Progress, Request, build
from export.building import Engine
from export.options import EngineOptions
from export.outcome import Outcome
from export.profiles import chosen_profiles
from tests.upsnet.tensorrt import fake_tensorrt
from tests.upsnet.tensorrt.fake_names import FLAVOURS
from tests.upsnet.tensorrt.fake_plan import Plan
from tests.upsnet.tensorrt.graphs import write_graph
from upsnet.command_line.command import make_app
from upsnet.contract import PLUGINS, manifest_path
from upsnet.engines.check import check_engine
from upsnet.engines.manifest import EngineManifest
from upsnet.errors import InputError
from upsnet.manifest import Manifest
from upsnet.tensorrt.api import BUILDER_OPTIONS, Name, cuda_of, make_network, open_api, too_old

TENSORRT = ("10.9", "10.13", "10.16", "11.0", "11.1")


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A graph with the contract's inputs and one convolution's worth of weights."""
    model = write_graph(tmp_path / "model.onnx")
    proto = onnx.load(model)
    weights = onnx.numpy_helper.from_array(np.eye(7, dtype=np.float32), "eye")
    proto.graph.initializer.append(weights)
    product = onnx.helper.make_node("MatMul", ["rows", "eye"], ["turned"], "turn")
    nodes = list(proto.graph.node)
    place = next(index for index, node in enumerate(nodes) if node.domain == "upsnet")
    nodes[place].input[0] = "turned"
    del proto.graph.node[:]
    proto.graph.node.extend([*nodes[:place], product, *nodes[place:]])
    onnx.save(proto, model)
    return model


class Built:
    """One build in this process."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, flavour: str, model: Path, folder: Path) -> None:
        self.world = fake_tensorrt.install(monkeypatch, flavour)
        self.package: Name = "tensorrt-rtx" if FLAVOURS[flavour].rtx else "tensorrt"
        self.model, self.plan = model, folder / "model.plan"
        self.plugins: Path | None = fake_tensorrt.write_plugins(folder / PLUGINS, kernel_abi=7)
        self.said: list[Progress] = []

    def __call__(self, profiles: Any = None, **options: Any) -> Outcome:
        manifest = Manifest.load(manifest_path(self.model))
        request = Request(
            package=self.package,
            model=self.model,
            manifest=manifest.model_copy(update=options.pop("manifest", {})),
            plan=self.plan,
            plugins=self.plugins,
            profiles=profiles or chosen_profiles(manifest.resize, manifest.max_batch),
            options=EngineOptions(**options),
        )
        return build(open_api(self.package), request, self.said.append)

    def read(self) -> Plan:
        return Plan.from_bytes(self.plan.read_bytes())


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch, small: Path, tmp_path: Path) -> Any:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return lambda flavour: Built(monkeypatch, flavour, small, tmp_path)


@pytest.mark.parametrize("flavour", FLAVOURS)
class TestEveryVersion:
    def test_it_builds(self, flavour: str, built: Any) -> None:
        make = built(flavour)
        found = make()
        assert found.status == "built" and found.version == FLAVOURS[flavour].version and found.kernel_abi == 7, found
        assert found.layers == {"MATRIX_MULTIPLY": {"FLOAT": 1}} and found.plugins == {"AllRows": {"FLOAT": 1}}
        assert found.seconds is not None and found.bytes == make.plan.stat().st_size and found.notes is None
        assert make.said and make.said[0].phase == "Building Engine"
        (profile,) = make.read().profiles
        assert profile["images"] == [[1, 32, 32, 3], [1, 64, 96, 3], [4, 96, 96, 3]]

    def test_the_network_is_strongly_typed(self, flavour: str, built: Any) -> None:
        make = built(flavour)
        api = open_api(make.package)
        flag = api.module.NetworkDefinitionCreationFlag.STRONGLY_TYPED
        network = make_network(api, api.module.Builder(api.module.Logger()))
        if flavour.startswith("10"):
            assert network.get_flag(flag) and network._flags == 1 << 1
        elif flavour != "rtx":
            assert network._flags == 0, "TensorRT 11 warns of the flag that it does not need"

    def test_tf32_is_off_unless_it_is_asked_for(self, flavour: str, built: Any) -> None:
        make = built(flavour)
        make()
        assert "TF32" not in make.read().flags
        make(manifest={"precision": "tf32"})
        assert "TF32" in make.read().flags

    def test_several_profiles(self, flavour: str, built: Any) -> None:
        make = built(flavour)
        rule = Manifest.load(manifest_path(make.model)).resize
        make(chosen_profiles(rule, 4, profiles=("1x32x32:1x64x96:1x96x96", "8x64x96:8x64x96:8x96x96")))
        one, eight = make.read().profiles
        assert one["images"][2] == [1, 96, 96, 3] and eight["images"][0] == [8, 64, 96, 3]

    @pytest.mark.parametrize("option", EngineOptions.model_fields.keys() - {"profiles"})
    def test_an_option_is_one_of_the_builders_or_is_not_there(self, flavour: str, option: str, built: Any) -> None:
        """Whatever BUILDER_OPTIONS names can be set."""
        make = built(flavour)
        if option not in BUILDER_OPTIONS[make.package]:
            return
        values: dict[str, Any] = {
            "workspace": 2**30,
            "level": 5,
            "timing_cache": make.model.with_name("t.cache"),
            "hardware_compatible": "same",
            "compute_capabilities": ("86", "120"),
        }
        assert make(**{option: values.get(option, True)}).status == "built"
        plan = make.read()
        expected = {
            "version_compatible": lambda: "VERSION_COMPATIBLE" in plan.flags,
            "weight_streaming": lambda: "WEIGHT_STREAMING" in plan.flags,
            "refit": lambda: "REFIT" in plan.flags,
            "hardware_compatible": lambda: plan.hardware == "SAME_COMPUTE_CAPABILITY",
            "compute_capabilities": lambda: plan.capabilities == ["SM86", "SM120"],
            "timing_cache": lambda: values["timing_cache"].stat().st_size > 0,
        }
        assert expected.get(option, lambda: True)()

    def test_types_that_were_not_asked_for_are_refused_before_the_build(self, flavour: str, built: Any) -> None:
        make = built(flavour)
        found = make(manifest={"precision": "fp16"})
        assert (found.status, found.stage) == ("refused", "types") and not make.plan.exists() and not make.said
        assert "compute in FLOAT, not in HALF" in str(found)

    def test_refusals(self, flavour: str, built: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        make = built(flavour)
        make.world.refused_operators.add("Expand")
        found = make()
        assert found.stage == "parser" and "Expand (spread): No importer registered" in str(found)
        make.world.refused_operators.clear()
        found = make(workspace=1000)
        assert found.stage == "builder" and "insufficient workspace" in str(found)
        make.plugins = None
        make.world.plugins.clear()
        found = make()
        assert found.stage == "parser" and "AllRows (all_rows): Plugin not found" in str(found)
        assert not make.plan.exists()


def test_versions_that_are_too_old() -> None:
    assert too_old("tensorrt", "10.9.0.34") is None and too_old("tensorrt", "11.1.0.106") is None
    assert too_old("tensorrt-rtx", "1.7.1.116") is None and too_old("tensorrt-rtx", "2.0.0") is None
    assert str(too_old("tensorrt", "10.8.0.43")).startswith("tensorrt 10.8.0.43 is too old for the plugins: 10.9 or")
    assert "1.7 or newer" in str(too_old("tensorrt-rtx", "1.6.0"))


def test_an_rtx_engine_with_fp8_is_for_gpus_that_have_it(built: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorRT-RTX itself would write 80 and 86 into the plan as well, which it refuses where they are named."""
    make = built("rtx")
    monkeypatch.setattr(tensorrt_builder, "count_types", lambda *_: ({"CONVOLUTION": {"FP8": 1}}, {}))
    assert make(manifest={"precision": "fp8"}).status == "built"
    assert make.read().capabilities == ["SM89", "SM120", "SM121"]
    make(manifest={"precision": "fp8"}, compute_capabilities=("120",))
    assert make.read().capabilities == ["SM120"]


def test_the_cuda_that_a_package_was_made_for(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["numpy", "tensorrt", "tensorrt_cu12_bindings", "tensorrt-cu13", "tensorrt_rtx_cu12_libs", None]
    monkeypatch.setattr(importlib.metadata, "distributions", lambda: iter(SimpleNamespace(name=name) for name in names))
    assert cuda_of("tensorrt") == "13" and cuda_of("tensorrt-rtx") == "12"
    names[:] = ["tensorrt"]
    assert cuda_of("tensorrt") == ""


def test_a_compute_capability_that_the_builder_does_not_know(built: Any) -> None:
    make = built("rtx")
    with pytest.raises(
        InputError, match=r"^compute capability 90: tensorrt-rtx 1\.7\.1\.116 builds for 75, 80, 86, 89"
    ):
        make(compute_capabilities=("86", "90"))


class TestTimingCache:
    def test_what_was_measured_is_kept_for_the_next(self, built: Any, tmp_path: Path) -> None:
        make = built("11.1")
        file = tmp_path / "cache" / "t.cache"
        make(timing_cache=file)
        first = file.read_bytes()
        assert first.startswith(b"11.1") and first.count(b"\n") > 5
        other = first.splitlines()[0] + b"\nof another build"
        file.write_bytes(other)
        make(timing_cache=file)
        assert set(file.read_bytes().splitlines()) == set(first.splitlines()) | {b"of another build"}
        assert sorted(path.name for path in file.parent.iterdir()) == ["t.cache", "t.cache.lock"]

    def test_without_a_word_there_is_one_for_each_version(self, built: Any, tmp_path: Path) -> None:
        for flavour in ("10.9", "11.1"):
            built(flavour)()
        names = sorted(path.name for path in (tmp_path / "cache/upsnet-trt").glob("*.cache"))
        assert [name.rpartition("-")[0] for name in names] == [
            "timing-tensorrt-10.9.0.34",
            "timing-tensorrt-11.1.0.106",
        ]

    def test_one_of_another_version_is_not_used(self, built: Any, tmp_path: Path) -> None:
        file = tmp_path / "t.cache"
        built("10.9")(timing_cache=file)
        found = built("11.1")(timing_cache=file)
        assert found.status == "built"
        assert found.notes == [
            f"{file}: no timing cache of tensorrt 11.1.0.106 on this GPU; it is not used, and written anew"
        ]
        assert file.read_bytes().startswith(b"11.1")

    def test_one_that_cannot_be_written_is_no_reason_to_refuse(self, built: Any, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        found = built("11.1")(timing_cache=tmp_path / "file" / "t.cache")
        assert found.status == "built"
        assert found.notes and "the timing cache is not kept: " in found.notes[0] and "t.cache" in found.notes[0]

    def test_rtx_has_none(self, built: Any, tmp_path: Path) -> None:
        built("rtx")()
        assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("flavour", ["10.9", "11.1", "rtx"])
def test_the_command_from_end_to_end(
    flavour: str, monkeypatch: pytest.MonkeyPatch, small: Path, tmp_path: Path
) -> None:
    """`upsnet engine --backend`, whose builder is another process, and what the runtimes check before they load."""
    for name, value in fake_tensorrt.environment(flavour).items():
        if value != os.environ.get(name):
            monkeypatch.setenv(name, value)
    fake_tensorrt.install(monkeypatch, flavour)
    monkeypatch.setattr("export.backends.tensorrt_engine.gpu_problem", lambda: None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("UPSNET_KERNELS", "off")
    backend = "tensorrt-rtx" if flavour == "rtx" else "tensorrt"
    plugins = fake_tensorrt.write_plugins(tmp_path / "plugins.so", kernel_abi=2)
    arguments = ["--model", str(small), "--backend", backend, "--plugins", str(plugins), "--batch", "1", "2", "8"]
    result = CliRunner().invoke(make_app(engine.main), arguments)
    assert result.exit_code == 0, result.output
    assert f"chosen: {backend}: it was asked for" in result.stdout
    plan = tmp_path / "engine" / ("model.rtx.plan" if flavour == "rtx" else "model.plan")
    assert Plan.from_bytes(plan.read_bytes()).profiles[0]["scales"] == [[1], [2], [8]]
    manifest = EngineManifest.load(plan.with_name(plan.name + ".json"))
    assert check_engine(plan) == manifest and manifest.builder == FLAVOURS[flavour].version
    assert getattr(Engine.load(tmp_path / "engine/engine.json"), backend.replace("-", "_")).status == "built"
    before = {path: path.read_bytes() for path in plan.parent.iterdir()}
    arguments = ["--model", str(small), "--backend", backend, "--plugins", str(plugins), "--workspace", "1000"]
    result = CliRunner().invoke(make_app(engine.main), arguments)
    assert result.exit_code == 2 and result.stderr.count("\n") == 1 and "insufficient workspace" in result.stderr
    assert {path: path.read_bytes() for path in plan.parent.iterdir()} == before
