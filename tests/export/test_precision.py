"""The exported network against the trained one: folded batch normalisation, half precision and where it ends."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import export.onnx_export
from export.precision import prepare
from tests.agreement import compare_segments
from training.model.deform import DeformConv
from training.model.upsnet import UPSNet
from training.model_config import ModelConfig, TimmConfig
from upsnet.command_line.command import make_app
from upsnet.contract import METADATA_KEY, manifest_path
from upsnet.geometry import collate, to_network
from upsnet.manifest import Manifest
from upsnet.photos import read_photo
from upsnet.runtimes.onnx_runtime import OnnxRuntimePredictor

FLOAT, HALF = onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16


@pytest.fixture
def network() -> UPSNet:
    """Random weights, a deformable backbone, and batch normalisation that has seen something."""
    torch.manual_seed(0)
    backbone = TimmConfig(kind="timm", name="resnet14t", deformable_stages=(3,))
    model = UPSNet(ModelConfig(backbone=backbone), num_stuff=3, num_things=2).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor, low in (
                (module.running_mean, -1),
                (module.running_var, 0.2),
                (module.weight, 0.5),
                (module.bias, -1),
            ):
                assert tensor is not None
                tensor.data.uniform_(low, 1)
        elif isinstance(module, DeformConv):
            nn.init.normal_(module.conv_offset.weight, std=0.05)
    return model


class TestPrepare:
    def test_folding_batch_norms_changes_no_feature(self, network: UPSNet) -> None:
        folded = prepare(network, "fp32")
        assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
        assert any(isinstance(module, nn.BatchNorm2d) for module in network.modules()), "the given one stays as it was"
        images = torch.randint(0, 256, (2, 64, 96, 3), dtype=torch.uint8)
        sizes = torch.tensor([[64, 96], [50, 90]], dtype=torch.int32)
        with torch.inference_mode():
            for expected, found in zip(network.pyramid(images, sizes), folded.pyramid(images, sizes), strict=True):
                torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())

    def test_half_precision_is_that_of_the_weights_alone(self, network: UPSNet) -> None:
        half = prepare(network, "fp16")
        assert {p.dtype for p in network.parameters()} == {torch.float32}
        for module in half.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
                assert {p.dtype for p in module.parameters(recurse=False)} == {torch.float16}
            elif isinstance(module, DeformConv):
                assert module.weight.dtype == torch.float16
                assert module.bias is not None and module.bias.dtype == torch.float32
        assert {buffer.dtype for buffer in half.buffers()} == {torch.float32}


class TestHalfPrecisionFile:
    @pytest.fixture(scope="class")
    def proto(self, tiny_half: Path) -> onnx.ModelProto:
        return onnx.load(tiny_half)

    @pytest.fixture(scope="class")
    def types(self, proto: onnx.ModelProto) -> dict[str, int]:
        """The element type of every tensor of the main graph that is known."""
        graph = proto.graph
        values = [*graph.value_info, *graph.input, *graph.output]
        found = {value.name: value.type.tensor_type.elem_type for value in values}
        return found | {tensor.name: tensor.data_type for tensor in graph.initializer}

    def test_weights_are_stored_in_half_precision(
        self, proto: onnx.ModelProto, types: dict[str, int], tiny_run: Path, tiny_half: Path
    ) -> None:
        for node in proto.graph.node:
            if node.op_type in {"Conv", "ConvTranspose", "Gemm"}:
                assert {types[name] for name in node.input[1:]} == {HALF}, node.name
        assert tiny_half.stat().st_size < 0.6 * (tiny_run / "model.onnx").stat().st_size

    def test_custom_operators_keep_coordinates_and_scores_in_fp32(
        self, proto: onnx.ModelProto, types: dict[str, int]
    ) -> None:
        expected = {
            "RoiAlignFpn": [HALF, HALF, HALF, HALF, FLOAT],
            "PaddedNms": [FLOAT, FLOAT],
            "DeformConv2d": [HALF, FLOAT, HALF, FLOAT],
            "PanopticFusion": [HALF, FLOAT, onnx.TensorProto.INT64, FLOAT, HALF],
            "BestAnchors": [FLOAT] * 6,
            "UsedRows": [],  # of boxes, and of labels
            "AllRows": [HALF, FLOAT],
        }
        seen = set()
        for node in proto.graph.node:
            if node.domain == "upsnet":
                seen.add(node.op_type)
                wanted = expected[node.op_type]
                assert [types[name] for name in node.input[: len(wanted)]] == wanted, node.name
        assert seen == set(expected)

    def test_decisions_are_fp32(self, proto: onnx.ModelProto, types: dict[str, int]) -> None:
        for node in proto.graph.node:
            if node.op_type in {"Softmax", "TopK", "Exp", "ReduceSum", "ReduceMax", "Min"}:
                assert HALF not in {types.get(name) for name in [*node.input, *node.output]}, node.name

    def test_the_map_comes_from_a_cast(self, tiny_run: Path, proto: onnx.ModelProto) -> None:
        """TensorRT takes a uint8 output from nothing else."""
        for model in (proto, onnx.load(tiny_run / "model.onnx")):
            (last,) = (node for node in model.graph.node if "panoptic" in node.output)
            (fusion,) = (node for node in model.graph.node if node.op_type == "PanopticFusion")
            assert last.op_type == "Cast" and list(last.input) == [fusion.output[0]]

    def test_manifest_says_so(self, proto: onnx.ModelProto, tiny_run: Path, tiny_half: Path) -> None:
        inside = Manifest.model_validate_json({p.key: p.value for p in proto.metadata_props}[METADATA_KEY])
        assert inside.precision == Manifest.load(manifest_path(tiny_half)).precision == "fp16"
        assert Manifest.load(manifest_path(tiny_run / "model.onnx")).precision == "fp32"

    def test_onnx_runtime_runs_it_with_nearly_the_same_pixels(self, tiny_run: Path, tiny_half: Path) -> None:
        """Of all photos together: half precision may turn a decision at a threshold, and with it an instance."""
        full, half = OnnxRuntimePredictor(tiny_run / "model.onnx"), OnnxRuntimePredictor(tiny_half)
        photos = sorted((tiny_run.parent / "shapes").glob("[tv]*/*.png"))
        assert len(photos) == 6
        shares = []
        for photo in photos:
            inputs = collate([to_network(read_photo(photo), full.manifest.resize)])
            expected = full.predict(inputs)
            assert expected.segment_count > 1
            shares.append(compare_segments(half.predict(inputs), expected, score=0.02)[0])
        assert sum(shares) / len(shares) >= 0.98


def test_an_unknown_precision_is_refused(tiny_run: Path, tmp_path: Path) -> None:
    checkpoint = str(tiny_run / "last.safetensors")
    arguments = ["--checkpoint", checkpoint, "--out", str(tmp_path / "m.onnx"), "--precision", "fp4"]
    result = CliRunner().invoke(make_app(export.onnx_export.main), arguments)
    assert result.exit_code == 2 and "fp16" in result.stderr
    assert not list(tmp_path.iterdir())
