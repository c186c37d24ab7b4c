"""The network: its published size, its contract, its behaviour on odd batches."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from tests.training.tiny_network import SMALL
from training.conventions import OURS
from training.model import boxes as B
from training.model.backbone import HybridBackbone
from training.model.fpn import FPN, mean_inside
from training.model.heads import MaskHead, SemanticHead
from training.model.rpn import RPN, RpnOutput
from training.model.upsnet import Detections, UPSNet
from training.model_config import FpnConfig, HybridConfig, MaskHeadConfig, ModelConfig, SubnetConfig


@pytest.fixture()
def network(small: ModelConfig) -> UPSNet:
    torch.manual_seed(0)
    model = UPSNet(small, num_stuff=4, num_things=4)
    # At initialisation no detection passes the score threshold: spread the class scores.
    torch.nn.init.normal_(model.box_head.logits.weight, std=1.0)
    return model.eval()


def photos(batch: int, height: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (batch, height, width, 3), dtype=torch.uint8, generator=generator)
    return images, torch.tensor([[height, width]] * batch, dtype=torch.int32), torch.ones(batch)


class TestPublishedSize:
    """reference: 246 GMACs at 512 x 672 in the backbone; its parameters are counted in test_configs.py."""

    @pytest.fixture(scope="class")
    def backbone(self) -> HybridBackbone:
        with torch.device("meta"):
            return HybridBackbone(HybridConfig()).eval()

    def test_multiplications(self, backbone: HybridBackbone) -> None:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            backbone(torch.empty(1, 3, 512, 672, device="meta"))
        assert counter.get_total_flops() / 2e9 == pytest.approx(246, abs=0.5)

    def test_strides_and_widths(self, backbone: HybridBackbone) -> None:
        maps = backbone(torch.empty(2, 3, 64, 96, device="meta"))
        assert [tuple(m.shape) for m in maps] == [(2, 256, 16, 24), (2, 512, 8, 12), (2, 1024, 4, 6), (2, 2048, 2, 3)]

    def test_small_network_has_one_to_three_million_parameters(self, small: ModelConfig) -> None:
        with torch.device("meta"):
            count = sum(p.numel() for p in UPSNet(small, 4, 4).parameters())
        assert 1e6 < count < 3e6

    def test_shortcuts(self, backbone: HybridBackbone) -> None:
        assert [[block.shortcut for block in stage.children()] for stage in backbone.stages] == [
            [False] + [True] * (depth - 1) for depth in (3, 4, 6, 3)
        ]


class TestContract:
    @pytest.mark.parametrize(("batch", "height", "width"), [(1, 96, 128), (3, 64, 160)])
    def test_shapes_and_types(self, network: UPSNet, batch: int, height: int, width: int) -> None:
        with torch.no_grad():
            panoptic, segments, count = network(*photos(batch, height, width))
        assert panoptic.shape == (batch, height, width) and panoptic.dtype == torch.uint8
        assert segments.shape == (batch, 36, 7) and segments.dtype == torch.float32
        assert count.shape == (batch,) and count.dtype == torch.int32
        for b in range(batch):
            used = torch.bincount(panoptic[b].flatten().long(), minlength=37)[1:]
            assert torch.equal(used.float(), segments[b, :, 2]), "area column counts the map's pixels"
            assert (used[: count[b]] > 0).all() and (used[count[b] :] == 0).all()

    def test_an_image_is_the_same_alone_and_in_a_batch(self, network: UPSNet) -> None:
        images, sizes, scales = photos(4, 96, 96)
        with torch.no_grad():
            together = network(images, sizes, scales)[0]
            alone = torch.cat([network(images[i : i + 1], sizes[:1], scales[:1])[0] for i in range(4)])
        assert (together == alone).float().mean() > 0.999

    def test_bytes_in_the_padding_do_not_matter(self, network: UPSNet) -> None:
        images, sizes, scales = photos(1, 96, 128)
        sizes = torch.tensor([[90, 100]], dtype=torch.int32)
        noisy, clean = images, images.clone()
        clean[:, 90:] = 0
        clean[:, :, 100:] = 0
        with torch.no_grad():
            a, b = network(noisy, sizes, scales), network(clean, sizes, scales)
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
        assert (a[0][:, 90:] == 0).all() and (a[0][:, :, 100:] == 0).all()

    def test_no_detection(self, network: UPSNet) -> None:
        with torch.no_grad():
            network.box_head.logits.bias[0] = 1e4
            panoptic, segments, count = network(*photos(2, 64, 64))
        things = [segments[b, : count[b], 0] >= 4 for b in range(2)]
        assert not torch.cat(things).any()
        assert panoptic.max() <= 4


ONE_KIND = [  # stuff, things, and what is not SMALL's
    (0, 3, {}),
    (0, 1, {"conventions": "upsnet"}),
    (3, 0, {"conventions": "upsnet"}),
    (1, 0, {"semantic_head": {"channels": [16], "deformable": False}}),
    (0, 2, {"backbone": {"kind": "timm", "name": "resnet10t"}}),
    (2, 0, {"backbone": {"kind": "timm", "name": "resnet10t"}}),
]


class TestOneKind:
    @pytest.mark.parametrize(("stuff", "things", "other"), ONE_KIND)
    def test_contract(self, stuff: int, things: int, other: dict[str, object]) -> None:
        torch.manual_seed(0)
        model = UPSNet(ModelConfig.model_validate(SMALL | other), stuff, things).eval()
        images, sizes, scales = photos(2, 64, 96)
        sizes[1] = torch.tensor([50, 90])
        if things:
            state = model.state_dict()
            state["box_head.logits.weight"].normal_(std=30.0)
            state["box_head.logits.bias"][0] = -1e4
            state["mask_head.score.bias"].fill_(5.0)
            state["semantic_head.score.bias"][0] = -5.0
        with torch.no_grad():
            panoptic, segments, count = model(images, sizes, scales)
        assert panoptic.shape == (2, 64, 96) and segments.shape == (2, 8 if things else stuff + 1, 7)
        for found, table, rows in zip(panoptic, segments, count.tolist(), strict=True):
            assert rows and not table[rows:].any()
            assert table[:rows, 0].min() >= 0 and table[:rows, 0].max() < stuff + things
            areas = torch.bincount(found.flatten().long(), minlength=len(table) + 1)[1:]
            assert torch.equal(areas.float(), table[:, 2])
        assert (panoptic[1, 50:] == 0).all()
        if not things:
            assert (panoptic[0] > 0).all(), "nothing is unknown"

    def test_the_background_is_void(self) -> None:
        """By hand: the instance wins its box with 1.5 + 2, unless the background is the semantic argmax there."""
        model = UPSNet(ModelConfig.model_validate(SMALL), num_stuff=0, num_things=2)
        semantic = torch.tensor([1.0, 0.25, 1.5])[None, :, None, None].repeat(1, 1, 2, 2)
        found = Detections(
            boxes=torch.tensor([[[2.0, 1, 6, 5], [0, 0, 1, 1]]]),
            scores=torch.tensor([[0.75, 0.0]]),
            labels=torch.tensor([[1, 0]]),
            counts=torch.ones(1, dtype=torch.int32),
        )
        masks, size = torch.full((1, 2, 28, 28), 2.0), torch.tensor([[8, 8]], dtype=torch.int32)
        panoptic, segments, count = model.fuse(semantic, found, masks, size, torch.ones(1))
        assert count.tolist() == [1]
        expected = torch.zeros(1, 8, 8, dtype=torch.uint8)
        expected[:, 1:5, 2:6] = 1
        assert torch.equal(panoptic, expected)
        assert segments.tolist() == [[[1, 0.75, 16, 2, 1, 6, 5], [0] * 7]]
        semantic[:, 0] = 2
        panoptic, segments, count = model.fuse(semantic, found, masks, size, torch.ones(1))
        assert not panoptic.any() and not segments.any() and not count.any()


class TestBoxes:
    def test_decode_by_hand(self) -> None:
        anchor = torch.tensor([[0.0, 0.0, 10.0, 20.0]])
        box = OURS.decode(torch.tensor([[0.5, 0.1, 0.0, 0.0]]), anchor, B.RPN_WEIGHTS)
        assert box.tolist() == [[5.0, 2.0, 15.0, 22.0]]

    def test_growth_is_limited(self) -> None:
        anchor = torch.tensor([[0.0, 0.0, 16.0, 16.0]])
        box = OURS.decode(torch.tensor([[0.0, 0.0, 100.0, 100.0]]), anchor, B.RPN_WEIGHTS)
        assert box[0, 2] - box[0, 0] == pytest.approx(1000, rel=1e-5)

    def test_base_anchors_by_hand(self) -> None:
        """Stride 16, ratio .5: width round(16 sqrt 2) = 23, height round(11.5) = 12; both times 8, centre 8."""
        assert OURS.base_anchors(16, 8, (0.5, 1.0)).tolist() == [[-84, -40, 100, 56], [-56, -56, 72, 72]]

    def test_grid_order_is_y_x_anchor(self) -> None:
        base = torch.tensor([[0.0, 0, 1, 1], [0, 0, 2, 2]])
        grid = B.grid_anchors(base, 2, 3, 10)
        assert grid[[0, 1, 2, 6]].tolist() == [[0, 0, 1, 1], [0, 0, 2, 2], [10, 0, 11, 1], [0, 10, 1, 11]]


class TestProposals:
    def test_against_a_plain_loop(self, small: ModelConfig) -> None:
        """Per level: sort, decode, clip, NMS by hand; then all levels by score."""
        torch.manual_seed(0)
        rpn = RPN(64, small.rpn)
        sizes = torch.tensor([[60, 90], [64, 96]])
        shapes = [(16, 24), (8, 12), (4, 6), (2, 3), (1, 2)]
        anchors = [B.grid_anchors(rpn.base_anchors[i], h, w, 4 * 2**i) for i, (h, w) in enumerate(shapes)]
        output = RpnOutput(
            [torch.randn(2, 15, h, w) * torch.tensor([1.0] * 3 + [0.2] * 12).reshape(-1, 1, 1) for h, w in shapes]
        )
        found, valid = rpn.propose(output, sizes, top_n=50)
        every = [RpnOutput([level]).rows() for level in output.maps]
        for b in range(2):
            rows = []
            for (logits, deltas), level in zip(every, anchors, strict=True):
                order = sorted(range(len(level)), key=lambda i: (-logits[b, i].item(), i))[:50]
                boxes = OURS.decode(deltas[b, order], level[order], B.RPN_WEIGHTS)
                boxes = torch.stack([boxes[:, k].clamp(0, float(sizes[b, 1 - k % 2])) for k in range(4)], dim=1)
                kept: list[int] = []
                for i in range(len(order)):
                    if all(iou(boxes[i], boxes[j]) <= 0.7 for j in kept):
                        kept.append(i)
                rows += [(logits[b, order[i]].item(), boxes[i]) for i in kept]
            rows.sort(key=lambda row: -row[0])
            expected = torch.stack([box for _, box in rows[:50]])
            assert valid[b].sum() == len(expected)
            torch.testing.assert_close(found[b, : len(expected)], expected)
            assert (found[b, len(expected) :] == 0).all()


class TestHeads:
    def test_masks_as_the_paper_has_them(self) -> None:
        """The transposed convolution, the scores of all classes, then the label's."""
        torch.manual_seed(0)
        head = MaskHead(6, 3, MaskHeadConfig(channels=5, layers=1))
        for bias in (head.deconv.bias, head.score.bias):
            torch.nn.init.normal_(bias)  # type: ignore[arg-type]
        features, labels = torch.randn(4, 6, 14, 14), torch.tensor([2, 0, 1, 2])
        every = head.score(F.relu(head.deconv(F.relu(head.convs[0](features)))))
        found = head(features, labels)
        torch.testing.assert_close(found, every[torch.arange(4), labels + 1], atol=1e-5, rtol=1e-5)
        assert head(features[:0], labels[:0]).shape == (0, 28, 28)

    def test_semantic_logits_as_the_paper_has_them(self) -> None:
        """The levels' features at 1/4, concatenated, then scored."""
        torch.manual_seed(0)
        head = SemanticHead(6, 5, SubnetConfig(channels=[4], deformable=False))
        torch.nn.init.normal_(head.score.bias)  # type: ignore[arg-type]
        levels = [torch.randn(2, 6, 16 >> i, 24 >> i) for i in range(4)]
        features = [F.relu(head.convs[0](x)) for x in levels]
        large = [F.interpolate(x, size=(16, 24), mode="bilinear") for x in features]
        sizes = torch.tensor([[64, 96], [40, 90]])
        torch.testing.assert_close(head(levels, sizes), head.score(torch.cat(large, 1)), atol=1e-6, rtol=1e-5)


class TestFpn:
    @pytest.mark.parametrize("upsample", ["nearest", "bilinear"])
    @pytest.mark.parametrize("context", [True, False])
    def test_levels(self, upsample: str, context: bool) -> None:
        fpn = FPN([4, 8, 16, 32], FpnConfig(channels=6, upsample=upsample, global_context=context))
        sizes = torch.tensor([[128, 192], [100, 90]])
        maps = fpn([torch.randn(2, 4 * 2**i, 32 >> i, 48 >> i) for i in range(4)], sizes)
        assert [tuple(m.shape) for m in maps] == [(2, 6, 32 >> i, 48 >> i) for i in range(5)]
        assert torch.equal(maps[4], maps[3][:, :, ::2, ::2])

    def test_context_is_a_constant_on_the_top(self) -> None:
        torch.manual_seed(0)
        fpn = FPN([4, 8, 16, 32], FpnConfig(channels=6))
        top = torch.randn(1, 32, 4, 4)
        assert fpn.context is not None
        added = fpn.context(top.mean((2, 3)))
        without = FPN([4, 8, 16, 32], FpnConfig(channels=6, global_context=False))
        without.load_state_dict(fpn.state_dict(), strict=False)
        features = [torch.zeros(1, 4 * 2**i, 32 >> i, 32 >> i) for i in range(3)] + [top]
        sizes = torch.tensor([[128, 128]])
        difference = (fpn(features, sizes)[3] - without(features, sizes)[3])[0, :, 1:3, 1:3]
        expected = torch.einsum("oikl,i->o", fpn.smooth[3].weight, added[0])
        torch.testing.assert_close(difference, expected[:, None, None].expand(6, 2, 2))


def test_mean_inside_by_hand() -> None:
    """32 x 48 pixels of a 2 x 3 map at stride 32: one row, one and a half columns."""
    feature = torch.tensor([[[[2.0, 8.0, 99.0], [99.0, 99.0, 99.0]]]])
    assert mean_inside(feature, torch.tensor([[32, 48]])).item() == pytest.approx((2 + 8 / 2) / 1.5)
    assert mean_inside(feature, torch.tensor([[64, 96]])).item() == pytest.approx(feature.mean().item())


def test_semantic_head_brings_all_levels_to_a_quarter(small: ModelConfig) -> None:
    assert isinstance(small.semantic_head, SubnetConfig)
    head = SemanticHead(8, 5, small.semantic_head)
    maps = [torch.randn(2, 8, 32 >> i, 64 >> i) for i in range(4)]
    assert head(maps, torch.tensor([[128, 256], [90, 200]])).shape == (2, 5, 32, 64)


def iou(a: Tensor, b: Tensor) -> float:
    both = float((torch.minimum(a[2:], b[2:]) - torch.maximum(a[:2], b[:2])).clamp(min=0).prod())
    return both / (float((a[2:] - a[:2]).prod() + (b[2:] - b[:2]).prod()) - both)
