"""The losses: known answers, an independent panoptic loss, gradients everywhere, empty images."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from plugins_cuda.panoptic_fusion.reference import mask_terms, panoptic_labels
from training import losses as L
from training.config import LossConfig, ModelConfig, load_config
from training.data.batch import IGNORE, Batch
from training.model.upsnet import UPSNet, inclusive

STUFF, THINGS = 4, 3


@pytest.fixture(scope="module")
def small(project_root) -> ModelConfig:
    return load_config(project_root / "training/configs/demo.yaml").model


def make_batch(instances: list[int], height: int = 64, width: int = 96) -> Batch:
    """Stuff in stripes, `instances[b]` rectangles on image b."""
    generator = torch.Generator().manual_seed(3)
    count = len(instances)
    semantic = (torch.arange(width) // 16 % STUFF).expand(count, height, width).clone()
    boxes, labels = [], []
    instances_map = torch.zeros(count, height, width, dtype=torch.int16)
    for b, n in enumerate(instances):
        corner = torch.randint(0, 40, (n, 2), generator=generator)
        box = torch.cat([corner, corner + torch.randint(8, 24, (n, 2), generator=generator)], dim=1)
        label = torch.randint(0, THINGS, (n,), generator=generator)
        for i, (x1, y1, x2, y2) in enumerate(box.tolist()):
            instances_map[b, y1:y2, x1:x2] = i + 1
            semantic[b, y1:y2, x1:x2] = STUFF + label[i]
        boxes.append(box.float())
        labels.append(label)
    return Batch(
        images=torch.randint(0, 256, (count, height, width, 3), dtype=torch.uint8, generator=generator),
        sizes=torch.tensor([[height, width]] * count, dtype=torch.int32),
        scales=torch.ones(count),
        semantic=semantic.byte(),
        instances=instances_map,
        boxes=boxes,
        labels=labels,
        seeds=torch.arange(count),
        image_ids=list(range(count)),
    )


@pytest.fixture()
def losses(small: ModelConfig) -> L.TrainingLosses:
    torch.manual_seed(0)
    return L.TrainingLosses(UPSNet(small, STUFF, THINGS), LossConfig(semantic=1, semantic_roi=0.2, panoptic=0.5))


@pytest.mark.parametrize("instances", [[3, 2], [0, 2], [0, 0]])
def test_every_parameter_takes_part(losses: L.TrainingLosses, instances: list[int]) -> None:
    values = losses(make_batch(instances))
    assert all(torch.isfinite(value) and value >= 0 for value in values.values())
    sum(values.values()).backward()
    without = [name for name, p in losses.named_parameters() if p.grad is None]
    assert not without
    if instances == [0, 0]:
        assert values["mask"] == values["rcnn_box"] == values["rpn_box"] == values["semantic_roi"] == 0


def test_an_image_of_void_alone(losses: L.TrainingLosses) -> None:
    batch = make_batch([0])
    values = losses(batch._replace(semantic=torch.full_like(batch.semantic, IGNORE)))
    assert values["semantic"] == 0 and values["panoptic"] == 0
    assert math.isfinite(sum(values.values()).item())


def test_losses_fall_when_one_batch_is_learned(losses: L.TrainingLosses) -> None:
    batch = make_batch([3, 2])
    optimizer = torch.optim.AdamW(losses.parameters(), lr=2e-3)
    seen = []
    for step in range(12):
        torch.manual_seed(step)
        values = losses(batch)
        optimizer.zero_grad()
        sum(values.values()).backward()
        optimizer.step()
        seen.append(sum(values.values()).item())
    assert min(seen[-3:]) < 0.7 * seen[0]


class TestTargets:
    def test_mask_target_of_a_half(self) -> None:
        mask = torch.zeros(1, 64, 64, dtype=torch.bool)
        mask[0, 10:20, 10:40] = True
        target = L.mask_targets(mask, torch.tensor([[10.0, 10.0, 40.0, 30.0]]))[0]
        assert (target[:14] == 1).all() and (target[14:] == 0).all()

    def test_crop_of_labels(self) -> None:
        semantic = torch.arange(56 * 56).reshape(56, 56) // 28 % 2  # columns 0..27: 0, 28..55: 1
        crop = L.crop_labels(semantic, torch.tensor([[14.0, 0.0, 42.0, 56.0], [100.0, 100.0, 120.0, 120.0]]))
        assert (crop[0, :, :14] == 0).all() and (crop[0, :, 14:] == 1).all()
        assert (crop[1] == semantic[-1, -1]).all(), "outside the map the border's labels count"

    def test_panoptic_target_by_hand(self) -> None:
        semantic = torch.zeros(16, 16, dtype=torch.long)
        semantic[:, 8:] = STUFF + 1
        semantic[12:] = IGNORE
        masks = torch.zeros(2, 16, 16, dtype=torch.bool)
        masks[0, :8, 8:] = True
        masks[1, 8:12, 8:] = True
        target = L.panoptic_target(semantic, masks, torch.tensor([1]), STUFF)
        # Instance 1 is kept (rank 0); instance 0 was dropped, so that it is unknown = STUFF + 1.
        assert target.tolist() == [
            [0, 0, STUFF + 1, STUFF + 1],
            [0, 0, STUFF + 1, STUFF + 1],
            [0, 0, STUFF, STUFF],
            [IGNORE] * 4,
        ]

    def test_sampled_rois(self, losses: L.TrainingLosses) -> None:
        boxes = [torch.tensor([[0.0, 0, 20, 20]]), torch.zeros(0, 4)]
        labels = [torch.tensor([2]), torch.zeros(0).long()]
        proposals = torch.tensor([[0.0, 0, 20, 18], [40, 40, 60, 60]]).expand(2, 2, 4)
        valid = torch.tensor([[True, True], [True, False]])
        sampled = losses.sample_rois(proposals, valid, boxes, labels)
        assert sorted(sampled.labels[0][sampled.labels[0] != IGNORE].tolist()) == [0, 3, 3]
        assert sampled.labels[1][sampled.labels[1] != IGNORE].tolist() == [0]
        assert sampled.matched[0].tolist() == [0, 0] and len(sampled.matched[1]) == 0
        own = (sampled.rois[0] == boxes[0][0]).all(1)
        assert (sampled.targets[0][own] == 0).all(), "a box that is the truth has nothing to correct"


def test_panoptic_logits_agree_with_inference(small: ModelConfig) -> None:
    """The argmax of the training logits is what the inference operator's running maximum says."""
    torch.manual_seed(0)
    semantic = torch.randn(STUFF + THINGS, 20, 30)
    boxes = inclusive(torch.tensor([[2.0, 3, 12, 15], [8.0, 1, 25.5, 19.2], [0, 0, 30, 20]]))
    labels, masks = torch.tensor([0, 2, 1]), torch.randn(3, 28, 28) * 2
    logits = L.panoptic_logits(semantic, boxes, labels, masks, STUFF)
    expected = panoptic_labels(semantic, mask_terms(masks, boxes, 20, 30), boxes, labels, STUFF)
    assert torch.equal(logits.argmax(0), expected)


def test_panoptic_loss_against_a_plain_loop(losses: L.TrainingLosses) -> None:
    """With everything kept: cross-entropy of logits written pixel by pixel from the paper's definition."""
    model = losses.model
    object.__setattr__(model.config.panoptic, "keep_fraction", 1.0)
    batch = make_batch([2])
    with torch.no_grad():
        pyramid = model.pyramid(batch.images, batch.sizes)
        semantic = model.semantic_head(pyramid[:4])
        found = losses.panoptic_loss(pyramid, semantic, batch)
        masks = model.mask_head(model.roi_features(pyramid, batch.boxes[0].unsqueeze(0), 14), batch.labels[0])
    expected = slow_panoptic_loss(semantic[0], masks, batch)
    object.__setattr__(model.config.panoptic, "keep_fraction", 0.7)
    assert found.item() == pytest.approx(expected, rel=1e-4)


def slow_panoptic_loss(semantic: Tensor, masks: Tensor, batch: Batch) -> float:
    height, width = semantic.shape[1:]
    boxes, labels = batch.boxes[0], batch.labels[0].tolist()
    total = 0.0
    for y in range(height):
        for x in range(width):
            logits, terms = semantic[:STUFF, y, x].tolist(), []
            for i, label in enumerate(labels):
                x1, y1, x2, y2 = (v / 4 for v in (boxes[i] - torch.tensor([0, 0, 1, 1])).tolist())
                inside = int(x1) <= x <= round(x2) and int(y1) <= y <= round(y2)
                terms.append(semantic[STUFF + label, y, x].item() if inside else 0.0)
                columns, rows = int(x2) - int(x1) + 1, int(y2) - int(y1) + 1
                mask = 0.0
                if 0 <= x - int(x1) < columns and 0 <= y - int(y1) < rows:
                    grid = torch.nn.functional.interpolate(masks[i][None, None], (rows, columns), mode="bilinear")
                    mask = grid[0, 0, y - int(y1), x - int(x1)].item()
                logits.append(terms[-1] + mask)
            logits.append(semantic[STUFF:, y, x].max().item() - max(terms))
            label = int(batch.semantic[0, 4 * y + 2, 4 * x + 2])
            for i in range(len(labels)):
                if batch.instances[0, 4 * y + 2, 4 * x + 2] == i + 1:
                    label = STUFF + i
            total += math.log(sum(math.exp(v) for v in logits)) - logits[label]
    return total / (height * width)
