"""Mask, crop and panoptic targets: by hand, against loops over pixels, against RoIAlign of mask stacks."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.ops import roi_align

from training.data.batch import Batch
from training.data.sample import IGNORE
from training.losses import draws
from training.losses.targets import crop_labels, mask_targets, panoptic_pixels, panoptic_targets, with_image

STUFF = 4


def blobs(count: int, height: int, width: int, seed: int) -> Tensor:
    """int16 [H, W]: `count` overlapping ellipses, the later ones on top."""
    generator = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    numbers = np.zeros((height, width), dtype=np.int16)
    for number in range(1, count + 1):
        cy, cx = generator.uniform(0, height), generator.uniform(0, width)
        ry, rx = generator.uniform(2, height / 2), generator.uniform(2, width / 2)
        numbers[((y - cy) / ry) ** 2 + ((x - cx) / rx) ** 2 < 1] = number
    return torch.from_numpy(numbers)


def jittered_boxes(numbers: Tensor, rows: int, seed: int) -> tuple[Tensor, Tensor]:
    """RoIs [1, rows, 4] around instances, off by a tenth of their size, and the instances' indices [1, rows]."""
    generator = torch.Generator().manual_seed(seed)
    present = [n for n in range(1, int(numbers.max()) + 1) if (numbers == n).any()]
    owners = torch.tensor(present)[torch.randint(len(present), (rows,), generator=generator)] - 1
    rois = []
    for owner in owners.tolist():
        y, x = (numbers == owner + 1).nonzero(as_tuple=True)
        box = torch.stack([x.min(), y.min(), x.max() + 1, y.max() + 1]).double()
        size = (box[2:] - box[:2]).repeat(2)
        rois.append(box + size * 0.1 * torch.randn(4, generator=generator).double())
    return torch.stack(rois).unsqueeze(0), owners.unsqueeze(0)


class TestMasks:
    def test_of_a_half(self) -> None:
        numbers = torch.zeros(1, 64, 64, dtype=torch.int16)
        numbers[0, 10:20, 10:40] = 1
        target = mask_targets(numbers, torch.tensor([[[10.0, 10.0, 40.0, 30.0]]]), torch.tensor([[0]]))[0, 0]
        assert (target[:14] == 1).all() and (target[14:] == 0).all()

    def test_against_roi_align_of_the_mask_stack(self) -> None:
        numbers = blobs(9, 70, 90, seed=0)
        rois, owners = jittered_boxes(numbers, 40, seed=1)
        found = mask_targets(numbers.unsqueeze(0), rois, owners)[0]
        covered = cut(numbers, rois[0], owners[0], sampling_ratio=2)
        clear = (covered - 0.5).abs() > 1e-9
        assert clear.double().mean() > 0.99 and 0.2 < found.mean() < 0.9
        assert torch.equal(found[clear], (covered >= 0.5).double()[clear])

    @pytest.mark.parametrize("extent", [30, 120, 480])
    def test_little_differs_from_as_many_samples_as_pixels(self, extent: int) -> None:
        """RoIAlign with a number of samples that grows with the RoI, as Detectron2 has it, gives nearly the same."""
        numbers = blobs(8, extent, extent, seed=2)
        rois, owners = jittered_boxes(numbers, 40, seed=3)
        found = mask_targets(numbers.unsqueeze(0), rois, owners)[0]
        differing = found != (cut(numbers, rois[0], owners[0], sampling_ratio=0) >= 0.5)
        assert differing.double().mean() < 0.006

    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 3e38])
    def test_a_corner_that_is_not_finite_reads_nothing(self, value: float) -> None:
        numbers = torch.ones(1, 40, 60, dtype=torch.int16)
        rois = torch.tensor([[[5.0, 5, 30, 30]] * 5])
        for corner in range(4):
            rois[0, corner, corner] = value
        found = mask_targets(numbers, rois, torch.zeros(1, 5, dtype=torch.int64))
        assert (found[0, :4] == 0).all() and (found[0, 4] == 1).all()

    def test_images_do_not_mix(self) -> None:
        maps = torch.stack([blobs(5, 40, 40, seed=s) for s in (5, 6)])
        pairs = [jittered_boxes(numbers, 7, seed=7) for numbers in maps]
        rois, owners = (torch.cat(values) for values in zip(*pairs, strict=True))
        both = mask_targets(maps, rois, owners)
        for image in range(2):
            assert torch.equal(both[image], mask_targets(maps[image : image + 1], *pairs[image])[0])

    @pytest.mark.parametrize("box", [[5.0, 5, 5, 5], [5, 5, 6, 6], [-50, -50, -20, -20], [9, 9, 3, 3], [0, 0, 0, 0]])
    def test_degenerate_rois(self, box: list[float]) -> None:
        numbers = torch.ones(1, 12, 12, dtype=torch.int16)
        target = mask_targets(numbers, torch.tensor([[box]]), torch.tensor([[0]]))
        assert target.shape == (1, 1, 28, 28) and (target == float(box[0] >= 0)).all()


def cut(numbers: Tensor, rois: Tensor, owners: Tensor, sampling_ratio: int) -> Tensor:
    masks = (numbers == 1 + owners[:, None, None]).double().unsqueeze(1)
    index = torch.arange(len(rois), dtype=rois.dtype).unsqueeze(1)
    return roi_align(masks, torch.cat([index, rois], dim=1), 28, 1.0, sampling_ratio, aligned=True).squeeze(1)


class TestCrops:
    def test_by_hand(self) -> None:
        semantic = torch.zeros(2, 56, 56, dtype=torch.uint8)
        semantic[1] = torch.arange(56) // 28  # columns 0..27: 0, 28..55: 1
        boxes = torch.tensor([[1.0, 14.0, 0.0, 42.0, 56.0], [1.0, 100.0, 100.0, 120.0, 120.0]])
        crop = crop_labels(semantic, boxes)
        assert (crop[0, :, :14] == 0).all() and (crop[0, :, 14:] == 1).all()
        assert (crop[1] == semantic[1, -1, -1]).all(), "outside the map the border's labels count"

    def test_against_a_loop(self) -> None:
        generator = np.random.default_rng(0)
        semantic = torch.from_numpy(generator.integers(0, 7, (2, 40, 50), dtype=np.uint8))
        boxes = [torch.tensor([[3.0, 4, 45, 37], [10, 10, 11, 11]]), torch.tensor([[0.0, 0, 50, 40]])]
        found = crop_labels(semantic, with_image(boxes))
        places = [(0, box) for box in boxes[0].tolist()] + [(1, box) for box in boxes[1].tolist()]
        for crop, (image, (x1, y1, x2, y2)) in zip(found, places, strict=True):
            for row in range(28):
                for column in range(28):
                    y, x = y1 + (row + 0.5) * (y2 - y1) / 28, x1 + (column + 0.5) * (x2 - x1) / 28
                    assert crop[row, column] == semantic[image, int(y + 1e-6), int(x + 1e-6)]

    def test_without_boxes(self) -> None:
        assert with_image([torch.zeros(0, 4), torch.zeros(0, 4)]).shape == (0, 5)
        assert crop_labels(torch.zeros(2, 8, 8, dtype=torch.uint8), torch.zeros(0, 5)).shape == (0, 28, 28)


class TestPanoptic:
    def test_by_hand(self) -> None:
        semantic = torch.zeros(1, 16, 16, dtype=torch.uint8)
        semantic[:, :, 8:] = STUFF + 1
        semantic[:, 12:] = IGNORE
        numbers = torch.zeros(1, 16, 16, dtype=torch.int16)
        numbers[:, :8, 8:] = 1
        numbers[:, 8:12, 8:] = 2
        # Instance 2 is kept (k = 0); instance 1 was drawn away, so that it is unknown = STUFF + 2 of the two rows.
        found = panoptic_pixels(semantic, numbers, torch.tensor([[1, -1]]), most=2, num_stuff=STUFF)
        assert found[0].tolist() == [
            [0, 0, STUFF + 2, STUFF + 2],
            [0, 0, STUFF + 2, STUFF + 2],
            [0, 0, STUFF, STUFF],
            [IGNORE] * 4,
        ]

    @pytest.mark.parametrize("instances", [[5, 0, 3], [0, 0], [1], [10, 2]])
    def test_against_a_loop(self, make_batch: Callable[..., Batch], instances: list[int]) -> None:
        batch = make_batch(instances)
        batch.semantic[0, 20:30] = IGNORE  # also under instances, whose pixels count all the same
        found = panoptic_targets(batch, batch.boxes, 0.7, STUFF)
        most = max(round(0.7 * n) for n in instances)
        assert found.boxes.shape == (len(instances), most, 4) and found.pixels.shape == (len(instances), 16, 24)
        for image, count in enumerate(instances):
            keys = draws.keys(batch.seeds[image : image + 1], count, draws.PANOPTIC_STREAM)[0].tolist()
            kept = sorted(range(count), key=lambda i: -keys[i])[: round(0.7 * count)]
            assert found.kept[image].tolist() == [k < len(kept) for k in range(most)]
            assert torch.equal(found.boxes[image, : len(kept)], batch.boxes[image][kept])
            assert torch.equal(found.labels[image, : len(kept)], batch.labels[image][kept])
            for y in range(16):
                for x in range(24):
                    label = int(batch.semantic[image, 4 * y + 2, 4 * x + 2])
                    number = int(batch.instances[image, 4 * y + 2, 4 * x + 2])
                    if number and number - 1 in kept:
                        label = STUFF + kept.index(number - 1)
                    elif STUFF <= label < IGNORE:
                        label = STUFF + most
                    assert found.pixels[image, y, x] == label

    def test_every_instance_is_kept_as_often(self, make_batch: Callable[..., Batch]) -> None:
        batch = make_batch([10])
        counts = torch.zeros(10)
        for seed in range(300):
            found = panoptic_targets(batch._replace(seeds=torch.tensor([seed])), batch.boxes, 0.7, STUFF)
            counts += (found.boxes[0].unsqueeze(1) == batch.boxes[0]).all(2).any(0)
        assert counts.sum() == 2100 and (counts - 210).abs().max() < 40
