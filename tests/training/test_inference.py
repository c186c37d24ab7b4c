"""The AP branch, the semantic map and test-time augmentation, against the plain network and slow definitions."""

from __future__ import annotations

import weakref
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.ops import box_iou, nms

from training.conventions import NAMED, OURS, UPSNET, Conventions
from training.inference import Outputs, View, infer, join, label_map, moved, to_base
from training.model import boxes as B
from training.model.heads import BOX_POOL
from training.model.upsnet import Detections, Suppression, UPSNet
from training.model_config import ModelConfig
from training.predictor import UPSNetPredictor, mirrored
from training.step import set_tf32
from upsnet.categories import Categories, Category
from upsnet.errors import InputError
from upsnet.geometry import ResizeRule, collate, to_network
from upsnet.manifest import Manifest
from upsnet.runtimes.predictor import DetailedPredictor, unpack

pytestmark = pytest.mark.numeric

STUFF, THINGS = 4, 4


def make_network(config: ModelConfig) -> UPSNet:
    """Random weights, with the scores and boxes spread so that all branches find something."""
    torch.manual_seed(0)
    model = UPSNet(config, STUFF, THINGS)
    torch.nn.init.normal_(model.box_head.logits.weight, std=8.0)
    torch.nn.init.normal_(model.box_head.deltas.weight, std=0.05)
    torch.nn.init.normal_(model.semantic_head.score.weight, std=0.5)
    return model.eval()


@pytest.fixture(scope="module")
def network(small: ModelConfig) -> UPSNet:
    return make_network(small)


@pytest.fixture(scope="module", params=NAMED)
def model(small: ModelConfig, request: pytest.FixtureRequest) -> UPSNet:
    """The same with each of the conventions."""
    return make_network(small.model_copy(update={"conventions": request.param}))


def random_view(batch: int, height: int, width: int, sizes: list[tuple[int, int]] | None = None) -> View:
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (batch, height, width, 3), dtype=torch.uint8, generator=generator)
    inside = torch.tensor(sizes or [(height, width)] * batch, dtype=torch.int32)
    return View(images, inside, inside.tolist())


def run(model: UPSNet, views: list[View], base: View) -> Outputs:
    with torch.inference_mode():
        return infer(model, views, base, torch.ones(len(base.images)))


def flip(view: View) -> View:
    """Each image mirrored inside its size."""
    images = torch.zeros_like(view.images)
    for image, source, (height, width) in zip(images, view.images, view.sizes.tolist(), strict=True):
        image[:height, :width] = source[:height, :width].flip(1)
    return View(images, view.sizes, view.on_host, not view.flipped)


class TestOneView:
    def test_is_the_plain_network_exactly(self, model: UPSNet) -> None:
        view = random_view(2, 96, 128, [(96, 128), (90, 101)])
        found = run(model, [view], view)
        with torch.inference_mode():
            plain = model(view.images, view.sizes, torch.ones(2))
        assert (plain[1][..., 0] >= STUFF).any(1).all(), "things were found"
        assert all(torch.equal(a, b) for a, b in zip(found[:3], plain, strict=True))

    def test_semantic_map_is_the_argmax_at_full_size(self, network: UPSNet) -> None:
        view = random_view(2, 64, 96)
        with torch.inference_mode():
            logits = network.semantic_head(network.pyramid(view.images, view.sizes)[:4], view.sizes)
            full = torch.nn.functional.interpolate(logits, scale_factor=4.0, mode="bilinear", align_corners=False)
        labels = run(network, [view], view).semantic
        assert labels.dtype == torch.uint8 and len(labels.unique()) > 1
        first, second = full.topk(2, dim=1).values.unbind(1)
        clear = first - second > 1e-5  # the map is made in parts, and a CPU may round those otherwise
        assert clear.float().mean() > 0.99
        assert torch.equal(labels[clear], full.argmax(1).to(torch.uint8)[clear])

    def test_label_map_over_many_channels_and_ties(self) -> None:
        logits = torch.randint(-3, 4, (1, 21, 5, 7)).float()
        full = torch.nn.functional.interpolate(logits, scale_factor=4.0, mode="bilinear", align_corners=False)
        assert torch.equal(label_map(logits), full.argmax(1).to(torch.uint8))
        assert (full == full.amax(1, keepdim=True)).sum(1).max() > 1, "there are ties"

    def test_instances_by_the_book(self, model: UPSNet) -> None:
        """Class by class with torchvision's NMS, one image after the other."""
        view = random_view(2, 96, 128, [(96, 128), (90, 101)])
        found = run(model, [view], view).instances
        last = float(model.conventions.inclusive)
        assert found.counts.min() > 10
        with torch.inference_mode():
            pyramid = model.pyramid(view.images, view.sizes)
            proposals, valid = model.rpn.propose(model.rpn(pyramid), view.sizes, model.config.rpn.test_top_n)
            logits, deltas = model.box_head(model.roi_features(pyramid, proposals, BOX_POOL))
        for b, (height, width) in enumerate(view.sizes.tolist()):
            rows = slice(b * valid.shape[1], (b + 1) * valid.shape[1])
            scores = logits[rows].softmax(1)
            wanted: list[tuple[float, int, Tensor]] = []
            for label in range(THINGS):
                boxes = model.conventions.decode(deltas[rows, 1 + label], proposals[b], B.BOX_WEIGHTS)
                boxes = boxes + torch.tensor([0, 0, last, last])
                limit = torch.tensor([width, height, width, height])
                boxes = torch.minimum(boxes.clamp(min=torch.tensor([0, 0, last, last])), limit)
                chosen = torch.nonzero((scores[:, 1 + label] > 0.05) & valid[b]).squeeze(1)
                for row in chosen[nms(boxes[chosen], scores[chosen, 1 + label], 0.5)].tolist():
                    wanted.append((float(scores[row, 1 + label]), label, boxes[row]))
            wanted = sorted(wanted, key=lambda item: -item[0])[:100]
            count = int(found.counts[b])
            assert count == len(wanted)
            assert found.labels[b, :count].tolist() == [label for _, label, _ in wanted]
            torch.testing.assert_close(found.scores[b, :count], torch.tensor([score for score, _, _ in wanted]))
            torch.testing.assert_close(
                found.boxes[b, :count], torch.stack([box for *_, box in wanted]), atol=1e-3, rtol=1e-5
            )

    def test_nothing_found(self, small: ModelConfig) -> None:
        model = make_network(small)
        model.box_head.logits.bias.data[0] = 1e4
        view = random_view(1, 64, 64)
        found = run(model, [view, flip(view)], view)
        assert found.instances.counts.tolist() == [0] and torch.isfinite(found.masks).all()
        assert not (found.segments[0, : found.segment_count[0], 0] >= STUFF).any()


def overlap(a: Outputs, b: Outputs) -> float:
    """Share of a's instances that have one of the same class in b with IoU > .9 and nearly the same score."""
    boxes_a, boxes_b = (o.instances.boxes[0, : o.instances.counts[0]] for o in (a, b))
    labels_a, labels_b = (o.instances.labels[0, : o.instances.counts[0]] for o in (a, b))
    scores_a, scores_b = (o.instances.scores[0, : o.instances.counts[0]] for o in (a, b))
    same = (labels_a[:, None] == labels_b) & ((scores_a[:, None] - scores_b).abs() < 1e-3)
    return float(((box_iou(boxes_a, boxes_b) > 0.9) & same).any(1).float().mean())


class TestViews:
    def test_the_same_view_twice_changes_nothing(self, network: UPSNet) -> None:
        view = random_view(1, 96, 128)
        once, twice = run(network, [view], view), run(network, [view, view], view)
        assert torch.equal(once.panoptic, twice.panoptic) and torch.equal(once.semantic, twice.semantic)
        assert torch.equal(once.instances.counts, twice.instances.counts)
        count = int(once.instances.counts[0])
        assert torch.equal(once.instances.boxes[:, :count], twice.instances.boxes[:, :count])
        torch.testing.assert_close(once.masks[:, :count], twice.masks[:, :count])

    @pytest.mark.parametrize("width", [128, 116])
    def test_a_mirrored_photo_gives_the_mirrored_answer(self, width: int, model: UPSNet) -> None:
        """With both views of both photos the network sees the same four images; only roundings may differ."""
        photo = random_view(1, 96, 128, [(96, width)])
        mirror = View(flip(photo).images, photo.sizes, photo.on_host)
        straight, turned = run(model, [photo, flip(photo)], photo), run(model, [mirror, flip(mirror)], mirror)
        assert straight.instances.counts[0] > 5
        back = turned.semantic[:, :, :width].flip(2)
        assert (back == straight.semantic[:, :, :width]).float().mean() > 0.99
        boxes = turned.instances.boxes.clone()
        boxes[..., [0, 2]] = width - turned.instances.boxes[..., [2, 0]]
        unturned = turned._replace(instances=turned.instances._replace(boxes=boxes))
        assert overlap(straight, unturned) > 0.9 and overlap(unturned, straight) > 0.9
        category = [_category_map(outputs) for outputs in (straight, turned)]
        assert (category[1][:, :width].flip(1) == category[0][:, :width]).float().mean() > 0.97

    def test_mirroring_alone_is_undone(self, network: UPSNet) -> None:
        """The mirrored view alone answers what the plain network says about the mirrored photo, turned back."""
        view = random_view(1, 96, 128)
        plain, single = (
            run(network, [View(flip(view).images, view.sizes, view.on_host)], view),
            run(network, [flip(view)], view),
        )
        assert (single.semantic == plain.semantic.flip(2)).float().mean() > 0.995
        boxes = plain.instances.boxes.clone()
        boxes[..., [0, 2]] = 128 - plain.instances.boxes[..., [2, 0]]
        assert overlap(plain._replace(instances=plain.instances._replace(boxes=boxes)), single) > 0.95
        count = int(single.instances.counts[0])
        torch.testing.assert_close(single.masks[0, :count], plain.masks[0, :count].flip(-1), atol=1e-3, rtol=1e-3)

    def test_views_of_other_sizes_answer_at_the_base(self, network: UPSNet) -> None:
        base = random_view(2, 96, 128, [(96, 128), (80, 100)])
        large = random_view(2, 160, 192, [(144, 192), (120, 150)])
        found = run(network, [large, flip(large)], base)
        assert found.panoptic.shape == (2, 96, 128) and found.semantic.shape == (2, 96, 128)
        assert (found.panoptic[1, 80:] == 0).all() and (found.panoptic[1, :, 100:] == 0).all()
        for boxes, (height, width) in zip(found.instances.boxes, base.sizes.tolist(), strict=True):
            assert (boxes >= -1e-3).all() and (boxes <= torch.tensor([width, height] * 2) + 1e-3).all()
            assert boxes[:, 3].max() > 0.8 * height

    def test_features_of_one_view_at_a_time(self, network: UPSNet, monkeypatch: pytest.MonkeyPatch) -> None:
        """Nothing that a view computed is alive when the third and later views begin, but what is averaged."""
        alive: list[int] = []
        seen: list[weakref.ref[Tensor]] = []
        pyramid = network.pyramid

        def watched(images: Tensor, sizes: Tensor) -> list[Tensor]:
            alive.append(sum(reference() is not None for reference in seen))
            levels = pyramid(images, sizes)
            seen.append(weakref.ref(levels[0]))
            return levels

        monkeypatch.setattr(network, "pyramid", watched)
        view = random_view(1, 64, 64)
        run(network, [view] * 3, view)
        assert len(alive) == 6 and max(alive) <= 1


def _category_map(outputs: Outputs) -> Tensor:
    table = torch.cat([torch.full((1,), -1.0), outputs.segments[0, :, 0]])
    return table[outputs.panoptic[0].long()]


class TestFrames:
    @pytest.mark.parametrize(("conventions", "last"), [(OURS, 0), (UPSNET, 1)], ids=["ours", "upsnet"])
    def test_boxes_there_and_back(self, conventions: Conventions, last: int) -> None:
        base, view = random_view(1, 96, 128, [(90, 120)]), random_view(1, 192, 256, [(180, 240)])._replace(flipped=True)
        boxes = torch.tensor([[[10.0, 20.0, 50.0 - last, 60.0 - last]]])
        found = Detections(boxes, torch.ones(1, 1), torch.zeros(1, 1), torch.ones(1))
        there = moved(found, base, view, conventions)
        assert there.boxes[0, 0].tolist() == [2 * (120 - 50), 40, 2 * (120 - 10) - last, 120 - last]
        torch.testing.assert_close(moved(there, view, base, conventions).boxes, boxes)

    def test_logits_of_a_ramp(self) -> None:
        """A ramp over the photo is the same ramp in every frame, away from the borders."""
        base = random_view(1, 96, 128, [(96, 120)])
        for factor, flipped in ((1, True), (2, False), (2, True)):
            view = random_view(1, 96 * factor, 128 * factor, [(96 * factor, 120 * factor)])._replace(flipped=flipped)
            centres = (torch.arange(32 * factor) + 0.5) * 4 / factor
            ramp = (120 - centres if flipped else centres).expand(1, 1, 24 * factor, -1)
            wanted = ((torch.arange(32) + 0.5) * 4).expand(1, 1, 24, -1)
            torch.testing.assert_close(to_base(ramp, view, base)[..., 1:29], wanted[..., 1:29])

    def test_join_keeps_the_better_of_two_views(self) -> None:
        def found(boxes: list[list[float]], scores: list[float], labels: list[int], count: int) -> Detections:
            rows = torch.tensor([boxes]).float(), torch.tensor([scores]), torch.tensor([labels])
            return Detections(*rows, torch.tensor([count]).int())

        first = found([[0, 0, 10, 10], [50, 50, 60, 60], [0, 0, 9, 9]], [0.9, 0.3, 0.9], [1, 2, 1], 2)
        second = found([[0, 0, 10, 11], [20, 20, 30, 30], [0, 0, 9, 9]], [0.95, 0.5, 0.9], [1, 1, 1], 2)
        rule = Suppression(0.05, 0.5, 4, by_class=True)
        both = join([first, second], rule, OURS)
        assert both.counts.tolist() == [3]
        assert both.scores[0, :3].tolist() == pytest.approx([0.95, 0.5, 0.3])
        assert both.boxes[0, 0].tolist() == [0, 0, 10, 11]
        other = join([first, second._replace(labels=second.labels + 1)], rule, OURS)
        assert other.counts.tolist() == [4], "another class does not suppress"


@pytest.fixture
def manifest() -> Manifest:
    table = [Category(id=10 + i, name=f"c{i}", isthing=i >= STUFF, color=(i, i, i)) for i in range(STUFF + THINGS)]
    rule = ResizeRule(short_side=96, max_side=160)
    return Manifest(name="small", categories=list(Categories(table)), resize=rule, max_detections=32)


class TestPredictor:
    def photos(self) -> list[np.ndarray]:
        rng = np.random.default_rng(0)
        return [rng.integers(0, 256, (height, width, 3), np.uint8) for height, width in ((70, 100), (120, 90))]

    def test_details_are_the_plain_prediction_and_more(self, network: UPSNet, manifest: Manifest) -> None:
        predictor = UPSNetPredictor(network, manifest, torch.device("cpu"))
        assert isinstance(predictor, DetailedPredictor) and not predictor.augments
        details = predictor.predict_detailed(self.photos())
        plain = predictor.predict(collate(details.nets))
        assert all(np.array_equal(a, b) for a, b in zip(details.raw, plain, strict=True))
        for photo, answer in zip(self.photos(), unpack(details), strict=True):
            size, found = photo.shape[:2], answer.instances
            assert answer.semantic is not None and found is not None
            assert answer.result.ids.shape == size and answer.semantic.shape == size
            assert answer.semantic.max() < STUFF + THINGS
            assert found.boxes.shape[:2] == found.scores.shape == (1, found.counts[0])
            assert found.categories.min() >= STUFF and found.categories.max() < STUFF + THINGS
            assert (found.boxes[0].max(0)[2:] <= np.array(size[::-1]) + 1e-3).all()
            assert found.masks.min() >= 0 and found.masks.max() <= 1

    def test_float32_is_not_rounded(self, network: UPSNet, manifest: Manifest) -> None:
        """Also inside a run that trains with TF32, whose settings stay."""
        flags: list[Any] = [torch.backends.cudnn, torch.backends.cuda.matmul]
        before, seen = [flag.allow_tf32 for flag in flags], []
        hook = network.register_forward_pre_hook(lambda *_: seen.append([flag.allow_tf32 for flag in flags]))
        batch = collate([to_network(photo, manifest.resize) for photo in self.photos()])
        try:
            set_tf32("tf32")
            UPSNetPredictor(network, manifest, torch.device("cpu")).predict(batch)
            assert seen == [[False, False]] and all(flag.allow_tf32 for flag in flags)
        finally:
            hook.remove()
            for flag, value in zip(flags, before, strict=True):
                flag.allow_tf32 = value

    def test_views(self, network: UPSNet, manifest: Manifest) -> None:
        predictor = UPSNetPredictor(network, manifest, torch.device("cpu"), short_sides=(64, 96, 64), flip=True)
        details = predictor.predict_detailed(self.photos())
        seen = predictor.views(self.photos(), details.nets)
        answers = unpack(details)
        assert predictor.augments and [view.flipped for view in seen] == [False, True] * 2
        assert [view.sizes.tolist() for view in seen[::2]] == [[[64, 91], [85, 64]], [[96, 137], [128, 96]]]
        assert [answer.result.ids.shape for answer in answers] == [(70, 100), (120, 90)]

    def test_views_are_rounded_as_the_model_s_photos(self, network: UPSNet, manifest: Manifest) -> None:
        rule = manifest.resize.model_copy(update={"rounding": "double"})
        other = manifest.model_copy(update={"resize": rule})
        predictor = UPSNetPredictor(network, other, torch.device("cpu"), short_sides=(64, 96))
        assert [(each.short_side, each.rounding) for each in predictor.rules] == [(64, "double"), (96, "double")]

    def test_one_scale_that_is_the_models_own_is_no_augmentation(self, network: UPSNet, manifest: Manifest) -> None:
        assert not UPSNetPredictor(network, manifest, torch.device("cpu"), short_sides=(96,)).augments
        assert UPSNetPredictor(network, manifest, torch.device("cpu"), short_sides=(64,)).augments
        with pytest.raises(InputError, match="short side of 0"):
            UPSNetPredictor(network, manifest, torch.device("cpu"), short_sides=(0,))

    def test_mirrored_stays_inside_the_padding(self) -> None:
        net = to_network(self.photos()[0], ResizeRule(short_side=70, max_side=100))
        turned = mirrored(net)
        assert np.array_equal(turned.image[:70, :100], net.image[:70, :100][:, ::-1])
        assert not turned.image[70:].any() and not turned.image[:, 100:].any()
