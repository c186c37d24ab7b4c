"""The conventions of the original UPSNet, where they differ from ours, and how a configuration names them."""

from __future__ import annotations

from typing import Any

import onnxruntime
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

import plugins_cuda
from export.onnx_export import to_model_proto
from export.precision import prepare
from tests.agreement import assert_same_segments
from training.conventions import UPSNET, far_corners
from training.model import boxes as B
from training.model.fpn import FPN
from training.model.rpn import RPN, RpnOutput
from training.model.upsnet import UPSNet
from training.model_config import FpnConfig, ModelConfig, RpnConfig
from upsnet.geometry import ResizeRule
from upsnet.runtimes.predictor import RawPrediction

pytestmark = pytest.mark.numeric

SMALL: dict[str, Any] = {
    "backbone": {"stem": [8, 8], "widths": [8, 16, 16, 16], "depths": [1, 1, 1, 1], "expansion": 2},
    "fpn": {"channels": 16},
    "rpn": {"channels": 16, "test_top_n": 40, "anchor_scale": 4},
    "box_head": {"hidden": 32},
    "mask_head": {"channels": 8, "layers": 1},
    "semantic_head": {"channels": [16]},
    "panoptic": {"max_detections": 10, "stuff_area_limit": 16},
}
TIMM = {"kind": "timm", "name": "resnet14t", "deformable_stages": [4]}  # bottlenecks, one a stage


def network(**changes: Any) -> UPSNet:
    torch.manual_seed(0)
    model = UPSNet(ModelConfig.model_validate(SMALL | changes), num_stuff=3, num_things=2)
    torch.nn.init.normal_(model.box_head.logits.weight, std=1.0)  # spread the scores: some pass the threshold
    with torch.no_grad():  # and instances win pixels
        model.get_parameter("semantic_head.score.bias")[3:] += 1
        model.get_parameter("mask_head.score.bias").add_(3)
    return model.eval()


def photos() -> tuple[Tensor, Tensor, Tensor]:
    images = torch.randint(0, 256, (2, 96, 128, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    return images, torch.tensor([[96, 128], [80, 97]], dtype=torch.int32), torch.tensor([1.0, 0.5])


def test_anchors_by_hand() -> None:
    """Window 0..15, centre 7.5; ratio .5: width round(16 sqrt 2) = 23, height round(11.5) = 12, both times 8."""
    assert UPSNET.base_anchors(16, 8, (0.5, 1.0)).tolist() == [[-84, -40, 99, 55], [-56, -56, 71, 71]]
    anchors = RPN(8, RpnConfig(), UPSNET).base_anchors
    assert torch.equal(anchors[2][:2], UPSNET.base_anchors(16, 8, (0.5, 1.0)))


def test_proposals_are_clipped_to_the_last_pixel() -> None:
    rpn = RPN(8, RpnConfig(), UPSNET)
    rpn.base_anchors = torch.tensor([[10.0, 20, 19, 39]]).expand(5, 1, 4)
    for shift, wanted in ((0.1, [11.0, 20, 20, 31]), (9.0, [63.0, 20, 63, 31])):
        cell = torch.tensor([1.0, shift, 0.0, 0.0, 0.0]).reshape(1, 5, 1, 1)
        boxes, valid = rpn.propose(RpnOutput([cell] * 5), torch.tensor([[32, 64]]), 1)
        assert valid.all() and boxes[0, 0].tolist() == wanted


def test_far_corners_by_hand() -> None:
    assert far_corners(torch.tensor([[60, 90], [1, 2]])).tolist() == [[90, 60, 90, 60], [2, 1, 2, 1]]


def test_boxes_inverted_by_less_than_a_pixel_stay_boxes() -> None:
    """A width under 1 puts x2 before x1: still on a level, with features, and never suppressed by itself."""
    boxes = UPSNET.decode(torch.tensor([[0.0, 0, -9, -9]]), torch.tensor([[20.0, 20, 27, 27]]), B.RPN_WEIGHTS)
    assert (boxes[0, 2:] < boxes[0, :2]).all() and (UPSNET.sides(boxes) > 0).all()
    pyramid = [torch.randn(1, 16, 32 >> i, 32 >> i) for i in range(5)]
    features = network(conventions="upsnet").roi_features(pyramid, boxes[None], 7)
    assert features.isfinite().all() and features.abs().max() > 0
    pair = torch.cat([boxes, boxes + 40])[None]
    kept, count = plugins_cuda.nms(pair, torch.tensor([[0.9, 0.8]]), 0.5, 0.0, 5, inclusive=True)
    assert count.tolist() == [2] and kept[0, :2].tolist() == [0, 1]


def test_context_is_a_mean_over_the_padding() -> None:
    torch.manual_seed(0)
    fpn = FPN([4, 4, 4, 4], FpnConfig(channels=4), UPSNET)
    features = [torch.randn(1, 4, 32 >> i, 32 >> i) for i in range(4)]
    small, large = (fpn(features, torch.tensor([size])) for size in ([40, 40], [128, 128]))
    assert all(torch.equal(a, b) for a, b in zip(small, large, strict=True))


def test_pixels() -> None:
    """RGB minus the means, not scaled; zero in the padding."""
    images, sizes, _ = photos()
    x = network(conventions="upsnet").normalize(images, sizes)
    red = images[0, 5, 7, 0].item()
    assert x[0, 0, 5, 7].item() == pytest.approx(red - 122.7717, abs=1e-3)
    assert (x[1, :, 80:] == 0).all() and (x[1, :, :, 97:] == 0).all()


def test_stride_is_in_the_first_convolution() -> None:
    for conventions, wanted in (("ours", [(1, 1), (2, 2)]), ("upsnet", [(2, 2), (1, 1)])):
        model = network(conventions=conventions, backbone=TIMM | {"deformable_stages": []})
        assert [model.get_submodule(f"backbone.network.layer2.0.conv{i}").stride for i in (1, 2)] == wanted
    x = torch.randn(1, 3, 64, 96)
    maps = network(conventions="upsnet", backbone=TIMM).backbone(x)
    assert [tuple(m.shape[2:]) for m in maps] == [(16, 24), (8, 12), (4, 6), (2, 3)]


@pytest.mark.parametrize(("conventions", "inclusive"), [("ours", False), ("upsnet", True)])
def test_operators_get_the_conventions(conventions: str, inclusive: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every NMS and every RoIAlign of the network."""
    seen: dict[str, list[dict[str, Any]]] = {"nms": [], "roi_align_fpn": []}
    for name, calls in seen.items():
        operator = getattr(plugins_cuda, name)

        def recorded(*arguments: Any, operator: Any = operator, calls: Any = calls, **named: Any) -> Any:
            calls.append(named)
            return operator(*arguments, **named)

        monkeypatch.setattr(plugins_cuda, name, recorded)
    model = network(conventions=conventions)
    with torch.no_grad():
        model(*photos())
    assert [named["inclusive"] for named in seen["nms"]] == [inclusive] * 2
    assert [(n["inclusive"], n["aligned"]) for n in seen["roi_align_fpn"]] == [(inclusive, not inclusive)] * 2


def test_onnx_runtime_equals_pytorch() -> None:
    """A network with a timm ResNet, deformable in one stage: the conventions are attributes of its nodes."""
    model = network(conventions="upsnet", backbone=TIMM)
    proto = to_model_proto(prepare(model, "fp32"), ResizeRule(short_side=96, max_side=128))
    assert "BatchNormalization" not in {node.op_type for node in proto.graph.node}
    attributes = [{a.name: a for a in node.attribute} for node in proto.graph.node if node.domain == "upsnet"]
    assert [entry["inclusive"].i for entry in attributes if "inclusive" in entry] == [1] * 5
    modes = [entry["coordinate_transformation_mode"].s for entry in attributes if "sampling_ratio" in entry]
    assert modes == [b"output_half_pixel"] * 2
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    inputs = photos()
    found = session.run(None, dict(zip(["images", "sizes", "scales"], (x.numpy() for x in inputs), strict=True)))
    with torch.no_grad():
        wanted = [x.numpy() for x in model(*inputs)]
    assert (wanted[2] > 0).all() and (wanted[1][..., 0] >= 3).any(), "stuff and instances"
    assert_same_segments(RawPrediction(*found), RawPrediction(*wanted), score=1e-3)


class TestConfiguration:
    def test_conventions_bring_their_pixels_unless_those_are_given(self) -> None:
        assert ModelConfig.model_validate({"conventions": "upsnet"}).pixel_std == (1, 1, 1)
        assert ModelConfig.model_validate({"conventions": "upsnet", "pixel_std": [2, 2, 2]}).pixel_std == (2, 2, 2)
        assert ModelConfig.model_validate({"conventions": "ours"}) == ModelConfig()

    @pytest.mark.parametrize(("legacy", "conventions"), [(True, "upsnet"), (False, "ours")])
    def test_the_word_of_older_versions(self, legacy: bool, conventions: str) -> None:
        """Alone, beside the same conventions, and as their runs saved it."""
        wanted = ModelConfig.model_validate({"conventions": conventions})
        saved = wanted.model_dump() | {"backbone": wanted.backbone.model_dump() | {"deformable": False}}
        del saved["conventions"]
        for values in ({}, {"conventions": conventions}, saved):
            assert ModelConfig.model_validate(values | {"legacy": legacy}) == wanted
        assert "legacy" not in wanted.model_dump()

    @pytest.mark.parametrize(
        ("values", "reason"),
        [
            ({"legacy": True, "conventions": "ours"}, "legacy contradicts conventions"),
            ({"legacy": "maybe"}, "legacy .* neither true nor false; leave it out"),
            ({"conventions": ["upsnet"]}, "Input should be 'ours', 'upsnet' or 'detectron2'"),
            (
                {"backbone": {"deformable": True}},
                r"hybrid\.deformable\s+Value error, the hybrid backbone has no deformable convolutions; leave it out",
            ),
        ],
    )
    def test_others_are_refused(self, values: dict[str, Any], reason: str) -> None:
        with pytest.raises(ValidationError, match=reason) as raised:
            ModelConfig.model_validate(values)
        assert raised.value.error_count() == 1
