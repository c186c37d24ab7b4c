"""`upsnet engine explain` of engines that were really built: ONNX Runtime's, and TensorRT-RTX's without a GPU."""

from __future__ import annotations

import shutil
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper
from typer.testing import CliRunner, Result

from export.building import build_engine
from tests.plugins_cuda.tensorrt.libraries import built, need
from tests.upsnet.engines.engine_folders import NO_GPU, snapshot
from upsnet.command_line.command import make_app
from upsnet.command_line.explain import main
from upsnet.contract import PLUGINS
from upsnet.engines import check
from upsnet.engines.check import check_engine
from upsnet.engines.explain import explain
from upsnet.engines.kinds import identify
from upsnet.engines.manifest import engine_manifest_path
from upsnet.errors import InputError
from upsnet.runtimes.attempt import diagnostics


def ask(*arguments: str | Path) -> Result:
    return CliRunner().invoke(make_app(main), [str(each) for each in arguments])


@pytest.fixture
def run(tiny_run: Path, tmp_path: Path) -> Path:
    shutil.copytree(tiny_run, tmp_path / "run")
    return tmp_path / "run"


@pytest.mark.parametrize("place", ["", "engine", "engine/model.onnx"])
def test_onnx_runtimes_engine_loads(place: str, run: Path) -> None:
    before = snapshot(run)
    answer = ask(run / place)
    assert answer.exit_code == 0 and not answer.stderr and "It loads here." in answer.stdout
    assert "tiny: 8 categories (4 things, 4 stuff)" in answer.stdout
    assert check_engine(run / "engine/model.onnx").network.name == "tiny"
    assert snapshot(run) == before


def test_an_exported_model_is_no_engine_yet_and_loads(run: Path) -> None:
    found = explain(run / "model.onnx")
    assert not found.errors and found.engine is None and found.verdict == "It loads here."
    assert "of which no engine was built yet" in next(each.text for each in found.findings if each.what == "manifest")
    with pytest.raises(InputError, match=r"there is no model\.onnx\.json beside it: no engine was built of it yet"):
        check_engine(run / "model.onnx")


def test_a_damaged_export_with_nothing_beside_it(run: Path) -> None:
    model = run / "model.onnx"
    content = bytearray(model.read_bytes())
    content[len(content) // 2] ^= 255
    model.write_bytes(content)
    (line,) = explain(model).errors
    assert "not the model that model.manifest.json describes" in line and "make onnx" in line
    (run / "model.manifest.json").unlink()
    model.write_bytes(content[: len(content) // 2])
    (line,) = explain(model).errors
    assert "ONNX Runtime cannot load it" in line and line.endswith("; export it again with `make onnx`")


def test_a_shared_folder_is_fine_for_onnx_runtime_which_loads_no_library_from_it(run: Path) -> None:
    (run / "engine").chmod(0o777)
    found = explain(run / "engine")
    assert not found.errors and check_engine(run / "engine/model.onnx").backend == "onnxruntime"


def test_somebody_elses_onnx_file(tmp_path: Path) -> None:
    tiny = tmp_path / "relu.onnx"
    tiny.write_bytes(relu().SerializeToString())
    (line,) = explain(tiny).errors
    assert line == f"{tiny}: not an upsnet model (no upsnet.manifest metadata); export it with `make onnx`"


@pytest.mark.tensorrt
def test_a_plan_of_tensorrt_rtx_without_a_gpu(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    need("tensorrt_rtx_bindings")
    plan = run / "engine/model.rtx.plan"
    build_engine(run / "model.onnx", plan.parent, built("cpu")[1], "tensorrt-rtx")
    monkeypatch.setattr(check, "find_driver", lambda: NO_GPU)
    before = snapshot(run)
    answer = ask(plan)
    assert answer.exit_code == 0 and not answer.stderr and "It loads here" not in answer.stdout
    assert "PanopticFusion 1 FLOAT" in answer.stdout and "not checked: GPU, loading." in answer.stdout
    assert snapshot(run) == before
    (plan.parent / PLUGINS).unlink()
    (line,) = explain(plan).errors
    assert f"the library {PLUGINS} of its custom operators is missing" in line
    engine_manifest_path(plan).unlink()
    (line,) = explain(plan).errors
    assert "no model.rtx.plan.json beside it: an older version of this project built it, or trtexec" in line


@pytest.mark.tensorrt
def test_the_header_of_a_real_plan(tmp_path: Path) -> None:
    need("tensorrt_rtx_bindings")
    import tensorrt_rtx_bindings as trt

    plan = tmp_path / "model.rtx.plan"
    plan.write_bytes(build(trt, "SM86", "SM120"))
    kind = identify(plan)
    assert (kind.backend, kind.version, kind.bytes) == ("tensorrt-rtx", trt.__version__, plan.stat().st_size)
    assert kind.compute_capabilities == ("86", "120")
    assert not diagnostics(plan)
    plan.write_bytes(b"x" + plan.read_bytes()[1:])
    assert diagnostics(plan) == " (MALFORMED_ENGINE)"


def relu() -> onnx.ModelProto:
    tensors = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 4]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "relu", tensors[:1], tensors[1:])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def build(trt, *capabilities: str) -> bytes:  # type: ignore[no-untyped-def]
    class Quiet(trt.ILogger):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()

        def log(self, severity: object, message: str) -> None:
            pass

    logger = Quiet()
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    assert parser.parse(relu().SerializeToString())
    config = builder.create_builder_config()
    config.num_compute_capabilities = len(capabilities)
    for index, name in enumerate(capabilities):
        config.set_compute_capability(trt.ComputeCapability.__members__[name], index)
    return bytes(builder.build_serialized_network(network, config))
