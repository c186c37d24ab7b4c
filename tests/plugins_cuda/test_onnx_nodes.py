"""The four nodes through PyTorch's exporter, with dynamic batch and size, into ONNX Runtime."""

from __future__ import annotations

import ast
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

import plugins_cuda
from tests.agreement import assert_same_segments
from tests.plugins_cuda.conftest import export, run_model
from upsnet.runtimes.predictor import RawPrediction

pytestmark = pytest.mark.numeric

DETECTIONS, STUFF, THINGS = 12, 3, 2


class Tiny(nn.Module):
    """A network that calls every operator the way the model does."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=4, padding=1)
        self.offset = nn.Conv2d(8, 18, 3, padding=1)
        self.deform = nn.Conv2d(8, 8, 3, padding=1)
        self.rpn = nn.Conv2d(8, 5, 1)
        self.mask = nn.Linear(8 * 49, 49)
        self.score = nn.Conv2d(8, STUFF + THINGS, 1)

    def forward(self, images: Tensor, sizes: Tensor, scales: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        stem = self.stem(images.permute(0, 3, 1, 2).float() / 64 - 2)
        p2 = plugins_cuda.deform_conv(stem, self.offset(stem), self.deform.weight, self.deform.bias)
        pyramid = [p2]
        for _ in range(3):
            pyramid.append(nn.functional.max_pool2d(pyramid[-1], 2))
        deltas, logits = self.rpn(p2).flatten(2).split([4, 1], dim=1)
        corner = deltas[:, :2].transpose(1, 2).abs() * 40
        boxes = torch.cat([corner, corner + deltas[:, 2:].transpose(1, 2).abs() * 60], dim=-1)
        scores = logits[:, 0].sigmoid()
        kept, counts = plugins_cuda.nms(boxes, scores, 0.5, 0.3, DETECTIONS)
        boxes = boxes.gather(1, kept[..., None].expand(-1, -1, 4))
        pooled = plugins_cuda.roi_align_fpn(pyramid, boxes * 7, 7)
        masks = self.mask(pooled.flatten(2)).unflatten(2, (7, 7))
        panoptic, segments, count = plugins_cuda.panoptic_fusion(
            self.score(p2), boxes - torch.tensor([0.0, 0, 1, 1]), kept % THINGS, scores.gather(1, kept),
            masks, counts, sizes, scales, STUFF, 50.0,
        )  # fmt: skip
        return panoptic, segments, count, pooled


def inputs(batch: int, height: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(height)
    images = torch.randint(0, 256, (batch, height, width, 3), dtype=torch.uint8, generator=generator)
    sizes = torch.tensor([[height - 5, width - 3 * image] for image in range(batch)], dtype=torch.int32)
    return images, sizes, torch.linspace(0.4, 0.6, batch)


@pytest.fixture(scope="module")
def network() -> Tiny:
    torch.manual_seed(0)
    return Tiny().eval()


@pytest.fixture(scope="module")
def model(network: Tiny) -> onnx.ModelProto:
    batch = {0: Dim("B")}
    return export(
        network,
        inputs(2, 64, 96),
        input_names=["images", "sizes", "scales"],
        output_names=["panoptic", "segments", "segment_count", "pooled"],
        dynamic_shapes=({0: Dim("B"), 1: 32 * Dim("h"), 2: 32 * Dim("w")}, batch, batch),
    )


def test_nodes_and_shapes(model: onnx.ModelProto) -> None:
    assert {(opset.domain, opset.version) for opset in model.opset_import} == {("", 20), ("upsnet", 1)}
    nodes = {node.op_type: node for node in model.graph.node if node.domain == "upsnet"}
    assert set(nodes) == {"RoiAlignFpn", "PaddedNms", "DeformConv2d", "PanopticFusion"}
    for node in nodes.values():
        attributes = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
        assert (attributes["plugin_version"], attributes["plugin_namespace"]) == (b"1", b"")
    dims = {
        value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in [*model.graph.input, *model.graph.output]
    }
    assert dims["images"][0] == dims["panoptic"][0] == dims["segment_count"][0] == "B"
    assert all(isinstance(dim, str) for dim in dims["panoptic"])
    assert dims["segments"] == ["B", STUFF + DETECTIONS, 7]


def test_function_names_are_no_operators_of_onnx() -> None:
    names = [function.name for function in plugins_cuda.onnx_functions()]
    assert len(names) == len(set(names))
    assert not any(onnx.defs.has(name) for name in names)


@pytest.mark.parametrize("shape", [(1, 64, 96), (3, 96, 160)])
def test_runs_like_pytorch(network: Tiny, model: onnx.ModelProto, shape: tuple[int, int, int]) -> None:
    example = inputs(*shape)
    panoptic, segments, count, pooled = run_model(model, *example)
    with torch.no_grad():
        expected = [tensor.numpy() for tensor in network(*example)]
    assert panoptic.shape == shape
    np.testing.assert_allclose(pooled, expected[3], atol=1e-4)
    assert_same_segments(RawPrediction(panoptic, segments, count), RawPrediction(*expected[:3]))
    assert len(np.unique(panoptic)) > 2


def test_only_the_bodies_import_onnx(project_root: Path) -> None:
    importing = set()
    for path in (project_root / "plugins_cuda").rglob("*.py"):
        for statement in ast.parse(path.read_text()).body:
            if isinstance(statement, ast.Import | ast.ImportFrom) and "onnx" in ast.unparse(statement):
                importing.add(path.name)
    # The last two are for who has it: a program of its own, and one baseline of the benchmark.
    assert importing == {"onnx_function.py", "onnxruntime_check.py", "standard_node.py"}
