"""Training from shards: the batches, the order and the resumed runs of folders, for any number of processes."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.bucket import Bucket
from tests.bucket_server import Fault
from tests.training.data.open_shapes import sampler
from tests.training.tiny_network import assert_same_run, settings, shapes_split, tiny
from training.checkpoint import load
from training.data.batch import Batch
from training.data.coco_panoptic import PanopticDataset
from training.data.loader import make_loader, reading
from training.data.transforms import Augment
from training.loop import train
from upsnet.datasets.shards.write import write_shards
from upsnet.datasets.split import ShardSplit, Split
from upsnet.errors import InputError
from upsnet.geometry import ResizeRule

AUGMENT = Augment(flip=0.5, color=0.2, scale=(0.7, 1.4))
TOTAL, STEPS = 4, 9  # images a step, steps: one epoch and a half


@pytest.fixture(scope="module")
def shards(shapes: Path, shapes_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The two small data sets of shapes, in several shards each."""
    places = {"few": shapes, "many": shapes_folder}
    made = {}
    for key, source in places.items():
        made[key] = tmp_path_factory.mktemp("shards")
        for name in ("train", "val"):
            split = Split.usual(source / f"{name}.json")
            write_shards(split, str(made[key]), 100_000 if key == "many" else 20_000, workers=1, progress=False)
    return made


def packed(folder: Path, name: str = "train") -> ShardSplit:
    return ShardSplit(shards=f"{folder}/{name}.shards.json")


def batches(split: Split | ShardSplit, workers: int = 0, **place: Any) -> list[Batch]:
    dataset = PanopticDataset(split, ResizeRule(short_side=80, max_side=120, divisor=32), AUGMENT)
    with reading(make_loader(dataset, sampler(len(dataset), TOTAL, STEPS, **place), workers)) as found:
        return list(found)


def same(one: Batch, other: Batch) -> bool:
    def equal(a: Any, b: Any) -> bool:
        if isinstance(a, list):
            return len(a) == len(b) and all(map(equal, a, b))
        return torch.equal(a, b) if isinstance(a, torch.Tensor) else bool(a == b)

    return all(equal(getattr(one, name), getattr(other, name)) for name in Batch._fields)


@pytest.fixture(scope="module")
def from_folders(shapes_folder: Path) -> list[Batch]:
    return batches(shapes_split(shapes_folder))


@pytest.mark.parametrize(("world", "workers", "first"), [(1, 0, 0), (1, 2, 4), (2, 1, 1), (4, 0, 7)])
def test_any_number_of_processes_workers_and_any_start(
    shards: dict[str, Path], from_folders: list[Batch], world: int, workers: int, first: int
) -> None:
    """What the processes see together is what one sees of folders, image by image, to the bit but for the padding."""
    split = packed(shards["many"])
    each = [batches(split, workers, world=world, rank=rank, first_step=first) for rank in range(world)]
    assert {len(part) for part in each} == {STEPS - first}
    for step, parts in enumerate(zip(*each, strict=True), first):
        whole = from_folders[step]
        assert [image_id for part in parts for image_id in part.image_ids] == whole.image_ids
        if world == 1:
            assert same(parts[0], whole)
        seeds = torch.cat([part.seeds for part in parts])
        assert torch.equal(seeds, whole.seeds)
        boxes = [box for part in parts for box in part.boxes]
        assert all(torch.equal(a, b) for a, b in zip(boxes, whole.boxes, strict=True))
        images = [
            image[:height, :width]
            for part in parts
            for image, (height, width) in zip(part.images, part.sizes.tolist(), strict=True)
        ]
        for image, other in zip(images, whole.images, strict=True):
            assert torch.equal(image, other[: image.shape[0], : image.shape[1]])


def test_a_run_goes_on_where_its_data_moved_into_shards(
    shapes: Path, shards: dict[str, Path], unbroken: Path, tmp_path: Path
) -> None:
    """... and back into folders: the weights are those of a run that nothing interrupted."""
    splits = {"train": packed(shards["few"]), "val": packed(shards["few"], "val")}
    out = tmp_path / "run"
    assert train(settings(shapes, iterations=5, evaluate_every=6), out, "cpu", tiny()) == 0
    assert train(settings(shapes, iterations=9, data=splits, evaluate_every=6), out, "cpu", tiny()) == 0
    assert load(out / "last.safetensors").step == 9
    assert train(settings(shapes), out, "cpu", tiny()) == 0
    ours, theirs = load(out / "last.safetensors"), load(unbroken / "last.safetensors")
    assert ours.step == theirs.step == 12
    for name, tensor in theirs.model.items():
        assert torch.equal(ours.model[name], tensor), name


def test_a_run_on_shards_alone(shapes: Path, shards: dict[str, Path], unbroken: Path, tmp_path: Path) -> None:
    splits = {"train": packed(shards["few"]), "val": packed(shards["few"], "val"), "workers": 2}
    assert train(settings(shapes, data=splits), tmp_path / "run", "cpu", tiny()) == 0
    assert_same_run(tmp_path / "run", unbroken)


def test_other_images_in_shards_are_refused(shapes: Path, shards: dict[str, Path], tmp_path: Path) -> None:
    assert train(settings(shapes, iterations=1, evaluate_every=0), tmp_path, "cpu", tiny()) == 0
    splits = {"train": packed(shards["many"]), "val": packed(shards["many"], "val")}
    with pytest.raises(InputError, match=r"its categories or images are not those of \S+/train\.json"):
        train(settings(shapes, iterations=2, data=splits, evaluate_every=0), tmp_path, "cpu", tiny())


def test_a_shard_that_is_cut_while_it_is_read(shards: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(shards["many"], tmp_path / "shards")
    dataset = PanopticDataset(packed(folder), ResizeRule(short_side=80, max_side=120), AUGMENT)
    for path in folder.glob("train-*.tar"):
        with open(path, "r+b") as stream:
            stream.truncate(1000)
    for workers in (0, 1):
        with (
            pytest.raises(
                InputError, match=r"train\.json: image \d+: \S+/train-0\d+\.tar: ends before byte \d+: it is not"
            ),
            reading(make_loader(dataset, sampler(len(dataset), 1, 2), workers)) as found,
        ):
            list(found)


def test_the_check_before_the_first_step_looks_into_shards(shapes: Path, tmp_path: Path) -> None:
    data = shutil.copytree(shapes, tmp_path / "data")
    photo = min((data / "train").iterdir())
    photo.write_bytes(photo.read_bytes()[:200])
    for name in ("train", "val"):
        write_shards(Split.usual(data / f"{name}.json"), str(tmp_path / "shards"), check="json", progress=False)
    splits = {name: packed(tmp_path / "shards", name) for name in ("train", "val")}
    with pytest.raises(InputError, match=r"/shards/train\.json: image \d+: \S+train-000000\.tar: \d+\.png: not a read"):
        train(settings(shapes, data=splits), tmp_path / "run", "cpu", tiny())


@pytest.mark.parametrize("kept", [False, True])
def test_a_run_from_a_bucket_that_is_busy_at_times(
    shapes: Path, shards: dict[str, Path], unbroken: Path, bucket: Bucket, tmp_path: Path, kept: bool
) -> None:
    """Workers are forked after the process itself has asked the bucket. With a cache each tar crosses the wire once."""
    place = bucket.put_folder(shards["few"], "data")
    bucket.faults(Fault("busy", every=5), Fault("cut", every=11, method="GET"))
    cache = {"cache": tmp_path / "cache"} if kept else {}
    splits = {name: ShardSplit(shards=f"{place}/{name}.shards.json", **cache) for name in ("train", "val")}
    assert train(settings(shapes, data={**splits, "workers": 2}), tmp_path / "run", "cpu", tiny()) == 0
    assert_same_run(tmp_path / "run", unbroken)
    if kept:
        assert sorted(path.name for path in (tmp_path / "cache").rglob("*.tar"))
