"""What reads data sets, besides training and the doctor, reads shards, and gets the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml

from eval.precision_search.journal import fingerprint
from export.calibration import OWN, find_photos
from training.config import parse_config
from upsnet.datasets.places import read_file
from upsnet.datasets.split import INDEX, ShardSplit, Split, split_in, usual_split
from upsnet.datasets.validation_set import open_dataset
from upsnet.errors import InputError
from upsnet.named_photos import one_photo
from upsnet.parity.photos import LabelledPhotos
from upsnet.photos import encoded_photo, read_photo

RESIZE = {"short_side": 64, "max_side": 96}


def config_on(folder: Path) -> dict[str, object]:
    splits = {name: split_in(folder, name).model_dump(mode="json") for name in ("train", "val")}
    return {"name": "x", "data": {**splits, "resize": RESIZE}, "schedule": {"iterations": 1, "images_per_step": 1}}


def test_a_runs_validation_set(shards: Path, shapes_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config_on(shards)))
    own, named = open_dataset(None, run=tmp_path), open_dataset(str(shards / "val.shards.json"))
    assert own.split == named.split == ShardSplit(shards=f"{shards}/val.shards.json")
    photos, files = LabelledPhotos(own), LabelledPhotos(open_dataset(shapes_folder / "val.json"))
    assert len(photos) == len(files) and photos.title == str(shards / "val.json")
    for index in (0, len(photos) - 1):
        assert photos.name(index) == files.name(index)
        assert np.array_equal(photos.read(index).photo, files.read(index).photo)
        assert read_file(photos.file(index)) == read_file(files.file(index)) == encoded_photo(photos.file(index))


def test_a_photo_of_a_shard_has_a_name(shards: Path) -> None:
    record = open_dataset(str(shards / "val.shards.json")).records[0]
    named = one_photo(record.photo, "stream")
    assert named.name == f"{record.image_id:012}" and named.source == f"{shards}/val-000000.tar: {named.name}.png"


def test_photos_to_calibrate_on(shards: Path, shapes_folder: Path) -> None:
    packed = parse_config(config_on(shards), "packed")
    folders = parse_config(config_on(shapes_folder), "folders")
    own, theirs = find_photos(OWN, packed, 5), find_photos(OWN, folders, 5)
    assert own.data == str(shards / "train.shards.json") and len(own.paths) == len(theirs.paths) == 5
    assert all(np.array_equal(read_photo(a), read_photo(b)) for a, b in zip(own.paths, theirs.paths, strict=True))
    assert fingerprint(own.paths, "photos") == fingerprint(theirs.paths, "photos")
    assert len(find_photos(str(shards / "val.shards.json"), packed, 7).paths) == 7
    gone = packed.model_copy(
        update={"data": packed.data.model_copy(update={"train": ShardSplit(shards="/nowhere/train.shards.json")})}
    )
    with pytest.raises(InputError, match=r"^/nowhere/train\.shards\.json: not there; give --calibrate"):
        find_photos(OWN, gone, 1)


def test_where_a_set_lies(shards: Path, shapes_folder: Path) -> None:
    assert split_in(shards, "train") == split_in(str(shards), "train") == ShardSplit(shards=f"{shards}/train{INDEX}")
    assert split_in(shapes_folder, "val") == Split.usual(shapes_folder / "val.json")
    assert split_in("s3://b/data/", "val") == ShardSplit(shards="s3://b/data/val.shards.json")
    packed = usual_split("s3://b/data/val.shards.json")
    assert (packed.name, packed.json_file) == ("val", "s3://b/data/val.json")
    with pytest.raises(InputError, match=r"^s3://b/val\.json: behind a URL a data set is read from shards"):
        usual_split("s3://b/val.json")


@pytest.mark.parametrize(
    ("train", "said"),
    [
        ({"shards": "a.json"}, r"data\.train\.shards: a\.json: give the index of a set in shards, NAME\.shards\.json"),
        ({"shards": "a/.shards.json"}, r"data\.train\.shards: a/\.shards\.json: give the index"),
        ({"shards": "a.shards.json", "images": "b"}, r"data\.train: it lies either in shards or in folders"),
        ({"shards": "a.shards.json", "image": "b"}, r"data\.train\.image: Extra inputs are not permitted"),
        ({"json_file": "a.json", "segments": "b"}, r"data\.train\.images: Field required$"),
        ({"json_file": "a.json", "segments": "b", "images": "c", "x": 1}, r"data\.train\.x: Extra inputs"),
        ("a.json", r"data\.train: Input should be a valid dictionary or instance of Split$"),
    ],
)
def test_a_configuration_that_is_wrong_is_one_line(shards: Path, train: object, said: str) -> None:
    config = config_on(shards)
    config["data"] = {**config["data"], "train": train}  # type: ignore[dict-item]
    with pytest.raises(InputError, match=said) as caught:
        parse_config(config, "x.yaml")
    assert str(caught.value).startswith("x.yaml: data.train") and "\n" not in str(caught.value)
