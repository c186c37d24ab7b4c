"""`upsnet engine compare` and `upsnet engine profile` on TensorRT plans, against the fakes of tests/upsnet/tensorrt."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import upsnet.command_line.main
from eval.comparing.boundaries import PLACES
from eval.comparing.report import Comparison
from eval.profiling.in_tensorrt import _executions, describe
from eval.profiling.report import Profile
from eval.profiling.trace import Execution, Tensor
from export.building import build_engine
from tests.upsnet.tensorrt import fake_tensorrt
from upsnet.driver import Driver
from upsnet.files import sha256
from upsnet.manifest import Manifest


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[fake_tensorrt.World]:
    """An H200 with TensorRT 11.1, here and in the processes that build."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in fake_tensorrt.environment("11.1").items():
            if value != os.environ.get(name):
                patch.setenv(name, value)
        patch.setattr("export.backends.tensorrt_engine.gpu_problem", lambda: None)
        patch.setattr("upsnet.engines.check.find_driver", lambda: Driver("no GPU"))
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("UPSNET_KERNELS", "off")
        yield fake_tensorrt.install(patch, "11.1")


@pytest.fixture(scope="module")
def engine(machine: fake_tensorrt.World, tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run's engine, as TensorRT would build it."""
    folder = tmp_path_factory.mktemp("engine")
    plugins = fake_tensorrt.write_plugins(folder / "plugins.so")
    build_engine(tiny_run / "model.onnx", folder / "engine", plugins, "tensorrt")
    return folder / "engine" / "model.plan"


def call(*words: object) -> int:
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as stop:
        patch.setattr(sys, "argv", ["upsnet", "engine", *map(str, words)])
        upsnet.command_line.main.main()
    return int(stop.value.code or 0)


def test_a_plan_is_compared_inside(
    engine: Path, machine: fake_tensorrt.World, tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "compare.json"
    assert call("compare", tiny_run / "model.onnx", engine, "--limit", 1, "--out", out) == 0
    report = Comparison.load(out)
    assert [place.name for place in report.places] == list(PLACES) and not report.left_out
    (note,) = report.notes
    assert "a second plan, built of model.onnx with them as outputs" in note and note.endswith("its answer is the same")
    assert "in tensorrt, cuda:0" in report.b.title
    assert not machine.cuda.misuses


def test_a_plan_that_was_built_of_damaged_weights(
    engine: Path, tiny_run: Path, tmp_path: Path, machine: fake_tensorrt.World
) -> None:
    model = onnx.load(str(tiny_run / "model.onnx"))
    weight = next(each for each in model.graph.initializer if each.name == "backbone.stages.2.0.project_conv.weight")
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * np.float32(1.1), weight.name))
    onnx.save(model, str(tmp_path / "model.onnx"))
    manifest = Manifest.load(tiny_run / "model.manifest.json")
    damaged = manifest.model_copy(update={"onnx_sha256": sha256(tmp_path / "model.onnx")})
    damaged.save(tmp_path / "model.manifest.json")
    build_engine(tmp_path / "model.onnx", tmp_path / "engine", engine.with_name("libupsnet_plugins.so"), "tensorrt")
    out = tmp_path / "compare.json"
    words = ["--limit", 1, "--blocks", "--out", out]
    assert call("compare", tiny_run / "last.safetensors", tmp_path / "engine/model.plan", *words) == 1
    assert Comparison.load(out).first == "backbone.stages.2.0"


def test_a_plan_without_its_file_is_compared_outside(engine: Path, tiny_run: Path, tmp_path: Path) -> None:
    alone = shutil.copytree(engine.parent, tmp_path / "engine")
    (alone / "model.onnx").unlink()
    out = tmp_path / "compare.json"
    assert call("compare", tiny_run / "model.onnx", alone / "model.plan", "--limit", 1, "--out", out) == 0
    report = Comparison.load(out)
    assert [place.name for place in report.places] == ["panoptic map"]
    assert "its outputs alone: model.onnx, which it was built from, is not there" in report.notes[0]
    assert set(report.left_out) >= {"stem", "C4", "proposals", "detections"} and set(report.left_out.values()) == {"A"}


def test_a_plan_by_its_profiler(engine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The fake's layers are the file's nodes, of a microsecond each; what they compute is the file's."""
    out = tmp_path / "profile.json"
    words = ["--model", engine, "--runs", 1, "--size", "64x64", "--out", out, "--picture", tmp_path / "p.png"]
    assert call("profile", *words, "--gpu", "h200") == 0
    report = Profile.load(out)
    (variant,) = report.variants
    assert (report.runtime, variant.kernels) == ("tensorrt", "TensorRT")
    assert report.roofline.source == "NVIDIA H200 SXM, as published"
    modules = {row.name: row for row in variant.modules}
    titles = ["backbone", "FPN", "semantic head", "RPN", "box head", "mask head", "panoptic head"]
    assert list(modules)[:7] == titles and all(modules[name].macs for name in titles[:6])
    assert variant.total.ms == pytest.approx(0.001 * variant.total.nodes)
    assert report.least is not None and report.least.total.macs == variant.total.macs


LAYER = {
    "Name": "conv_and_relu",
    "LayerType": "gemm",
    "Inputs": [{"Name": "x", "Dimensions": [1, 3, 4, 4], "Format/Datatype": "Channel major FP16 format"}],
    "Metadata": "[ONNX Layer: conv]\x1e[ONNX Layer: relu]",
}


def test_a_fused_layer() -> None:
    """Its time is its largest node's, its type that of the plan; a second product keeps its MACs without a time."""
    image, planes, weight = (Tensor("float", shape) for shape in ((1, 3, 4, 4), (1, 8, 4, 4), (8, 3, 3, 3)))
    conv = Execution(("conv",), "Conv", 9.0, (image, weight), (planes,), "backbone")
    known = {
        "conv": conv,
        "relu": Execution(("relu",), "Relu", 9.0, (planes,), (planes,), "backbone"),
        "small": conv._replace(path=("small",), inputs=(image, Tensor("float", (8, 3, 1, 1))), module="fpn"),
    }
    layer = describe(LAYER)
    assert layer == ("conv_and_relu", "gemm", ["conv", "relu"], "float16")
    (found,) = _executions(layer.name, 0.5, {layer.name: layer}, known)
    assert (found.operator, found.ms, found.module) == ("Conv", 0.5, "backbone")
    assert {each.type for each in (*found.inputs, *found.outputs)} == {"float16"}
    both = layer._replace(nodes=["small", "relu", "conv"])
    several = _executions(layer.name, 0.5, {layer.name: both}, known)
    assert [(each.path[1], each.ms, each.module) for each in several] == [
        ("small", 0, "fpn"),
        ("conv", 0.5, "backbone"),
    ]


@pytest.mark.parametrize(
    ("form", "kind"),
    [
        ("Row major linear FP32", "float"), ("Half", "float16"), ("Row major linear BFloat16 format", "bfloat16"),
        ("Thirty-two wide channel vectorized row major Int8 format", "int8"), ("FP8", "float8"), ("Int64", "int64"),
        ("Row major linear Float format", "float"), ("", ""),
    ],
)  # fmt: skip
def test_the_type_of_a_layer(form: str, kind: str) -> None:
    assert describe(LAYER | {"Inputs": [{"Format/Datatype": form}]}).type == kind


def test_a_layer_without_details() -> None:
    assert describe({"Name": "conv + relu"}).nodes == ["conv", "relu"]
    (found,) = _executions("Reformatting CopyNode for Input Tensor 0", 0.1, {}, {})
    assert (found.operator, found.ms, found.module) == ("Reformat", 0.1, "")
