"""Every operator, as it runs on one device, against its definition in float64: needs PyTorch and torchvision alone.

    python -m plugins_cuda.kernel_suite --device cuda [--full] [--no-graphs]

`make gpu-check` runs it on a GPU, where the project's tests may lack what they need; those are thorough, these are few
checks over all sizes, types and layouts, with CUDA-graph capture and bit-identical repetition.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
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
from plugins_cuda.benchmark.inputs import FULL, QUICK, Sizes
from plugins_cuda.benchmark.timing import capture
from plugins_cuda.nms import reference as nms_reference
from plugins_cuda.panoptic_fusion import reference as fusion_reference
from plugins_cuda.roi_align_fpn import reference as roi_reference


@dataclass(frozen=True)
class Check:
    """One comparison; `run` raises AssertionError when it fails."""

    name: str
    run: Callable[[], None]


def checks(device: torch.device, full: bool = False, graphs: bool = True) -> Iterator[Check]:
    """full: also at the sizes of the benchmark, which the emulator is too slow for. graphs: CUDA graphs, on a GPU."""
    yield Check("the compiled library serves", partial(_is_compiled, device))
    for room in (_roi_checks, _nms_checks, _deform_checks, _fusion_checks):
        yield from room(device, full)
    if device.type == "cuda" and graphs:
        yield from _graph_checks(device)


def _is_compiled(device: torch.device) -> None:
    assert library.compiled(device) is not None, "the reference serves, there is no compiled library"


def _twice(call: Callable[[], Any]) -> Any:
    """The result, which must be the same to the last bit when it is computed again."""
    first = call()
    assert _same_bits(first, call()), "two runs differ"
    return first


def _same_bits(first: Any, second: Any) -> bool:
    pairs = zip(first, second, strict=True) if isinstance(first, tuple) else [(first, second)]
    return all(torch.equal(one.nan_to_num(), other.nan_to_num()) for one, other in pairs)


def _assert_accurate(ours: Tensor, exact: Tensor, same_precision: Tensor, dtype: torch.dtype) -> None:
    """At most twice the error of PyTorch in the same precision, as flash-attention's tests have it."""
    assert (ours.dtype, ours.shape) == (dtype, exact.shape), f"got {ours.dtype} {tuple(ours.shape)}"
    if exact.numel() == 0:
        return
    error = (ours.double() - exact).abs().max().item()
    allowed = 2 * (same_precision.double() - exact).abs().max().item() + 1e-6 * exact.abs().max().item()
    assert error <= allowed, f"error {error:.3g}, allowed {allowed:.3g}"  # a NaN fails too


# --- roi_align_fpn ---------------------------------------------------------------------------------------------------


def _roi_checks(device: torch.device, full: bool) -> Iterator[Check]:
    small = replace(QUICK, channels=20)
    for variant in VARIANTS:
        name = f"roi_align_fpn {variant.dtype_name} {variant.layout}"
        yield Check(name, partial(_check_roi, device, small, variant))
        if full:
            yield Check(f"{name}, full size", partial(_check_roi, device, FULL, variant))
    legacy = partial(_check_roi, device, small, VARIANTS[0], aligned=False, inclusive=True, sampling_ratio=1)
    yield Check("roi_align_fpn legacy", legacy)
    yield Check("roi_align_fpn of no RoIs", partial(_check_roi, device, replace(small, rois=0), VARIANTS[0]))


def _check_roi(device: torch.device, sizes: Sizes, variant: Variant, **options: Any) -> None:
    features, rois = inputs.pyramid(sizes, seed=1)
    hostile = torch.tensor([[0.0, 0, 0, 0], [-90, -80, -50, -40], [30, 40, 10, 20], [-20, -20, 5000, 4000]])
    rois = torch.cat([rois, hostile.expand(1, 4, 4)], dim=1) if sizes.rois else rois
    features, rois = [variant.of(feature, device) for feature in features], rois.to(device)
    options["output_size"] = sizes.output_size
    ours = _twice(lambda: plugins_cuda.roi_align_fpn(features, rois, **options))
    exact = roi_reference.roi_align_fpn([feature.double() for feature in features], rois.double(), **options)
    rounded = roi_reference.roi_align_fpn([feature.float() for feature in features], rois, **options).to(variant.dtype)
    _assert_accurate(ours, exact, rounded, variant.dtype)


# --- nms -------------------------------------------------------------------------------------------------------------


def _nms_checks(device: torch.device, full: bool) -> Iterator[Check]:
    for sizes, name in ((QUICK, ""), (FULL, ", full size"))[: 2 if full else 1]:
        proposals, detections = inputs.proposals(sizes, 1), inputs.detections(sizes, 1)
        yield Check(f"nms proposals{name}", partial(_check_nms, device, proposals, 0.7, -1.0, sizes.boxes))
        yield Check(f"nms few{name}", partial(_check_nms, device, proposals, 0.5, 0.3, 20))
        yield Check(f"nms classes{name}", partial(_check_nms, device, detections, 0.5, 0.05, sizes.detections))
        yield Check(f"nms classes, all{name}", partial(_check_nms, device, detections, 0.5, 0.0, sizes.detections))
    ties = inputs.proposals(QUICK, 2)
    ties["boxes"], ties["scores"] = ties["boxes"].round(), (4 * ties["scores"]).round() / 4
    yield Check("nms ties", partial(_check_nms, device, ties, 0.5, 0.0, 30))
    yield Check("nms legacy", partial(_check_nms, device, ties, 0.5, 0.0, 30, inclusive=True))
    hostile = inputs.proposals(replace(QUICK, proposal_rows=4), 3)
    hostile["scores"][0, ::3] = float("nan")
    hostile["scores"][1, 5] = float("inf")
    hostile["scores"][2] = 0.0
    hostile["boxes"][3, :, 2] = hostile["boxes"][3, :, 0] - 1
    yield Check("nms hostile", partial(_check_nms, device, hostile, 0.5, 0.0, 30))
    nothing = {"boxes": torch.zeros(2, 0, 4), "scores": torch.zeros(2, 0)}
    yield Check("nms of nothing", partial(_check_nms, device, nothing, 0.5, 0.0, 3))


def _check_nms(
    device: torch.device, tensors: Mapping[str, Any], iou: float, least: float, most: int, **options: Any
) -> None:
    """torchvision's own indices, on the CPU."""
    options |= {"iou_threshold": iou, "score_threshold": least, "max_output": most}
    expected = nms_reference.nms(**tensors, **options)
    there = {name: tensor.to(device) for name, tensor in tensors.items()}
    ours = _twice(lambda: plugins_cuda.nms(**there, **options))
    for found, wanted in zip(ours, expected, strict=True):
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


def _deform_checks(device: torch.device, full: bool) -> Iterator[Check]:
    large = replace(FULL, height=320, width=512)
    for variant in VARIANTS:
        name = f"deform_conv {variant.dtype_name} {variant.layout}"
        yield Check(name, partial(_check_deform, device, QUICK, variant, Convolution()))
        yield Check(f"{name}, masked", partial(_check_deform, device, QUICK, variant, Convolution(masked=True)))
        if full:
            yield Check(f"{name}, large", partial(_check_deform, device, large, variant, Convolution()))
    for kind in (
        Convolution(stride=2),
        Convolution(padding=2, dilation=2),
        Convolution(groups=2, offset_groups=4),
        Convolution(padding=0, offset_groups=2, masked=True),
    ):
        yield Check(f"deform_conv {kind}", partial(_check_deform, device, QUICK, VARIANTS[0], kind))


def _check_deform(device: torch.device, sizes: Sizes, variant: Variant, kind: Convolution) -> None:
    tensors = inputs.deformed(sizes, spread=2.0, seed=1)
    x, bias = variant.of(tensors["x"], device), tensors["bias"].to(device)
    weight = variant.of(tensors["weight"][:, : sizes.channels // kind.groups], device)
    place = {"stride": kind.stride, "padding": kind.padding, "dilation": kind.dilation}
    height, width = ((side + 2 * kind.padding - 2 * kind.dilation - 1) // kind.stride + 1 for side in x.shape[2:])
    offset = tensors["offset"].repeat(1, kind.offset_groups, 1, 1)[..., :height, :width]
    offset = torch.nn.functional.pad(offset, (0, width - offset.shape[3], 0, height - offset.shape[2])).to(device)
    mask = offset[:, ::2].sigmoid().contiguous() if kind.masked else None
    ours = _twice(lambda: plugins_cuda.deform_conv(x, offset, weight, bias, **place, mask=mask))

    wide_mask = None if mask is None else mask.double()
    exact = deform_conv2d(x.double(), offset.double(), weight.double(), bias.double(), mask=wide_mask, **place)
    if variant.dtype == torch.float32:
        rounded = deform_conv2d(x, offset, weight, bias, mask=mask, **place)
    else:
        # What a product of 16-bit matrices can do: samples rounded, exact sums, a rounded result.
        taps = torch.eye(9 * sizes.channels, dtype=torch.float64, device=device).view(-1, sizes.channels, 3, 3)
        columns = deform_conv2d(x.double(), offset.double(), taps, mask=wide_mask, **place).to(variant.dtype).double()
        rounded = torch.einsum("bkhw,ok->bohw", columns, weight.double().flatten(1)) + bias.double()[:, None, None]
        rounded = rounded.to(variant.dtype)
    _assert_accurate(ours, exact, rounded, variant.dtype)


# --- panoptic_fusion -------------------------------------------------------------------------------------------------


def _fusion_checks(device: torch.device, full: bool) -> Iterator[Check]:
    for variant in VARIANTS:
        name = f"panoptic_fusion {variant.dtype_name} {variant.layout}"
        yield Check(name, partial(_check_fusion, device, QUICK, variant))
        if full:
            yield Check(f"{name}, full size", partial(_check_fusion, device, FULL, variant))
    yield Check("panoptic_fusion without detections", partial(_check_fusion, device, QUICK, VARIANTS[0], False))


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


def _check_fusion(device: torch.device, sizes: Sizes, variant: Variant, detections: bool = True) -> None:
    tensors = {name: tensor.to(device) for name, tensor in exact_panoptic(sizes, seed=5).items()}
    tensors["semantic"] = variant.of(tensors["semantic"], device)
    tensors["mask_logits"] = tensors["mask_logits"].to(variant.dtype)
    if not detections:
        tensors["counts"].zero_()
    settings: dict[str, Any] = {"num_stuff": sizes.stuff, "stuff_area_limit": 64.0}
    ours = _twice(lambda: plugins_cuda.panoptic_fusion(**tensors, **settings))
    wide = {name: tensor.double() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
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


def failures(device: torch.device, full: bool = False, graphs: bool = True) -> dict[str, str]:
    """Runs everything, prints a line a check; what failed, and why."""
    failed = {}
    for check in checks(device, full, graphs):
        start = time.perf_counter()
        try:
            check.run()
        except Exception as error:  # the other checks still count
            failed[check.name] = f"{type(error).__name__}: {error}".splitlines()[0]
        verdict = failed.get(check.name, "ok")
        print(f"{check.name}: {verdict} ({time.perf_counter() - start:.2f} s)", flush=True)
    return failed


def main(arguments: Sequence[str] | None = None) -> int:
    """0, or 1 when a check failed."""
    parser = argparse.ArgumentParser(prog="python -m plugins_cuda.kernel_suite")
    parser.add_argument("--device", choices=("cpu", "cuda"), required=True)
    parser.add_argument("--full", action="store_true", help="also at the sizes of the benchmark")
    parser.add_argument("--no-graphs", action="store_true", help="no CUDA graphs")
    options = parser.parse_args(arguments)
    failed = failures(torch.device(options.device), options.full, not options.no_graphs)
    print(f"{len(failed)} failed: {', '.join(failed)}" if failed else "all passed")
    return int(bool(failed))


if __name__ == "__main__":
    raise SystemExit(main())
