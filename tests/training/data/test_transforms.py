"""Augmentation: repeatable, without a trace in the global random state, and the same for photo and truth."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import functional as F

from tests.training.tiny_network import shapes_split
from training.benchmark.synthetic import draw_photo, draw_segments, write_panoptic_set
from training.data.coco_panoptic import PanopticDataset
from training.data.sample import Sample
from training.data.transforms import NO_AUGMENTATION, Augment, resize_photo, twist_colours
from upsnet.errors import InputError
from upsnet.geometry import ResizeRule, to_network
from upsnet.photos import read_photo

RULE = ResizeRule(short_side=80, max_side=120)
STRONG = Augment(flip=0.5, color=0.4, scale=(0.6, 1.6), short_sides=(64, 80, 96))


def open_shapes(
    folder: Path, augment: Augment = NO_AUGMENTATION, seed: int = 0, rule: ResizeRule = RULE
) -> PanopticDataset:
    return PanopticDataset(shapes_split(folder), rule, augment, seed)


def same(a: Sample, b: Sample) -> bool:
    def equal(x: Any, y: Any) -> bool:
        return torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y

    return all(equal(x, y) for x, y in zip(a.values(), b.values(), strict=True))


def test_a_sample_is_a_function_of_seed_draw_and_index(shapes_folder: Path) -> None:
    one, two = open_shapes(shapes_folder, STRONG), open_shapes(shapes_folder, STRONG)
    for key in ((0, 3), (5, 3), (5, 4)):
        first = one[key]
        torch.rand(3), np.random.rand(3)  # what others draw does not matter
        assert same(first, two[key]) and same(first, one[key])
    assert same(one[3], one[0, 3])
    assert not torch.equal(one[0, 3]["image"], one[1, 3]["image"])
    assert not torch.equal(one[0, 3]["image"], open_shapes(shapes_folder, STRONG, seed=1)[0, 3]["image"])


def test_other_sizes_are_rounded_by_the_same_rule() -> None:
    rule = RULE.model_copy(update={"rounding": "double", "divisor": 16})
    for drawn in STRONG.draw_rules(rule, np.random.default_rng(0)):
        assert (drawn.rounding, drawn.divisor) == ("double", 16) and drawn.short_side != 80


def test_the_global_random_state_stays_as_it_is(shapes_folder: Path) -> None:
    before = torch.get_rng_state(), np.random.get_state(legacy=False)["state"]["key"].copy()
    open_shapes(shapes_folder, STRONG)[2, 1]
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state(legacy=False)["state"]["key"], before[1])


@pytest.mark.parametrize("index", range(6))
def test_flip_equivariance(shapes_folder: Path, index: int) -> None:
    plain = open_shapes(shapes_folder, Augment(flip=0.0))[index]
    flipped = open_shapes(shapes_folder, Augment(flip=1.0))[index]
    width = plain["size"][1]
    for key in ("image", "semantic", "instances"):
        assert torch.equal(flipped[key], plain[key].flip(-1))  # type: ignore[literal-required]
    x1, y1, x2, y2 = plain["boxes"].unbind(1)
    assert torch.equal(flipped["boxes"], torch.stack([width - x2, y1, width - x1, y2], 1))
    assert torch.equal(flipped["labels"], plain["labels"])
    assert same(plain, open_shapes(shapes_folder)[index])


def test_half_of_the_images_are_flipped(shapes_folder: Path) -> None:
    plain, drawn = open_shapes(shapes_folder)[0], open_shapes(shapes_folder, Augment(flip=0.5))
    flips = sum(not torch.equal(drawn[draw, 0]["image"], plain["image"]) for draw in range(40))
    assert 10 <= flips <= 30


def test_colour_jitter_leaves_the_truth_alone(shapes_folder: Path) -> None:
    plain = open_shapes(shapes_folder)[0]
    jittered = open_shapes(shapes_folder, Augment(flip=0.0, color=0.4))[0]
    assert not torch.equal(jittered["image"], plain["image"])
    assert same({**jittered, "image": plain["image"]}, plain)  # type: ignore[typeddict-item]


def test_zoom_in_cuts_a_window_of_the_network_size(shapes_folder: Path) -> None:
    plain = open_shapes(shapes_folder)[0]
    dataset = open_shapes(shapes_folder, Augment(flip=0.0, scale=(2.0, 2.0)))
    large = open_shapes(shapes_folder, rule=ResizeRule(short_side=160, max_side=240))[0]
    windows = set()
    for draw in range(8):
        sample = dataset[draw, 0]
        height, width = sample["size"]
        assert sample["size"] == plain["size"] and sample["scale"] == large["scale"]
        places = [
            (top, left)
            for top in range(large["size"][0] - height + 1)
            for left in range(large["size"][1] - width + 1)
            if torch.equal(large["image"][:, top, left : left + width], sample["image"][:, 0])
        ]
        ((top, left),) = places  # the window is found in the large image, in the truth at the same place
        windows.add((top, left))
        assert torch.equal(large["image"][:, top : top + height, left : left + width], sample["image"])
        assert torch.equal(large["semantic"][top : top + height, left : left + width], sample["semantic"])
    assert len(windows) > 4


def test_zoom_out_leaves_a_smaller_image(shapes_folder: Path) -> None:
    sample = open_shapes(shapes_folder, Augment(flip=0.0, scale=(0.5, 0.5)))[0]
    small = open_shapes(shapes_folder, rule=ResizeRule(short_side=40, max_side=60))[0]
    assert same(sample, small)


def test_large_scale_jitter_is_that_of_the_paper() -> None:
    """Ghiasi et al., CVPR 2021: a factor uniform in 0.1 to 2.0 of the whole size, then a crop of at most that size."""
    draws, jitter = np.random.default_rng(0), Augment(scale=(0.1, 2.0))
    rules = [jitter.draw_rules(ResizeRule(short_side=1000, max_side=2000), draws) for _ in range(2000)]
    assert {(whole.short_side, whole.max_side) for whole, _ in rules} == {(1000, 2000)}
    assert all(abs(2 * each.short_side - each.max_side) <= 1 for _, each in rules)
    zooms = np.array([zoomed.short_side / 1000 for _, zoomed in rules])
    counts = np.histogram(zooms, 19, (0.1, 2.0))[0]
    assert counts.sum() == 2000 and counts.min() > 70 and counts.max() < 145  # 105 expected in each tenth


def test_multi_scale_draws_every_short_side(shapes_folder: Path) -> None:
    dataset = open_shapes(shapes_folder, Augment(flip=0.0, short_sides=(64, 72, 88)))
    sides = {min(dataset[draw, 0]["size"]) for draw in range(30)}
    assert sides == {64, 72, 88}


@pytest.mark.parametrize("scale", [(0.0, 1.0), (1.5, 0.5)])
def test_ranges_that_are_none(scale: tuple[float, float]) -> None:
    with pytest.raises(InputError, match="scale"):
        Augment(scale=scale)


def test_short_sides_over_the_longest_side(shapes_folder: Path) -> None:
    with pytest.raises(InputError, match=r"short_sides .* go over max_side 120"):
        open_shapes(shapes_folder, Augment(short_sides=(128,)))


def made_up_photo(height: int, width: int) -> np.ndarray:
    draws = np.random.default_rng([height, width])
    return draw_photo(draws, draw_segments(draws, height, width))


@pytest.mark.parametrize(("height", "width"), [(96, 128), (250, 131), (700, 901), (64, 700)])
def test_photos_are_resized_as_for_the_other_runtimes(height: int, width: int) -> None:
    """All but a level in few pixels; at its size a photo stays as it is."""
    photo = made_up_photo(height, width)
    net = to_network(photo, ResizeRule(short_side=150, max_side=400))
    rows, columns = net.size
    off = abs(resize_photo(photo, net.size).astype(int) - net.image[:rows, :columns])
    assert off.max() <= 1 and (off > 0).mean() < 0.03
    assert np.array_equal(resize_photo(photo, (height, width)), photo)


def test_drafted_photos_change_no_more_than_another_filter_would(tmp_path: Path) -> None:
    """Nothing else of a sample changes; photos of less than four times the network's size are what they were."""
    split = write_panoptic_set(tmp_path, 2, (384, 512))
    for side, drafted in ((64, True), (96, True), (97, False)):
        rule = ResizeRule(short_side=side, max_side=2 * side)
        for index in range(2):
            exact, draft = (PanopticDataset(split, rule, draft=on)[index] for on in (False, True))
            assert same({**draft, "image": exact["image"]}, exact)  # type: ignore[typeddict-item]
            assert torch.equal(draft["image"], exact["image"]) != drafted
            photo = Image.fromarray(read_photo(tmp_path / f"images/{index + 1:012d}.jpg"))
            other = np.asarray(photo.resize(exact["size"][::-1], Image.Resampling.BICUBIC)).astype(int)
            pixels = exact["image"].permute(1, 2, 0).numpy()
            assert abs(draft["image"].permute(1, 2, 0).numpy() - pixels.astype(int)).mean() < abs(other - pixels).mean()


def test_colours_are_twisted_by_one_matrix() -> None:
    """As torchvision does it step by step, where no step goes over white; torchvision's cuts the fractions off. The hue
    is turned another way, the same whichever way round, and greys and brightness stay."""
    photo = (made_up_photo(60, 80) // 2 + 40).astype(np.uint8)
    image = torch.from_numpy(photo).permute(2, 0, 1)
    steps = F.adjust_saturation(F.adjust_contrast(F.adjust_brightness(image, 1.1), 0.9), 1.2).permute(1, 2, 0).numpy()
    assert abs(twist_colours(photo, 1.1, 0.9, 1.2, 0.0) - steps.astype(int)).max() <= 3
    assert np.array_equal(twist_colours(photo, 1.0, 1.0, 1.0, 0.0), photo)
    turned = twist_colours(photo, 1.0, 1.0, 1.0, 0.05)
    assert abs(twist_colours(turned, 1.0, 1.0, 1.0, -0.05) - photo.astype(int)).max() <= 2
    assert abs((turned - photo.astype(float)) @ (0.299, 0.587, 0.114)).max() < 1.5
    red = np.full((1, 1, 3), (180, 100, 100), np.uint8)
    assert twist_colours(red, 1.0, 1.0, 1.0, 0.05)[0, 0].argsort().tolist() == [2, 1, 0], "towards yellow, as in HSV"
    grey = np.full((2, 2, 3), 90, np.uint8)
    assert np.array_equal(twist_colours(grey, 1.0, 1.3, 0.5, 0.1), grey)
