"""The exported file: its contract, its operators, what a broken one says, and the engine built from it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from typer.testing import CliRunner

import export.engine
import export.onnx_export
from export.building import Engine, build_engine
from tests import backends
from tests.agreement import assert_same_segments
from tests.plugins_cuda.tensorrt.libraries import need
from tests.small_disk import small_disk
from training.checkpoint import load_model
from training.predictor import PyTorchPredictor
from upsnet.command_line.command import make_app
from upsnet.contract import INPUTS, LIBRARY, METADATA_KEY, OUTPUTS, manifest_path
from upsnet.errors import InputError
from upsnet.files import sha256
from upsnet.geometry import NetworkBatch
from upsnet.kernels import building
from upsnet.manifest import Manifest
from upsnet.runtimes.onnx_runtime import OnnxRuntimePredictor


@pytest.fixture(scope="module")
def proto(tiny_run: Path) -> onnx.ModelProto:
    return onnx.load(tiny_run / "model.onnx")


def dimensions(value: onnx.ValueInfoProto) -> list[int | str]:
    return [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]


class TestContract:
    def test_inputs_and_outputs(self, proto: onnx.ModelProto) -> None:
        types = onnx.TensorProto
        found = {v.name: v.type.tensor_type.elem_type for v in [*proto.graph.input, *proto.graph.output]}
        assert found == {
            "images": types.UINT8,
            "sizes": types.INT32,
            "scales": types.FLOAT,
            "panoptic": types.UINT8,
            "segments": types.FLOAT,
            "segment_count": types.INT32,
        }
        assert [v.name for v in proto.graph.input] == INPUTS and [v.name for v in proto.graph.output] == OUTPUTS

    def test_batch_height_and_width_are_dynamic(self, proto: onnx.ModelProto) -> None:
        images = dimensions(proto.graph.input[0])
        assert all(isinstance(side, str) for side in images[:3]) and images[3] == 3
        panoptic, segments, count = (dimensions(v) for v in proto.graph.output)
        assert panoptic == images[:3]
        assert segments == [images[0], 36, 7] and count == [images[0]]

    def test_custom_operators_are_functions_that_plugins_can_replace(self, proto: onnx.ModelProto) -> None:
        nodes = [node for node in proto.graph.node if node.domain == "upsnet"]
        with_plugins = {"RoiAlignFpn", "PaddedNms", "DeformConv2d", "PanopticFusion"}
        assert {node.op_type for node in nodes} == with_plugins | {"BestAnchors", "UsedRows", "AllRows"}
        for node in nodes:
            if node.op_type not in with_plugins:
                continue
            attributes = {a.name: a.s for a in node.attribute}
            assert attributes["plugin_version"] == b"1" and attributes["plugin_namespace"] == b""
        assert {node.op_type for node in nodes} <= {f.name for f in proto.functions}

    def test_main_graph_has_no_data_dependent_shape(self, proto: onnx.ModelProto) -> None:
        """Those operators live in function bodies alone, where a plugin takes their place."""
        forbidden = {"NonZero", "NonMaxSuppression", "RoiAlign", "Unique", "Compress", "Loop", "Scan", "DeformConv"}
        assert not forbidden & {node.op_type for node in proto.graph.node}

    def test_manifest_is_inside_and_beside(self, proto: onnx.ModelProto, tiny_run: Path) -> None:
        inside = Manifest.model_validate_json({p.key: p.value for p in proto.metadata_props}[METADATA_KEY])
        beside = Manifest.load(manifest_path(tiny_run / "model.onnx"))
        assert inside.categories == beside.categories and len(inside.categories) == 8
        assert beside.onnx_sha256 and beside.resize.short_side == 96


@pytest.mark.parametrize(("batch", "height", "width"), [(1, 96, 128), (4, 160, 96), (3, 32, 32)])
def test_onnx_runtime_equals_pytorch(tiny_run: Path, batch: int, height: int, width: int) -> None:
    generator = np.random.default_rng(0)
    inputs = NetworkBatch(
        generator.integers(0, 256, (batch, height, width, 3), dtype=np.uint8),
        np.array([[height - 3 * b, width - b] for b in range(batch)], np.int32),
        np.ones(batch, np.float32),
    )
    expected = PyTorchPredictor(tiny_run / "last.safetensors").predict(inputs)
    for kernels in ("auto", "off"):
        predictor = OnnxRuntimePredictor(tiny_run / "engine/model.onnx", kernels=kernels)
        assert predictor.kernels == (LIBRARY if kernels == "auto" else "function bodies (UPSNET_KERNELS=off)")
        found = predictor.predict(inputs)
        assert (expected.segment_count > 0).all()
        assert_same_segments(found, expected)


@pytest.mark.gpu
def test_gpu_equals_cpu(tiny_run: Path) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no NVIDIA GPU")
    images = np.random.default_rng(0).integers(0, 256, (2, 96, 128, 3), dtype=np.uint8)
    inputs = NetworkBatch(images, np.array([[96, 128]] * 2, np.int32), np.ones(2, np.float32))
    cpu, gpu = (PyTorchPredictor(tiny_run / "last.safetensors", device).predict(inputs) for device in ("cpu", "cuda"))
    assert (cpu.panoptic == gpu.panoptic).mean() >= 0.999


class TestBrokenInput:
    def test_truncated_onnx(self, tiny_run: Path, tmp_path: Path) -> None:
        broken = tmp_path / "model.onnx"
        broken.write_bytes((tiny_run / "model.onnx").read_bytes()[:100_000])
        with pytest.raises(InputError, match=r"model\.onnx: ONNX Runtime cannot load it .*make onnx") as error:
            OnnxRuntimePredictor(broken)
        assert "\n" not in str(error.value)

    def test_missing_onnx(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match=r"no\.onnx: no such model"):
            OnnxRuntimePredictor(tmp_path / "no.onnx")

    def test_a_model_of_somebody_else(self, tmp_path: Path) -> None:
        x = onnx.helper.make_tensor_value_info("x", 1, [1])
        y = onnx.helper.make_tensor_value_info("y", 1, [1])
        graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["x"], ["y"])], "g", [x], [y])
        model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)
        onnx.save(model, tmp_path / "other.onnx")
        with pytest.raises(InputError, match="not an upsnet model"):
            OnnxRuntimePredictor(tmp_path / "other.onnx")

    def test_damaged_manifest_inside(self, proto: onnx.ModelProto, tmp_path: Path) -> None:
        damaged = onnx.ModelProto()
        damaged.CopyFrom(proto)
        damaged.metadata_props[0].key, damaged.metadata_props[0].value = METADATA_KEY, '{"name": 3}'
        del damaged.metadata_props[1:]
        onnx.save(damaged, tmp_path / "model.onnx")
        with pytest.raises(InputError, match=r"model\.onnx: its manifest is damaged") as error:
            OnnxRuntimePredictor(tmp_path / "model.onnx")
        assert "\n" not in str(error.value)

    def test_truncated_checkpoint_writes_nothing(self, tiny_run: Path, tmp_path: Path) -> None:
        broken = tmp_path / "last.safetensors"
        broken.write_bytes((tiny_run / "last.safetensors").read_bytes()[:5000])
        result = CliRunner().invoke(make_app(export.onnx_export.main), ["--checkpoint", str(broken)])
        assert result.exit_code == 2 and "last.safetensors" in result.stderr and result.stderr.count("\n") == 1
        assert [p.name for p in tmp_path.iterdir()] == ["last.safetensors"]

    def test_engine_of_a_missing_model(self, tmp_path: Path) -> None:
        result = CliRunner().invoke(make_app(export.engine.main), ["--model", str(tmp_path / "model.onnx")])
        assert result.exit_code == 2 and result.stderr.count("\n") == 1
        assert not list(tmp_path.iterdir())


class TestEngine:
    def test_report_says_what_was_found(self, tiny_run: Path) -> None:
        report = Engine.load(tiny_run / "engine/engine.json")
        assert report.onnxruntime.status == "built"
        for found in (report.tensorrt, report.tensorrt_rtx):
            assert found.status == "built" or found.reason or found.errors

    def test_onnx_runtime_has_the_exported_file_and_its_kernels(self, tiny_run: Path) -> None:
        model, library = (tiny_run / "engine" / name for name in ("model.onnx", LIBRARY))
        assert model.read_bytes() == (tiny_run / "model.onnx").read_bytes()
        assert Manifest.load(manifest_path(model)).onnx_sha256 == sha256(model)
        found = Engine.load(tiny_run / "engine/engine.json").onnxruntime
        assert found.kernels == LIBRARY and f"kernels: {LIBRARY}" in str(found)
        assert library.read_bytes() == building.build("onnxruntime", "").read_bytes()

    def test_an_engine_without_kernels_says_why_and_keeps_no_old_ones(
        self, tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / LIBRARY).touch()
        backends.put_in_place(monkeypatch)
        monkeypatch.setenv("UPSNET_KERNELS", "off")
        engine = build_engine(tiny_run / "model.onnx", tmp_path)
        assert engine.onnxruntime.kernels == "function bodies (UPSNET_KERNELS=off)"
        assert not (tmp_path / LIBRARY).exists()

    @pytest.mark.tensorrt
    def test_rtx_builds_or_names_the_operator(self, tiny_run: Path) -> None:
        """Without plugins TensorRT-RTX refuses the bodies of the custom operators: the report must say which."""
        need("tensorrt_rtx_bindings")
        found = Engine.load(tiny_run / "engine/engine.json").tensorrt_rtx
        if found.status == "built":
            assert (tiny_run / "engine/model.rtx.plan").stat().st_size == found.bytes
        else:
            assert found.stage == "parser" and any("DeformConv" in error for error in found.errors or [])


def test_running_a_model_needs_no_torch(tiny_run: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from upsnet.runtimes.onnx_runtime import OnnxRuntimePredictor; "
        "OnnxRuntimePredictor(Path(sys.argv[1])); print('torch' in sys.modules)"
    )
    command = [sys.executable, "-c", code, str(tiny_run / "model.onnx")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_a_full_disk_leaves_nothing_half_exported(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backends.put_in_place(monkeypatch)
    manifest = Manifest.load(tiny_run / "model.manifest.json")
    model, *_ = load_model(tiny_run / "last.safetensors")
    with small_disk(100_000), pytest.raises(InputError, match=r"model\.onnx: cannot be written: File too large"):
        export.onnx_export.write_onnx(model, manifest, tmp_path / "model.onnx")
    with small_disk(100_000), pytest.raises(InputError, match=r"engine/.*: cannot be written: File too large"):
        build_engine(tiny_run / "model.onnx", tmp_path / "engine")
    assert list(tmp_path.iterdir()) == []
