"""What TensorRT asks a plugin before it runs: attributes, types, formats, shapes."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

import pytest
import torch

from tests.plugins_cuda.tensorrt.harness import Harness, Tensors
from tests.plugins_cuda.tensorrt.profile import Profile, declaration

pytestmark = pytest.mark.tensorrt

FLOAT, HALF, BF16, INT32, INT64 = torch.float32, torch.float16, torch.bfloat16, torch.int32, torch.int64
NMS = {"iou_threshold": 0.5, "score_threshold": 0.25, "max_output": 12, "top_k": 0, "inclusive": 0}
CONVOLUTION = {"strides": [1, 1], "pads": [1, 1, 1, 1], "dilations": [1, 1], "group": 1, "offset_group": 1}
NODES: dict[str, Mapping[str, object]] = {
    "RoiAlignFpn": {
        "output_size": 7,
        "sampling_ratio": 2,
        "coordinate_transformation_mode": "half_pixel",
        "canonical_size": 224.0,
        "inclusive": 0,
        "rounded_levels": 0,
    },
    "PaddedNms": NMS,
    "PaddedBatchedNms": NMS,
    "DeformConv2d": CONVOLUTION,
    "ModulatedDeformConv2d": CONVOLUTION,
    "PanopticFusion": {"num_stuff": 3, "stuff_area_limit": 50.0, "mask_overlap_threshold": 0.25, "merge": "logits"},
}

BATCH, BOXES, CHANNELS = 2, 20, 16
CONVOLVED = [(BATCH, CHANNELS, 12, 10), (BATCH, 18, 12, 10), (8, CHANNELS, 3, 3), (8,)]
# Inputs, then outputs, of NODES' attributes.
SHAPES: dict[str, list[tuple[int, ...]]] = {
    "RoiAlignFpn": [
        *((BATCH, CHANNELS, 32 >> level, 48 >> level) for level in range(4)),
        (BATCH, BOXES, 4),
        (BATCH, BOXES, CHANNELS, 7, 7),
    ],
    "PaddedNms": [(BATCH, BOXES, 4), (BATCH, BOXES), (BATCH, 12), (BATCH,)],
    "PaddedBatchedNms": [(BATCH, BOXES, 4), (BATCH, BOXES), (BATCH, BOXES), (BATCH, 12), (BATCH,)],
    "DeformConv2d": [*CONVOLVED, (BATCH, 8, 12, 10)],
    "ModulatedDeformConv2d": [*CONVOLVED, (BATCH, 9, 12, 10), (BATCH, 8, 12, 10)],
    "PanopticFusion": [
        (BATCH, CHANNELS, 8, 12), (BATCH, 6, 4), (BATCH, 6), (BATCH, 6), (BATCH, 6, 28, 28), (BATCH,), (BATCH, 2),
        (BATCH,), (BATCH, 32, 48), (BATCH, 9, 7), (BATCH,),
    ],
}  # fmt: skip
# The tensors that may be channels-last.
IMAGES = {"RoiAlignFpn": [0, 1, 2, 3], "DeformConv2d": [0, 4], "ModulatedDeformConv2d": [0, 5], "PanopticFusion": [0]}


def types_of(name: str, feature: torch.dtype) -> list[torch.dtype]:
    return {
        "RoiAlignFpn": [feature, feature, feature, feature, FLOAT, feature],
        "PaddedNms": [FLOAT, FLOAT, INT64, INT32],
        "PaddedBatchedNms": [FLOAT, FLOAT, INT64, INT64, INT32],
        "DeformConv2d": [feature, FLOAT, feature, FLOAT, feature],
        "ModulatedDeformConv2d": [feature, FLOAT, feature, FLOAT, FLOAT, feature],
        "PanopticFusion": [feature, FLOAT, INT64, FLOAT, feature, INT32, INT32, FLOAT, HALF, FLOAT, INT32],
    }[name]


def test_creators_and_their_fields(harness: Harness) -> None:
    assert set(harness.creators) == set(NODES)
    for name, attributes in NODES.items():
        assert harness.field_names(name) == list(attributes)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("RoiAlignFpn", {"output_size": None}, "attribute output_size is missing"),
        ("RoiAlignFpn", {"output_size": 0}, "attribute output_size must be at least 1"),
        ("RoiAlignFpn", {"output_size": [7, 7]}, "attribute output_size holds 2 values, not 1"),
        ("RoiAlignFpn", {"sampling_ratio": -1}, "attribute sampling_ratio must be at least 0"),
        ("RoiAlignFpn", {"sampling_ratio": 0, "output_size": 1025}, "must multiply to at most 1024"),
        ("RoiAlignFpn", {"output_size": 7.0}, "attribute output_size is no integer"),
        ("RoiAlignFpn", {"canonical_size": 224}, "attribute canonical_size is no floating-point number"),
        ("RoiAlignFpn", {"coordinate_transformation_mode": "pixel"}, "must be half_pixel or output_half_pixel"),
        ("RoiAlignFpn", {"coordinate_transformation_mode": 1}, "coordinate_transformation_mode is not a string"),
        ("PaddedNms", {"max_output": 0}, "attribute max_output must be at least 1"),
        ("PaddedNms", {"max_output": 2**31 - 1}, "attribute max_output must be at most 2^30"),
        ("PaddedNms", {"score_threshold": math.nan}, "attribute score_threshold is NaN"),
        ("PaddedBatchedNms", {"top_k": -1}, "attribute top_k is gone and must be 0: export the model anew"),
        ("DeformConv2d", {"pads": [1, 1]}, "attribute pads holds 2 values, not 4"),
        ("DeformConv2d", {"strides": [1, 0]}, "attribute strides must be at least 1"),
        ("ModulatedDeformConv2d", {"dilations": [0, 1]}, "attribute dilations must be at least 1"),
        ("PanopticFusion", {"num_stuff": -1}, "attribute num_stuff must be at least 1"),
    ],
)
def test_bad_attributes_are_refused(harness: Harness, name: str, changes: dict[str, object], message: str) -> None:
    attributes = {label: value for label, value in {**NODES[name], **changes}.items() if value is not None}
    with pytest.raises(ValueError, match=f"^upsnet {name}, createPlugin: .*{re.escape(message)}"):
        harness.create(name, attributes)


def test_no_fields_and_numbers_that_are_too_large(harness: Harness) -> None:
    with pytest.raises(ValueError, match="no attributes"):
        harness.create_from("PaddedNms", None)
    for number in (2**31, 2**40, -(2**31) - 1, -(2**40)):
        with pytest.raises(ValueError, match=f"attribute max_output is out of range: {number}"):
            harness.create("PaddedNms", NMS | {"max_output": number}, wide=True)


@pytest.mark.parametrize("name", NODES)
def test_attributes_survive_cloning_and_the_engine(harness: Harness, name: str) -> None:
    first, wide = harness.create(name, NODES[name]), harness.create(name, NODES[name], wide=True)
    text = " ".join(f"{label}={value}" for label, value in NODES[name].items())
    text = text.replace("[", "").replace("]", "").replace(", ", ",").replace(".0", "")
    assert first.metadata == wide.metadata == f"kernel_abi={harness.kernel_abi} {text}"
    copies = [harness.create_from(name, first.serialized(), phase=1), first.copy("clone"), first.copy("attach")]
    first.destroy()
    assert [plugin.metadata for plugin in copies] == [wide.metadata] * 3
    for plugin in (wide, *copies):
        plugin.destroy()


def test_optional_attributes(harness: Harness) -> None:
    required = {"iou_threshold": 0.5, "score_threshold": 0.25, "max_output": 12}
    assert harness.create("PaddedNms", required).metadata.endswith("top_k=0 inclusive=0")
    assert harness.create("DeformConv2d", {"strides": [1, 1]}).metadata.endswith("group=1 offset_group=1")


@pytest.mark.parametrize("name", NODES)
def test_outputs(harness: Harness, name: str) -> None:
    plugin = harness.create(name, NODES[name])
    inputs = len(SHAPES[name]) - plugin.num_outputs
    assert plugin.output_shapes(SHAPES[name][:inputs]) == SHAPES[name][inputs:]
    for feature in (FLOAT, HALF, BF16):
        types = types_of(name, feature)
        assert plugin.output_types(types[:inputs]) == types[inputs:]


@pytest.mark.parametrize("feature", [FLOAT, HALF, BF16])
@pytest.mark.parametrize("name", NODES)
def test_types(harness: Harness, name: str, feature: torch.dtype) -> None:
    plugin, types = harness.create(name, NODES[name]), types_of(name, feature)
    assert plugin.supports(SHAPES[name], types)
    for index, dtype in enumerate(types):
        for other in {FLOAT, HALF, INT32, INT64} - {dtype}:
            # PanopticFusion's two sorts of logits have each their own type, the others' features all one.
            free = name == "PanopticFusion" and index in (0, 4) and other in (FLOAT, HALF)
            assert plugin.supports(SHAPES[name], [*types[:index], other, *types[index + 1 :]]) == free


@pytest.mark.parametrize(
    ("feature", "layout", "wrong"), [(FLOAT, "hwc", "hwc8"), (HALF, "hwc8", "hwc"), (BF16, "hwc8", "hwc")]
)
@pytest.mark.parametrize("name", NODES)
def test_formats(harness: Harness, name: str, feature: torch.dtype, layout: str, wrong: str) -> None:
    plugin, types, images = harness.create(name, NODES[name]), types_of(name, feature), IMAGES.get(name, [])

    def supported(layout: str, where: list[int], channels: int = 0) -> bool:
        formats = [layout if index in where else "linear" for index in range(len(types))]
        shapes = [
            (shape[0], channels, *shape[2:]) if channels and index in images else shape
            for index, shape in enumerate(SHAPES[name])
        ]
        return plugin.supports(shapes, types, formats)

    assert supported(layout, images)
    for index in range(len(types)):  # one alone: only where there is but one
        assert supported(layout, [index]) == (images == [index])
    if images:
        assert not supported(wrong, images)
        assert supported("linear", images, channels=12)
        assert supported(layout, images, channels=12) == (feature == FLOAT)  # kHWC8 pads the channels to 16
        assert supported(layout, images, channels=-1) == (feature == FLOAT)


@pytest.mark.parametrize(
    ("name", "index", "shape", "message"),
    [
        ("RoiAlignFpn", 4, (2, 20, 5), "rois is [2 20 5], not [B R 4]"),
        ("RoiAlignFpn", 2, (2, 8, 8, 12), "P4 is [2 8 8 12], not [B C H4 W4] B=2 C=16"),
        ("RoiAlignFpn", 0, (2, 2**31, 32, 48), "P2 is [2 2147483648 32 48], not [B C H2 W2]"),
        ("PaddedNms", 1, (2, 20, 1), "scores is [2 20 1], not [B N]"),
        ("PaddedBatchedNms", 2, (2, 19), "classes is [2 19], not [B N] B=2 N=20"),
        ("DeformConv2d", 1, (2, 18, 12, 9), "offset's height and width are not the output's"),
        ("DeformConv2d", 1, (2, 9, 12, 10), "offset's channels are not 2 * offset_group * kernel size"),
        ("DeformConv2d", 2, (8, 8, 3, 3), "x's channels are not weight's channels times group"),
        ("DeformConv2d", 2, (8, 16, 15, 3), "offset's channels are not 2 * offset_group * kernel size"),
        ("ModulatedDeformConv2d", 4, (2, 18, 12, 10), "mask's channels are not offset_group * kernel size"),
        ("PanopticFusion", 0, (2, 2, 8, 12), "semantic has fewer channels than num_stuff"),
        ("PanopticFusion", 4, (2, 6, 28, 14), "mask_logits is [2 6 28 14], not [B N M M]"),
    ],
)
def test_bad_shapes_are_refused(harness: Harness, name: str, index: int, shape: tuple[int, ...], message: str) -> None:
    plugin = harness.create(name, NODES[name])
    shapes, types = list(SHAPES[name]), types_of(name, FLOAT)
    shapes[index] = shape
    assert plugin.output_shapes(shapes[: len(shapes) - plugin.num_outputs]) is None
    assert plugin.accepts(shapes, types) == (False, False)
    assert harness.messages().count(message) == 3
    assert plugin.accepts([(-1, *shape[1:]) for shape in SHAPES[name]], types) == (True, True)  # not known yet


# A letter of the declarations, its size, and what of it no kernel runs.
BEYOND: list[tuple[str, str, int, str]] = [
    ("RoiAlignFpn", "B", 2**27, "2^31 - 64 rois or more"),
    ("PaddedNms", "N", 2**30 + 1, "more than 2^30 boxes or max_output"),
    ("PaddedBatchedNms", "N", 2**30 + 1, "more than 2^30 boxes or max_output"),
    ("DeformConv2d", "O", 2**31 - 1, "2^31 - 128 output channels or more"),
    ("ModulatedDeformConv2d", "O", 2**31 - 1, "2^31 - 128 output channels or more"),
    ("PanopticFusion", "M", 513, "masks outside 1 x 1 .. 512 x 512"),
    ("PanopticFusion", "M", 0, "masks outside 1 x 1 .. 512 x 512"),
    ("PanopticFusion", "B", 65536, "more than 65535 images"),
]


@pytest.mark.parametrize(("name", "letter", "size", "why"), BEYOND)
def test_what_no_kernel_runs_is_refused_with_its_limit(
    harness: Harness, name: str, letter: str, size: int, why: str
) -> None:
    """Where the engine is made for it, and before it runs; an engine's profile may end there."""
    plugin, types = harness.create(name, NODES[name]), types_of(name, FLOAT)
    patterns = [pattern for tensor in declaration(name).tensors for pattern in tensor.shapes]
    inputs = [
        tuple(size if word == letter else length for word, length in zip(pattern, shape, strict=True))
        for pattern, shape in zip(patterns, SHAPES[name][: -plugin.num_outputs], strict=False)
    ]
    outputs = plugin.output_shapes(inputs)
    assert outputs is not None
    beyond, index = [*inputs, *outputs], next(i for i, pattern in enumerate(patterns) if letter in pattern)
    assert plugin.accepts(beyond, types) == (False, False)
    for line, method in zip(harness.messages().splitlines(), ("configurePlugin", "onShapeChange"), strict=True):
        assert line.startswith(f"upsnet {name}, {method}: no kernel runs {why}: ")
        assert " ".join(map(str, inputs[index])) in line
    profile = Profile(SHAPES[name], beyond)
    assert plugin.configure(Tensors(plugin.num_outputs, SHAPES[name], types, profile=profile))


def test_tiles_of_a_batch_of_panoptic_maps(harness: Harness) -> None:
    """Narrow ones: 65536 x 1 cells have 8192 tiles, which 29127 images draw nine times in 2^31 - 1 tickets."""
    name, types = "PanopticFusion", types_of("PanopticFusion", FLOAT)
    plugin = harness.create(name, NODES[name])
    sizes = {"h": 2**16, "w": 1, "N": 6}
    patterns = [pattern for tensor in declaration(name).tensors for pattern in tensor.shapes]

    def accepts(**sizes: int) -> tuple[bool, bool]:
        inputs = [
            tuple(sizes.get(word, length) for word, length in zip(pattern, shape, strict=True))
            for pattern, shape in zip(patterns, SHAPES[name][: -plugin.num_outputs], strict=True)
        ]
        outputs = plugin.output_shapes(inputs)
        assert outputs is not None
        return plugin.accepts([*inputs, *outputs], types)

    assert accepts(B=29127, **sizes) == (True, True)
    assert accepts(B=65535, **sizes | {"N": 0}) == (True, True), "without detections nothing is drawn"
    assert accepts(B=29128, **sizes) == (False, False)
    assert harness.messages().count("no kernel runs 2^31 / 9 tiles of 256 x 32 pixels or more in all panoptic") == 2


def test_workspace_of_what_cannot_be_asked_is_more_than_there_is(harness: Harness) -> None:
    """TensorRT knows no failure there."""
    plugin = harness.create("PaddedNms", NMS)
    assert plugin.workspace_size(Tensors(3, SHAPES["PaddedNms"], types_of("PaddedNms", FLOAT))) == 2**64 - 1
    assert "getWorkspaceSize: 1 inputs and 3 outputs, not 2 and 2" in harness.messages()


def test_groups(harness: Harness) -> None:
    plugin = harness.create("DeformConv2d", CONVOLUTION | {"group": 4, "offset_group": 2, "strides": [2, 1]})
    shapes = [(1, 16, 9, 8), (1, 36, 5, 8), (8, 4, 3, 3), (8,)]
    assert plugin.output_shapes(shapes) == [(1, 8, 5, 8)]
    assert plugin.output_shapes([shapes[0], (1, 18, 5, 8), *shapes[2:]]) is None
    assert "offset's channels are not 2 * offset_group * kernel size" in harness.messages()


def test_too_many_segments_for_a_byte(harness: Harness) -> None:
    plugin = harness.create("PanopticFusion", {**NODES["PanopticFusion"], "num_stuff": 16})
    shapes = [shape if len(shape) == 1 or shape[1] != 6 else (2, 240, *shape[2:]) for shape in SHAPES["PanopticFusion"]]
    assert plugin.output_shapes(shapes[:8]) is None
    assert "num_stuff and the detections do not fit a uint8 map (255)" in harness.messages()
