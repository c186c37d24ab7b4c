"""Every operator, as it runs on one device, against its definition in float64: needs PyTorch and torchvision alone.

    python -m plugins_cuda.kernel_suite --device cuda [--size small middle full] [--no-graphs]

`make gpu-check` runs it on a GPU, where the project's tests may lack what they need; those are thorough, these are few
checks over all types and layouts, with CUDA-graph capture and bit-identical repetition.

small     every variant and the odd cases, in a moment
middle    what small tensors do not reach, for compute-sanitizer and the emulator: NMS in several rounds and chunks, the
          steps of a deformable convolution split among blocks, all levels of the pyramid, 100 instances
full      the sizes of the benchmark; on a GPU
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any  # an operator's keyword arguments, and its one result or several

import torch
from torch import Tensor
from torchvision.ops import deform_conv2d

import plugins_cuda
from plugins_cuda import library
from plugins_cuda.benchmark import inputs
from plugins_cuda.benchmark.cases import VARIANTS, Variant
from plugins_cuda.benchmark.inputs import FULL, MIDDLE, QUICK, Sizes
from plugins_cuda.benchmark.timing import capture
from plugins_cuda.gradient_checks import check_deform_conv_columns, check_roi_align_backward
from plugins_cuda.nms import reference as nms_reference
from plugins_cuda.panoptic_fusion import reference as fusion_reference
from plugins_cuda.roi_align_fpn import reference as roi_reference

SIZES = ("small", "middle", "full")
CPU = torch.device("cpu")
# Of the middle size: each type once, float32 and bfloat16 transposed on their way.
MIDDLE_VARIANTS = [VARIANTS[0], VARIANTS[3], VARIANTS[4]]


@dataclass(frozen=True)
class Check:
    """One comparison; `run` raises AssertionError when it fails."""

    name: str
    run: Callable[[], None]


@dataclass(frozen=True)
class Place:
    """Where the operator runs, and where its definition does. That is the CPU, so that on the GPU nothing runs but our
    kernels and copies: compute-sanitizer then has little to watch, and sees who wrote what. The full size would take
    the CPU minutes."""

    device: torch.device
    reference: torch.device = CPU

    def run(self, call: Callable[[], Any]) -> Any:
        """The result, at the reference's place; it must be the same to the last bit when it is computed again."""
        first, second = (_moved(call(), self.reference) for _ in range(2))
        assert _same_bits(first, second), "two runs differ"
        return first


def checks(device: torch.device, sizes: Collection[str] = ("small",), graphs: bool = True) -> Iterator[Check]:
    """sizes: of SIZES. graphs: CUDA graphs, on a GPU."""
    yield Check("the compiled library serves", partial(_is_compiled, device))
    for size in SIZES:
        if size in sizes:
            place = Place(device, device if size == "full" else CPU)
            for room in (_roi_checks, _nms_checks, _deform_checks, _fusion_checks):
                yield from room(place, size)
    if device.type == "cuda" and graphs:
        yield from _graph_checks(device)


def _is_compiled(device: torch.device) -> None:
    assert library.compiled(device) is not None, "the reference serves, there is no compiled library"


def _moved(result: Any, device: torch.device) -> Any:
    return tuple(each.to(device) for each in result) if isinstance(result, tuple) else result.to(device)


def _same_bits(first: Any, second: Any) -> bool:
    pairs = zip(first, second, strict=True) if isinstance(first, tuple) else [(first, second)]
    return all(torch.equal(one.nan_to_num(), other.nan_to_num()) for one, other in pairs)


def _in_variants(room: str, size: str) -> Iterator[tuple[str, Variant]]:
    """The variants of a size, with the names of their checks."""
    for variant in MIDDLE_VARIANTS if size == "middle" else VARIANTS:
        yield f"{room} {variant.dtype_name} {variant.layout}, {size}", variant


def _assert_accurate(ours: Tensor, exact: Tensor, same_precision: Tensor, dtype: torch.dtype) -> None:
    """At most twice the error of PyTorch in the same precision, as flash-attention's tests have it."""
    assert (ours.dtype, ours.shape) == (dtype, exact.shape), f"got {ours.dtype} {tuple(ours.shape)}"
    if exact.numel() == 0:
        return
    error = (ours.double() - exact).abs().max().item()
    allowed = 2 * (same_precision.double() - exact).abs().max().item() + 1e-6 * exact.abs().max().item()
    assert error <= allowed, f"error {error:.3g}, allowed {allowed:.3g}"  # a NaN fails too


# --- roi_align_fpn ---------------------------------------------------------------------------------------------------


# Without area, outside, inverted, and larger than the image.
HOSTILE_ROIS = [[0.0, 0, 0, 0], [-90, -80, -50, -40], [30, 40, 10, 20], [-20, -20, 5000, 4000]]


def _roi_checks(place: Place, size: str) -> Iterator[Check]:
    small = replace(QUICK, channels=20)
    sizes = {"small": small, "middle": MIDDLE, "full": FULL}[size]
    for name, variant in _in_variants("roi_align_fpn", size):
        yield Check(name, partial(_check_roi, place, sizes, variant))
        for samples in (2, 0) if size == "small" else ():
            gradient = partial(check_roi_align_backward, place.device, variant, samples)
            yield Check(f"{name}, gradient{'' if samples else ' of counted samples'}", gradient)
    if size == "small":
        legacy = partial(_check_roi, place, small, VARIANTS[0], aligned=False, inclusive=True, sampling_ratio=1)
        yield Check("roi_align_fpn legacy", legacy)
        for variant in (VARIANTS[0], VARIANTS[3]):
            counted = partial(_check_roi, place, small, variant, sampling_ratio=0, rounded_levels=True)
            yield Check(f"roi_align_fpn {variant.dtype_name} {variant.layout}, counted", counted)
        yield Check("roi_align_fpn of no RoIs", partial(_check_roi, place, replace(small, rois=0), VARIANTS[0]))


def _check_roi(place: Place, sizes: Sizes, variant: Variant, **options: Any) -> None:
    features, rois = inputs.pyramid(sizes, seed=1)
    hostile = torch.tensor(HOSTILE_ROIS)
    rois = torch.cat([rois, inputs.elongated(sizes), hostile.expand(1, 4, 4)], dim=1) if sizes.rois else rois
    features = [variant.of(feature, CPU) for feature in features]
    options["output_size"] = sizes.output_size
    there, rois_there = [feature.to(place.device) for feature in features], rois.to(place.device)
    ours = place.run(lambda: plugins_cuda.roi_align_fpn(there, rois_there, **options))
    features, rois = [feature.to(place.reference) for feature in features], rois.to(place.reference)
    exact = roi_reference.roi_align_fpn([feature.double() for feature in features], rois.double(), **options)
    rounded = roi_reference.roi_align_fpn([feature.float() for feature in features], rois, **options).to(variant.dtype)
    _assert_accurate(ours, exact, rounded, variant.dtype)


# --- nms -------------------------------------------------------------------------------------------------------------


def _nms_checks(place: Place, size: str) -> Iterator[Check]:
    sizes = {"small": QUICK, "middle": MIDDLE, "full": FULL}[size]
    if size == "middle":  # more than a round's candidates without classes, and more than a shortlist's with them
        sizes = replace(MIDDLE, boxes=1000)
        proposals, detections = inputs.proposals(replace(MIDDLE, boxes=2500), 1), inputs.detections(sizes, 1)
        most = sizes.boxes * sizes.things
    else:
        proposals, detections, most = inputs.proposals(sizes, 1), inputs.detections(sizes, 1), sizes.detections
    yield Check(f"nms proposals, {size}", partial(_check_nms, place, proposals, 0.7, -1.0, sizes.boxes))
    yield Check(f"nms few, {size}", partial(_check_nms, place, proposals, 0.5, 0.3, 20))
    yield Check(f"nms classes, {size}", partial(_check_nms, place, detections, 0.5, 0.05, sizes.detections))
    yield Check(f"nms classes, all, {size}", partial(_check_nms, place, detections, 0.5, 0.0, most))
    if size == "small":
        yield from _odd_nms_checks(place)


def _odd_nms_checks(place: Place) -> Iterator[Check]:
    ties = inputs.proposals(QUICK, 2)
    ties["boxes"], ties["scores"] = ties["boxes"].round(), (4 * ties["scores"]).round() / 4
    yield Check("nms ties", partial(_check_nms, place, ties, 0.5, 0.0, 30))
    yield Check("nms legacy", partial(_check_nms, place, ties, 0.5, 0.0, 30, inclusive=True))
    hostile = inputs.proposals(replace(QUICK, proposal_rows=4), 3)
    hostile["scores"][0, ::3] = float("nan")
    hostile["scores"][1, 5] = float("inf")
    hostile["scores"][2] = 0.0
    hostile["boxes"][3, :, 2] = hostile["boxes"][3, :, 0] - 1
    yield Check("nms hostile", partial(_check_nms, place, hostile, 0.5, 0.0, 30))
    nothing = {"boxes": torch.zeros(2, 0, 4), "scores": torch.zeros(2, 0)}
    yield Check("nms of nothing", partial(_check_nms, place, nothing, 0.5, 0.0, 3))


def _check_nms(place: Place, tensors: Mapping[str, Any], iou: float, least: float, most: int, **options: Any) -> None:
    """torchvision's own indices, on the CPU."""
    options |= {"iou_threshold": iou, "score_threshold": least, "max_output": most}
    there = {name: tensor.to(place.device) for name, tensor in tensors.items()}
    ours = place.run(lambda: plugins_cuda.nms(**there, **options))
    for found, wanted in zip(ours, nms_reference.nms(**tensors, **options), strict=True):
        assert found.dtype == wanted.dtype
        assert torch.equal(found.cpu(), wanted), f"{(found.cpu() != wanted).sum()} of {wanted.numel()} differ"


# --- deform_conv -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Convolution:
    """What of deform_conv a check asks for."""

    stride: int = 1
    padding: int = 1
    dilation: int = 1
    groups: int = 1
    offset_groups: int = 1
    masked: bool = False


def _deform_checks(place: Place, size: str) -> Iterator[Check]:
    # A middle map is small, or its steps would not be split.
    sizes = {"small": QUICK, "middle": replace(MIDDLE, height=128, width=160), "full": FULL}[size]
    for name, variant in _in_variants("deform_conv", size):
        yield Check(name, partial(_check_deform, place, sizes, variant, Convolution()))
        if size == "small":
            yield Check(f"{name}, masked", partial(_check_deform, place, sizes, variant, Convolution(masked=True)))
            for order in ("any", "fixed"):
                gradient = partial(check_deform_conv_columns, place.device, variant, order == "fixed")
                yield Check(f"{name}, gradient in {order} order", gradient)
    if size == "small":
        for kind in (
            Convolution(stride=2),
            Convolution(padding=2, dilation=2),
            Convolution(groups=2, offset_groups=4),
            Convolution(padding=0, offset_groups=2, masked=True),
        ):
            yield Check(f"deform_conv {kind}", partial(_check_deform, place, QUICK, VARIANTS[0], kind))


def _check_deform(place: Place, sizes: Sizes, variant: Variant, kind: Convolution) -> None:
    tensors = inputs.deformed(sizes, spread=2.0, seed=1)
    x, bias = variant.of(tensors["x"], CPU), tensors["bias"]
    weight = variant.of(tensors["weight"][:, : sizes.channels // kind.groups], CPU)
    shape: dict[str, Any] = {"stride": kind.stride, "padding": kind.padding, "dilation": kind.dilation}
    height, width = ((side + 2 * kind.padding - 2 * kind.dilation - 1) // kind.stride + 1 for side in x.shape[2:])
    offset = tensors["offset"].repeat(1, kind.offset_groups, 1, 1)[..., :height, :width]
    offset = torch.nn.functional.pad(offset, (0, width - offset.shape[3], 0, height - offset.shape[2]))
    mask = offset[:, ::2].sigmoid().contiguous() if kind.masked else None

    def on(device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]:
        x_there, offset_there, weight_there, bias_there = (each.to(device) for each in (x, offset, weight, bias))
        return x_there, offset_there, weight_there, bias_there, None if mask is None else mask.to(device)

    given = on(place.device)
    ours = place.run(lambda: plugins_cuda.deform_conv(*given[:4], **shape, mask=given[4]))

    x, offset, weight, bias, mask = on(place.reference)
    wide_mask = None if mask is None else mask.double()
    exact = deform_conv2d(x.double(), offset.double(), weight.double(), bias.double(), mask=wide_mask, **shape)
    if variant.dtype == torch.float32:
        rounded = deform_conv2d(x, offset, weight, bias, mask=mask, **shape)
    else:
        # What a product of 16-bit matrices can do: samples rounded, exact sums, a rounded result.
        taps = torch.eye(9 * sizes.channels, dtype=torch.float64, device=place.reference).view(-1, sizes.channels, 3, 3)
        columns = deform_conv2d(x.double(), offset.double(), taps, mask=wide_mask, **shape).to(variant.dtype).double()
        rounded = torch.einsum("bkhw,ok->bohw", columns, weight.double().flatten(1)) + bias.double()[:, None, None]
        rounded = rounded.to(variant.dtype)
    _assert_accurate(ours, exact, rounded, variant.dtype)


# --- panoptic_fusion -------------------------------------------------------------------------------------------------


def _fusion_checks(place: Place, size: str) -> Iterator[Check]:
    sizes = {"small": QUICK, "middle": replace(MIDDLE, height=256, width=320), "full": FULL}[size]
    for name, variant in _in_variants("panoptic_fusion", size):
        yield Check(name, partial(_check_fusion, place, sizes, variant, exact_panoptic))
    for name, variant in _in_variants("panoptic_fusion heuristic", size):
        yield Check(name, partial(_check_fusion, place, sizes, variant, pasted_panoptic, True))
    crowd = partial(_check_fusion, place, sizes, VARIANTS[0], crowded_panoptic)
    yield Check(f"panoptic_fusion of a crowd, {size}", crowd)
    if size == "small":
        check = partial(_check_fusion, place, sizes, VARIANTS[0])
        yield Check("panoptic_fusion without detections", partial(check, without_detections))
        yield Check("panoptic_fusion heuristic of a chain of masks", partial(check, chained_panoptic, True))


def exact_panoptic(sizes: Sizes, seed: int) -> dict[str, Any]:
    """A batch of two on which float32 arithmetic is exact: logits are multiples of 1/4, and boxes are 28 pixels times a
    power of two wide and high, so that every interpolation weight is a sum of powers of two. Integers computed from
    them must be the same however the arithmetic is ordered, ties included."""
    random = inputs.generator(seed)
    images = [inputs.panoptic(sizes, seed), inputs.panoptic(sizes, seed + 1)]
    tensors = {name: torch.cat([image[name] for image in images]) for name in images[0]}
    for name in ("semantic", "mask_logits"):
        tensors[name] = (4 * tensors[name]).round().clamp(-32, 32) / 4
    sides = torch.tensor([7.0, 14, 28, 56, 112, 224])
    sides = sides[sides < min(sizes.height, sizes.width)]
    extent = sides[torch.randint(len(sides), (2, sizes.detections, 2), generator=random)]
    room = torch.tensor([float(sizes.width), float(sizes.height)]) - extent
    low = (torch.rand(extent.shape, generator=random) * room).floor()
    tensors["boxes"] = torch.cat([low, low + extent - 1], dim=-1)
    tensors["counts"] = torch.tensor([sizes.detections, sizes.detections // 2], dtype=torch.int32)
    tensors["sizes"][1] -= torch.tensor([5, 9])
    tensors["scales"] = torch.tensor([1.0, 0.5])
    return tensors


def without_detections(sizes: Sizes, seed: int) -> dict[str, Any]:
    """No image has any."""
    tensors = exact_panoptic(sizes, seed)
    return tensors | {"counts": torch.zeros_like(tensors["counts"])}


def crowded_panoptic(sizes: Sizes, seed: int) -> dict[str, Any]:
    """All detections are of one class, so that each is held against all that were accepted before it."""
    tensors = exact_panoptic(sizes, seed)
    return tensors | {"classes": torch.zeros_like(tensors["classes"])}


def pasted_panoptic(sizes: Sizes, seed: int) -> dict[str, Any]:
    """The same for the heuristic merge: exclusive corners, boxes whose sides are powers of two, and probabilities that
    are 0 or 1 in any precision."""
    tensors = exact_panoptic(sizes, seed)
    low, high = tensors["boxes"].split(2, dim=-1)
    extent = (high - low + 1).log2().ceil().exp2()
    masks = torch.where(tensors["mask_logits"] > 0, 60.0, -60.0)
    return tensors | {"boxes": torch.cat([low, low + extent], dim=-1), "mask_logits": masks}


def chained_panoptic(sizes: Sizes, seed: int) -> dict[str, Any]:
    """Masks as high as the image, each over most of the next one: who was accepted decides about the next."""
    tensors = pasted_panoptic(sizes, seed)
    first = 3.0 * torch.arange(sizes.detections)
    boxes = [first, torch.zeros_like(first), first + 8, torch.full_like(first, sizes.height)]
    tensors["boxes"] = torch.stack(boxes, dim=-1).repeat(2, 1, 1)
    return tensors | {"mask_logits": tensors["mask_logits"].abs()}


def _check_fusion(
    place: Place,
    sizes: Sizes,
    variant: Variant,
    make: Callable[[Sizes, int], dict[str, Any]],
    heuristic: bool = False,
) -> None:
    tensors = make(sizes, 5)
    tensors["semantic"] = variant.of(tensors["semantic"], CPU)
    tensors["mask_logits"] = tensors["mask_logits"].to(variant.dtype)
    settings: dict[str, Any] = {"num_stuff": sizes.stuff, "stuff_area_limit": 64.0, "heuristic": heuristic}
    there = {name: tensor.to(place.device) for name, tensor in tensors.items()}
    ours = place.run(lambda: plugins_cuda.panoptic_fusion(**there, **settings))
    here = {name: tensor.to(place.reference) for name, tensor in tensors.items()}
    wide = {name: tensor.double() if tensor.is_floating_point() else tensor for name, tensor in here.items()}
    expected = fusion_reference.panoptic_fusion(**wide, **settings)
    for name, found, wanted in zip(("panoptic", "segments", "segment_count"), ours, expected, strict=True):
        differ = (found != wanted).sum().item() if found.shape == wanted.shape else "all"
        assert differ == 0, f"{name}: {differ} of {wanted.numel()} differ"


# --- CUDA graphs -----------------------------------------------------------------------------------------------------


def _graph_checks(device: torch.device) -> Iterator[Check]:
    def pyramid(sizes: Sizes, seed: int) -> dict[str, Tensor]:
        features, rois = inputs.pyramid(sizes, seed)
        return dict(zip(("p2", "p3", "p4", "p5", "rois"), (*features, rois), strict=True))

    def pool(rois: Tensor, **maps: Tensor) -> Tensor:
        return plugins_cuda.roi_align_fpn(list(maps.values()), rois, 7)

    keep = partial(plugins_cuda.nms, iou_threshold=0.5, score_threshold=0.05, max_output=20)
    fuse = partial(plugins_cuda.panoptic_fusion, num_stuff=QUICK.stuff, stuff_area_limit=64.0)
    calls: dict[str, tuple[Callable[..., object], Callable[..., dict[str, Any]]]] = {
        "roi_align_fpn": (pool, pyramid),
        "nms": (keep, inputs.detections),
        "deform_conv": (plugins_cuda.deform_conv, partial(inputs.deformed, spread=2.0)),
        "panoptic_fusion": (fuse, inputs.panoptic),
        "panoptic_fusion heuristic": (partial(fuse, heuristic=True), inputs.panoptic),
    }
    for room, (call, make) in calls.items():
        yield Check(f"{room} in a CUDA graph", partial(_check_graph, device, call, make))


def _check_graph(device: torch.device, call: Callable[..., Any], make: Callable[..., dict[str, Any]]) -> None:
    """Captured on one input, replayed on another: the same bits as without a graph."""
    results: list[Any] = []
    held = {name: tensor.to(device) for name, tensor in make(QUICK, seed=1).items()}
    graph = capture(lambda: results.append(call(**held)))
    for name, other in make(QUICK, seed=2).items():
        held[name].copy_(other)
    graph.replay()
    assert _same_bits(results[-1], call(**held)), "the replay differs from the call"


# --- command line ----------------------------------------------------------------------------------------------------


def failures(device: torch.device, sizes: Collection[str] = ("small",), graphs: bool = True) -> dict[str, str]:
    """Runs everything, prints a line a check; what failed, and why."""
    failed = {}
    for check in checks(device, sizes, graphs):
        print(f"{check.name}: ", end="", flush=True)  # what hangs or breaks the GPU has said its name
        start = time.perf_counter()
        try:
            check.run()
        except Exception as error:  # the other checks still count
            failed[check.name] = f"{type(error).__name__}: {error}".splitlines()[0]
        print(f"{failed.get(check.name, 'ok')} ({time.perf_counter() - start:.2f} s)", flush=True)
    return failed


def main(arguments: Sequence[str] | None = None) -> int:
    """0, or 1 when a check failed."""
    parser = argparse.ArgumentParser(prog="python -m plugins_cuda.kernel_suite")
    parser.add_argument("--device", choices=("cpu", "cuda", "emulated"), required=True)
    parser.add_argument("--size", nargs="+", choices=SIZES, default=("small",), help="several are done in turn")
    parser.add_argument("--no-graphs", action="store_true", help="no CUDA graphs")
    options = parser.parse_args(arguments)
    emulated = options.device == "emulated"
    with library.emulation() if emulated else nullcontext():
        failed = failures(CPU if emulated else torch.device(options.device), options.size, not options.no_graphs)
    print(f"{len(failed)} failed: {', '.join(failed)}" if failed else "all passed")
    return int(bool(failed))


if __name__ == "__main__":
    raise SystemExit(main())
