"""What is measured: each operator at the sizes that its goals name, its baseline, and the least work that it can do."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any  # Any: keywords

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import MultiScaleRoIAlign, batched_nms, deform_conv2d

import plugins_cuda
from plugins_cuda.benchmark import full_size, inputs
from plugins_cuda.benchmark.ceilings import Work
from plugins_cuda.benchmark.inputs import Sizes
from plugins_cuda.benchmark.timing import Call
from plugins_cuda.deform_conv.backward import deform_conv_backward
from plugins_cuda.nms import reference as nms_reference
from plugins_cuda.panoptic_fusion import reference as fusion_reference
from plugins_cuda.roi_align_fpn.backward import roi_align_fpn_backward
from plugins_cuda.roi_align_fpn.reference import FINEST_STRIDE, assign_levels

STUFF_AREA_LIMIT = 4096.0


@dataclass(frozen=True)
class Goal:
    """At least `ratio` times as fast as the baseline, and at most `seconds`; 0: no such goal."""

    ratio: float = 0.0
    seconds: float = 0.0


@dataclass(frozen=True)
class Case:
    """One row of the table."""

    operator: str
    name: str
    dtype: str
    layout: str
    ours: Call
    baseline: Call
    baseline_name: str
    work: Work
    goal: Goal


@dataclass(frozen=True)
class Variant:
    """Type and layout of the features."""

    dtype: torch.dtype
    channels_last: bool = False

    @property
    def dtype_name(self) -> str:
        return str(self.dtype).removeprefix("torch.")

    @property
    def layout(self) -> str:
        return "channels_last" if self.channels_last else "NCHW"

    def of(self, tensor: Tensor, device: torch.device) -> Tensor:
        order = torch.channels_last if self.channels_last else torch.contiguous_format
        return tensor.to(device, self.dtype).contiguous(memory_format=order)


VARIANTS = [
    Variant(dtype, channels_last)
    for dtype in (torch.float32, torch.float16, torch.bfloat16)
    for channels_last in (False, True)
]


def variants(device: torch.device) -> list[Variant]:
    """All of them on a GPU, float32 on a CPU."""
    return [variant for variant in VARIANTS if device.type == "cuda" or variant.dtype == torch.float32]


def half_goal(variant: Variant, device: torch.device, seconds: float = 0.0) -> Goal:
    """On a GPU the goal is half precision's."""
    if device.type == "cpu":
        return Goal(1.5)
    return Goal(2, seconds) if variant.dtype == torch.float16 else Goal()


Make = Callable[[], Case]
Makes = Callable[[Sizes, torch.device], Iterator[Make]]


def panoptic_fusion(sizes: Sizes, device: torch.device) -> Iterator[Make]:
    for crowd in (False, True):
        for variant in variants(device):
            yield partial(best_logits, sizes, device, variant, crowd)
    for whole in (False, True):
        for variant in variants(device):
            yield partial(heuristic_merge, sizes, device, variant, whole)


def best_logits(sizes: Sizes, device: torch.device, variant: Variant, crowd: bool) -> Case:
    made = inputs.crowd(sizes) if crowd else inputs.panoptic(sizes)
    tensors = {name: tensor.to(device) for name, tensor in made.items()}
    tensors["semantic"] = variant.of(tensors["semantic"], device)
    tensors["mask_logits"] = tensors["mask_logits"].to(variant.dtype)
    wide = tensors | {name: tensors[name].float().contiguous() for name in ("semantic", "mask_logits")}
    return Case(
        "panoptic_fusion",
        f"{sizes.stuff} + {sizes.things} classes, {sizes.height} x {sizes.width}, {sizes.detections} instances"
        + (" of one class" if crowd else ""),
        variant.dtype_name,
        variant.layout,
        partial(plugins_cuda.panoptic_fusion, **tensors, num_stuff=sizes.stuff, stuff_area_limit=STUFF_AREA_LIMIT),
        partial(fusion_reference.panoptic_fusion, **wide, num_stuff=sizes.stuff, stuff_area_limit=STUFF_AREA_LIMIT),
        "PyTorch reference, float32",
        fusion_work(tensors, sizes),
        Goal(30, 35e-6) if device.type == "cuda" else Goal(20),
    )


def fusion_work(tensors: dict[str, Tensor], sizes: Sizes) -> Work:
    """Logits once in, a byte a pixel out. A channel of a pixel costs a horizontal interpolation (two operations; the
    vertical one is shared by four pixels) and a comparison; an instance's pixel, bilinear interpolation of its mask,
    the sum and a comparison."""
    pixels = sizes.height * sizes.width
    boxes = tensors["boxes"].double()
    covered = float(((boxes[..., 2] - boxes[..., 0] + 1) * (boxes[..., 3] - boxes[..., 1] + 1)).sum())
    inputs_bytes = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    return Work(inputs_bytes + pixels, 3.5 * (sizes.stuff + sizes.things) * pixels + 8 * covered)


def heuristic_merge(sizes: Sizes, device: torch.device, variant: Variant, whole: bool) -> Case:
    tensors = {name: tensor.to(device) for name, tensor in inputs.heuristic(sizes, whole).items()}
    tensors["semantic"] = variant.of(tensors["semantic"], device)
    tensors["mask_logits"] = tensors["mask_logits"].to(variant.dtype)
    numbers: dict[str, Any] = {
        "num_stuff": sizes.stuff,
        "stuff_area_limit": STUFF_AREA_LIMIT,
        "mask_overlap_threshold": 0.5,
    }
    ours = partial(plugins_cuda.panoptic_fusion, **tensors, **numbers, heuristic=True)
    wide = {name: tensors[name].float().contiguous() for name in ("semantic", "boxes", "scores", "mask_logits")}
    boxes = f"{len(tensors['boxes'][0])} {'full' if whole else 'varied'} boxes"
    return Case(
        "panoptic_fusion",
        f"heuristic merge, {sizes.stuff} + 1 classes, {sizes.height} x {sizes.width}, {boxes}",
        variant.dtype_name,
        variant.layout,
        ours,
        partial(full_size.merge, **wide, classes=tensors["classes"], **numbers),
        "PyTorch at full size, float32",
        heuristic_work(tensors, sizes, ours()[1]),
        Goal(8 if whole else 25),
    )


def heuristic_work(tensors: dict[str, Tensor], sizes: Sizes, segments: Tensor) -> Work:
    """As `fusion_work`; but an instance's pixel asks for no channel, and a run of a mask's pixels costs as one."""
    rows = segments[0]
    pixels = sizes.height * sizes.width
    left = pixels - float(rows[rows[:, 0] >= sizes.stuff, 2].sum())
    inputs_bytes = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    return Work(inputs_bytes + pixels, 3.5 * (sizes.stuff + 1) * left)


def roi_align_fpn(sizes: Sizes, device: torch.device) -> Iterator[Make]:
    features, rois = inputs.pyramid(sizes)
    elongated = inputs.elongated(sizes)
    for variant in variants(device):
        for name, boxes, samples in (("", rois, 2), (", counted", rois, 0), (", counted, elongated", elongated, 0)):
            yield partial(pooled_rois, sizes, device, variant, features, boxes, name, samples)
    for variant in variants(device):
        yield partial(pooled_gradient, sizes, device, variant, features, rois)


def pooled_rois(
    sizes: Sizes, device: torch.device, variant: Variant, maps: list[Tensor], rois: Tensor, name: str, samples: int
) -> Case:
    """samples: of a bin in each direction; 0: counted."""
    work = roi_work(maps, rois, sizes, variant.dtype.itemsize, samples)
    features, rois = [variant.of(feature, device) for feature in maps], rois.to(device)
    return Case(
        "roi_align_fpn",
        f"{sizes.rois} RoIs x {sizes.channels} x {sizes.output_size} x {sizes.output_size}, "
        f"P2-P5 of {sizes.height} x {sizes.width}{name}",
        variant.dtype_name,
        variant.layout,
        partial(plugins_cuda.roi_align_fpn, features, rois, sizes.output_size, samples, aligned=False),
        torchvision_pooler(features, rois, sizes, samples),
        "torchvision MultiScaleRoIAlign",
        work,
        half_goal(variant, device, 30e-6 if samples else 0.0),
    )


def pooled_gradient(sizes: Sizes, device: torch.device, variant: Variant, maps: list[Tensor], rois: Tensor) -> Case:
    """Torchvision gets the boxes of each level sorted out already."""
    work = roi_work(maps, rois, sizes, variant.dtype.itemsize)
    pyramid = sum(feature.numel() for feature in maps) * variant.dtype.itemsize
    features, levels = [variant.of(feature, device) for feature in maps], assign_levels(rois[0])
    size = sizes.output_size
    grad = torch.randn(1, sizes.rois, sizes.channels, size, size, generator=inputs.generator(1))
    grad = grad.to(device, variant.dtype)
    own = [torch.nonzero(levels == level)[:, 0].to(device) for level in range(4)]
    boxes = [
        torch.cat([rois.new_zeros(len(each), 1), rois[0, each.cpu()]], 1).to(device, variant.dtype) for each in own
    ]
    grads = [grad[0, each].contiguous() for each in own]

    def baseline() -> tuple[Tensor, ...]:
        return tuple(
            torch.ops.torchvision._roi_align_backward(
                grads[level], boxes[level], 1 / (FINEST_STRIDE << level), size, size, *feature.shape, 2, False
            )
            for level, feature in enumerate(features)
        )

    return Case(
        "roi_align_fpn",
        f"gradient of {sizes.rois} RoIs x {sizes.channels} x {size} x {size}, P2-P5 of {sizes.height} x {sizes.width}",
        variant.dtype_name,
        variant.layout,
        partial(roi_align_fpn_backward, features, rois.to(device), size, 2, False, False, False, grad),
        baseline,
        "torchvision's backward",
        Work(work.bytes + pyramid, work.operations),
        Goal(2),
    )


def torchvision_pooler(features: list[Tensor], rois: Tensor, sizes: Sizes, samples: int) -> Call:
    """It wants the boxes in the features' type, and knows the legacy rule (aligned=False) alone."""
    pooler = MultiScaleRoIAlign(["0", "1", "2", "3"], sizes.output_size, samples)
    named = {str(level): feature for level, feature in enumerate(features)}
    return partial(pooler, named, [rois[0].to(features[0].dtype)], [(sizes.height, sizes.width)])


def roi_work(features: list[Tensor], rois: Tensor, sizes: Sizes, element: int, samples: int = 2) -> Work:
    """Every pixel of the pyramid that lies under a box of its level once in, the bins out. samples^2 samples a bin,
    each of four multiply-adds; where they are counted, a multiply-add for every pixel under a box."""
    levels, touched, under = assign_levels(rois[0]), 0, 0
    for level, feature in enumerate(features):
        seen = torch.zeros(feature.shape[2:], dtype=torch.bool)
        for x1, y1, x2, y2 in (rois[0, levels == level] / (FINEST_STRIDE << level)).int().tolist():
            seen[y1 : y2 + 1, x1 : x2 + 1] = True
            under += (y2 + 1 - y1) * (x2 + 1 - x1)
        touched += int(seen.sum())
    bins = sizes.rois * sizes.output_size**2
    operations = 8.0 * samples**2 * sizes.channels * bins if samples else 2.0 * sizes.channels * under
    return Work(sizes.channels * (touched + bins) * element + 16 * sizes.rois, operations)


def nms(sizes: Sizes, device: torch.device) -> Iterator[Make]:
    yield partial(detections_nms, sizes, device, 0.05)
    yield partial(detections_nms, sizes, device, 0.0)
    yield partial(proposals_nms, sizes, device)


def detections_nms(sizes: Sizes, device: torch.device, threshold: float) -> Case:
    boxes, scores, classes = (tensor.to(device) for tensor in inputs.detections(sizes).values())
    competing = int((scores > threshold).sum())

    def baseline() -> Tensor:
        candidates = torch.nonzero(scores[0] > threshold)[:, 0]
        kept = batched_nms(boxes[0, candidates], scores[0, candidates], classes[0, candidates], 0.5)
        return candidates[kept[: sizes.detections]]

    return Case(
        "nms",
        f"{sizes.boxes} boxes x {sizes.things} classes -> {sizes.detections}, {competing} above {threshold:g}",
        "float32",
        "–",
        partial(plugins_cuda.nms, boxes, scores, 0.5, threshold, sizes.detections, classes=classes),
        baseline,
        "torchvision batched_nms",
        Work(28 * scores.numel() + 12 * sizes.detections, 15 * sizes.detections),
        Goal(2, 25e-6) if device.type == "cuda" else Goal(2),
    )


def proposals_nms(sizes: Sizes, device: torch.device) -> Case:
    boxes, scores = (tensor.to(device) for tensor in inputs.proposals(sizes).values())
    arguments = (boxes, scores, 0.7, -1.0, sizes.boxes)
    return Case(
        "nms",
        f"proposals: {sizes.proposal_rows} rows x {sizes.boxes} -> {sizes.boxes}",
        "float32",
        "–",
        partial(plugins_cuda.nms, *arguments),
        partial(nms_reference.nms, *arguments),
        "torchvision nms, row by row",
        Work(32 * scores.numel(), 15 * scores.numel()),
        Goal(),
    )


def deform_conv(sizes: Sizes, device: torch.device) -> Iterator[Make]:
    for variant in variants(device):
        yield partial(sampled_product, sizes, device, variant)
    for variant in variants(device):
        yield partial(sampled_gradient, sizes, device, variant)
    for variant in variants(device) if device.type == "cpu" else ():
        yield partial(against_onnxruntime, sizes, device, variant)


def sampled_product(sizes: Sizes, device: torch.device, variant: Variant) -> Case:
    tensors = inputs.deformed(sizes)
    x, weight = (variant.of(tensors[name], device) for name in ("x", "weight"))
    offset, bias = tensors["offset"].to(device), tensors["bias"].to(device)
    narrow = (offset.to(variant.dtype), weight, bias.to(variant.dtype))
    pixels = x.shape[2] * x.shape[3]
    samples = 9 * sizes.channels * pixels
    moved = (sizes.channels + sizes.out_channels) * pixels * variant.dtype.itemsize + offset.numel() * 4
    return Case(
        "deform_conv",
        f"{sizes.channels} -> {sizes.out_channels}, 3 x 3, {x.shape[2]} x {x.shape[3]}",
        variant.dtype_name,
        variant.layout,
        partial(plugins_cuda.deform_conv, x, offset, weight, bias),
        partial(deform_conv2d, x, *narrow, padding=1),
        "torchvision deform_conv2d",
        Work(moved + weight.numel() * weight.element_size(), 8.0 * samples, 2.0 * samples * sizes.out_channels),
        half_goal(variant, device, 90e-6),
    )


def sampled_gradient(sizes: Sizes, device: torch.device, variant: Variant) -> Case:
    tensors = inputs.deformed(sizes)
    x, weight = (variant.of(tensors[name], device) for name in ("x", "weight"))
    grad = variant.of(torch.randn(1, sizes.out_channels, *x.shape[2:], generator=inputs.generator(1)), device)
    offset, bias = tensors["offset"].to(device), tensors["bias"].to(device, variant.dtype)
    pixels = x.shape[2] * x.shape[3]
    samples = 9 * sizes.channels * pixels
    moved = (2 * sizes.channels + sizes.out_channels) * pixels * variant.dtype.itemsize + 2 * offset.numel() * 4
    moved += 4 * samples * variant.dtype.itemsize if device.type == "cuda" else 0  # between the products, and back
    no_mask = x.new_zeros(1, 0, 0, 0)
    theirs = (grad, x, weight, offset.to(variant.dtype), no_mask, bias, 1, 1, 1, 1, 1, 1, 1, 1, False)

    def ours() -> tuple[Tensor, ...]:
        return deform_conv_backward(x, offset, weight, None, grad, [1, 1], [1, 1], [1, 1])[:3]

    def baseline() -> tuple[Tensor, ...]:
        grad_x, grad_weight, grad_offset, *_ = torch.ops.torchvision._deform_conv2d_backward(*theirs)
        return grad_x, grad_offset, grad_weight

    return Case(
        "deform_conv",
        f"gradient of {sizes.channels} -> {sizes.out_channels}, 3 x 3, {x.shape[2]} x {x.shape[3]}",
        variant.dtype_name,
        variant.layout,
        ours,
        baseline,
        "torchvision's backward",
        Work(moved + 2 * weight.numel() * weight.element_size(), 24.0 * samples, 4.0 * samples * sizes.out_channels),
        Goal(2),
    )


def against_onnxruntime(sizes: Sizes, device: torch.device, variant: Variant) -> Case:
    """The same against ONNX Runtime's own DeformConv, which knows NCHW alone and gets that."""
    tensors = inputs.deformed(sizes)
    case = sampled_product(sizes, device, variant)
    named = {name: tensors[name].numpy() for name in ("x", "weight", "offset", "bias")}
    return replace(
        case,
        name=f"{case.name}, in ONNX Runtime",
        baseline=in_onnxruntime(named),
        baseline_name="ONNX Runtime DeformConv, NCHW",
        goal=Goal(2),
    )


def in_onnxruntime(tensors: dict[str, np.ndarray]) -> Call:
    """The node; where its packages are missing, a call that says so."""
    try:
        from plugins_cuda.benchmark.standard_node import deform_conv_node
    except ImportError as error:
        missing = f"{error.name} is not installed"

        def refuse() -> None:
            raise RuntimeError(missing)

        return refuse
    return deform_conv_node(tensors, torch.get_num_threads())


OPERATORS: dict[str, Makes] = {
    "panoptic_fusion": panoptic_fusion,
    "roi_align_fpn": roi_align_fpn,
    "nms": nms,
    "deform_conv": deform_conv,
}
