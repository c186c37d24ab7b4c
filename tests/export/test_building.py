"""An engine's folder: what is built into it, what is chosen, what stays when a build fails, and its manifests."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from export import building, engine, engine_manifest
from export.backends.tensorrt_engine import WITHOUT_PLUGINS
from export.building import MADE_PLUGINS, PLUGINS_VARIABLE, Choice, build_engine, find_plugins
from export.options import EngineOptions
from export.outcome import Outcome
from tests.backends import StandIn, put_in_place
from upsnet.command_line.command import make_app
from upsnet.contract import LIBRARY, PLUGINS, manifest_path
from upsnet.engines.kinds import Kind
from upsnet.engines.manifest import EngineManifest, ParityFigures, Part, record_parity
from upsnet.errors import InputError
from upsnet.files import sha256
from upsnet.manifest import Manifest

BUILT = Outcome(
    status="built",
    bytes=4,
    seconds=1.5,
    version="11.1",
    layers={"CONVOLUTION": {"HALF": 55}},
    plugins={"PaddedNms": {"FLOAT": 2}},
    kernel_abi=2,
)
REFUSED = Outcome(status="refused", stage="builder", errors=["no kernel fits", "another"])
TENSORRT = frozenset({"profiles", "workspace", "level"})
Snapshot = dict[str, bytes]


@pytest.fixture(autouse=True)
def no_plugins(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Neither an environment variable nor a library that `make plugins` left; returns where it would be."""
    monkeypatch.delenv(PLUGINS_VARIABLE, raising=False)
    monkeypatch.setenv("UPSNET_KERNELS", "off")
    monkeypatch.setattr(building, "MADE_PLUGINS", tmp_path / "build" / PLUGINS)
    return tmp_path / "build" / PLUGINS


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Callable[[str | None], None]:
    def put(problem: str | None) -> None:
        monkeypatch.setattr(building, "gpu_problem", lambda: problem)
        monkeypatch.setattr(building, "compute_capability", lambda number: "90")
        monkeypatch.setattr(engine_manifest, "identify", lambda plan: Kind("a plan", compute_capabilities=("90",)))

    return put


def touch(path: Path, content: bytes = b"plugins") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def snapshot(folder: Path) -> Snapshot:
    return {path.name: path.read_bytes() for path in folder.iterdir()} if folder.exists() else {}


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

    def test_a_named_library_must_exist(self, monkeypatch: pytest.MonkeyPatch, tiny_run: Path, tmp_path: Path) -> None:
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


class TestAuto:
    def test_it_records_what_was_built_and_what_each_needs(
        self, monkeypatch: pytest.MonkeyPatch, tiny_half: Path, tmp_path: Path
    ) -> None:
        rtx = StandIn("tensorrt-rtx", BUILT)
        put_in_place(monkeypatch, rtx)
        library, out = touch(tmp_path / "mine.so"), tmp_path / "engine"
        arguments = ["--model", str(tiny_half), "--out", str(out), "--plugins", str(library)]
        result = CliRunner().invoke(make_app(engine.main), arguments)
        assert result.exit_code == 0, result.output
        assert "tensorrt-rtx: built: 0.0 MB in 1.5 s; 55 CONVOLUTION HALF, 2 PaddedNms FLOAT\n" in result.stdout
        assert "tensorrt: absent: tensorrt is a stand-in\n" in result.stdout
        assert "torch-tensorrt: absent: not asked for\n" in result.stdout
        report = json.loads((out / "engine.json").read_text())
        assert report["plugins"] == {"file": "mine.so", "sha256": sha256(library)} and report["precision"] == "fp16"
        assert report["tensorrt_rtx"]["plugins"] == {"PaddedNms": {"FLOAT": 2}}
        assert report["onnxruntime"]["file"] == "model.onnx" and report["tensorrt_rtx"]["file"] == "model.rtx.plan"
        assert (out / PLUGINS).read_bytes() == b"plugins" and rtx.jobs[0].plugins == library

    def test_nothing_of_an_earlier_engine_stays(
        self, monkeypatch: pytest.MonkeyPatch, tiny_half: Path, tmp_path: Path
    ) -> None:
        old = ("model.plan", "model.plan.json", "model.rtx.plan", "model.pt2", PLUGINS, LIBRARY)
        for name in old:
            touch(tmp_path / "engine" / name)
        put_in_place(monkeypatch)
        assert build_engine(tiny_half, tmp_path / "engine").plugins is None
        names = set(snapshot(tmp_path / "engine"))
        assert names == {"model.onnx", "model.onnx.json", "model.manifest.json", "engine.json"}

    @pytest.mark.parametrize(
        ("problem", "tensorrt", "rtx", "chosen", "why"),
        [
            ("there is no NVIDIA GPU", None, None, "onnxruntime", "there is no NVIDIA GPU"),
            ("a driver", None, BUILT, "onnxruntime", "a driver; tensorrt-rtx built ahead of time, for other machines"),
            (None, BUILT, BUILT, "tensorrt", "this machine has a GPU (compute capability 90)"),
            (None, None, BUILT, "tensorrt-rtx", "this machine has a GPU (compute capability 90)"),
            (
                None,
                REFUSED,
                None,
                "onnxruntime",
                "tensorrt: no kernel fits (and 1 more); tensorrt-rtx: tensorrt-rtx is a stand-in",
            ),
        ],
    )
    def test_what_is_chosen_and_why(
        self,
        problem: str | None,
        tensorrt: Outcome | None,
        rtx: Outcome | None,
        chosen: str,
        why: str,
        gpu: Callable[[str | None], None],
        monkeypatch: pytest.MonkeyPatch,
        tiny_half: Path,
        tmp_path: Path,
    ) -> None:
        gpu(problem)
        put_in_place(monkeypatch, StandIn("tensorrt", tensorrt), StandIn("tensorrt-rtx", rtx))
        result = CliRunner().invoke(make_app(engine.main), ["--model", str(tiny_half), "--out", str(tmp_path / "e")])
        assert result.stdout.splitlines()[-1] == f"chosen: {chosen}: {why}"
        report = json.loads((tmp_path / "e/engine.json").read_text())
        assert (report["chosen"], report["why"]) == (chosen, why)

    def test_one_without_its_plugins_is_passed_over(
        self, gpu: Callable[[str | None], None], monkeypatch: pytest.MonkeyPatch, tiny_half: Path, tmp_path: Path
    ) -> None:
        """In one line; what the parser said is in engine.json, and in the error of one that was asked for."""
        gpu(None)
        said = "NonZero (n76): Assertion failed: creator"
        refused = Outcome(status="refused", stage="parser", errors=[said], reason=WITHOUT_PLUGINS)
        put_in_place(monkeypatch, StandIn("tensorrt-rtx", refused))
        command = ["--model", str(tiny_half), "--out", str(tmp_path / "e")]
        result = CliRunner().invoke(make_app(engine.main), command)
        assert result.exit_code == 0 and said not in result.output
        assert f"\ntensorrt-rtx: not used: {WITHOUT_PLUGINS}\n" in result.stdout
        assert result.stdout.endswith(f"; tensorrt-rtx: {WITHOUT_PLUGINS}\n")
        assert json.loads((tmp_path / "e/engine.json").read_text())["tensorrt_rtx"]["errors"] == [said]
        result = CliRunner().invoke(make_app(engine.main), [*command, "--backend", "tensorrt-rtx"])
        assert result.exit_code == 2 and f"{said}; {WITHOUT_PLUGINS}" in result.stderr

    def test_one_for_other_gpus_is_not_chosen(
        self, gpu: Callable[[str | None], None], monkeypatch: pytest.MonkeyPatch, tiny_half: Path, tmp_path: Path
    ) -> None:
        gpu(None)
        rtx = StandIn("tensorrt-rtx", BUILT, options=frozenset({"compute_capabilities"}))
        put_in_place(monkeypatch, rtx)
        found = build_engine(tiny_half, tmp_path, options=EngineOptions(compute_capabilities=("86", "89")))
        assert (found.chosen, found.tensorrt_rtx.status) == ("onnxruntime", "built")
        assert found.why.endswith("tensorrt-rtx: built for compute capability 86, 89, and the GPU here has 90")


class TestOneThatIsAskedFor:
    @pytest.mark.parametrize(
        ("outcome", "message"),
        [
            (None, "no engine of tensorrt: tensorrt is a stand-in"),
            (REFUSED, r"no engine of tensorrt: no kernel fits \(and 1 more\)"),
            (Outcome(status="refused", errors=["no"], reason="cure"), "no engine of tensorrt: no; cure"),
        ],
    )
    def test_where_it_cannot_be_built_the_old_engine_stays(
        self, outcome: Outcome | None, message: str, monkeypatch: pytest.MonkeyPatch, tiny_half: Path, tmp_path: Path
    ) -> None:
        old = StandIn("tensorrt", BUILT)
        put_in_place(monkeypatch, old)
        build_engine(tiny_half, tmp_path / "engine")
        before = snapshot(tmp_path / "engine")
        put_in_place(monkeypatch, StandIn("tensorrt", outcome))
        arguments = ["--model", str(tiny_half), "--out", str(tmp_path / "engine"), "--backend", "tensorrt"]
        result = CliRunner().invoke(make_app(engine.main), arguments)
        assert result.exit_code == 2 and result.stderr.count("\n") == 1
        with pytest.raises(InputError, match=message):
            build_engine(tiny_half, tmp_path / "engine", backend="tensorrt")
        assert snapshot(tmp_path / "engine") == before, "nothing has changed"

    @pytest.mark.parametrize("backend", ["onnxruntime", "tensorrt", "tensorrt-rtx", "torch-tensorrt"])
    def test_it_is_built_beside_onnx_runtimes_and_chosen(
        self, backend: Choice, monkeypatch: pytest.MonkeyPatch, tiny_half: Path, tmp_path: Path
    ) -> None:
        others = [StandIn(name, BUILT) for name in ("tensorrt", "tensorrt-rtx", "torch-tensorrt")]  # type: ignore[arg-type]
        put_in_place(monkeypatch, *others)
        found = build_engine(tiny_half, tmp_path, backend=backend)
        assert (found.chosen, found.why) == (backend, "it was asked for")
        built = {name for name, outcome in found.outcomes().items() if outcome.status == "built"}
        assert built == {"onnxruntime", backend}
        assert sum(len(each.jobs) for each in others) == (backend != "onnxruntime")

    def test_a_build_that_is_cut_short_changes_nothing(
        self, monkeypatch: pytest.MonkeyPatch, tiny_half: Path, tmp_path: Path
    ) -> None:
        put_in_place(monkeypatch, StandIn("tensorrt", BUILT))
        build_engine(tiny_half, tmp_path / "engine")
        before = snapshot(tmp_path / "engine")
        cut = StandIn("tensorrt", BUILT)

        def interrupt(*_: object) -> Outcome:
            raise KeyboardInterrupt

        monkeypatch.setattr(cut, "build", interrupt)
        put_in_place(monkeypatch, cut)
        with pytest.raises(KeyboardInterrupt):
            build_engine(tiny_half, tmp_path / "engine")
        assert snapshot(tmp_path / "engine") == before
        assert [path.name for path in tmp_path.iterdir()] == ["engine"]


class TestOptions:
    def options_of(self, *arguments: str, model: Path, folder: Path) -> EngineOptions:
        stand_in = StandIn("tensorrt", BUILT, options=frozenset(EngineOptions.model_fields))
        with pytest.MonkeyPatch.context() as patch:
            put_in_place(patch, stand_in)
            command = ["--model", str(model), "--out", str(folder), "--backend", "tensorrt", *arguments]
            result = CliRunner().invoke(make_app(engine.main), command)
        assert result.exit_code == 0, result.output
        return stand_in.jobs[0].options

    def test_each_reaches_the_builder(self, tiny_half: Path, tmp_path: Path) -> None:
        words = "--batch 1 4 8 --size 32 96x128 160 --workspace 2G --level 5 --timing-cache t.cache"
        words += " --version-compatible --hardware-compatible ampere+ --compute-capabilities 8.6 89"
        words += " --weight-streaming --refit"
        found = self.options_of(*words.split(), model=tiny_half, folder=tmp_path / "engine")
        images = ((1, 32, 32, 3), (4, 96, 128, 3), (8, 160, 160, 3))
        assert [profile["images"] for profile in found.profiles] == [images]
        assert found.model_dump(exclude={"profiles"}) == {
            "workspace": 2 * 2**30,
            "level": 5,
            "timing_cache": Path("t.cache"),
            "version_compatible": True,
            "hardware_compatible": "ampere+",
            "compute_capabilities": ("86", "89"),
            "weight_streaming": True,
            "refit": True,
        }
        manifest = EngineManifest.load(tmp_path / "engine/model.plan.json")
        assert manifest.profiles == found.profiles and manifest.options["workspace"] == 2 * 2**30
        assert manifest.compute_capabilities == ("86", "89") and manifest.hardware_compatible == "AMPERE_PLUS"

    def test_without_a_word_the_builder_decides(self, tiny_half: Path, tmp_path: Path) -> None:
        assert self.options_of(model=tiny_half, folder=tmp_path).given() == {}

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            ("--level 3", "--level: tensorrt-rtx has no such option; --backend tensorrt has"),
            ("--backend tensorrt-rtx --level 3", "--level: tensorrt-rtx has no such option; --backend tensorrt has"),
            ("--backend onnxruntime --workspace 1G", "--workspace: onnxruntime has no such option"),
            ("--backend onnxruntime --batch 1 1 1", "--batch, --size and --profile: onnxruntime has no such option"),
            ("--backend tensorrt --refit", "--refit: tensorrt has no such option"),
            ("--workspace 2T", "--workspace 2T: give a number of bytes, as 512M or 2G"),
            ("--size 31 32 64", "--size: 31 is no multiple of 32"),
            ("--checkpoint x.safetensors", "--checkpoint: --backend torch-tensorrt compiles one; auto builds from"),
        ],
    )
    def test_one_that_a_builder_does_not_have(
        self, words: str, message: str, monkeypatch: pytest.MonkeyPatch, tiny_half: Path, tmp_path: Path
    ) -> None:
        tensorrt = StandIn("tensorrt", BUILT, options=TENSORRT)
        put_in_place(monkeypatch, tensorrt, StandIn("tensorrt-rtx", BUILT, options=TENSORRT - {"level"}))
        arguments = ["--model", str(tiny_half), "--out", str(tmp_path / "e"), *words.split()]
        result = CliRunner().invoke(make_app(engine.main), arguments)
        assert result.exit_code == 2 and result.stderr.startswith(f"error: {message}"), result.output
        assert result.stderr.count("\n") == 1 and not (tmp_path / "e").exists()

    def test_one_that_nothing_here_has(self, monkeypatch: pytest.MonkeyPatch, tiny_half: Path, tmp_path: Path) -> None:
        put_in_place(monkeypatch, StandIn("tensorrt", None, options=TENSORRT))
        message = "^--level: nothing that can be built here has it; tensorrt: tensorrt is a stand-in$"
        with pytest.raises(InputError, match=message):
            build_engine(tiny_half, tmp_path / "e", options=EngineOptions(level=1))
        assert not (tmp_path / "e").exists()


class TestManifests:
    def test_one_beside_each_engine(self, monkeypatch: pytest.MonkeyPatch, tiny_run: Path, tmp_path: Path) -> None:
        put_in_place(monkeypatch, StandIn("tensorrt-rtx", BUILT, options=TENSORRT))
        model = tiny_run / "model.onnx"
        build_engine(model, tmp_path, touch(tmp_path / "mine.so"))
        plan, onnx = (EngineManifest.load(tmp_path / f"{name}.json") for name in ("model.rtx.plan", "model.onnx"))
        assert (plan.backend, onnx.backend) == ("tensorrt-rtx", "onnxruntime")
        assert plan.engine == Part.of(tmp_path / "model.rtx.plan") and plan.bytes == 4
        assert plan.model == onnx.model == Part.of(model)
        assert plan.libraries == (Part.of(tmp_path / PLUGINS),) and onnx.libraries == ()
        assert (plan.builder, plan.kernel_abi, plan.seconds) == ("11.1", 2, 1.5)
        assert plan.layers == {"CONVOLUTION": {"HALF": 55}} and plan.plugins == {"PaddedNms": {"FLOAT": 2}}
        assert plan.network == Manifest.load(manifest_path(model)) and plan.network.onnx_sha256 == sha256(model)
        (profile,) = plan.profiles
        assert profile["images"][0] == (1, 32, 32, 3) and onnx.profiles == ()
        for each in (plan, onnx):
            assert each.configuration is not None and each.configuration["name"] == "tiny"
            assert each.pixel_mean == (123.675, 116.28, 103.53) and each.pixel_std == (58.395, 57.12, 57.375)
            assert each.parity == () and each.built and each.platform.startswith("linux-")

    def test_a_configuration_of_something_else_is_not_taken(
        self, monkeypatch: pytest.MonkeyPatch, tiny_half: Path, tiny_run: Path, tmp_path: Path
    ) -> None:
        run = tmp_path / "run"
        run.mkdir()
        for path in (tiny_half, manifest_path(tiny_half)):
            shutil.copy(path, run / path.name)
        put_in_place(monkeypatch)
        other = (tiny_run / "config.yaml").read_text().replace("name: tiny", "name: other")
        (run / "config.yaml").write_text(other)
        model = run / "model.onnx"
        strip_configuration(model)
        manifest = Manifest.load(manifest_path(model))
        manifest.model_copy(update={"onnx_sha256": sha256(model)}).save(manifest_path(model))
        build_engine(model, run / "engine")
        found = EngineManifest.load(run / "engine/model.onnx.json")
        assert found.configuration is None and found.pixel_mean is None

    def test_parity_figures_stay_where_nothing_differs(
        self, monkeypatch: pytest.MonkeyPatch, tiny_half: Path, tiny_run: Path, tmp_path: Path
    ) -> None:
        plan = tmp_path / "model.plan"
        figures = ParityFigures(
            data="val.json", images=4, batch=1, reference="pytorch", pq=0.6, difference=0.0, identical=1.0
        )

        def build(model: Path = tiny_half, content: bytes = b"plan", **options: object) -> tuple[ParityFigures, ...]:
            tensorrt = StandIn("tensorrt", BUILT, options=TENSORRT | {"timing_cache"})
            tensorrt.content = content
            put_in_place(monkeypatch, tensorrt)
            build_engine(model, tmp_path, options=EngineOptions.model_validate(options))
            return EngineManifest.load(tmp_path / "model.plan.json").parity

        assert build() == ()
        record_parity(plan, [figures])
        assert build() == (figures,)
        assert build(content=b"chance") == (figures,), "kernels are chosen by measuring: the bytes may differ"
        assert build(timing_cache=tmp_path / "t.cache") == (figures,)
        assert build(level=1) == ()
        record_parity(plan, [figures])
        assert build(tiny_run / "model.onnx", level=1) == ()
        record_parity(plan, [figures])
        touch(tmp_path / "model.plan.json", b"{}")
        assert build(tiny_run / "model.onnx", level=1) == ()

    def test_figures_of_another_engine_are_not_recorded(
        self, monkeypatch: pytest.MonkeyPatch, tiny_half: Path, tmp_path: Path
    ) -> None:
        put_in_place(monkeypatch, StandIn("tensorrt", BUILT))
        build_engine(tiny_half, tmp_path)
        touch(tmp_path / "model.plan", b"another")
        with pytest.raises(InputError, match=r"model\.plan: not the engine that model\.plan\.json describes"):
            record_parity(tmp_path / "model.plan", [])


def strip_configuration(model: Path) -> None:
    """As an export before 0.3 wrote it."""
    import onnx

    from upsnet.contract import CONFIGURATION_KEY

    proto = onnx.load(model)
    kept = [entry for entry in proto.metadata_props if entry.key != CONFIGURATION_KEY]
    del proto.metadata_props[:]
    proto.metadata_props.extend(kept)
    model.unlink()
    onnx.save(proto, str(model))
