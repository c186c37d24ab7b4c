"""The engines of TensorRT and TensorRT-RTX: finding the plugins, what is said without them, a real build with them."""

from __future__ import annotations

import ctypes
import importlib.util
import json
import shutil
import subprocess
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx
import pytest
from typer.testing import CliRunner

from export import engine
from export.engine import MADE_PLUGINS, PLUGINS_VARIABLE, build_engine, find_plugins
from export.onnx_export import write_onnx
from export.precision import prepare
from export.tensorrt_build import HEAVY_LAYERS, Outcome, _load_plugins, optimization_profile
from tests.plugins_cuda.tensorrt.libraries import built, need
from tests.training.tiny_network import SMALL
from training.config import ModelConfig
from training.model.upsnet import UPSNet
from upsnet.categories import Category
from upsnet.command_line.command import make_app
from upsnet.contract import PLUGINS, manifest_path
from upsnet.errors import InputError
from upsnet.files import sha256
from upsnet.geometry import ResizeRule
from upsnet.manifest import Manifest


@pytest.fixture
def no_plugins(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Neither an environment variable nor a library that `make plugins` left; returns where it would be."""
    monkeypatch.delenv(PLUGINS_VARIABLE, raising=False)
    monkeypatch.setattr(engine, "MADE_PLUGINS", tmp_path / "build" / PLUGINS)
    return tmp_path / "build" / PLUGINS


def touch(path: Path, content: bytes = b"plugins") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


class TestFindingPlugins:
    def test_named_before_environment_before_made(
        self, no_plugins: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        assert find_plugins(None) is None
        touch(no_plugins)
        assert find_plugins(None) == no_plugins
        monkeypatch.setenv(PLUGINS_VARIABLE, str(touch(tmp_path / "env.so")))
        assert find_plugins(None) == tmp_path / "env.so"
        assert find_plugins(touch(tmp_path / "named.so")) == tmp_path / "named.so"

    def test_a_named_library_must_exist(
        self, no_plugins: Path, monkeypatch: pytest.MonkeyPatch, tiny_run: Path, tmp_path: Path
    ) -> None:
        arguments = ["--model", str(tiny_run / "model.onnx"), "--out", str(tmp_path / "engine")]
        arguments += ["--plugins", str(tmp_path / "no.so")]
        result = CliRunner().invoke(make_app(engine.main), arguments)
        assert result.exit_code == 2 and result.stderr.count("\n") == 1
        assert "no.so: no such plugin library" in result.stderr and "make plugins" in result.stderr
        assert not (tmp_path / "engine").exists()
        monkeypatch.setenv(PLUGINS_VARIABLE, str(tmp_path / "gone.so"))
        with pytest.raises(InputError, match=r"gone\.so: no such plugin library"):
            find_plugins(None)

    def test_make_plugins_puts_it_into_the_project(self, project_root: Path) -> None:
        assert project_root / "build/plugins" / PLUGINS == MADE_PLUGINS


class TestLoadingPlugins:
    """With a stand-in for TensorRT, whose registry knows no plugin."""

    trt: Any = SimpleNamespace(
        __name__="tensorrt", __version__="11.1", get_plugin_registry=lambda: SimpleNamespace(all_creators=[])
    )

    def test_a_file_that_is_no_library(self, tmp_path: Path) -> None:
        error = _load_plugins(self.trt, touch(tmp_path / PLUGINS))
        assert "cannot be loaded" in error and "make plugins" in error

    def test_a_library_that_registers_nothing(self) -> None:
        library = next(Path(onnx.__file__).parent.rglob("*.so"))
        error = _load_plugins(self.trt, library)
        assert f"{library} registered no plugin with tensorrt 11.1" in error


class TestReport:
    """What engine.json says, with a stand-in for the program that builds."""

    @pytest.fixture
    def built(self, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
        """TensorRT-RTX seems to be there, and builds; the arguments it was given."""
        calls: list[list[str]] = []

        def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
            calls.append(command[3:])
            Path(command[5]).write_bytes(b"plan")
            layers, plugins = {"CONVOLUTION": {"HALF": 55}}, {"PaddedNms": {"FLOAT": 2}}
            outcome = Outcome(status="built", bytes=4, layers=layers, plugins=plugins)
            return subprocess.CompletedProcess(command, 0, stdout=f"noise\n{outcome.model_dump_json()}\n", stderr="")

        find_spec = importlib.util.find_spec
        present = SimpleNamespace(submodule_search_locations=[])
        monkeypatch.setattr(
            importlib.util, "find_spec", lambda name: present if name.startswith("tensorrt_rtx") else find_spec(name)
        )
        monkeypatch.setattr(engine.subprocess, "run", run)
        small = Outcome(status="built", bytes=1)
        monkeypatch.setattr(engine, "_onnxruntime", lambda model, own: (shutil.copyfile(model, own) and small, []))
        return calls

    def test_plugins_are_recorded_and_lie_beside_the_plan(
        self, no_plugins: Path, built: list[list[str]], tiny_half: Path, tmp_path: Path
    ) -> None:
        library = touch(tmp_path / "mine.so")
        arguments = ["--model", str(tiny_half), "--out", str(tmp_path / "engine"), "--plugins", str(library)]
        result = CliRunner().invoke(make_app(engine.main), arguments)
        assert result.exit_code == 0, result.output
        assert "tensorrt_rtx: built: 0.0 MB; 55 CONVOLUTION HALF, 2 PaddedNms FLOAT" in result.stdout
        report = json.loads((tmp_path / "engine/engine.json").read_text())
        assert report["plugins"] == {"file": "mine.so", "sha256": sha256(library)} and report["precision"] == "fp16"
        assert report["tensorrt_rtx"]["plugins"] == {"PaddedNms": {"FLOAT": 2}}
        assert built[0][-1] == str(library)
        assert (tmp_path / "engine" / PLUGINS).read_bytes() == b"plugins"

    def test_nothing_of_an_earlier_engine_stays(
        self, no_plugins: Path, built: list[list[str]], tiny_half: Path, tmp_path: Path
    ) -> None:
        old = [touch(tmp_path / name) for name in ("model.plan", PLUGINS)]
        report = build_engine(tiny_half, tmp_path)
        assert report.plugins is None and built[0][-1] == ""
        assert not any(path.exists() for path in old)

    def test_a_refusal_without_plugins_says_what_to_do(
        self, no_plugins: Path, built: list[list[str]], monkeypatch: pytest.MonkeyPatch, tiny_half: Path, tmp_path: Path
    ) -> None:
        aborted = subprocess.CompletedProcess([], -6, stdout="", stderr="terminate called without an active exception")
        monkeypatch.setattr(engine.subprocess, "run", lambda *_, **__: aborted)
        found = build_engine(tiny_half, tmp_path).tensorrt_rtx
        assert found.status == "refused" and "make plugins" in str(found.reason)
        assert found.errors == ["exit status -6: terminate called without an active exception"]
        found = build_engine(tiny_half, tmp_path, touch(tmp_path / "mine.so")).tensorrt_rtx
        assert found.reason is None and not (tmp_path / PLUGINS).exists()


# The real builder


@pytest.fixture(scope="session")
def rtx() -> None:
    need("tensorrt_rtx_bindings")


@pytest.fixture(scope="session")
def plugin_library(rtx: None) -> Path:
    """The plugins around emulated kernels: what they are asked while an engine is built does not depend on a GPU."""
    _, plugins = built("cpu")
    return plugins


@pytest.mark.tensorrt
@pytest.mark.usefixtures("rtx")
class TestRtx:
    @pytest.mark.parametrize("precision", ["fp32", "fp16"])
    def test_every_custom_node_becomes_a_plugin(
        self, precision: str, tiny_run: Path, tiny_half: Path, plugin_library: Path, tmp_path: Path
    ) -> None:
        model = tiny_half if precision == "fp16" else tiny_run / "model.onnx"
        manifest = Manifest.load(manifest_path(model))
        low, usual, high = optimization_profile(manifest.resize, manifest.max_batch)["images"]
        assert all(a < c for a, c in zip(low[:3], high[:3], strict=True)), "one engine for every batch and size"
        assert all(a <= b <= c for a, b, c in zip(low, usual, high, strict=True)) and low < usual < high
        found = build_engine(model, tmp_path, plugin_library).tensorrt_rtx
        assert found.status == "built" and found.bytes and found.layers and found.plugins, found
        assert (tmp_path / "model.rtx.plan").stat().st_size == found.bytes > 100_000
        assert found.kernel_abi == ctypes.CDLL(str(plugin_library)).upsnet_kernel_abi()

        nodes = Counter(node.op_type for node in onnx.load(model).graph.node if node.domain == "upsnet")
        for name, count in {"BestAnchors": 1, "UsedRows": 2, "AllRows": 1}.items():
            assert nodes.pop(name) == count  # have no plugin: TensorRT runs their bodies
        assert {name: sum(kinds.values()) for name, kinds in found.plugins.items()} == nodes
        assert set(nodes) == {"RoiAlignFpn", "PaddedNms", "DeformConv2d", "PanopticFusion"}

        kind = "HALF" if precision == "fp16" else "FLOAT"
        assert set(found.layers) == set(HEAVY_LAYERS) - {"DECONVOLUTION"}
        for counts in found.layers.values():
            assert set(counts) == {kind}
        assert {name for name, kinds in found.plugins.items() if kind in kinds} >= set(nodes) - {"PaddedNms"}
        assert set(found.plugins["PaddedNms"]) == {"FLOAT"}

    @pytest.mark.parametrize("isthing", [True, False])
    def test_categories_of_one_kind(self, isthing: bool, plugin_library: Path, tmp_path: Path) -> None:
        color = (1, 2, 3)
        categories = [Category(id=i, name=f"class {i}", isthing=isthing, color=color) for i in (1, 2)]
        manifest = Manifest(
            name="one kind",
            categories=categories,
            resize=ResizeRule(short_side=64, max_side=96),
            max_detections=8 if isthing else 1,
        )
        model = UPSNet(ModelConfig.model_validate(SMALL), 2 - 2 * isthing, 2 * isthing)
        write_onnx(prepare(model, "fp32"), manifest, tmp_path / "model.onnx")
        found = build_engine(tmp_path / "model.onnx", tmp_path / "engine", plugin_library).tensorrt_rtx
        assert found.status == "built" and found.plugins, found
        instance = {"RoiAlignFpn", "PaddedNms"} if isthing else set()
        assert set(found.plugins) == {"DeformConv2d", "PanopticFusion"} | instance

    def test_a_library_of_something_else_is_refused(self, tiny_run: Path, tmp_path: Path) -> None:
        library = next(Path(onnx.__file__).parent.rglob("*.so"))
        found = build_engine(tiny_run / "model.onnx", tmp_path, library).tensorrt_rtx
        assert (found.status, found.stage) == ("refused", "plugins")
        assert found.errors and "registered no plugin with tensorrt_rtx" in found.errors[0]
