"""A small Panoptic FPN: what its semantic map, its instances and its test-time augmentation say."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.training.tiny_network import PANOPTIC_FPN, panoptic_fpn
from training.config import parse_config
from training.inference import View, infer, label_map, semantic_map
from training.model.upsnet import UPSNet
from training.model_config import ModelConfig, PanopticConfig, SubnetConfig
from upsnet.metrics.mean_iou import UNDECIDED

pytestmark = pytest.mark.numeric

STUFF, THINGS = 3, 4


@pytest.fixture(scope="module")
def network() -> UPSNet:
    return panoptic_fpn(STUFF, THINGS)


def photos() -> View:
    images = torch.randint(0, 256, (2, 96, 128, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    sizes = torch.tensor([[96, 128], [80, 97]], dtype=torch.int32)
    return View(images, sizes, sizes.tolist())


def plain(network: UPSNet, view: View) -> tuple[Tensor, Tensor, Tensor]:
    with torch.inference_mode():
        found: tuple[Tensor, Tensor, Tensor] = network(view.images, view.sizes, torch.ones(len(view.images)))
    return found


class TestContract:
    def test_things_are_found_and_the_table_counts_the_map(self, network: UPSNet) -> None:
        panoptic, segments, count = plain(network, photos())
        assert panoptic.shape == (2, 96, 128) and segments.shape == (2, STUFF + 8, 7)
        assert (panoptic[1, 80:] == 0).all() and (panoptic[1, :, 97:] == 0).all()
        for b in range(2):
            used = torch.bincount(panoptic[b].flatten().long(), minlength=STUFF + 9)[1:]
            assert torch.equal(used.float(), segments[b, :, 2])
            category, score = segments[b, : count[b], :2].unbind(1)
            assert (category >= STUFF).any() and (category < STUFF + THINGS).all()
            assert (score[category >= STUFF] >= 0.5).all()

    def test_one_semantic_channel_for_all_things(self, network: UPSNet) -> None:
        assert network.semantic_channels == STUFF + 1 == network.semantic_head.score.out_channels

    @pytest.mark.parametrize(("stuff", "things"), [(0, 2), (2, 0), (1, 1)])
    def test_one_kind(self, stuff: int, things: int) -> None:
        view = photos()
        found = infer(panoptic_fpn(stuff, things), [view], view, torch.ones(2))
        for b in range(2):
            category = found.segments[b, : found.segment_count[b], 0]
            assert (category >= 0).all() and (category < stuff + things).all()
        labels = found.semantic
        assert ((labels < stuff + things) | (labels == UNDECIDED)).all()


class TestSemanticMap:
    def test_by_hand(self, network: UPSNet) -> None:
        """Four cells in a row: the stuff 1, and the things' channel three times: on a thing, on stuff, on void."""
        logits = torch.zeros(1, STUFF + 1, 1, 4)
        logits[0, 1, 0, 0] = logits[0, STUFF, 0, 1:] = 100.0
        panoptic = torch.tensor([[0, 2, 1, 0]], dtype=torch.uint8).repeat_interleave(4, 1).expand(1, 4, 16)
        segments = torch.zeros(1, 3, 7)
        segments[0, :2, 0] = torch.tensor([0.0, STUFF + 2.0])
        found = semantic_map(network, logits, panoptic.contiguous(), segments)
        assert found.shape == (1, 4, 16) and found.dtype == torch.uint8
        assert found[0, 0, 1::4].tolist() == [1, STUFF + 2, UNDECIDED, UNDECIDED]

    def test_no_pixel_is_the_first_thing_for_being_any(self, network: UPSNet) -> None:
        view = photos()
        found = infer(network, [view], view, torch.ones(2))
        with torch.inference_mode():
            logits = network.semantic_head(network.pyramid(view.images, view.sizes)[:4], view.sizes)
        things = label_map(logits) == STUFF
        assert things.any() and not things.all()
        assert torch.equal(found.semantic[~things], label_map(logits)[~things])
        category = torch.cat([torch.full((2, 1), -1.0), found.segments[..., 0]], dim=1)
        shown = torch.gather(category, 1, found.panoptic.flatten(1).long()).reshape(found.panoptic.shape)
        wanted = torch.where(shown >= STUFF, shown, UNDECIDED)[things]
        assert torch.equal(found.semantic[things].float(), wanted) and len(wanted.unique()) > 1


class TestViews:
    def test_one_view_is_the_plain_network(self, network: UPSNet) -> None:
        view = photos()
        found = infer(network, [view], view, torch.ones(2))
        assert all(torch.equal(a, b) for a, b in zip(found[:3], plain(network, view), strict=True))
        counts = found.instances.counts
        assert (counts > 0).all()
        assert all(found.instances.scores[b, : counts[b]].min() > 0.05 for b in range(2))

    def test_the_same_view_twice_changes_nothing(self, network: UPSNet) -> None:
        view = photos()
        once, twice = (infer(network, [view] * n, view, torch.ones(2)) for n in (1, 2))
        assert torch.equal(once.panoptic, twice.panoptic) and torch.equal(once.semantic, twice.semantic)


def test_configurations_without_a_kind_have_the_subnet() -> None:
    """As files of older versions are; of a Panoptic FPN every part is named."""
    old = ModelConfig.model_validate({"semantic_head": {"channels": [8]}, "panoptic": {"max_detections": 5}})
    assert old.semantic_head == SubnetConfig(channels=(8,)) and old.panoptic.merge == "logits"
    assert not old.panoptic.by_class and old.conventions == "ours"
    assert ModelConfig.model_validate(PANOPTIC_FPN).semantic_head.kind == "chains"


def test_a_wrong_kind_is_named() -> None:
    unread = {"json_file": "none", "segments": "none", "images": "none"}
    data = {"train": unread, "val": unread, "resize": {"short_side": 64, "max_side": 96}}
    values = {"name": "x", "data": data, "schedule": {"iterations": 1, "images_per_step": 1}}
    with pytest.raises(Exception, match=r"semantic_head.*'subnet', 'chains'"):
        parse_config(values | {"model": {"semantic_head": {"kind": "fcn"}}}, "here")


def test_a_score_limit_under_a_half_is_refused_with_the_reason() -> None:
    with pytest.raises(ValueError, match=r"at least 0\.5: the best class of a proposal"):
        PanopticConfig(merge="heuristic", score_threshold=0.3)
