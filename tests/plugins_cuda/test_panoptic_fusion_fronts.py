"""The compiled panoptic head on every front: the same integers as the reference, whatever the input."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

import plugins_cuda
from plugins_cuda import library
from plugins_cuda.panoptic_fusion import SCHEMA, reference
from plugins_cuda.pytorch import params_type
from tests.agreement import assert_same_segments
from tests.plugins_cuda.conftest import FORWARD, Front, RunNode, assert_one_operator, front_fixture
from tests.plugins_cuda.inputs import LAYOUTS, TYPES, fusion_inputs
from upsnet.runtimes.predictor import RawPrediction

pytestmark = pytest.mark.numeric
front = front_fixture(FORWARD)

Inputs = dict[str, Any]  # keyword arguments


def make_inputs(seed: int, *, stuff: int = 3, **options: Any) -> Inputs:
    return {**fusion_inputs(seed, stuff=stuff, **options), "num_stuff": stuff}


def run(front: Front, inputs: Inputs, limit: float = 20.0, overlap: float = 0.3) -> list[Tensor]:
    inputs = {name: value.to(front.device) if isinstance(value, Tensor) else value for name, value in inputs.items()}
    results = plugins_cuda.panoptic_fusion(**inputs, stuff_area_limit=limit, mask_overlap_threshold=overlap)
    return [result.cpu() for result in results]


def define(inputs: Inputs, limit: float = 20.0, overlap: float = 0.3, double: bool = False) -> list[Tensor]:
    inputs = inputs | {"semantic": inputs["semantic"].double()} if double else inputs
    return list(reference.panoptic_fusion(**inputs, stuff_area_limit=limit, mask_overlap_threshold=overlap))


def check(front: Front, inputs: Inputs, limit: float = 20.0, overlap: float = 0.3, double: bool = True) -> list[Tensor]:
    """Kernels round alike on every CPU, PyTorch does not: the definition is taken in float64 where that is the same."""
    actual = run(front, inputs, limit, overlap)
    double = double and front.name != "reference"
    for one, other in zip(actual, define(inputs, limit, overlap, double), strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one.numpy(), other.numpy())
    return actual


# --- random logits, against float64 ----------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", TYPES)
def test_every_type_and_layout(front: Front, dtype: torch.dtype, layout: torch.memory_format) -> None:
    inputs = make_inputs(1, counts=[6, 3], dtype=dtype)
    inputs["semantic"] = inputs["semantic"].contiguous(memory_format=layout)
    check(front, inputs)
    inputs["mask_logits"] = inputs["mask_logits"].float()
    check(front, inputs)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    "height, width, stuff, things, mask_size",
    [(1, 1, 3, 2, 5), (1, 70, 1, 1, 1), (19, 3, 9, 8, 28), (11, 35, 5, 20, 7), (3, 33, 2, 300, 2)],
)
def test_sizes(
    front: Front, layout: torch.memory_format, height: int, width: int, stuff: int, things: int, mask_size: int
) -> None:
    sizes = {"height": height, "width": width, "stuff": stuff, "things": things, "mask_size": mask_size}
    inputs = make_inputs(2, counts=[5], rows=5, **sizes)
    inputs["classes"] %= 3
    inputs["semantic"] = inputs["semantic"].contiguous(memory_format=layout)
    check(front, inputs)


def test_batch_of_different_counts_and_sizes(front: Front) -> None:
    inputs = make_inputs(3, counts=[6, 0, 4, 1])
    inputs["sizes"] = torch.tensor([[24, 36], [24, 36], [1, 36], [13, 2]], dtype=torch.int32)
    together = check(front, inputs)
    for image in range(4):
        alone = {name: value[image : image + 1] for name, value in inputs.items() if isinstance(value, Tensor)}
        one = run(front, alone | {"num_stuff": 3})
        assert all(torch.equal(a[0], b[image]) for a, b in zip(one, together, strict=True))


def test_as_many_rows_as_fit(front: Front) -> None:
    inputs = make_inputs(4, counts=[254], rows=254, stuff=1, things=40, height=3, width=4, mask_size=3)
    check(front, inputs, limit=0.0, overlap=1.0)


@pytest.mark.usefixtures("other_order")
def test_order_of_threads_does_not_matter() -> None:
    check(Front("emulated"), make_inputs(5, counts=[6, 5], height=5, width=40))


def test_threads_of_the_cpu_do_not_matter() -> None:
    torch.set_num_threads(3)
    check(Front("cpu"), make_inputs(6, counts=[6, 5], height=40, width=10))


# --- exact arithmetic: ties decide -----------------------------------------------------------------------------------


@st.composite
def dyadic_inputs(draw: st.DrawFn) -> tuple[Inputs, float, float]:
    """Few values on a coarse grid, and boxes whose sizes are the mask's times powers of two: no operation rounds."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    batch, rows = draw(st.integers(0, 2)), draw(st.integers(0, 6))
    stuff, things = draw(st.integers(1, 4)), draw(st.integers(0, 3))
    height, width = draw(st.integers(1, 7)), draw(st.integers(1, 9))
    mask_size, levels = draw(st.sampled_from([1, 2, 4])), draw(st.sampled_from([1, 2, 3, 9]))
    dtype, layout = draw(st.sampled_from(TYPES)), draw(st.sampled_from(LAYOUTS))
    shift = draw(st.sampled_from([-3.0, -1.0, 0.0, 1.0]))

    def grid(*shape: int) -> Tensor:
        return torch.from_numpy(rng.integers(-levels + 1, levels, shape) / 2).float()

    low = rng.integers(-10, 4 * max(height, width), (batch, rows, 2)).astype(np.float32)
    size = mask_size * 2 ** rng.integers(0, 4, (batch, rows, 2))
    # Fractions that leave the mask's box alone and move the semantic one.
    boxes = np.concatenate([low, low + size - 1], axis=-1)
    boxes = boxes + np.where(boxes >= 0, rng.choice([0.0, 0.5, 0.75], boxes.shape), 0)
    inputs = {
        "semantic": (grid(batch, stuff + things, height, width) + shift).to(dtype).contiguous(memory_format=layout),
        "boxes": torch.from_numpy(boxes).float(),
        "classes": torch.from_numpy(rng.integers(0, max(things, 1), (batch, rows))),
        "scores": torch.from_numpy(rng.integers(0, 4, (batch, rows)) / 4).float(),
        "mask_logits": (grid(batch, rows, mask_size, mask_size) + draw(st.sampled_from([0.0, 0.5, 2.0]))).to(dtype),
        "counts": torch.from_numpy(rng.integers(-1, rows + 2, batch)).int(),
        "sizes": torch.from_numpy(rng.integers(-1, 4 * max(height, width) + 3, (batch, 2))).int(),
        "scales": torch.from_numpy(rng.choice([0.0, 0.5, 1.0, 2.0], batch)).float(),
        "num_stuff": stuff,
    }
    return inputs, draw(st.sampled_from([0.0, 10.0, 1e6, float("inf")])), draw(st.sampled_from([0.0, 0.25, 0.5, 1.0]))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], database=None)
@given(drawn=dyadic_inputs())
def test_dyadic_inputs(front: Front, drawn: tuple[Inputs, float, float]) -> None:
    check(front, *drawn)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("counts", [[0, 0], [1, 1]])  # a class that does not exist is dropped
def test_without_things_every_pixel_is_its_best_stuff(
    front: Front, layout: torch.memory_format, counts: list[int]
) -> None:
    inputs = make_inputs(25, counts=counts, rows=1, things=1, height=9, width=40)
    inputs["semantic"] = inputs["semantic"][:, :3].contiguous(memory_format=layout)
    panoptic, segments, count = check(front, inputs, limit=0.0)
    logits = torch.nn.functional.interpolate(inputs["semantic"].double(), scale_factor=4, mode="bilinear")
    assert count.tolist() == [3, 3] and segments.shape == (2, 4, 7) and not segments[:, 3].any()
    for image, (height, width) in enumerate(inputs["sizes"].tolist()):
        assert torch.equal(panoptic[image, :height, :width], 1 + logits[image].argmax(0)[:height, :width])


def test_stuff_below_an_infinite_limit_is_void(front: Front) -> None:
    panoptic, segments, count = check(front, make_inputs(26, counts=[6, 3], stuff=1), limit=float("inf"))
    assert count.min() > 0 and (segments[0, : count[0], 0] >= 1).all() and (panoptic == 0).any()


@pytest.mark.parametrize("value", [-1.0, 0.0, 1.0])
def test_constant_logits(front: Front, value: float) -> None:
    inputs = make_inputs(7, counts=[6, 2])
    inputs["semantic"].fill_(value)
    inputs["mask_logits"].fill_(1.0)
    check(front, inputs)


def test_negative_stuff_loses_to_absent_instances(front: Front) -> None:
    inputs = make_inputs(8, counts=[6, 3])
    inputs["semantic"] = -inputs["semantic"].abs() - 0.5
    inputs["semantic"][:, :3] -= 10  # no majority for stuff
    panoptic, segments, _count = check(front, inputs, limit=0.0)
    assert (segments[0, 0, :1] >= 3).all() and (panoptic[0, :22] > 0).float().mean() > 0.9


def test_identical_boxes_and_masks(front: Front) -> None:
    inputs = make_inputs(9, counts=[6, 6])
    inputs["boxes"][:] = torch.tensor([-5.0, -5, 100, 100])
    inputs["mask_logits"][:] = inputs["mask_logits"][:1, :1]
    inputs["classes"][0] = 1
    for overlap in (0.0, 0.3, 1.0, -1.0):
        check(front, inputs, overlap=overlap)


def test_everything_dropped(front: Front) -> None:
    inputs = make_inputs(10, counts=[6, 6])
    inputs["mask_logits"].fill_(-1.0)
    check(front, inputs)
    inputs["mask_logits"].fill_(0.0)
    _panoptic, segments, count = check(front, inputs, limit=1e9)
    assert not segments.any() and not count.any()


def test_sizes_of_nothing_and_beyond_the_map(front: Front) -> None:
    inputs = make_inputs(11, counts=[6, 6, 6, 6])
    inputs["sizes"] = torch.tensor([[0, 0], [-4, 7], [1000, 1000], [5, 2**31 - 1]], dtype=torch.int32)
    check(front, inputs)


@pytest.mark.parametrize("batch, rows, height, width", [(0, 3, 2, 2), (2, 0, 3, 2), (0, 0, 1, 1), (0, 3, 0, 4)])
def test_empty_tensors(front: Front, batch: int, rows: int, height: int, width: int) -> None:
    check(front, make_inputs(12, counts=[rows] * batch, rows=rows, height=height, width=width))


@pytest.mark.parametrize("height, width", [(0, 4), (3, 0), (0, 0)])
def test_maps_without_pixels(front: Front, height: int, width: int) -> None:
    panoptic, segments, count = check(front, make_inputs(12, counts=[3, 0], rows=3, height=height, width=width))
    assert panoptic.shape == (2, 4 * height, 4 * width) and not segments.any() and not count.any()


def test_no_detections_have_no_mask(front: Front) -> None:
    check(front, make_inputs(12, counts=[0, 0], rows=0, mask_size=0))


@pytest.mark.parametrize("batch", [0, 2])
def test_results_have_memory_of_their_own(batch: int) -> None:
    inputs = make_inputs(12, counts=[3] * batch)
    own = {value.untyped_storage().data_ptr() for value in inputs.values() if isinstance(value, Tensor)}
    results = define(inputs)
    assert all(result is not inputs["counts"] for result in results)
    assert batch == 0 or not own & {result.untyped_storage().data_ptr() for result in results}


# --- hostile ---------------------------------------------------------------------------------------------------------

BAD = [float("nan"), float("inf"), -float("inf")]


def test_no_number_among_the_logits(front: Front) -> None:
    inputs = make_inputs(13, counts=[6, 6, 6])
    for image, bad in enumerate(BAD):
        inputs["semantic"][image, :, 2:4] = bad  # whole rows: of sums with 2^100 nothing else is left
        inputs["mask_logits"][image, ::2] = bad
    check(front, inputs, double=False)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("bad", [*BAD, None])
def test_no_number_at_all(front: Front, dtype: torch.dtype, bad: float | None) -> None:
    inputs = make_inputs(14, counts=[6], dtype=dtype)
    bad = torch.finfo(dtype).max if bad is None else bad
    inputs["semantic"].fill_(bad)
    check(front, inputs, double=False)
    inputs["mask_logits"].fill_(bad)
    inputs["scores"].fill_(bad)
    inputs["scales"].fill_(bad)
    check(front, inputs, double=False)


def test_boxes_of_all_kinds(front: Front) -> None:
    inputs = make_inputs(15, counts=[6] * 6)
    boxes = inputs["boxes"]
    boxes[0, :, 2:] = boxes[0, :, :2] - 0.75
    boxes[1, :, 2:] = boxes[1, :, :2] - 20
    boxes[2] += torch.tensor([50.0, 0, 50, 0])
    boxes[3] *= torch.tensor([3.4e38, -1, -3e38, 7])[:, None].repeat(2, 1)[:6]
    boxes[4, :3], boxes[4, 3:] = float("nan"), float("inf")
    boxes[5] = torch.tensor([-float("inf"), -1e9, float("inf"), 1e9])
    check(front, inputs)
    boxes[:, 1::2, 1] = float("nan")
    check(front, inputs)


def test_classes_that_do_not_exist(front: Front) -> None:
    inputs = make_inputs(16, counts=[6, 6])
    inputs["classes"][0, :3] = torch.tensor([-1, 2, 2**40])
    inputs["classes"][1] = 2**32
    check(front, inputs)


def test_counts_out_of_range(front: Front) -> None:
    inputs = make_inputs(17, counts=[-3, 7, 2**31 - 1, -(2**31)])
    check(front, inputs)


def test_rows_beyond_the_count_are_not_read(front: Front) -> None:
    inputs = make_inputs(18, counts=[3, 0])
    expected = define(inputs)
    for name in ("boxes", "scores", "mask_logits"):
        for image, count in enumerate(inputs["counts"]):
            inputs[name][image, count:] = float("nan")
    inputs["classes"][0, 3:], inputs["classes"][1] = 10**6, -5
    assert all(torch.equal(a, b) for a, b in zip(run(front, inputs), expected, strict=True))


@pytest.mark.parametrize(
    "name, value",
    [
        ("semantic", torch.zeros(2, 5, 6)),
        ("semantic", torch.zeros(2, 5, 6, 9, dtype=torch.float64)),
        ("boxes", torch.zeros(2, 6, 5)),
        ("boxes", torch.zeros(2, 6, 4, dtype=torch.float16)),
        ("classes", torch.zeros(2, 6, dtype=torch.int32)),
        ("scores", torch.zeros(2, 7)),
        ("mask_logits", torch.zeros(2, 6, 5, 4)),
        ("mask_logits", torch.zeros(2, 6, 0, 0)),
        ("counts", torch.zeros(2, dtype=torch.int64)),
        ("sizes", torch.zeros(2, 3, dtype=torch.int32)),
        ("scales", torch.zeros(1)),
        ("num_stuff", 0),
        ("num_stuff", 6),
    ],
)
def test_errors_name_the_tensor(name: str, value: Tensor | int) -> None:
    inputs = make_inputs(19, counts=[6, 6]) | {name: value}
    with pytest.raises(ValueError, match=f"^panoptic_fusion: .*{name}"):
        plugins_cuda.panoptic_fusion(**inputs, stuff_area_limit=1.0)


# --- memory ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["emulated", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize(
    "batch, height, width, stuff, things, rows, mask_size",
    [
        (1, 200, 336, 53, 80, 100, 28),
        (4, 256, 512, 11, 8, 100, 28),
        (2, 125, 170, 53, 80, 202, 28),
        (1, 16, 24, 3, 2, 7, 5),
    ],
)
def test_workspace_is_small(
    name: str, batch: int, height: int, width: int, stuff: int, things: int, rows: int, mask_size: int
) -> None:
    if name == "cuda" and not torch.cuda.is_available():
        pytest.skip("no NVIDIA GPU")
    compiled = library.load(name, library.gpu_architecture(torch.device("cuda")) if name == "cuda" else "")
    params = params_type(SCHEMA)(
        batch=batch, num_stuff=stuff, num_things=things, height=height, width=width, detections=rows,
        mask_size=mask_size,
    )  # fmt: skip
    size = compiled.workspace_size("panoptic_fusion", params)
    pixels = batch * 16 * height * width
    assert size <= 16 * pixels + pixels * (things + rows) / 8


# --- PyTorch and ONNX Runtime ----------------------------------------------------------------------------------------


def arguments(inputs: Inputs) -> tuple[object, ...]:
    return (*inputs.values(), 20.0, 0.3, False)


def test_operator_keeps_pytorch_rules() -> None:
    inputs = make_inputs(20, counts=[6, 2])
    torch.library.opcheck(torch.ops.upsnet.panoptic_fusion, arguments(inputs))
    inputs["semantic"] = inputs["semantic"].half().contiguous(memory_format=torch.channels_last)
    torch.library.opcheck(torch.ops.upsnet.panoptic_fusion, arguments(inputs))


def test_compile_and_export_see_one_operator() -> None:
    inputs = make_inputs(21, counts=[6, 2])
    inputs.pop("num_stuff")
    fuse: Callable[..., object] = plugins_cuda.panoptic_fusion
    assert_one_operator("panoptic_fusion", lambda *tensors: fuse(*tensors, 3, 20.0), tuple(inputs.values()))


def test_strided_inputs(front: Front) -> None:
    inputs = make_inputs(22, counts=[6, 2])
    expected = define(inputs, double=True)
    inputs["semantic"] = inputs["semantic"].repeat_interleave(2, dim=3)[..., ::2]
    inputs["mask_logits"] = inputs["mask_logits"].mT.contiguous().mT
    inputs["boxes"] = inputs["boxes"].repeat(1, 1, 2)[..., :4]
    assert all(torch.equal(a, b) for a, b in zip(run(front, inputs), expected, strict=True))


@pytest.mark.parametrize("mask_type", [torch.float16, torch.float32])
def test_body_takes_half_precision(run_node: RunNode, front: Front, mask_type: torch.dtype) -> None:
    inputs = make_inputs(23, counts=[6, 2], dtype=torch.float16)
    inputs["mask_logits"] = inputs["mask_logits"].to(mask_type)
    attributes = {"num_stuff": inputs["num_stuff"], "stuff_area_limit": 20.0, "mask_overlap_threshold": 0.3}
    tensors = {name: value for name, value in inputs.items() if isinstance(value, Tensor)}
    body = run_node("PanopticFusion", tensors, [torch.uint8, torch.float32, torch.int32], **attributes)
    expected = check(front, inputs)
    wanted = RawPrediction(*(tensor.numpy() for tensor in expected))
    assert_same_segments(RawPrediction(*body), wanted, identical=0.995, score=0.0)
