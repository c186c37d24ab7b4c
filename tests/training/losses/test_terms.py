"""The terms against loops in numpy float64, by their gradients, and against the inference operator's definition."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import gradcheck
from torchvision.ops import generalized_box_iou_loss

from plugins_cuda.panoptic_fusion.reference import mask_terms, panoptic_labels, segment_term
from training.conventions import NAMED, OURS, Conventions
from training.data.sample import IGNORE
from training.losses import semantic as S
from training.losses import terms
from training.losses.assign import RoiTargets, RpnTargets
from training.model.boxes import BOX_WEIGHTS
from training.model_config import BoxHeadConfig

STUFF, THINGS = 4, 3


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def softplus(x: float) -> float:
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


def smooth_l1(x: float, beta: float) -> float:
    return x * x / (2 * beta) if abs(x) < beta else abs(x) - beta / 2


def log_sum_exp(values: list[float]) -> float:
    return max(values) + math.log(sum(math.exp(v - max(values)) for v in values))


class TestRpn:
    def targets(self) -> RpnTargets:
        """Three objects, one background and one empty row; background alone; nothing at all."""
        labels = torch.tensor([[1, 1, 1, 0, IGNORE], [0, 0, 0, 0, 0], [IGNORE] * 5])
        anchors = torch.tensor([[3, 0, 7, 5, 5], [1, 2, 3, 4, 5], [0] * 5])
        return RpnTargets(anchors, labels, rand(3, 5, 4, seed=9) * (labels == 1).unsqueeze(2))

    @pytest.mark.parametrize("beta", [1 / 9, 0.0])
    def test_against_a_loop(self, beta: float) -> None:
        logits, deltas, targets = rand(3, 9), rand(3, 9, 4, seed=1) * 0.3, self.targets()
        objectness, regression = [], []
        for b in range(3):
            used = [(int(a), int(v), t) for a, v, t in zip(*(x[b] for x in targets), strict=True) if v != IGNORE]
            count = max(1, len(used))
            objectness.append(sum(softplus(float(logits[b, a])) - v * float(logits[b, a]) for a, v, _ in used) / count)
            moves = [deltas[b, a] - t for a, v, t in used if v == 1]
            regression.append(sum(smooth_l1(x, beta) for move in moves for x in move.tolist()) / count)
        found = terms.rpn_losses(logits, deltas, targets, beta)
        assert found[0].item() == pytest.approx(np.mean(objectness)) and objectness[2] == 0
        assert found[1].item() == pytest.approx(np.mean(regression)) and regression[0] > 0 == regression[1]

    def test_gradient(self) -> None:
        logits, deltas = rand(3, 9).requires_grad_(), (rand(3, 9, 4, seed=1) * 0.3).requires_grad_()
        assert gradcheck(lambda a, b: terms.rpn_losses(a, b, self.targets()), (logits, deltas))


class TestBoxes:
    def targets(self) -> RoiTargets:
        labels = torch.tensor([[3, 1, 0, 0], [2, 0, IGNORE, IGNORE], [IGNORE] * 4])
        deltas = rand(3, 4, 4, seed=5) * ((labels > 0) & (labels != IGNORE)).unsqueeze(2)
        return RoiTargets(torch.zeros(3, 4, 4), labels, deltas, torch.zeros_like(labels))

    @pytest.mark.parametrize("beta", [1.0, 0.0])
    def test_against_a_loop(self, beta: float) -> None:
        logits, deltas, targets = rand(12, 4), rand(12, 4, 4, seed=1), self.targets()
        classification, regression = [0.0] * 3, [0.0] * 3
        for b in range(3):
            count = max(1, int((targets.labels[b] != IGNORE).sum()))
            for r in range(4):
                label, row = int(targets.labels[b, r]), 4 * b + r
                if label == IGNORE:
                    continue
                classification[b] += (log_sum_exp(logits[row].tolist()) - float(logits[row, label])) / count
                if label > 0:
                    moves = (deltas[row, label] - targets.deltas[b, r]).tolist()
                    regression[b] += sum(smooth_l1(x, beta) for x in moves) / count
        found = terms.box_losses(logits, deltas, targets, BoxHeadConfig(beta=beta), OURS)
        assert found[0].item() == pytest.approx(np.mean(classification))
        assert found[1].item() == pytest.approx(np.mean(regression)) and regression[1] > 0

    def test_gradient(self) -> None:
        logits, deltas = rand(12, 4).requires_grad_(), rand(12, 4, 4, seed=1).requires_grad_()
        config = BoxHeadConfig()
        assert gradcheck(lambda a, b: terms.box_losses(a, b, self.targets(), config, OURS), (logits, deltas))


class TestGeneralisedIou:
    """Of boxes 10 x 10: the same one; the right half; a fifth of both shared (hull 18 x 10); apart by 10."""

    a = torch.tensor([[0.0, 0, 10, 10]] * 4)
    b = torch.tensor([[0.0, 0, 10, 10], [5, 0, 10, 10], [8, 0, 18, 10], [20, 0, 30, 10]])
    known = torch.tensor([1.0, 0.5, 1 / 9, -1 / 3])

    @pytest.mark.parametrize("conventions", NAMED.values(), ids=NAMED)
    def test_known_answers(self, conventions: Conventions) -> None:
        a, b = (conventions.from_exclusive(boxes) for boxes in (self.a, self.b))
        torch.testing.assert_close(terms.generalised_iou(a, b, conventions), self.known)
        torch.testing.assert_close(terms.generalised_iou(b, a, conventions), self.known)

    def boxes(self, count: int, seed: int) -> Tensor:
        near = rand(count, 2, seed=seed) * 20
        return torch.cat([near, near + rand(count, 2, seed=seed + 1).abs() * 20], dim=1)

    @pytest.mark.parametrize("conventions", NAMED.values(), ids=NAMED)
    def test_agrees_with_torchvisions(self, conventions: Conventions) -> None:
        a, b = self.boxes(200, 1), self.boxes(200, 3)
        expected = 1 - generalized_box_iou_loss(a, b)
        own_a, own_b = conventions.from_exclusive(a), conventions.from_exclusive(b)
        found = terms.generalised_iou(own_a, own_b, conventions)
        torch.testing.assert_close(found, expected)
        assert (found > 0).any() and (found < 0).any() and found.min() >= -1 and found.max() <= 1
        scaled = terms.generalised_iou(self.a * 7, self.b * 7, OURS)
        torch.testing.assert_close(scaled, self.known, msg="of one scale for boxes of every size")

    def test_gradient(self) -> None:
        a, b = self.boxes(20, 1).requires_grad_(), self.boxes(20, 3).requires_grad_()
        assert gradcheck(lambda x, y: terms.generalised_iou(x, y, OURS), (a, b))

    def test_empty_boxes_have_a_finite_gradient(self) -> None:
        """A point on itself, on a line, outside a box; a line on a box; the same box, where two are the highest."""
        a = torch.tensor([[1.0, 1, 1, 1], [1, 1, 1, 1], [5, 5, 5, 5], [0, 0, 0, 10], [2, 2, 8, 8]]).requires_grad_()
        b = torch.tensor([[1.0, 1, 1, 1], [0, 1, 9, 1], [8, 8, 9, 9], [0, 0, 10, 10], [2, 2, 8, 8]])
        found = terms.generalised_iou(a, b, OURS)
        torch.testing.assert_close(found, torch.tensor([0.0, 0, 1 / 16 - 1, 0, 1]), atol=1e-6, rtol=0)
        found.sum().backward()
        assert a.grad is not None and a.grad.isfinite().all()

    @pytest.mark.parametrize("conventions", NAMED.values(), ids=NAMED)
    def test_the_box_heads_loss(self, conventions: Conventions) -> None:
        """Against the boxes themselves; the second image has no foreground, the third no RoI at all."""
        config = BoxHeadConfig(regression="giou")
        labels = torch.tensor([[2, 1, 0], [0, 0, IGNORE], [IGNORE] * 3])
        rois = self.boxes(9, 1).float().view(3, 3, 4).masked_fill((labels == IGNORE).unsqueeze(2), 0.0)
        truth = rois[0] + torch.tensor([[-1.0, 2, 1, 3], [1, 0, 2, 2], [0, 0, 0, 0]])
        wanted = conventions.encode(truth, rois[0], BOX_WEIGHTS) * (labels[0] > 0).unsqueeze(1)
        targets = RoiTargets(rois, labels, torch.stack([wanted, wanted * 0, wanted * 0]), torch.zeros_like(labels))
        logits, deltas = rand(9, 3).float(), (rand(9, 3, 4, seed=8) * 2).float().requires_grad_()
        entropy, moved = terms.box_losses(logits, deltas, targets, config, conventions)
        assert torch.equal(entropy, terms.box_losses(logits, deltas, targets, BoxHeadConfig(), conventions)[0])
        found = conventions.decode(torch.stack([deltas[0, 2], deltas[1, 1]]), rois[0, :2], BOX_WEIGHTS)
        exclusive = [conventions.to_exclusive(boxes) for boxes in (found, truth[:2])]
        expected = generalized_box_iou_loss(*exclusive, reduction="sum") / 3 / 3
        assert moved.item() == pytest.approx(expected.item(), rel=1e-4) and moved > 0
        moved.backward()
        own = torch.zeros(9, 3, dtype=torch.bool)
        own[0, 2] = own[1, 1] = True
        assert deltas.grad is not None and torch.equal(deltas.grad.abs().sum(2) > 0, own)

    def test_the_box_itself_is_no_loss(self) -> None:
        labels, rois = torch.tensor([[1, 1]]), self.boxes(2, 1).float()[None]
        deltas = torch.tensor([[[1.0, -2, 0.5, 2], [0, 0, 0, 0]]])
        targets = RoiTargets(rois, labels, deltas, torch.zeros_like(labels))
        predicted = deltas[0].unsqueeze(1).expand(2, 2, 4)
        found = terms.box_losses(rand(2, 2).float(), predicted, targets, BoxHeadConfig(regression="giou"), OURS)[1]
        assert found.dtype == torch.float32 and found.item() == pytest.approx(0, abs=1e-6)


class TestMasks:
    foreground = torch.tensor([[True, True, False], [True, False, False], [False] * 3])

    def test_against_a_loop(self) -> None:
        logits, masks = rand(3, 3, 5, 5) * 3, (rand(3, 3, 5, 5, seed=1) > 0).double()
        per_image = []
        for b in range(3):
            rows = [r for r in range(3) if self.foreground[b, r]]
            pairs = [(x, t) for r in rows for x, t in zip(logits[b, r].flatten(), masks[b, r].flatten(), strict=True)]
            per_image.append(sum(softplus(float(x)) - float(t * x) for x, t in pairs) / max(1, len(pairs)))
        found = terms.mask_loss(logits, masks, self.foreground)
        assert found.item() == pytest.approx(np.mean(per_image)) and per_image[2] == 0

    def test_gradient(self) -> None:
        masks = (rand(3, 3, 2, 2, seed=1) > 0).double()
        assert gradcheck(lambda x: terms.mask_loss(x, masks, self.foreground), rand(3, 3, 2, 2).requires_grad_())


class TestDice:
    def of(self, logits: Tensor, masks: Tensor) -> float:
        return terms.dice_loss(logits[None, None], masks[None, None], torch.tensor([[True]])).item()

    def test_known_answers(self) -> None:
        """Of a mask of two of four pixels: found exactly, the other two, one of the two, everything, .5 everywhere."""
        mask, sure = torch.tensor([[1.0, 1], [0, 0]]), 50.0
        assert self.of(sure * (2 * mask - 1), mask) == pytest.approx(0, abs=1e-6)
        assert self.of(sure * (1 - 2 * mask), mask) == pytest.approx(1 - 1 / 5)
        assert self.of(torch.tensor([[sure, -sure], [-sure, -sure]]), mask) == pytest.approx(1 - 3 / 4)
        assert self.of(torch.full((2, 2), sure), mask) == pytest.approx(1 - 5 / 7)
        assert self.of(torch.zeros(2, 2), mask) == pytest.approx(1 - 3 / 4)
        empty = torch.zeros(2, 2)
        assert self.of(torch.full((2, 2), -sure), empty) == pytest.approx(0, abs=1e-6)
        assert self.of(torch.full((2, 2), sure), empty) == pytest.approx(1 - 1 / 5)

    def test_against_a_loop(self) -> None:
        foreground = TestMasks.foreground
        logits, masks = rand(3, 3, 5, 5) * 3, (rand(3, 3, 5, 5, seed=1) > 0).double()
        means = [
            np.mean([self.of(logits[b, r], masks[b, r]) for r in range(3) if foreground[b, r]] or [0.0])
            for b in range(3)
        ]
        assert means[2] == 0 and terms.dice_loss(logits, masks, foreground).item() == pytest.approx(np.mean(means))

    @pytest.mark.parametrize("scale", [1.0, 1e6])
    def test_gradient(self, scale: float) -> None:
        masks, logits = (rand(3, 3, 2, 2, seed=1) > 0).double(), rand(3, 3, 2, 2).requires_grad_()
        assert gradcheck(lambda x: terms.dice_loss(x * scale, masks, TestMasks.foreground), logits)


class TestCrops:
    """Three crops of the first image, none of the second, one of the third, which is void."""

    counts = (3, 0, 1)

    def labels(self) -> Tensor:
        labels = torch.randint(0, 5, (4, 3, 3), generator=torch.Generator().manual_seed(0)).byte()
        labels[1, 0], labels[3] = IGNORE, IGNORE
        return labels

    def test_against_a_loop(self) -> None:
        logits, labels = rand(4, 5, 3, 3), self.labels()
        values = [
            log_sum_exp(logits[n, :, y, x].tolist()) - float(logits[n, int(labels[n, y, x]), y, x])
            for n in range(3)
            for y in range(3)
            for x in range(3)
            if labels[n, y, x] != IGNORE
        ]
        found = terms.crop_loss(logits, labels, list(self.counts))
        assert len(values) == 24 and found.item() == pytest.approx(np.mean(values) / 3)

    def test_gradient(self) -> None:
        labels = self.labels()
        assert gradcheck(lambda x: terms.crop_loss(x, labels, list(self.counts)), rand(4, 5, 3, 3).requires_grad_())


class TestSemantic:
    def data(self) -> tuple[Tensor, Tensor]:
        """The last image is void."""
        target = torch.randint(0, 5, (3, 24, 32), generator=torch.Generator().manual_seed(2)).byte()
        target[0, :9], target[2] = IGNORE, IGNORE
        return rand(3, 5, 6, 8), target

    def plain(self, logits: Tensor, target: Tensor) -> Tensor:
        """What the function replaces, image by image."""
        full = F.interpolate(logits, scale_factor=4.0, mode="bilinear", align_corners=False)
        means = [
            F.cross_entropy(full[[b]], target[[b]].long(), ignore_index=IGNORE, reduction="sum")
            / max(1, int((target[b] != IGNORE).sum()))
            for b in range(len(logits))
        ]
        return torch.stack(means)

    # Everything at once; two images at once; one image; stripes of 4 rows, the last shorter; of one row.
    @pytest.mark.parametrize("chunk", [1 << 24, 2 * 6 * 640, 6 * 640, 4 * 640, 1])
    def test_value_and_gradient(self, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(S, "CHUNK", chunk)
        logits, target = self.data()
        weights = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
        results = []
        for function in (S.UpsampledCrossEntropy.apply, self.plain):
            leaf = logits.clone().requires_grad_()
            losses = function(leaf, target)
            (gradient,) = torch.autograd.grad((losses * weights).sum(), leaf)
            results.append((losses.detach(), gradient))
        torch.testing.assert_close(results[0], results[1], atol=1e-13, rtol=1e-12)
        assert results[0][0][2] == 0 and (results[0][1][2] == 0).all()

    @pytest.mark.parametrize("chunk", [1 << 24, 640])
    def test_gradcheck(self, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(S, "CHUNK", chunk)
        logits, target = self.data()
        logits, target = logits[:, :, :3, :3].clone().requires_grad_(), target[:, :12, :12]
        assert gradcheck(S.UpsampledCrossEntropy.apply, (logits, target))

    def test_stripes_cover_everything_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for chunk in (1, 700, 4000, 9000, 1 << 24):
            monkeypatch.setattr(S, "CHUNK", chunk)
            seen = np.zeros((3, 6), dtype=int)
            for images, first, last in S.stripes(3, 5, 6, 8):
                seen[images, first:last] += 1
            assert (seen == 1).all()

    def test_without_gradient(self) -> None:
        logits, target = self.data()
        with torch.no_grad():
            found = S.UpsampledCrossEntropy.apply(logits, target)
        torch.testing.assert_close(found, self.plain(logits, target))


class TestPanoptic:
    boxes = torch.tensor([[2.0, 3, 11, 14], [8, 1, 24.5, 18.2], [0, 0, 29, 19]], dtype=torch.float64)
    labels = torch.tensor([0, 2, 1])

    def test_the_argmax_is_inferences(self) -> None:
        semantic, masks = rand(1, STUFF + THINGS, 20, 30), rand(1, 3, 28, 28) * 2
        kept = torch.ones(1, 3, dtype=torch.bool)
        logits = terms.panoptic_logits(semantic, self.boxes[None], self.labels[None], masks, kept, STUFF)
        pasted = mask_terms(masks[0], self.boxes, 20, 30)
        assert torch.equal(logits[0].argmax(0), panoptic_labels(semantic[0], pasted, self.boxes, self.labels, STUFF))

    def test_each_image_is_what_it_is_alone(self) -> None:
        """Rows of padding, and an image without instances, change nothing but add channels of -inf."""
        semantic, masks = rand(3, STUFF + THINGS, 20, 30), rand(3, 4, 28, 28)
        boxes, labels = torch.zeros(3, 4, 4, dtype=torch.float64), torch.zeros(3, 4, dtype=torch.long)
        boxes[:, :3], labels[:, :3] = self.boxes, self.labels
        counts = (3, 0, 1)
        kept = torch.arange(4) < torch.tensor(counts)[:, None]
        found = terms.panoptic_logits(semantic, boxes, labels, masks, kept, STUFF)
        for b, n in enumerate(counts):
            segments = [segment_term(semantic[b, STUFF + labels[b, k]], boxes[b, k]) for k in range(n)]
            instances = [s + m for s, m in zip(segments, mask_terms(masks[b, :n], boxes[b, :n], 20, 30), strict=True)]
            highest = torch.stack(segments).amax(0) if segments else torch.zeros(20, 30)
            expected = [*semantic[b, :STUFF], *instances, semantic[b, STUFF:].amax(0) - highest]
            torch.testing.assert_close(found[b, [*range(STUFF + n), STUFF + 4]], torch.stack(expected))
            assert (found[b, STUFF + n : STUFF + 4] == -torch.inf).all()

    def test_loss_against_a_loop(self) -> None:
        logits, labels = rand(3, 6, 4, 5), torch.randint(0, 4, (3, 4, 5), generator=torch.Generator().manual_seed(0))
        logits[:, 4] = -torch.inf  # padding, which no label names
        labels[0, :2], labels[2] = IGNORE, IGNORE
        per_image = [
            np.mean(
                [
                    log_sum_exp(logits[b, :, y, x].tolist()) - float(logits[b, labels[b, y, x], y, x])
                    for y in range(4)
                    for x in range(5)
                    if labels[b, y, x] != IGNORE
                ]
                or [0.0]
            )
            for b in range(3)
        ]
        assert per_image[2] == 0
        assert terms.panoptic_loss(logits, labels).item() == pytest.approx(np.mean(per_image))

    def test_gradient(self) -> None:
        kept = torch.tensor([[True, True, False], [False] * 3])
        boxes, labels = (values.expand(2, *values.shape) for values in (self.boxes / 4, self.labels))
        pixels = torch.randint(0, STUFF + 2, (2, 4, 5), generator=torch.Generator().manual_seed(3))
        pixels[1] = torch.where(pixels[1] >= STUFF, STUFF + 3, pixels[1])

        def loss(semantic: Tensor, masks: Tensor) -> Tensor:
            return terms.panoptic_loss(terms.panoptic_logits(semantic, boxes, labels, masks, kept, STUFF), pixels)

        assert gradcheck(loss, (rand(2, STUFF + THINGS, 4, 5).requires_grad_(), rand(2, 3, 3, 3).requires_grad_()))

    def test_terms_of_the_original(self, shared_data: Path) -> None:
        """The original's SegTerm and MaskTerm of seven boxes at quarter resolution."""
        golden = np.load(shared_data / "upsnet_golden" / "edge.npz")
        boxes, masks, channels, pasted = (
            torch.from_numpy(golden[f"term_{name}"]) for name in ("boxes", "mask_logits", "seg_channels", "mask_out")
        )
        support = np.unpackbits(golden["term_seg_support"])[: channels.numel()].reshape(channels.shape)
        kept = torch.ones(1, len(boxes), dtype=torch.bool)
        # Each box's class is its own channel, after one of stuff.
        semantic = torch.cat([torch.zeros(1, *channels.shape[1:]), channels]).unsqueeze(0)
        found = terms.panoptic_logits(semantic, boxes[None] / 4, torch.arange(7)[None], masks[None], kept, num_stuff=1)
        expected = channels * torch.from_numpy(support) + pasted
        torch.testing.assert_close(found[0, 1:-1], expected, atol=2e-5, rtol=1e-5)
