"""Matching, sampling and box coding against loops in numpy, against torchvision, and by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.models.detection._utils import BalancedPositiveNegativeSampler, BoxCoder, Matcher
from torchvision.ops import box_iou

from training.conventions import NAMED, OURS, UPSNET, Conventions
from training.data.sample import IGNORE
from training.losses import draws
from training.losses.assign import RoiTargets, RpnTargets, assign_anchors, assign_rois, choose, match, padded
from training.model import boxes as B
from training.model_config import BoxHeadConfig, RpnConfig

SIZES = torch.tensor([[96, 128], [80, 100], [128, 128]], dtype=torch.int32)
CONVENTIONS = pytest.mark.parametrize("conventions", NAMED.values(), ids=NAMED)


def random_boxes(count: int, generator: torch.Generator, extent: float = 90, largest: float = 50) -> Tensor:
    corner = torch.rand(count, 2, generator=generator) * (extent - 10)
    return torch.cat([corner, corner + 1 + torch.rand(count, 2, generator=generator) * largest], dim=1)


def scene(conventions: Conventions) -> dict[str, Any]:
    """Anchors of three strides, and boxes for three images: several, none, and one pixel beside a large one."""
    generator = torch.Generator().manual_seed(1)
    ratios = (0.5, 1.0, 2.0)
    anchors = [
        B.grid_anchors(conventions.base_anchors(s, 4, ratios), 128 // s, 128 // s, s).float() for s in (4, 8, 16)
    ]
    boxes = [random_boxes(7, generator).round(), torch.zeros(0, 4), torch.tensor([[5.0, 5, 6, 6], [20, 30, 90, 100]])]
    if conventions.inclusive:
        boxes = [own - torch.tensor([0.0, 0, 1, 1]) for own in boxes]
    return {"anchors": torch.cat(anchors), "boxes": boxes, "sizes": SIZES, "seeds": torch.tensor([11, 12, 13])}


def slow_iou(a: np.ndarray, b: np.ndarray, one: float) -> float:
    """one: 1 where x2 and y2 are the last pixels inside, else 0. In float32, in which anchors tie or do not: the sides
    of unrounded ones are multiples of the root of 2."""
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]) + one)
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]) + one)
    areas = [(v[2] - v[0] + one) * (v[3] - v[1] + one) for v in (a, b)]
    return width * height / (sum(areas) - width * height)


def slow_deltas(anchor: np.ndarray, box: np.ndarray, weights: tuple[float, ...], one: float) -> list[float]:
    (aw, ah), (bw, bh) = ((v[2] - v[0] + one, v[3] - v[1] + one) for v in (anchor, box))
    ax, ay, bx, by = anchor[0] + aw / 2, anchor[1] + ah / 2, box[0] + bw / 2, box[1] + bh / 2
    values = [(bx - ax) / aw, (by - ay) / ah, math.log(bw / aw), math.log(bh / ah)]
    return [w * v for w, v in zip(np.repeat(weights, 2), values, strict=True)]


def best_first(candidates: list[int], keys: list[int], count: int) -> list[int]:
    return sorted(candidates, key=lambda i: -keys[i])[:count]


class TestAnchors:
    @CONVENTIONS
    @pytest.mark.parametrize("samples", [64, 5000])
    def test_against_a_loop(self, conventions: Conventions, samples: int) -> None:
        data, config = scene(conventions), RpnConfig(samples=samples, positive_fraction=0.1)
        found = assign_anchors(**data, config=config, conventions=conventions)
        some_positive = 0
        for image in range(3):
            expected = self.slow(data, image, config, conventions)
            rows = found.labels[image] != IGNORE
            indices, labels = found.anchors[image, rows].tolist(), found.labels[image, rows].tolist()
            assert list(zip(indices, labels, strict=True)) == [(i, label) for i, label, _ in expected]
            deltas = np.array([d for _, _, d in expected])
            np.testing.assert_allclose(found.deltas[image, rows].numpy(), deltas, atol=2e-5)
            some_positive += sum(labels)
            assert sum(labels) <= samples * 0.1 and len(labels) <= samples
        assert some_positive > 5
        assert found.labels.shape == (3, samples) and (found.deltas[found.labels != 1] == 0).all()

    def slow(
        self, data: dict[str, Any], image: int, config: RpnConfig, conventions: Conventions
    ) -> list[tuple[int, int, list[float]]]:
        """The sampled anchors in order: index, label, deltas."""
        anchors, boxes = data["anchors"].double().numpy(), data["boxes"][image].double().numpy()
        height, width = data["sizes"][image].tolist()
        one = float(conventions.inclusive)
        inside = [a[0] >= 0 and a[1] >= 0 and a[2] <= width - one and a[3] <= height - one for a in anchors]
        single = data["anchors"].numpy(), data["boxes"][image].numpy()
        overlaps = [
            [slow_iou(a, b, one) if ok else 0.0 for b in single[1]] for a, ok in zip(single[0], inside, strict=True)
        ]
        highest = [max(row[g] for row in overlaps) for g in range(len(boxes))]
        positive, negative = [], []
        for i, row in enumerate(overlaps):
            if not inside[i]:
                continue
            favourite = any(v > 0 and v == h for v, h in zip(row, highest, strict=True))
            if favourite or max(row, default=0) >= config.positive_iou:
                positive.append(i)
            elif max(row, default=0) < config.negative_iou:
                negative.append(i)
        keys = draws.keys(data["seeds"][image : image + 1], len(anchors), draws.RPN_STREAM)[0].tolist()
        pos = best_first(positive, keys, int(config.samples * config.positive_fraction))
        neg = best_first(negative, keys, config.samples - len(pos))
        targets = [slow_deltas(anchors[i], boxes[np.argmax(overlaps[i])], B.RPN_WEIGHTS, one) for i in pos]
        return [(i, 1, t) for i, t in zip(pos, targets, strict=True)] + [(i, 0, [0.0] * 4) for i in neg]

    def test_by_hand(self) -> None:
        anchors = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 9], [20, 20, 30, 30], [-1, 0, 10, 10], [21, 20, 30, 24]])
        boxes = torch.tensor([[0.0, 0, 10, 10], [20, 20, 24, 24]])
        found = assign_anchors(
            anchors, [boxes], torch.tensor([[40, 40]]), torch.tensor([0]), RpnConfig(samples=12), conventions=OURS
        )
        # Exact; IoU .9; .16 but the second box's best is anchor 4 (.27); outside the image; the second box's best.
        used = found.labels[0] != IGNORE
        labels = dict(zip(found.anchors[0, used].tolist(), found.labels[0, used].tolist(), strict=True))
        assert labels == {0: 1, 1: 1, 2: 0, 4: 1}

    def test_the_border_of_the_image(self) -> None:
        """A box up to the border lies inside in its own convention: x2 is W, or W - 1 when it is the last pixel."""
        anchors = torch.tensor([[0.0, 0, 10, 10], [0, 0, 9, 9]])
        for conventions, expected in ((OURS, [0, 1]), (UPSNET, [1])):
            found = assign_anchors(
                anchors, [torch.zeros(0, 4)], torch.tensor([[10, 10]]), torch.tensor([0]), RpnConfig(), conventions
            )
            assert sorted(found.anchors[0, found.labels[0] == 0].tolist()) == expected

    def test_straddling_anchors(self) -> None:
        """They count where a part of them is in the image, and not where they only touch its border."""
        anchors = torch.tensor([[-5.0, 0, 5, 5], [35, 30, 45, 50], [-9, 0, 0, 9], [40, 0, 50, 9], [0, 20, 9, 29]])
        box, sizes, seeds = torch.tensor([[0.0, 0, 5, 5]]), torch.tensor([[32, 40]]), torch.tensor([0])
        for straddling, expected in ((True, {0: 1, 1: 0, 4: 0}), (False, {4: 0})):
            config = RpnConfig(samples=12, straddling=straddling)
            found = assign_anchors(anchors, [box], sizes, seeds, config, OURS)
            used = found.labels[0] != IGNORE
            assert dict(zip(found.anchors[0, used].tolist(), found.labels[0, used].tolist(), strict=True)) == expected

    def test_matches_are_torchvisions(self) -> None:
        """Its Matcher gives positives (with the low-quality ones), negatives and targets; where anchors may stick out
        of the image, as they may there, and where no box lies apart from all anchors (it would then match them all)."""
        data = scene(OURS)
        anchors, boxes = data["anchors"], data["boxes"][0]
        best, owner, favourite = match(anchors, boxes, torch.ones(len(anchors), dtype=torch.bool), OURS)
        theirs = Matcher(0.7, 0.3, allow_low_quality_matches=True)(box_iou(boxes, anchors))
        positive = favourite | (best >= 0.7)
        assert positive.sum() > 5 and torch.equal(positive, theirs >= 0)
        assert torch.equal(~positive & (best < 0.3), theirs == Matcher.BELOW_LOW_THRESHOLD)
        assert torch.equal(owner[positive], theirs[positive])

    def test_chunks_change_nothing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        data = scene(OURS)
        whole = assign_anchors(**data, config=RpnConfig(), conventions=OURS)
        monkeypatch.setattr("training.losses.assign.CHUNK", 100)
        for a, b in zip(whole, assign_anchors(**data, config=RpnConfig(), conventions=OURS), strict=True):
            assert torch.equal(a, b)

    def test_an_image_alone_is_sampled_alike(self) -> None:
        data = scene(OURS)
        together = assign_anchors(**data, config=RpnConfig(), conventions=OURS)
        for image in range(3):
            only = {name: values if name == "anchors" else values[image : image + 1] for name, values in data.items()}
            assert_rows_equal(together, image, assign_anchors(**only, config=RpnConfig(), conventions=OURS))


class TestRois:
    @CONVENTIONS
    @pytest.mark.parametrize("samples", [32, 512])
    def test_against_a_loop(self, conventions: Conventions, samples: int) -> None:
        config = BoxHeadConfig(samples=samples)
        data = self.scene(conventions)
        found = assign_rois(**data, config=config, conventions=conventions)
        for image in range(3):
            expected = self.slow(data, image, config, conventions)
            rows = found.labels[image] != IGNORE
            assert rows.sum() == len(expected) and not rows[len(expected) :].any()
            np.testing.assert_allclose(
                found.rois[image, rows].numpy(), np.array([row[0] for row in expected]).reshape(-1, 4)
            )
            assert found.labels[image, rows].tolist() == [row[1] for row in expected]
            foreground = found.labels[image, rows] > 0
            assert found.owners[image, rows][foreground].tolist() == [row[2] for row in expected if row[1]]
            np.testing.assert_allclose(
                found.deltas[image, rows].numpy(), np.array([row[3] for row in expected]).reshape(-1, 4), atol=2e-4
            )
            assert foreground.sum() <= samples // 4
        assert (found.labels[0] > 0).any() and (found.rois[found.labels == IGNORE] == 0).all()

    def scene(self, conventions: Conventions) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(2)
        base = scene(conventions)
        near = base["boxes"][0].repeat(6, 1)
        near = near + torch.randn(near.shape, generator=generator) * 3
        proposals = torch.stack([torch.cat([near, random_boxes(58, generator)]) for _ in range(3)])
        return {
            "proposals": proposals,
            "valid": torch.rand(3, 100, generator=generator) < 0.8,
            "boxes": base["boxes"],
            "labels": [torch.randint(0, 9, (len(own),), generator=generator) for own in base["boxes"]],
            "seeds": base["seeds"],
        }

    def slow(
        self, data: dict[str, Any], image: int, config: BoxHeadConfig, conventions: Conventions
    ) -> list[tuple[np.ndarray, int, int, list[float]]]:
        """The sampled RoIs in order: box, label, owner, deltas."""
        boxes, labels = data["boxes"][image].double().numpy(), data["labels"][image].tolist()
        pool = np.concatenate([data["proposals"][image].double().numpy(), boxes])
        eligible = data["valid"][image].tolist() + [True] * len(boxes)
        one = float(conventions.inclusive)
        overlaps = [[slow_iou(roi, box, one) for box in boxes] for roi in pool]
        positive = [i for i, row in enumerate(overlaps) if eligible[i] and max(row, default=0) >= config.positive_iou]
        negative = [i for i, row in enumerate(overlaps) if eligible[i] and max(row, default=0) < config.positive_iou]
        keys = draws.keys(data["seeds"][image : image + 1], len(pool), draws.ROI_STREAM)[0].tolist()
        pos = best_first(positive, keys, int(config.samples * config.positive_fraction))
        rows = []
        for i in pos:
            owner = int(np.argmax(overlaps[i]))
            deltas = slow_deltas(pool[i], boxes[owner], B.BOX_WEIGHTS, one)
            rows.append((pool[i], 1 + labels[owner], owner, deltas))
        return rows + [(pool[i], 0, -1, [0.0] * 4) for i in best_first(negative, keys, config.samples - len(pos))]

    def test_an_image_alone_is_sampled_alike(self) -> None:
        data, config = self.scene(OURS), BoxHeadConfig(samples=48)
        together = assign_rois(**data, config=config, conventions=OURS)
        for image in range(3):
            only = {name: values[image : image + 1] for name, values in data.items()}
            assert_rows_equal(together, image, assign_rois(**only, config=config, conventions=OURS), but="owners")

    def test_no_image_has_a_box(self) -> None:
        proposals, valid = torch.tensor([[[0.0, 0, 20, 18], [40, 40, 60, 60]]]), torch.tensor([[True, False]])
        found = self.assigned(proposals, valid, torch.zeros(0, 4), torch.zeros(0).long())
        assert found.labels.tolist() == [[0, IGNORE, IGNORE, IGNORE]] and (found.deltas == 0).all()

    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
    def test_a_proposal_that_is_not_finite_is_none(self, value: float) -> None:
        data, config = self.scene(OURS), BoxHeadConfig(samples=48)
        data["valid"][:, ::2] = False
        expected = assign_rois(**data, config=config, conventions=OURS)
        data["valid"][:, ::2] = True
        data["proposals"][:, ::4, 2] = value
        data["proposals"][:, 2::4] = value
        for found, wanted in zip(assign_rois(**data, config=config, conventions=OURS), expected, strict=True):
            assert torch.equal(found, wanted)
        assert expected.rois.isfinite().all() and (expected.labels > 0).any()

    def test_truth_has_nothing_to_correct(self) -> None:
        truth = torch.tensor([[0.0, 0, 20, 20]])
        found = self.assigned(torch.zeros(1, 1, 4), torch.tensor([[False]]), truth, torch.tensor([2]))
        assert torch.equal(found.rois[0, :1], truth) and found.labels[0, 0] == 3 and (found.deltas == 0).all()

    def assigned(self, proposals: Tensor, valid: Tensor, boxes: Tensor, labels: Tensor) -> RoiTargets:
        """Four RoIs of one image."""
        config = BoxHeadConfig(samples=4)
        return assign_rois(proposals, valid, [boxes], [labels], torch.tensor([4]), config, OURS)


class TestChoose:
    def test_budgets_as_torchvisions_sampler(self) -> None:
        """The same numbers of positives and negatives as BalancedPositiveNegativeSampler, for any numbers of each."""
        for positives, negatives in ((0, 0), (0, 50), (3, 50), (40, 50), (40, 2), (40, 0), (8, 24), (64, 64)):
            labels = torch.tensor([1.0] * positives + [0.0] * negatives + [-1.0] * 5)
            keys = draws.keys(torch.tensor([7]), len(labels), 0)
            chosen = choose((labels == 1)[None], (labels == 0)[None], keys, 32, 8)
            theirs = [int(mask.sum()) for (mask,) in BalancedPositiveNegativeSampler(32, 0.25)([labels])]
            used, positive = chosen.used[0], chosen.positive[0]
            assert [int(positive.sum()), int((used & ~positive).sum())] == theirs
            drawn = chosen.indices[0, used]
            assert len(drawn.unique()) == len(drawn), "none is drawn twice"
            assert (labels[chosen.indices[0, positive]] == 1).all()
            assert (labels[chosen.indices[0, used & ~positive]] == 0).all()

    def test_each_candidate_is_drawn_as_often(self) -> None:
        seeds = torch.arange(4000)
        positive = (torch.arange(40) < 10).expand(4000, -1)
        chosen = choose(positive, ~positive, draws.keys(seeds, 40, 0), 12, 4)
        counts = torch.bincount(chosen.indices.flatten(), minlength=40).double()
        for part, expected in ((counts[:10], 4000 * 4 / 10), (counts[10:], 4000 * 8 / 30)):
            assert (part - expected).abs().max() < 5 * math.sqrt(expected)

    def test_fewer_candidates_than_rows(self) -> None:
        chosen = choose(torch.tensor([[True]]), torch.tensor([[False]]), torch.tensor([[5]]), 3, 2)
        assert chosen.indices.tolist() == [[0, 0, 0]] and chosen.used.tolist() == [[True, False, False]]


class TestBoxCoding:
    @pytest.mark.parametrize("weights", [B.RPN_WEIGHTS, B.BOX_WEIGHTS])
    @CONVENTIONS
    def test_against_a_loop(self, weights: tuple[float, float], conventions: Conventions) -> None:
        generator = torch.Generator().manual_seed(0)
        anchors, boxes = random_boxes(20, generator).double(), random_boxes(20, generator).double()
        found = conventions.encode(boxes, anchors, weights)
        one = float(conventions.inclusive)
        expected = [slow_deltas(a, b, weights, one) for a, b in zip(anchors.numpy(), boxes.numpy(), strict=True)]
        np.testing.assert_allclose(found.numpy(), np.array(expected), atol=1e-12)
        torch.testing.assert_close(conventions.decode(found, anchors, weights), boxes)

    def test_against_torchvision(self) -> None:
        generator = torch.Generator().manual_seed(0)
        anchors, boxes = random_boxes(20, generator), random_boxes(20, generator)
        theirs = BoxCoder((10.0, 10.0, 5.0, 5.0)).encode([boxes], [anchors])[0]
        torch.testing.assert_close(OURS.encode(boxes, anchors, B.BOX_WEIGHTS), theirs, atol=2e-5, rtol=1e-5)


def test_padded() -> None:
    found = padded([torch.ones(2, 3), torch.ones(0, 3), torch.ones(1, 3)])
    assert found.shape == (3, 2, 3) and found.sum((1, 2)).tolist() == [6, 0, 3]
    assert padded([torch.zeros(0), torch.zeros(0)]).shape == (2, 0)
    assert padded([torch.zeros(0, 4)], least=1).shape == (1, 1, 4)


def assert_rows_equal(
    together: RpnTargets | RoiTargets, image: int, alone: RpnTargets | RoiTargets, but: str = ""
) -> None:
    used = together.labels[image] != IGNORE
    for name, a, b in zip(together._fields, together, alone, strict=True):
        if name != but:
            assert torch.equal(a[image][used], b[0][used]), name
