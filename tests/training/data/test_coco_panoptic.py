"""The reader of COCO panoptic data sets: samples by hand, consistency with the evaluation's geometry, every error."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.hand_made_dataset import IDS
from tests.training.tiny_network import shapes_split
from training.data.coco_panoptic import PanopticDataset
from training.data.transforms import Augment
from upsnet.datasets.coco_format import read_panoptic_png
from upsnet.datasets.split import Split
from upsnet.errors import InputError
from upsnet.geometry import ResizeRule
from upsnet.photos import write_png

HandMade = Callable[..., dict[str, Path]]
SAME = ResizeRule(short_side=6, max_side=8)  # the hand-made photo is 6 x 8


def opened(paths: dict[str, Path], rule: ResizeRule = SAME) -> PanopticDataset:
    return PanopticDataset(Split(**paths), rule)


def with_copies(paths: dict[str, Path], *names: str) -> dict[str, Path]:
    """The photo and its PNG under other names too."""
    for folder, name in itertools.product((paths["images"], paths["segments"]), names):
        shutil.copy(folder / "a.png", folder / name)
    return paths


def open_coco(folder: Path, rule: ResizeRule) -> PanopticDataset:
    json_file = folder / "annotations/panoptic_val2017.json"
    return PanopticDataset(
        Split(json_file=json_file, segments=json_file.with_suffix(""), images=folder / "val2017"), rule
    )


def test_sample_by_hand(hand_made: HandMade, content: dict[str, Any]) -> None:
    dataset = opened(hand_made(content))
    sample = dataset[0]
    assert dataset.categories.names == ["sky", "sea", "cat", "dog"]
    assert sample["semantic"].tolist() == [
        [0, 0, 0, 0, 0, 0, 0, 255],
        [0, 2, 2, 0, 0, 0, 0, 255],
        [0, 2, 2, 3, 3, 0, 0, 255],
        [0, 0, 2, 3, 3, 0, 255, 255],
        [1, 1, 1, 1, 1, 1, 255, 255],
        [1, 1, 1, 1, 1, 1, 1, 1],
    ]
    assert sample["labels"].tolist() == [1, 0]  # dog, cat: the JSON's order; the crowd of cats is no instance
    assert sample["boxes"].tolist() == [[3, 2, 5, 4], [1, 1, 3, 4]]
    assert sample["instances"].dtype == torch.int16 and sample["instances"].shape == (6, 8)
    assert sample["instances"].flatten().bincount().tolist()[1:] == [4, 5]
    assert (sample["image_id"], sample["size"], sample["scale"]) == (42, (6, 8), 1.0)
    assert sample["image"].dtype == torch.uint8 and type(sample["image"]) is torch.Tensor


def test_without_stuff_void_is_channel_0(hand_made: HandMade, content: dict[str, Any]) -> None:
    things = [category["id"] for category in content["categories"] if category["isthing"]]
    content["categories"] = [category for category in content["categories"] if category["isthing"]]
    segments = content["annotations"][0]["segments_info"]
    segments[:] = [segment for segment in segments if segment["category_id"] in things]
    sample = opened(hand_made(content, np.where(np.isin(IDS, [7, 8]), 0, IDS)))[0]
    assert sample["semantic"].tolist() == [
        [0, 0, 0, 0, 0, 0, 0, 0],
        [0, 1, 1, 0, 0, 0, 0, 0],
        [0, 1, 1, 2, 2, 0, 0, 0],
        [0, 0, 1, 2, 2, 0, 255, 255],
        [0, 0, 0, 0, 0, 0, 255, 255],  # a crowd counts nowhere
        [0, 0, 0, 0, 0, 0, 0, 0],
    ]
    assert sample["labels"].tolist() == [1, 0]


def test_doubling_doubles_everything(hand_made: HandMade, content: dict[str, Any]) -> None:
    paths = hand_made(content)
    small = opened(paths)[0]
    large = opened(paths, ResizeRule(short_side=12, max_side=16))[0]
    assert large["size"] == (12, 16) and large["scale"] == 2.0
    assert torch.equal(large["boxes"], small["boxes"] * 2)
    assert torch.equal(large["semantic"], small["semantic"].repeat_interleave(2, 0).repeat_interleave(2, 1))


def test_instances_that_vanish_are_dropped(hand_made: HandMade, content: dict[str, Any]) -> None:
    ids = np.full((6, 8), 7, np.int32)
    ids[0, 0], ids[3:, 4:] = 300, 70000
    keep = (70000, 7, 300)
    content["annotations"][0]["segments_info"] = [
        {**s, "area": int((ids == s["id"]).sum())}
        for s in content["annotations"][0]["segments_info"]
        if s["id"] in keep
    ]
    sample = opened(hand_made(content, ids), ResizeRule(short_side=3, max_side=4))[0]
    assert sample["labels"].tolist() == [1] and sample["boxes"].tolist() == [[2, 1, 4, 3]]  # rows 1, 3, 5 are kept
    assert sample["instances"].shape == (3, 4) and sample["instances"].max() == 1


@pytest.mark.parametrize("value", [0, 7])
def test_images_without_segments_or_things(hand_made: HandMade, content: dict[str, Any], value: int) -> None:
    segments = content["annotations"][0]["segments_info"]
    content["annotations"][0]["segments_info"] = [{**s, "area": 48} for s in segments if s["id"] == value]
    sample = opened(hand_made(content, np.full((6, 8), value, np.int32)))[0]
    assert not sample["instances"].any() and sample["boxes"].shape == (0, 4) and sample["labels"].shape == (0,)
    assert sample["labels"].dtype == torch.int64 and sample["boxes"].dtype == torch.float32
    assert (sample["semantic"] == (0 if value else 255)).all()


def test_masks_boxes_labels_and_semantics_agree(shapes_folder: Path) -> None:
    rule, augment = ResizeRule(short_side=70, max_side=90), Augment(flip=0.5, color=0.3, scale=(0.5, 2.0))
    dataset = PanopticDataset(shapes_split(shapes_folder), rule, augment)
    stuff = dataset.categories.num_stuff
    for i in range(len(dataset)):
        sample = dataset[3, i]
        height, width = sample["size"]
        assert sample["image"].shape == (3, height, width) and sample["semantic"].shape == (height, width)
        assert len(sample["boxes"]) == len(sample["labels"])
        masks = [sample["instances"] == row + 1 for row in range(len(sample["boxes"]))]
        for mask, label, box in zip(masks, sample["labels"], sample["boxes"].int().tolist(), strict=True):
            assert (sample["semantic"][mask] == stuff + label).all()
            x1, y1, x2, y2 = box
            assert mask[y1:y2, x1:x2].sum() == mask.sum() > 0
            assert mask[y1].any() and mask[y2 - 1].any() and mask[:, x1].any() and mask[:, x2 - 1].any()
        things = (sample["semantic"] >= stuff) & (sample["semantic"] != 255)
        assert torch.equal(sample["instances"] > 0, things)


def test_maps_against_a_mask_for_each_segment(shared_data: Path) -> None:
    dataset = open_coco(shared_data / "coco_sample", ResizeRule(short_side=300, max_side=400))
    for index in range(len(dataset)):
        truth, sample = dataset.records[index], dataset[index]
        original = read_panoptic_png(truth.png)
        height, width = sample["size"]
        y = [int((i + 0.5) * original.shape[0] / height) for i in range(height)]
        x = [int((i + 0.5) * original.shape[1] / width) for i in range(width)]
        ids = original[np.ix_(y, x)]
        semantic, instances = np.full(ids.shape, 255), np.zeros(ids.shape, int)
        boxes, labels = [], []
        for segment in truth.segments:
            rows, columns = np.nonzero(ids == segment.id)
            category = dataset.categories.index_of_id(segment.category_id)
            if segment.iscrowd or not len(rows):
                continue
            semantic[rows, columns] = category
            if dataset.categories[category].isthing:
                boxes.append([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
                labels.append(category - 53)
                instances[rows, columns] = len(boxes)
        assert sample["semantic"].dtype == torch.uint8 and np.array_equal(sample["semantic"], semantic)
        assert sample["instances"].dtype == torch.int16 and np.array_equal(sample["instances"], instances)
        assert sample["boxes"].tolist() == boxes and sample["labels"].tolist() == labels


def test_more_segments_than_int16_counts(hand_made: HandMade, content: dict[str, Any]) -> None:
    content["annotations"][0]["segments_info"] = [{"id": 1 + i, "category_id": 3} for i in range(1 << 15)]
    paths = hand_made(content)
    with pytest.raises(InputError, match=r"set\.json: image 42: 32768 segments; the most is 32767"):
        opened(paths)


def test_sizes_follow_the_order_of_the_images(hand_made: HandMade, content: dict[str, Any]) -> None:
    content["images"].append({"id": 7, "file_name": "7.png"})
    content["annotations"].append(content["annotations"][0] | {"image_id": 7, "file_name": "7.png"})
    assert opened(with_copies(hand_made(content), "7.png")).sizes.tolist() == [[0, 0], [6, 8]]


def test_order_is_that_of_the_image_ids(hand_made: HandMade, content: dict[str, Any]) -> None:
    for number in (7, 100, 2):
        name = f"{number}.png"
        content["images"].append({"id": number, "file_name": name, "height": 6, "width": 8})
        content["annotations"].insert(0, content["annotations"][-1] | {"image_id": number, "file_name": name})
    dataset = opened(with_copies(hand_made(content), "7.png", "100.png", "2.png"))
    assert dataset.image_ids == [2, 7, 42, 100] == [dataset[i]["image_id"] for i in range(4)]


def test_official_coco(shared_data: Path) -> None:
    dataset = open_coco(shared_data / "coco_sample", ResizeRule(short_side=200, max_side=333))
    assert dataset.image_ids == [142238, 233771, 356387, 439180]
    assert (dataset.categories.num_stuff, dataset.categories.num_things) == (53, 80)
    crowds = 0
    for i in range(len(dataset)):
        truth, sample = dataset.records[i], dataset[i]
        ids = read_panoptic_png(truth.png)
        assert all((ids == s.id).sum() == s.area for s in truth.segments)
        things = {c.id for c in dataset.categories if c.isthing}
        crowds += sum(s.iscrowd for s in truth.segments)
        assert len(sample["labels"]) <= sum(s.category_id in things and not s.iscrowd for s in truth.segments)
        assert sample["labels"].min() >= 0 and sample["labels"].max() < 80
    assert crowds == 4


FAULTS: list[tuple[str, Callable[[dict[str, Any]], Any], str]] = [  # the others are PanopticFolder's: test_folder.py
    ("image id", lambda c: (c["images"][0].update(id="x"), c["annotations"][0].update(image_id="x")),
     r"set.json: images\[0\]: 'id' is 'x', not an integer"),
    ("segment id", lambda c: c["annotations"][0]["segments_info"][0].pop("id"), "image 42: .*key 'id' is missing"),
    ("same id", lambda c: c["annotations"][0]["segments_info"][0].update(id=7), "image 42: segment 7 is listed twice"),
    ("no category", lambda c: c["annotations"][0]["segments_info"][2].pop("category_id"), "image 42.*'category_id'"),
    ("too many", lambda c: c["categories"].extend({"id": i, "name": f"x{i}", "isthing": 0} for i in range(100, 400)),
     "set.json: 304 categories"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "message"), [f[1:] for f in FAULTS], ids=[f[0] for f in FAULTS])
def test_faults_of_the_json_are_found_at_once(
    hand_made: HandMade, content: dict[str, Any], change: Callable[[dict[str, Any]], Any], message: str
) -> None:
    change(content)
    with pytest.raises(InputError, match=message) as caught:
        opened(hand_made(content))
    assert "\n" not in str(caught.value)


def test_png_and_json_must_list_the_same_segments(hand_made: HandMade, content: dict[str, Any]) -> None:
    content["annotations"][0]["segments_info"][0]["id"] = 12345
    dataset = opened(hand_made(content))
    with pytest.raises(
        InputError, match=r"set\.json: image 42: segment 12345 is in the JSON and not in the PNG .*a\.png"
    ):
        dataset[0]
    del content["annotations"][0]["segments_info"][0]
    dataset = opened(hand_made(content))
    with pytest.raises(InputError, match=r"image 42: segment 70000 .4 pixels. is in the PNG .*a\.png and not in the"):
        dataset[0]


def test_damaged_files_are_named(hand_made: HandMade, content: dict[str, Any]) -> None:
    paths = hand_made(content)
    dataset = opened(paths)
    write_png(paths["segments"] / "a.png", np.zeros((6, 8), np.uint8))
    with pytest.raises(InputError, match=r"segments/a\.png: .*PNG of mode L"):
        dataset[0]
    (paths["images"] / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(InputError, match=r"images/a\.png: not a readable image"):
        dataset[0]


def test_an_index_past_the_end_is_an_index_error(hand_made: HandMade, content: dict[str, Any]) -> None:
    with pytest.raises(IndexError):
        opened(hand_made(content))[1]
