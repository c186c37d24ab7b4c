"""The engines of TensorRT and TensorRT-RTX: the process that builds, its progress, and real builds."""

from __future__ import annotations

import ctypes
import io
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import onnx
import pytest

from export.backends import tensorrt_engine
from export.backends.backend import Job
from export.backends.tensorrt_builder import HEAVY_LAYERS, Phases, Progress
from export.backends.tensorrt_engine import TensorRT
from export.onnx_export import write_onnx
from export.options import EngineOptions
from export.outcome import Outcome
from export.precision import prepare
from export.profiles import chosen_profiles, optimization_profile
from tests.plugins_cuda.tensorrt.libraries import built, need
from tests.small_disk import small_disk
from tests.training.tiny_network import SMALL
from training.model.upsnet import UPSNet
from training.model_config import ModelConfig
from upsnet.categories import Category
from upsnet.contract import PLUGINS, manifest_path
from upsnet.engines.kinds import identify
from upsnet.engines.manifest import ENGINES
from upsnet.geometry import ResizeRule
from upsnet.manifest import Manifest


def job_of(model: Path, folder: Path, plugins: Path | None = None, **options: Any) -> Job:
    folder.mkdir(exist_ok=True)
    return Job(model, Manifest.load(manifest_path(model)), folder, plugins, options=EngineOptions(**options))


def build_rtx(model: Path, folder: Path, plugins: Path | None = None, **options: Any) -> Outcome:
    return TensorRT("tensorrt-rtx").build(job_of(model, folder, plugins, **options), model)


class TestProgress:
    """TensorRT's phases lie in one another; what is said of them is one share that grows to 1."""

    def test_a_phase_in_a_step_of_another(self) -> None:
        said: list[Progress] = []
        phases = Phases(said.append, often=0)
        phases.start("build", None, 2)
        phases.start("parse", "build", 4)
        phases.step("parse", 0)
        phases.step("parse", 3)
        phases.finish("parse")
        phases.step("build", 0)
        phases.start("time", "build", 2)
        phases.start("kernels", "time", 5)
        phases.step("kernels", 0)
        phases.finish("kernels")
        phases.step("time", 1)
        assert [round(each.share, 3) for each in said] == [0, 0, 0.125, 0.5, 0.5, 0.5, 0.5, 0.55, 1.0]
        assert said[-1].phase == "time"

    def test_it_never_goes_back_nor_over_the_end(self) -> None:
        said: list[Progress] = []
        phases = Phases(said.append, often=0)
        phases.start("build", None, 1)
        for _ in range(3):  # more phases than were announced, and steps of one that has ended
            phases.start("again", "build", 2)
            phases.step("again", 0)
            phases.step("again", 5)
            phases.finish("again")
            phases.step("again", 0)
            phases.step("build", 0)
        shares = [each.share for each in said]
        assert shares == sorted(shares) and shares[0] >= 0 and shares[-1] == 1

    def test_it_speaks_no_more_often_than_it_should(self) -> None:
        said: list[Progress] = []
        phases = Phases(said.append, often=1000)
        phases.start("build", None, 100)
        for step in range(100):
            phases.step("build", step)
        assert len(said) <= 1


class TestTheProcess:
    """Stand-ins for the program that builds."""

    @pytest.fixture
    def runs(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
        """What a shell script in the builder's place comes to. It finds the request on stdin."""
        start = subprocess.Popen

        def run(script: str, plugins: Path | None = None, model: Path | None = None) -> Outcome:
            monkeypatch.setattr(
                tensorrt_engine.subprocess, "Popen", lambda command, **more: start(["/bin/sh", "-c", script], **more)
            )
            assert model is not None
            return build_rtx(model, tmp_path / "stage", plugins)

        return run

    def test_what_it_says_last_is_the_outcome(self, runs: Any, tiny_half: Path, tmp_path: Path) -> None:
        outcome = Outcome(status="built", bytes=4)
        progress = Progress(share=0.5, phase="Timing")
        script = f"cat > {tmp_path}/request; echo '{progress.model_dump_json()}'; echo '{outcome.model_dump_json()}'"
        assert runs(f"{script}; echo noise >&2", tiny_half, tiny_half) == outcome
        assert (tmp_path / "stage" / PLUGINS).read_bytes() == tiny_half.read_bytes(), "the library that was given"
        assert '"package":"tensorrt-rtx"' in (tmp_path / "request").read_text()

    def test_its_progress_is_a_bar_on_this_terminal(
        self, runs: Any, tiny_half: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        class Terminal(io.StringIO):
            def isatty(self) -> bool:
                return True

        terminal = Terminal()
        monkeypatch.setattr(sys, "stderr", terminal)
        said = [Progress(share=share, phase="Timing kernels") for share in (0.25, 0.5)]
        lines = [each.model_dump_json() for each in (*said, Outcome(status="built"))]
        runs("cat > /dev/null; " + "; ".join(f"sleep 0.12; echo '{line}'" for line in lines), tiny_half, tiny_half)
        assert "tensorrt-rtx:  25%" in terminal.getvalue() and "tensorrt-rtx:  50%" in terminal.getvalue()
        assert "Timing kernels" in terminal.getvalue()

    def test_one_that_aborts(self, runs: Any, tiny_half: Path, tmp_path: Path) -> None:
        found = runs("echo one >&2; echo terminate called >&2; kill -6 $$", None, tiny_half)
        assert (found.status, found.stage) == ("refused", "process") and "make plugins" in str(found.reason)
        assert found.errors == ["exit status -6: terminate called"]
        found = runs("exec 0<&-; exit 3", tiny_half, tiny_half)
        assert found.errors == ["exit status 3: no output"] and found.reason is None
        assert not (tmp_path / "stage" / PLUGINS).exists()

    def test_one_that_does_not_end(self, runs: Any, tiny_half: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(tensorrt_engine, "TIMEOUT", 0.3)
        found = runs("exec sleep 60", tiny_half, tiny_half)
        assert found.errors == ["no engine after 0.3 s: the build was ended"]

    @pytest.mark.tensorrt
    def test_a_full_disk(self, tiny_half: Path, plugin_library: Path, tmp_path: Path) -> None:
        with small_disk(100_000):
            found = build_rtx(tiny_half, tmp_path, plugin_library)
        assert found.status == "refused" and f"{ENGINES['tensorrt-rtx']}: cannot be written: File too large" in str(
            found
        )


class TestAvailable:
    def test_it_says_what_is_missing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(tensorrt_engine, "installed", lambda name: None)
        assert "tensorrt is not installed (pip install '.[gpu]')" in str(TensorRT("tensorrt").available())
        assert TensorRT("tensorrt-rtx").available() == "TensorRT-RTX is not installed (pip install '.[rtx]')"
        monkeypatch.setattr(tensorrt_engine, "installed", lambda name: name)
        monkeypatch.setattr(tensorrt_engine, "gpu_problem", lambda: "the NVIDIA driver does not work: error 803")
        found = TensorRT("tensorrt").available()
        assert found == "tensorrt is installed, but the NVIDIA driver does not work: error 803"
        assert TensorRT("tensorrt-rtx").available() is None, "it builds without a GPU"


# The real builder


@pytest.fixture(scope="session")
def plugin_library() -> Path:
    """The plugins around emulated kernels: what they are asked while an engine is built does not depend on a GPU."""
    need("tensorrt_rtx_bindings")
    _, plugins = built("cpu")
    return plugins


@pytest.mark.tensorrt
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
        found = build_rtx(model, tmp_path, plugin_library)
        assert found.status == "built" and found.bytes and found.layers and found.plugins and found.seconds, found
        assert (tmp_path / ENGINES["tensorrt-rtx"]).stat().st_size == found.bytes > 100_000
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
        found = build_rtx(tmp_path / "model.onnx", tmp_path / "engine", plugin_library)
        assert found.status == "built" and found.plugins, found
        instance = {"RoiAlignFpn", "PaddedNms"} if isthing else set()
        assert set(found.plugins) == {"DeformConv2d", "PanopticFusion"} | instance

    def test_profiles_gpus_and_limits(self, tiny_half: Path, plugin_library: Path, tmp_path: Path) -> None:
        """What the options change is in the plan: its length, and TensorRT-RTX's list of GPUs at byte 32."""
        rule = Manifest.load(manifest_path(tiny_half)).resize
        two = chosen_profiles(rule, 4, profiles=("1x32x32:1x96x128:1x160x160", "2x96x96:4x96x96:4x96x96"))
        others: dict[str, Any] = {"compute_capabilities": ("80", "120"), "weight_streaming": True, "workspace": 2**30}
        for folder, options in ((tmp_path / "two", {"profiles": two}), (tmp_path / "others", others)):
            found = build_rtx(tiny_half, folder, plugin_library, **options)
            assert found.status == "built", found
        plans = [tmp_path / name / ENGINES["tensorrt-rtx"] for name in ("two", "others")]
        assert [identify(plan).compute_capabilities for plan in plans] == [
            ("80", "86", "89", "120", "121"),
            ("80", "120"),
        ]
        assert plans[0].stat().st_size > plans[1].stat().st_size, "a second profile"

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"compute_capabilities": ("90",)}, "compute capability 90: tensorrt-rtx 1.7.1.116 builds for 75, 80, 86"),
            ({"compute_capabilities": ("CURRENT",)}, "compute capability CURRENT: tensorrt-rtx"),
            ({"workspace": 1000}, "--workspace may be too little: 1000 bytes"),
            ({"refit": True}, "TensorRT-RTX needs a GPU for --refit: "),
        ],
    )
    def test_an_option_that_cannot_be(
        self, options: dict[str, Any], message: str, tiny_half: Path, plugin_library: Path, tmp_path: Path
    ) -> None:
        if "refit" in options and tensorrt_engine.gpu_problem() is None:
            pytest.skip("there is a GPU")
        found = build_rtx(tiny_half, tmp_path, plugin_library, **options)
        assert found.status == "refused" and message in str(found), found
        assert list(tmp_path.iterdir()) == []

    def test_without_plugins_it_names_the_operator(self, tiny_run: Path, tmp_path: Path) -> None:
        need("tensorrt_rtx_bindings")
        found = build_rtx(tiny_run / "model.onnx", tmp_path)
        assert found.stage == "parser" and any("DeformConv" in error for error in found.errors or [])
        assert "make plugins" in str(found.reason)

    def test_a_library_of_something_else_is_refused(self, tiny_run: Path, tmp_path: Path) -> None:
        need("tensorrt_rtx_bindings")
        library = next(Path(onnx.__file__).parent.rglob("*.so"))
        found = build_rtx(tiny_run / "model.onnx", tmp_path, library)
        assert (found.status, found.stage) == ("refused", "plugins")
        assert found.errors and "registered no plugin of ours with tensorrt-rtx" in found.errors[0]
