"""Copy-paste: answers by hand on tiny samples, and properties on real ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.hand_made_dataset import IDS, SEGMENTS, HandMade
from tests.training.data.open_shapes import open_shapes, sampler
from training.data.batch import Batch
from training.data.coco_panoptic import PanopticDataset
from training.data.copy_paste import paste_things
from training.data.loader import Batches, make_loader, reading
from training.data.sample import IGNORE, Sample
from training.data.transforms import Augment
from upsnet.datasets.folder import Record
from upsnet.datasets.shards.write import write_shards
from upsnet.datasets.split import Split
from upsnet.errors import InputError
from upsnet.geometry import ResizeRule

STUFF = 2  # semantic channels 0 and 1; things are 2 and 3
PASTING = Augment(flip=0.5, color=0.2, scale=(0.3, 2.0), copy_paste=1.0)


class Fixed:
    """Draws that are known: places at a share of their range, and coins."""

    def __init__(self, share: float = 0.0, coins: tuple[float, ...] = (0.0,) * 9) -> None:
        self.share, self.coins = share, coins

    def integers(self, high: int) -> int:
        return int(self.share * (high - 1))

    def random(self, count: int) -> np.ndarray:
        return np.array(self.coins[:count])


def made(instances: list[list[int]], labels: list[int], value: int, crowd: tuple[int, int] | None = None) -> Sample:
    """A sample on stuff 0 with these instances; every pixel of its photo is `value`."""
    numbers = torch.tensor(instances, dtype=torch.int16)
    semantic = torch.zeros(numbers.shape, dtype=torch.uint8)
    boxes = []
    for row, label in enumerate(labels):
        y, x = torch.nonzero(numbers == row + 1, as_tuple=True)
        semantic[y, x] = STUFF + label
        boxes.append([x.min(), y.min(), x.max() + 1, y.max() + 1])
    if crowd:
        semantic[crowd] = IGNORE
    return Sample(
        image=torch.full((3, *numbers.shape), value, dtype=torch.uint8),
        semantic=semantic,
        instances=numbers,
        boxes=torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        labels=torch.tensor(labels, dtype=torch.int64),
        image_id=value,
        size=(numbers.shape[0], numbers.shape[1]),
        scale=0.5,
        seed=value,
    )


def paste(sample: Sample, donor: Sample, draws: Fixed, most: tuple[int, int] | None = None) -> Sample:
    return paste_things(sample, donor, most or sample["size"], draws)  # type: ignore[arg-type]


HOST = made(
    [
        [1, 1, 1, 1, 0, 0],
        [1, 1, 1, 1, 2, 2],
        [0, 0, 0, 0, 2, 2],
        [0, 0, 0, 0, 2, 2],
        [0, 0, 0, 0, 2, 2],
    ],
    [0, 1],
    10,
)
DONOR = made(
    [
        [0, 0, 0, 0, 0, 0],
        [0, 0, 0, 0, 0, 0],
        [0, 0, 1, 1, 1, 0],
        [2, 2, 1, 1, 1, 3],
        [2, 2, 0, 0, 0, 0],
    ],
    [1, 0, 0],
    20,
    crowd=(0, 0),
)


def test_by_hand() -> None:
    """Thing 1 of the donor covers two of eight pixels of the host's thing 2; its things 2 and 3 are too small."""
    both = paste(HOST, DONOR, Fixed())
    assert both["instances"].tolist() == [
        [1, 1, 1, 1, 0, 0],
        [1, 1, 1, 1, 2, 2],
        [0, 0, 3, 3, 3, 2],
        [0, 0, 3, 3, 3, 2],
        [0, 0, 0, 0, 2, 2],
    ]
    assert both["labels"].tolist() == [0, 1, 1]
    assert both["boxes"].tolist() == [[0, 0, 4, 2], [4, 1, 6, 5], [2, 2, 5, 4]]
    assert both["semantic"].tolist() == [
        [2, 2, 2, 2, 0, 0],
        [2, 2, 2, 2, 3, 3],
        [0, 0, 3, 3, 3, 3],
        [0, 0, 3, 3, 3, 3],
        [0, 0, 0, 0, 3, 3],
    ]
    assert torch.equal(both["image"][0] == 20, both["instances"] == 3) and set(both["image"].unique().tolist()) == {
        10,
        20,
    }
    assert (both["image_id"], both["size"], both["scale"], both["seed"]) == (10, (5, 6), 0.5, 10)
    assert (both["instances"].dtype, both["boxes"].dtype) == (torch.int16, torch.float32)


def test_nothing_that_was_given_changes() -> None:
    before = [each[key].clone() for each in (HOST, DONOR) for key in ("image", "semantic", "instances", "boxes")]  # type: ignore[literal-required]
    paste(HOST, DONOR, Fixed())
    after = [each[key] for each in (HOST, DONOR) for key in ("image", "semantic", "instances", "boxes")]  # type: ignore[literal-required]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_an_instance_that_vanishes_is_removed_and_what_it_had_left_is_void() -> None:
    """Of eight pixels of the host's thing 1, four are left; thing 2 becomes the first."""
    donor = made([[1, 1, 0, 0, 0, 0], [1, 1, 0, 0, 0, 0], [1, 1, 0, 0, 0, 0], [0] * 6, [0] * 6], [1], 20)
    both = paste(HOST, donor, Fixed())
    assert both["instances"].tolist() == [
        [2, 2, 0, 0, 0, 0],
        [2, 2, 0, 0, 1, 1],
        [2, 2, 0, 0, 1, 1],
        [0, 0, 0, 0, 1, 1],
        [0, 0, 0, 0, 1, 1],
    ]
    assert both["semantic"][:2].tolist() == [[3, 3, 255, 255, 0, 0], [3, 3, 255, 255, 3, 3]]
    assert both["labels"].tolist() == [1, 1] and both["boxes"].tolist() == [[4, 1, 6, 5], [0, 0, 2, 3]]


def test_an_instance_that_was_small_and_is_not_covered_stays() -> None:
    host = made([[1, 0, 0, 0, 0, 0], *[[0] * 6] * 4], [1], 10)
    assert paste(host, DONOR, Fixed())["labels"].tolist() == [1, 1]


def test_ground_of_which_little_is_left_stays_what_it_is() -> None:
    donor = made([[1] * 6, [1] * 6, [1] * 6, [1] * 6, [1, 1, 1, 0, 0, 0]], [0], 20)
    both = paste(made([[0] * 6] * 5, [], 10), donor, Fixed())
    assert both["semantic"][4].tolist() == [2, 2, 2, 0, 0, 0] and both["labels"].tolist() == [0]


def test_a_coin_for_each_instance_and_one_at_least() -> None:
    donor = made([[1, 1, 1, 2, 2, 2], [1, 1, 1, 2, 2, 2], *[[0] * 6] * 3], [0, 1], 20)
    host = made([[0] * 6] * 5, [], 10)
    pasted = {coins: paste(host, donor, Fixed(share, coins))["labels"].tolist() for share, coins in
              [(0.0, (0.4, 0.4)), (0.0, (0.4, 0.6)), (0.0, (0.6, 0.4))]}  # fmt: skip
    assert list(pasted.values()) == [[0, 1], [0], [1]]
    assert [paste(host, donor, Fixed(share, (0.6, 0.6)))["labels"].tolist() for share in (0.0, 1.0)] == [[0], [1]]


@pytest.mark.parametrize("value", [0, 1])
def test_a_donor_without_large_things_leaves_the_sample_as_it_is(value: int) -> None:
    donor = made([[value] * 4, [0] * 4], [0] * value, 20)
    assert paste(HOST, donor, Fixed()) is HOST


def test_crowds_are_not_pasted() -> None:
    both = paste(HOST, DONOR, Fixed())
    assert both["semantic"][0, 0] == STUFF and both["image"][0, 0, 0] == 10


def test_a_smaller_donor_lies_within_and_a_larger_one_is_cut() -> None:
    block = [[1, 1, 1], [1, 1, 1]]
    small, host = made(block, [0], 20), made([[0] * 5] * 4, [], 10)
    for share, (top, left) in ((0.0, (0, 0)), (1.0, (2, 2))):
        both = paste(host, small, Fixed(share))
        assert both["boxes"].tolist() == [[left, top, left + 3, top + 2]] and both["size"] == (4, 5)
    large = made([[1] * 9, [2] * 9, *[[0] * 9] * 5], [0, 1], 20)
    corner, end = (paste(host, large, Fixed(share)) for share in (0.0, 1.0))
    assert corner["instances"].tolist() == [[1] * 5, [2] * 5, [0] * 5, [0] * 5] and end is host


def test_a_zoomed_out_sample_is_padded_to_the_donors_size_but_not_over_its_own() -> None:
    host, large = made([[1] * 3] * 2, [1], 10), made([[0] * 9, [0] * 9, [1] * 9, [1] * 9, [0] * 9], [0], 20)
    both = paste(host, large, Fixed(), most=(4, 6))
    assert both["size"] == (4, 6) and both["image"].shape == (3, 4, 6)
    assert both["instances"].tolist() == [[1, 1, 1, 0, 0, 0], [1, 1, 1, 0, 0, 0], [2] * 6, [2] * 6]
    assert both["semantic"].tolist() == [[3, 3, 3, 255, 255, 255], [3, 3, 3, 255, 255, 255], [2] * 6, [2] * 6]
    assert both["image"][0].tolist() == [[10, 10, 10, 0, 0, 0], [10, 10, 10, 0, 0, 0], [20] * 6, [20] * 6]


def consistent(sample: Sample, stuff: int) -> None:
    """Every instance's pixels carry its class, boxes are tight, numbers consecutive, and shapes those of `size`."""
    height, width = sample["size"]
    assert sample["image"].shape == (3, height, width) and sample["semantic"].shape == (height, width)
    numbers = sample["instances"].unique().tolist()
    assert [number for number in numbers if number] == list(range(1, 1 + len(sample["labels"])))
    assert len(sample["boxes"]) == len(sample["labels"])
    for row, (label, box) in enumerate(zip(sample["labels"].tolist(), sample["boxes"].tolist(), strict=True)):
        y, x = torch.nonzero(sample["instances"] == row + 1, as_tuple=True)
        assert (sample["semantic"][y, x] == stuff + label).all()
        assert box == [x.min(), y.min(), x.max() + 1, y.max() + 1]
    things = (sample["semantic"] >= stuff) & (sample["semantic"] != IGNORE)
    assert torch.equal(sample["instances"] > 0, things)


def test_samples_of_real_images_are_consistent(shapes_folder: Path) -> None:
    dataset = open_shapes(shapes_folder, PASTING)
    plain = open_shapes(shapes_folder, PASTING.model_copy(update={"copy_paste": 0.0}))
    pasted = 0
    for draw in range(3):
        for index in range(len(dataset)):
            sample, alone = dataset[draw, index], plain[draw, index]
            consistent(sample, dataset.categories.num_stuff)
            assert (sample["image_id"], sample["scale"], sample["seed"]) == tuple(
                alone[k] for k in ("image_id", "scale", "seed")
            )  # type: ignore[literal-required]
            assert all(own <= now for own, now in zip(alone["size"], sample["size"], strict=True))
            height, width = alone["size"]
            same = (sample["image"][:, :height, :width] == alone["image"]).all(0)
            pasted += int(not same.all())
            covered = sample["instances"][:height, :width][~same]
            assert (covered > 0).all()  # what changed belongs to a thing
    assert pasted > 60


def equal(a: Sample, b: Sample) -> bool:
    pairs: list[tuple[Any, Any]] = list(zip(a.values(), b.values(), strict=True))
    return all(torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y for x, y in pairs)


def test_a_function_of_seed_draw_and_image(shapes_folder: Path) -> None:
    dataset, again = open_shapes(shapes_folder, PASTING), open_shapes(shapes_folder, PASTING)
    kept = dataset[2, 5]
    assert not equal(dataset[3, 5], kept)
    assert equal(again[2, 5], kept) and equal(dataset[2, 5], kept) and equal(dataset[2, 5 - len(dataset)], kept)


def test_the_lot_decides_and_the_donor_is_never_the_image_itself(shapes_folder: Path) -> None:
    dataset = open_shapes(shapes_folder, Augment(copy_paste=0.25))
    donors = {(draw, index): dataset.donor(draw, index) for draw in range(40) for index in range(len(dataset))}
    drawn = {key: donor.image_id for key, donor in donors.items() if donor}
    assert 0.2 < len(drawn) / len(donors) < 0.3
    assert all(dataset.image_ids[index] != donor for (_, index), donor in drawn.items())
    assert len(set(drawn.values())) == len(dataset)


def test_a_second_image_is_read_only_where_it_is_drawn(shapes_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = open_shapes(shapes_folder, Augment(copy_paste=0.5))
    read, was_read = dataset.folder.read, list[int]()

    def counted(record: Record, least: Any = None) -> tuple[np.ndarray, np.ndarray]:
        was_read.append(record.image_id)
        return read(record, least)

    monkeypatch.setattr(dataset.folder, "read", counted)
    for index in range(8):
        was_read.clear()
        donor = dataset.donor(0, index)
        assert dataset[0, index]["image_id"] == dataset.image_ids[index]
        assert was_read == [dataset.image_ids[index], *([donor.image_id] if donor else [])]


def test_batches_are_the_same_with_workers_and_from_shards(shapes_folder: Path, tmp_path: Path) -> None:
    shards = write_shards(Split.usual(shapes_folder / "train.json"), str(tmp_path), workers=1, progress=False).split
    folders = open_shapes(shapes_folder, PASTING)

    def batches(dataset: PanopticDataset, workers: int) -> list[Batch]:
        with reading(make_loader(dataset, sampler(len(dataset), 4, 2, seed=7), workers)) as loader:
            return list(loader)

    expected = batches(folders, 0)
    for found in (batches(folders, 2), batches(PanopticDataset(shards, folders.rule, PASTING), 0)):
        for a, b in zip(expected, found, strict=True):
            assert torch.equal(a.images, b.images) and torch.equal(a.instances, b.instances)
            assert torch.equal(a.semantic, b.semantic) and torch.equal(a.sizes, b.sizes)
            assert all(map(torch.equal, a.boxes + a.labels, b.boxes + b.labels))


def test_a_donor_that_cannot_be_read_is_named(shapes_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = open_shapes(shapes_folder, PASTING)
    donor, read = dataset.donor(0, 0), dataset.folder.read
    assert donor

    def fail(record: Record, least: Any = None) -> tuple[np.ndarray, np.ndarray]:
        if record.image_id == donor.image_id:
            raise OverflowError("too large")
        return read(record, least)

    monkeypatch.setattr(dataset.folder, "read", fail)
    answer = Batches(dataset, 0).__getitems__([(0, 0)])
    assert isinstance(answer, InputError)
    assert str(answer).startswith(
        f"{dataset.records[0].photo}: image 1, or {donor.photo}: image {donor.image_id}, whose"
    )


def test_where_there_is_nothing_to_paste_it_is_refused(hand_made: HandMade, content: dict[str, Any]) -> None:
    rule = ResizeRule(short_side=6, max_side=8)
    with pytest.raises(InputError, match=r"set\.json: no second image to paste from, which augment\.copy_paste needs"):
        PanopticDataset(Split(**hand_made(content)), rule, PASTING)
    for category in content["categories"]:
        category["isthing"] = 0
    content["annotations"][0]["segments_info"] = [{**s, "iscrowd": 0} for s in SEGMENTS]
    with pytest.raises(
        InputError, match=r"set\.json: no class of things, which augment\.copy_paste needs; leave it out"
    ):
        PanopticDataset(Split(**hand_made(content)), rule, PASTING)


def test_images_without_things_give_none(hand_made: HandMade, content: dict[str, Any], tmp_path: Path) -> None:
    """Image 42 has things. Image 43 has stuff and a crowd alone: nothing of it is pasted, and it is not even read."""
    content["images"].append({"id": 43, "file_name": "b.png"})
    ids = np.where(np.isin(IDS, [300, 70000]), 7, IDS)
    segments = [{**s, "area": int((ids == s["id"]).sum())} for s in SEGMENTS if s["id"] in (7, 8, 16777215)]
    content["annotations"].append({"image_id": 43, "file_name": "b.png", "segments_info": segments})
    hand_made(content)
    dataset = PanopticDataset(
        Split(**hand_made(content, ids, name="b.png")), ResizeRule(short_side=6, max_side=8), PASTING
    )
    donors = [dataset.donor(draw, index) for index in (0, 1) for draw in range(3)]
    assert [donor and donor.image_id for donor in donors] == [None] * 3 + [42] * 3
