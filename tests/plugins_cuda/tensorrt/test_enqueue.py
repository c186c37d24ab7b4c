"""enqueue: the plugin gives what the PyTorch operator gives, which runs the same kernels. Bit for bit."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import plugins_cuda
from tests.plugins_cuda.inputs import fusion_inputs
from tests.plugins_cuda.tensorrt.conftest import Front
from tests.plugins_cuda.tensorrt.harness import Harness, Tensors, filled
from tests.plugins_cuda.tensorrt.profile import Profile

pytestmark = pytest.mark.tensorrt

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
LAYOUTS = ["linear", "channels_last"]


@pytest.fixture
def random() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def layout_of(dtype: torch.dtype, layout: str) -> str:
    return "linear" if layout == "linear" else "hwc" if dtype == torch.float32 else "hwc8"


def memory_format(layout: str) -> torch.memory_format:
    return torch.contiguous_format if layout == "linear" else torch.channels_last


def boxes_of(random: torch.Generator, batch: int, count: int, size: float) -> Tensor:
    corner = torch.rand(batch, count, 2, generator=random) * size
    return torch.cat([corner, corner + torch.rand(batch, count, 2, generator=random) * size / 2], dim=-1)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("aligned", "samples"), [(True, 2), (False, 2), (True, 0)])
def test_roi_align_fpn(
    front: Front, random: torch.Generator, dtype: torch.dtype, layout: str, aligned: bool, samples: int
) -> None:
    features = [
        torch.randn(2, 8, 32 >> level, 24 >> level, generator=random)
        .to(front.device, dtype)
        .contiguous(memory_format=memory_format(layout))
        for level in range(4)
    ]
    rois = boxes_of(random, 2, 9, 700).to(front.device)
    rois[0, 0] = torch.tensor([0, 0, 111.9999, 111.9999])  # on P2 where levels are rounded, else on P3
    expected = plugins_cuda.roi_align_fpn(features, rois, 3, samples, aligned, rounded_levels=samples == 0)
    attributes = {
        "output_size": 3,
        "sampling_ratio": samples,
        "coordinate_transformation_mode": "half_pixel" if aligned else "output_half_pixel",
        "inclusive": 0,
    } | ({} if samples else {"rounded_levels": 1})  # older files do not know it
    formats = [layout_of(dtype, layout)] * 4 + ["linear", "linear"]
    (pooled,) = front.run("RoiAlignFpn", attributes, [*features, rois], formats)
    assert torch.equal(pooled, expected)


@pytest.mark.parametrize("batched", [False, True])
def test_nms(front: Front, random: torch.Generator, batched: bool) -> None:
    boxes = boxes_of(random, 2, 70, 40).to(front.device)
    scores = torch.rand(2, 70, generator=random).to(front.device)
    classes = torch.randint(0, 3, (2, 70), generator=random).to(front.device)
    attributes = {"iou_threshold": 0.5, "score_threshold": 0.25, "max_output": 40}
    if batched:
        found = front.run("PaddedBatchedNms", attributes | {"inclusive": 1}, [boxes, scores, classes])
        expected = plugins_cuda.nms(boxes, scores, 0.5, 0.25, 40, classes=classes, inclusive=True)
    else:
        found = front.run("PaddedNms", attributes, [boxes, scores])
        expected = plugins_cuda.nms(boxes, scores, 0.5, 0.25, 40)
    assert int(expected[1].min()) > 0
    assert all(map(torch.equal, found, expected))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("modulated", [False, True])
def test_deform_conv(front: Front, random: torch.Generator, dtype: torch.dtype, layout: str, modulated: bool) -> None:
    x = torch.randn(2, 16, 9, 7, generator=random).to(front.device, dtype)
    x = x.contiguous(memory_format=memory_format(layout))
    offset, bias = torch.randn(2, 18, 5, 7, generator=random), torch.randn(8, generator=random)
    weight = torch.randn(8, 16, 3, 3, generator=random).to(front.device, dtype)
    offset, bias = offset.to(front.device), bias.to(front.device)
    mask = torch.rand(2, 9, 5, 7, generator=random).to(front.device) if modulated else None
    expected = plugins_cuda.deform_conv(x, offset, weight, bias, stride=(2, 1), padding=1, mask=mask)
    attributes = CONVOLUTION | {"strides": [2, 1]}
    rest = [offset, weight, bias] if mask is None else [offset, weight, bias, mask]
    image = layout_of(dtype, layout)
    name = "ModulatedDeformConv2d" if modulated else "DeformConv2d"
    (found,) = front.run(name, attributes, [x, *rest], [image, *["linear"] * len(rest), image])
    assert torch.equal(found, expected)


CONVOLUTION = {"strides": [1, 1], "pads": [1, 1, 1, 1], "dilations": [1, 1]}


def convolved(batch: int, channels: int, outputs: int, height: int, width: int) -> list[tuple[int, ...]]:
    """The shapes of a 3 x 3 convolution's inputs."""
    return [(batch, channels, height, width), (batch, 18, height, width), (outputs, channels, 3, 3), (outputs,)]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_deform_conv_splits_channels_on_small_maps_only(
    front: Front, random: torch.Generator, dtype: torch.dtype, layout: str
) -> None:
    """The sums of the splits lie in a workspace whose size TensorRT asked for where nothing is split."""
    smallest, shapes, largest = convolved(1, 64, 8, 4, 4), convolved(1, 64, 8, 9, 7), convolved(4, 64, 8, 48, 96)
    x, offset, weight, bias = (torch.randn(shape, generator=random).to(front.device) for shape in shapes)
    x, weight = x.to(dtype).contiguous(memory_format=memory_format(layout)), weight.to(dtype)
    image = layout_of(dtype, layout)
    formats = [image, "linear", "linear", "linear", image]
    profile = Profile(smallest, largest)
    (found,) = front.run("DeformConv2d", CONVOLUTION, [x, offset, weight, bias], formats, profile)
    assert torch.equal(found, plugins_cuda.deform_conv(x, offset, weight, bias, padding=1))


# Photos in an engine of the default profile, which ends at 4 x 1344 x 1344: the maps P3 and P4 of 256 channels.
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("stride", "height", "width"), [(16, 800, 1344), (8, 512, 672), (16, 512, 672)])
def test_workspace_of_a_photo_in_the_default_profile(
    harness: Harness, dtype: torch.dtype, layout: str, stride: int, height: int, width: int
) -> None:
    def asked(*size: int) -> int:
        shapes = [*convolved(size[0], 256, 256, *size[1:]), (size[0], 256, *size[1:])]
        types, image = [dtype, torch.float32, dtype, torch.float32, dtype], layout_of(dtype, layout)
        return plugin.workspace_size(Tensors(1, shapes, types, [image, "linear", "linear", "linear", image]))

    plugin = harness.create("DeformConv2d", CONVOLUTION)
    assert asked(4, 1344 // stride, 1344 // stride) >= asked(1, height // stride, width // stride) > 0
    plugin.destroy()


@pytest.mark.parametrize(
    ("merge", "things", "limit"),
    [("logits", 3, 50.0), ("logits", 3, math.inf), ("logits", 0, 50.0), ("heuristic", 1, 50.0)],
)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_panoptic_fusion(
    front: Front, random: torch.Generator, dtype: torch.dtype, layout: str, merge: str, things: int, limit: float
) -> None:
    stuff, detections = 8 - things, 6
    fuse: Callable[..., tuple[Tensor, ...]] = plugins_cuda.panoptic_fusion
    semantic = torch.randn(2, stuff + things, 8, 12, generator=random).repeat_interleave(2, 2).to(front.device, dtype)
    semantic = semantic.contiguous(memory_format=memory_format(layout))
    inputs = [
        boxes_of(random, 2, detections, 40),
        torch.randint(0, max(things, 1), (2, detections), generator=random),
        torch.rand(2, detections, generator=random).sort(dim=1, descending=True).values,
        2 * torch.randn(2, detections, 7, 7, generator=random).to(dtype),
        torch.tensor([detections, 2], dtype=torch.int32),
        torch.tensor([[64, 48], [50, 44]], dtype=torch.int32),
        torch.tensor([1.0, 0.5]),
    ]
    inputs = [semantic, *(tensor.to(front.device) for tensor in inputs)]
    expected = fuse(*inputs, stuff, limit, 0.25, merge == "heuristic")
    attributes = {"num_stuff": stuff, "stuff_area_limit": limit, "mask_overlap_threshold": 0.25, "merge": merge}
    formats = [layout_of(dtype, layout), *["linear"] * 10]
    panoptic, *found = front.run("PanopticFusion", attributes, inputs, formats)
    assert panoptic.dtype == torch.float16 and len(panoptic.unique()) > 2
    assert torch.equal(panoptic.to(torch.uint8), expected[0])
    assert all(map(torch.equal, found, expected[1:]))


def test_nothing(front: Front) -> None:
    attributes = {"iou_threshold": 0.5, "score_threshold": 0.25, "max_output": 4}
    boxes, scores = torch.zeros(2, 0, 4, device=front.device), torch.zeros(2, 0, device=front.device)
    indices, counts = front.run("PaddedNms", attributes, [boxes, scores])
    assert counts.tolist() == [0, 0] and indices.tolist() == [[0] * 4] * 2


def test_a_failing_run_names_its_shapes(harness: Harness) -> None:
    """An output between two numbers; one of PanopticFusion's is written by a kernel of the plugin's own."""
    boxes, scores = torch.zeros(1, 3, 4), torch.zeros(1, 3)
    nms = {"iou_threshold": 0.5, "score_threshold": 0.25, "max_output": 4}
    fusion = {"num_stuff": 3, "stuff_area_limit": 50.0, "mask_overlap_threshold": 0.25}
    inputs = list(fusion_inputs(0, counts=[6]).values())
    for name, attributes, given, sizes in (
        ("PaddedNms", nms, [boxes, scores], "boxes [1 3 4], scores [1 3]"),
        ("PanopticFusion", fusion, inputs, "semantic [1 5 6 9], boxes [1 6 4], classes [1 6], "),
    ):
        plugin = harness.create(name, attributes)
        shapes = [tensor.shape for tensor in given]
        tensors = plugin.describe(given, None, Profile(shapes, shapes))
        outputs = [filled(shape, dtype, boxes.device) for shape, dtype in tensors.outputs()]
        outputs[0] = torch.zeros(outputs[0].nbytes + 16, dtype=torch.uint8)[2:]
        with pytest.raises(RuntimeError, match="enqueue: -1"):
            plugin.enqueue(tensors, given, plugin.workspace_size(tensors), outputs)
        assert f"upsnet {name}, enqueue: misaligned address with {sizes}" in harness.messages()
        plugin.destroy()
