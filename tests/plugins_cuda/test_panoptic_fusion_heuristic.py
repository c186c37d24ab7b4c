"""The heuristic merge (`heuristic=True`): detectron2's own results, a slow loop over pixels, every front."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

import plugins_cuda
from plugins_cuda import library
from plugins_cuda.panoptic_fusion import reference
from tests.agreement import assert_same_segments
from tests.plugins_cuda.conftest import FORWARD, Calling, Front, RunNode, export, front_fixture, run_model
from tests.plugins_cuda.inputs import LAYOUTS, TYPES
from tests.plugins_cuda.test_panoptic_fusion_fronts import Inputs, check, define, make_inputs, run
from upsnet.runtimes.predictor import RawPrediction

pytestmark = pytest.mark.numeric
front = front_fixture(FORWARD)
OVERLAP = 0.5
SURE = 2.0**100  # a mask logit whose probability is 1; that of -SURE is below 1e-34


def heuristic_inputs(seed: int, **options: Any) -> Inputs:
    """One channel for all things, as detectron2 has it; classes that the channels do not tell."""
    inputs = make_inputs(seed, **({"things": 1} | options))
    generator = torch.Generator().manual_seed(seed)
    classes = torch.randint(0, 80, inputs["classes"].shape, generator=generator)
    return inputs | {"classes": classes, "heuristic": True}


# --- detectron2's results --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def golden(shared_data: Path) -> Path:
    return shared_data / "panoptic_fpn_golden"


class MergeCase:
    """One of detectron2's merges: masks by descending score, those under the score limit left out."""

    def __init__(self, golden: Path, index: int) -> None:
        self.facts = json.loads((golden / "merge_cases.json").read_text())[index]
        arrays = np.load(golden / "merge_cases.npz")
        self.semantic = torch.from_numpy(arrays[f"{index:02d}_semantic"].astype(np.int64))
        self.panoptic = torch.from_numpy(arrays[f"{index:02d}_panoptic"].astype(np.int64))
        self.shape = tuple(self.semantic.shape)
        scores = arrays[f"{index:02d}_scores"]
        order = np.argsort(-scores, kind="stable")
        self.order = order[scores[order].astype(np.float64) >= self.facts["score_threshold"]]
        flat = np.unpackbits(arrays[f"{index:02d}_masks"], axis=1)[:, : self.semantic.numel()]
        self.masks = torch.from_numpy(flat.reshape(len(scores), *self.shape).astype(bool))[torch.from_numpy(self.order)]
        self.scores = torch.from_numpy(scores[self.order])
        self.classes = torch.from_numpy(arrays[f"{index:02d}_classes"][self.order].astype(np.int64))
        self.things = [segment for segment in self.facts["segments_info"] if segment["isthing"]]
        self.stuff = [segment for segment in self.facts["segments_info"] if not segment["isthing"]]


@pytest.mark.parametrize("index", range(12))
def test_detectron2_merge_cases(golden: Path, index: int) -> None:
    case, stuff = MergeCase(golden, index), 53
    keep = reference.prune(case.masks, torch.zeros_like(case.classes), case.facts["overlap_threshold"])
    assert [case.order[row] for row in keep] == [segment["instance_id"] for segment in case.things]
    semantic = torch.where(case.semantic == 0, stuff, case.semantic - 1)  # our order: what all things are comes last
    labels = reference.first_masks(case.masks[keep], semantic, stuff)
    void, limit = stuff + len(keep), torch.tensor(float(case.facts["stuff_area_limit"]))
    labels = reference.drop_small_stuff(labels, stuff, void, limit)

    wanted = torch.full(case.shape, void)
    for row, segment in enumerate(case.things):
        wanted[case.panoptic == segment["id"]] = stuff + row
    for segment in case.stuff:
        wanted[case.panoptic == segment["id"]] = segment["category_id"] - 1
        assert int((labels == segment["category_id"] - 1).sum()) == segment["area"]
    assert torch.equal(labels, wanted)


@pytest.mark.parametrize("index", range(2, 11))
def test_detectron2_merge_cases_on_every_front(front: Front, golden: Path, index: int) -> None:
    """The instances of the cases: a box of the masks' size pastes them as they are. Without stuff the rest is void."""
    case = MergeCase(golden, index)
    side, count = 4 * -(-max(case.shape) // 4), len(case.order)
    logits = torch.full((1, count, side, side), -SURE)
    logits[0, :, : case.shape[0], : case.shape[1]][case.masks] = SURE
    semantic = torch.zeros(1, 2, side // 4, side // 4)
    semantic[:, 1] = 1.0
    inputs = {
        "semantic": semantic,
        "boxes": torch.tensor([0.0, 0, side, side]).expand(1, count, 4).contiguous(),
        "classes": case.classes[None],
        "scores": case.scores[None],
        "mask_logits": logits,
        "counts": torch.tensor([count], dtype=torch.int32),
        "sizes": torch.tensor([case.shape], dtype=torch.int32),
        "scales": torch.ones(1),
        "num_stuff": 1,
        "heuristic": True,
    }
    panoptic, segments, segment_count = run(front, inputs, 0.0, case.facts["overlap_threshold"])
    is_thing = torch.zeros(256, dtype=torch.bool)
    is_thing[[segment["id"] for segment in case.things]] = True
    wanted = torch.where(is_thing[case.panoptic], case.panoptic, 0)
    assert torch.equal(panoptic[0, : case.shape[0], : case.shape[1]].long(), wanted)
    assert int(segment_count) == len(case.things)
    for row, segment in enumerate(case.things):
        assert segments[0, row, 0] == 1 + segment["category_id"]
        assert float(segments[0, row, 1]) == pytest.approx(segment["score"])
        assert segments[0, row, 2] == (wanted == segment["id"]).sum()


def test_detectron2_pasted_masks(golden: Path) -> None:
    """Its own 28 x 28 logits, its boxes and what it made of them at the photo's size."""
    arrays, facts = np.load(golden / "r50.npz"), json.loads((golden / "r50.json").read_text())
    height, width = arrays["panoptic"].shape
    boxes, logits = (torch.from_numpy(arrays[name]) for name in ("orig_boxes", "det_mask_logits"))
    masks = reference.pasted_masks(logits.double(), boxes.double(), height, width)
    wanted = np.unpackbits(arrays["orig_mask_bits"], axis=1)[:, : height * width].reshape(-1, height, width)
    assert facts is not None and len(masks) == len(wanted)
    np.testing.assert_array_equal(masks.numpy(), wanted.astype(bool))


# --- a slow, separate implementation: one pixel at a time, float64 ---------------------------------------------------


def bilinear(grid: np.ndarray, y: float, x: float) -> float:
    """Beyond the grid's cells are zeros."""
    top, left = int(np.floor(y)), int(np.floor(x))
    value = 0.0
    for row, column in ((top, left), (top, left + 1), (top + 1, left), (top + 1, left + 1)):
        if 0 <= row < grid.shape[0] and 0 <= column < grid.shape[1]:
            value += grid[row, column] * (1 - abs(y - row)) * (1 - abs(x - column))
    return value


def slow_labels(inputs: dict[str, np.ndarray], stuff: int, limit: float) -> tuple[np.ndarray, float]:
    """[H, W]: -1 void, a stuff class, or stuff + row; and how near a decision about a pixel was."""
    low = inputs["semantic"].astype(np.float64)
    height, width = 4 * low.shape[1], 4 * low.shape[2]
    edged = np.pad(low, ((0, 0), (1, 1), (1, 1)), mode="edge")
    valid_height, valid_width = inputs["sizes"]
    label, nearest = np.full((height, width), -1), np.inf
    taken = np.zeros((height, width), bool)
    for row in range(inputs["counts"]):
        x1, y1, x2, y2 = inputs["boxes"][row].astype(np.float64)
        probabilities = 1 / (1 + np.exp(-inputs["mask_logits"][row].astype(np.float64)))
        cells, mask = len(probabilities), np.zeros((height, width), bool)
        for y, x in np.ndindex(valid_height, valid_width):
            if x2 > x1 and y2 > y1:
                place = [(y + 0.5 - y1) / (y2 - y1) * cells - 0.5, (x + 0.5 - x1) / (x2 - x1) * cells - 0.5]
                value = bilinear(probabilities, *place)
                mask[y, x], nearest = value >= 0.5, min(nearest, abs(value - 0.5))
        if mask.sum() and (mask & taken).sum() / mask.sum() <= OVERLAP:
            label[mask & ~taken] = stuff + row
            taken |= mask
    for y, x in np.ndindex(valid_height, valid_width):
        logits = [bilinear(channel, (y + 0.5) / 4 + 0.5, (x + 0.5) / 4 + 0.5) for channel in edged]
        if not taken[y, x]:
            nearest = min(nearest, np.diff(sorted(logits)[-2:])[0])
            label[y, x] = np.argmax(logits) if np.argmax(logits) < stuff else -1
    for one in range(stuff):
        if (label == one).sum() < limit * float(inputs["scales"]) ** 2:
            label[label == one] = -1
    return label, float(nearest)


@pytest.mark.parametrize("seed, sharp", [(1, 3.0), (2, 0.7), (3, 20.0)])
def test_slow_loop_over_pixels(front: Front, seed: int, sharp: float) -> None:
    inputs = heuristic_inputs(seed, counts=[6, 4], sharp=sharp, height=5, width=7)
    panoptic, segments, segment_count = run(front, inputs, overlap=OVERLAP)
    for image in range(2):
        alone = {name: value[image].numpy() for name, value in inputs.items() if isinstance(value, Tensor)}
        label, nearest = slow_labels(alone, 3, limit=20.0)
        assert nearest > 1e-5, "a near tie: choose another seed"
        values = np.unique(label[label >= 0])
        assert segment_count[image] == len(values) > 2
        number = np.searchsorted(values, label) + 1
        np.testing.assert_array_equal(panoptic[image].numpy(), np.where(label < 0, 0, number))
        for row, value in enumerate(values):
            category = value if value < 3 else 3 + alone["classes"][value - 3]
            score = 1.0 if value < 3 else alone["scores"][value - 3]
            y, x = np.nonzero(label == value)
            wanted = [category, score, len(y), x.min(), y.min(), x.max() + 1, y.max() + 1]
            np.testing.assert_array_equal(segments[image, row].numpy(), np.array(wanted, np.float32))


# --- every front against the definition ------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", TYPES)
def test_every_type_and_layout(front: Front, dtype: torch.dtype, layout: torch.memory_format) -> None:
    inputs = heuristic_inputs(11, counts=[6, 3], dtype=dtype)
    inputs["semantic"] = inputs["semantic"].contiguous(memory_format=layout)
    check(front, inputs, overlap=OVERLAP)
    inputs["mask_logits"] = inputs["mask_logits"].float()
    check(front, inputs, overlap=OVERLAP)


@pytest.mark.parametrize(
    "height, width, stuff, things, mask_size",
    [(1, 1, 3, 0, 5), (1, 70, 1, 1, 1), (19, 3, 9, 1, 28), (11, 35, 5, 20, 7), (3, 33, 2, 1, 2), (40, 9, 53, 1, 28)],
)
def test_sizes(front: Front, height: int, width: int, stuff: int, things: int, mask_size: int) -> None:
    """However many channels there are: none of them, or all beyond the stuff, are void."""
    sizes = {"height": height, "width": width, "stuff": stuff, "things": max(things, 1), "mask_size": mask_size}
    inputs = heuristic_inputs(12, counts=[5], rows=5, **sizes)
    inputs["semantic"] = inputs["semantic"][:, : stuff + things].contiguous()
    check(front, inputs, limit=5.0, overlap=OVERLAP)


def test_as_many_rows_as_fit(front: Front) -> None:
    inputs = heuristic_inputs(13, counts=[254], rows=254, stuff=1, height=1, width=2, mask_size=2)
    check(front, inputs, limit=0.0, overlap=1.0)


def test_many_masks_over_one_another(front: Front) -> None:
    inputs = heuristic_inputs(14, counts=[50], rows=50, height=6, width=17, mask_size=14)
    for overlap in (0.0, OVERLAP):
        check(front, inputs, overlap=overlap)


def test_boxes_of_all_kinds(front: Front) -> None:
    """Below a pixel, empty, inverted, outside, endless, NaN."""
    inputs = heuristic_inputs(15, counts=[6] * 6)
    boxes = inputs["boxes"]
    boxes[0, :, 2:] = boxes[0, :, :2] + torch.tensor([0.75, 1.5])
    boxes[1, :, 2:] = boxes[1, :, :2] - torch.arange(6)[:, None]
    boxes[2] += torch.tensor([20.0, 0, 20, 0])
    boxes[3] *= torch.tensor([3.4e38, -1, -3e38, 7])[:, None].repeat(2, 1)[:6]
    boxes[4, :3], boxes[4, 3:] = float("nan"), float("inf")
    boxes[5] = torch.tensor([-float("inf"), -1e9, float("inf"), 1e9])
    check(front, inputs, overlap=OVERLAP)
    boxes[:, 1::2, 1] = float("nan")
    check(front, inputs, overlap=OVERLAP)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 3e4, -3e4])
def test_no_number_at_all(front: Front, dtype: torch.dtype, bad: float) -> None:
    inputs = heuristic_inputs(16, counts=[6], dtype=dtype)
    inputs["mask_logits"][:, ::2, ::2] = bad
    check(front, inputs, overlap=OVERLAP, double=False)
    inputs["semantic"].fill_(bad)
    check(front, inputs, overlap=OVERLAP, double=False)


def test_classes(front: Front) -> None:
    """Any index that the table's floats can count."""
    inputs = heuristic_inputs(17, counts=[6, 6])
    inputs["classes"][0] = torch.tensor([-1, 2**24 - 1, 2**24, 2**40, 0, 79])
    inputs["classes"][1] = 2**32
    _, segments, _ = check(front, inputs, limit=0.0, overlap=1.0)
    assert {float(category) for category in segments[0, :, 0] if category > 3} <= {2.0**24 + 2, 82.0}
    assert segments[1, :, 0].max() < 3


def test_counts_and_sizes_out_of_range(front: Front) -> None:
    inputs = heuristic_inputs(18, counts=[-3, 7, 0, 2])
    inputs["sizes"] = torch.tensor([[24, 36], [-1, 36], [1000, 1000], [13, 2]], dtype=torch.int32)
    check(front, inputs, overlap=OVERLAP)


@st.composite
def dyadic_inputs(draw: st.DrawFn) -> tuple[Inputs, float, float]:
    """Probabilities 0, 1/2 and 1, boxes whose sizes are the mask's times powers of two: no operation rounds, and many
    values are just one half."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    batch, rows, stuff = draw(st.integers(0, 2)), draw(st.integers(0, 6)), draw(st.integers(1, 4))
    height, width, mask_size = draw(st.integers(1, 7)), draw(st.integers(1, 9)), draw(st.sampled_from([1, 2, 4]))
    dtype = draw(st.sampled_from(TYPES))
    low = rng.integers(-40, 16 * max(height, width), (batch, rows, 2)) / 4
    size = mask_size * 2.0 ** rng.integers(-1, 4, (batch, rows, 2))
    inputs = {
        "semantic": torch.from_numpy(rng.integers(-2, 3, (batch, stuff + 1, height, width)) / 2).to(dtype),
        "boxes": torch.from_numpy(np.concatenate([low, low + size], axis=-1)).float(),
        "classes": torch.from_numpy(rng.integers(0, 80, (batch, rows))),
        "scores": torch.from_numpy(rng.integers(0, 4, (batch, rows)) / 4).float(),
        "mask_logits": torch.from_numpy(rng.choice([-6e4, 0.0, 6e4], (batch, rows, mask_size, mask_size))).to(dtype),
        "counts": torch.from_numpy(rng.integers(-1, rows + 2, batch)).int(),
        "sizes": torch.from_numpy(rng.integers(-1, 4 * max(height, width) + 3, (batch, 2))).int(),
        "scales": torch.from_numpy(rng.choice([0.5, 1.0, 2.0], batch)).float(),
        "num_stuff": stuff,
        "heuristic": True,
    }
    return inputs, draw(st.sampled_from([0.0, 10.0, 1e6])), draw(st.sampled_from([0.0, 0.25, 0.5, 1.0]))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], database=None)
@given(drawn=dyadic_inputs())
def test_dyadic_inputs(front: Front, drawn: tuple[Inputs, float, float]) -> None:
    check(front, *drawn)


@pytest.mark.usefixtures("other_order")
def test_order_of_emulated_threads_does_not_matter() -> None:
    check(Front("emulated"), heuristic_inputs(19, counts=[6, 5], height=5, width=40), overlap=OVERLAP)


def test_threads_of_the_cpu_do_not_matter() -> None:
    torch.set_num_threads(3)
    check(Front("cpu"), heuristic_inputs(20, counts=[6, 5], height=40, width=10), overlap=OVERLAP)


def test_cpu_and_gpu_text_agree_to_the_bit() -> None:
    """Where pixels are nearly ties too: the masks' values lie within rounding of one half."""
    inputs = heuristic_inputs(21, counts=[6, 6], height=12, width=20, sharp=1e-7)
    inputs["mask_logits"] -= 0.5
    on_cpu = run(Front("cpu"), inputs, limit=0.0, overlap=1.0)
    with library.emulation():
        emulated = run(Front("emulated"), inputs, limit=0.0, overlap=1.0)
    assert all(torch.equal(one, other) for one, other in zip(on_cpu, emulated, strict=True))


# --- properties ------------------------------------------------------------------------------------------------------


def test_classes_change_nothing_but_the_table(front: Front) -> None:
    inputs = heuristic_inputs(31, counts=[6, 6])
    panoptic, segments, segment_count = run(front, inputs, overlap=OVERLAP)
    inputs["classes"] = (inputs["classes"] + 17) % 80
    other_panoptic, other_segments, other_count = run(front, inputs, overlap=OVERLAP)
    assert torch.equal(panoptic, other_panoptic) and torch.equal(segment_count, other_count)
    assert torch.equal(segments[..., 1:], other_segments[..., 1:])
    assert not torch.equal(segments[..., 0], other_segments[..., 0])


def one_image(masks: list[list[float]], scores: list[float], stuff_wins: bool = True) -> Inputs:
    """Boxes whose masks are whole, in an image of 32 x 48 of which 28 x 44 are valid."""
    semantic = torch.zeros(1, 2, 8, 12)
    semantic[:, 0 if stuff_wins else 1] = 1.0
    return {
        "semantic": semantic,
        "boxes": torch.tensor([masks]).reshape(1, -1, 4),
        "classes": torch.arange(len(masks))[None],
        "scores": torch.tensor([scores]),
        "mask_logits": torch.full((1, len(masks), 20, 20), SURE),
        "counts": torch.tensor([len(masks)], dtype=torch.int32),
        "sizes": torch.tensor([[28, 44]], dtype=torch.int32),
        "scales": torch.ones(1),
        "num_stuff": 1,
        "heuristic": True,
    }


def test_first_mask_has_the_pixels(front: Front) -> None:
    """Equal scores: the first row. The second loses its covered half, the third too much of it."""
    inputs = one_image([[0.0, 0, 20, 20], [10.0, 0, 30, 20], [5.0, 0, 34, 10]], [0.9, 0.9, 0.9])
    panoptic, segments, segment_count = run(front, inputs, limit=0.0, overlap=OVERLAP)
    assert segment_count.tolist() == [3]
    assert segments[0, :3, 0].tolist() == [0.0, 1.0, 2.0]
    assert segments[0, :3, 2].tolist() == [28 * 44 - 600, 400, 200]
    assert segments[0, 2, 3:].tolist() == [20, 0, 30, 20]
    assert (panoptic[0, :20, :20] == 2).all() and (panoptic[0, :20, 20:30] == 3).all()
    assert (panoptic[0, 28:] == 0).all() and (panoptic[0, :, 44:] == 0).all()


def test_no_pixel_beyond_the_box(front: Front) -> None:
    """A whole mask has the pixels whose centres are in its box, and on its border, where probabilities have fallen to
    one half; but not where two borders meet."""
    inputs = one_image([[2.5, 3.5, 9.5, 8.25], [20.51, 10.49, 30.49, 12.51]], [0.9, 0.8], stuff_wins=False)
    panoptic, segments, _ = run(front, inputs, limit=0.0, overlap=OVERLAP)
    assert segments[0, 0, 2:].tolist() == [8 * 5 - 2, 2, 3, 10, 8]
    assert segments[0, 1, 2:].tolist() == [9 * 3, 21, 10, 30, 13]
    assert int((panoptic > 0).sum()) == 8 * 5 - 2 + 9 * 3


def test_things_without_an_instance_and_small_stuff_are_void(front: Front) -> None:
    for inputs, limit in ((one_image([], [], stuff_wins=False), 0.0), (one_image([], []), 28 * 44 + 1.0)):
        panoptic, segments, segment_count = run(front, inputs, limit=limit, overlap=OVERLAP)
        assert not panoptic.any() and not segments.any() and not segment_count.any()
    _, segments, _ = run(front, one_image([], []), limit=28 * 44.0, overlap=OVERLAP)
    assert segments[0, 0].tolist() == [0, 1, 28 * 44, 0, 0, 44, 28]


def test_stuff_area_is_what_instances_leave(front: Front) -> None:
    inputs = one_image([[0.0, 0, 44, 20]], [0.9])
    for limit, kept in ((8.0 * 44, 2), (8.0 * 44 + 1, 1)):
        _, segments, segment_count = run(front, inputs, limit=limit, overlap=OVERLAP)
        assert segment_count.tolist() == [kept]
        assert segments[0, kept - 1, 2] == 20 * 44


# --- the node --------------------------------------------------------------------------------------------------------

OUTPUTS = [torch.uint8, torch.float32, torch.int32]


def run_body(run_node: RunNode, inputs: Inputs, limit: float = 20.0, **attributes: Any) -> RawPrediction:
    tensors = {name: value for name, value in inputs.items() if isinstance(value, Tensor)}
    numbers = {"num_stuff": inputs["num_stuff"], "stuff_area_limit": limit, "mask_overlap_threshold": OVERLAP}
    return RawPrediction(*run_node("PanopticFusion", tensors, OUTPUTS, **numbers, **attributes))


def assert_agree(body: RawPrediction, expected: list[Tensor]) -> None:
    """ONNX Runtime may round otherwise, and so differ where a value is nearly one half or two logits nearly tie."""
    assert_same_segments(body, RawPrediction(*(each.numpy() for each in expected)), identical=0.995, score=0.0)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("counts", [[6], [0], [0, 0], [3, 0, 6, 1]])
def test_body_equals_reference(run_node: RunNode, seed: int, counts: list[int]) -> None:
    inputs = heuristic_inputs(seed, counts=counts)
    assert_agree(run_body(run_node, inputs, merge="heuristic"), define(inputs, overlap=OVERLAP))


def test_body_with_other_channels(run_node: RunNode) -> None:
    for channels in (3, 8):
        inputs = heuristic_inputs(41, counts=[6, 2], things=5, mask_size=28)
        inputs["semantic"] = inputs["semantic"][:, :channels].contiguous()
        assert_agree(run_body(run_node, inputs, merge="heuristic"), define(inputs, overlap=OVERLAP))


def test_body_with_hostile_boxes(run_node: RunNode) -> None:
    inputs = heuristic_inputs(42, counts=[6] * 4)
    boxes = inputs["boxes"]
    boxes[0, :, 2:] = boxes[0, :, :2]
    boxes[1, :, 2:] = boxes[1, :, :2] - 0.75
    boxes[2] += torch.tensor([20.0, 0, 20, 0])
    boxes[3] = torch.tensor([-500.0, -400, 700, 900])
    inputs["mask_logits"][0] = float("nan")
    assert_agree(run_body(run_node, inputs, merge="heuristic"), define(inputs, overlap=OVERLAP))


def test_body_takes_half_precision(run_node: RunNode) -> None:
    inputs = heuristic_inputs(43, counts=[6, 2], dtype=torch.float16)
    assert_agree(run_body(run_node, inputs, merge="heuristic"), define(inputs, overlap=OVERLAP))


def test_exported_node_names_its_merge() -> None:
    inputs = heuristic_inputs(45, counts=[6, 2])
    tensors = tuple(value for value in inputs.values() if isinstance(value, Tensor))
    fuse: Callable[..., Any] = plugins_cuda.panoptic_fusion
    model = export(Calling(lambda *given: fuse(*given, 3, 20.0, OVERLAP, heuristic=True)), tensors)
    (node,) = (node for node in model.graph.node if node.op_type == "PanopticFusion")
    assert {each.name: each.s for each in node.attribute}["merge"] == b"heuristic"
    assert_agree(RawPrediction(*run_model(model, *tensors)), define(inputs, overlap=OVERLAP))


def test_node_without_the_attribute_is_the_older_one(run_node: RunNode) -> None:
    inputs = make_inputs(44, counts=[6, 2])
    before, named = run_body(run_node, inputs), run_body(run_node, inputs, merge="logits")
    assert all(np.array_equal(one, other) for one, other in zip(before, named, strict=True))
    assert_agree(before, define(inputs, overlap=OVERLAP))
