"""Where a data set in the official COCO panoptic format lies: in folders, or in shards."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator

from upsnet import storage
from upsnet.errors import InputError
from upsnet.files import PathLike

CITYSCAPES = "cityscapes_panoptic_"
INDEX = ".shards.json"  # after the name of a set that lies in shards


class Split(BaseModel):
    """Its JSON, the folder of its PNGs (the segments' ids) and the folder of its photos."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    json_file: Path
    segments: Path
    images: Path

    @property
    def name(self) -> str:
        return self.json_file.stem

    @classmethod
    def usual(cls, json_file: Path, segments: Path | None = None, images: Path | None = None) -> Split:
        """The folders that are not given lie where such a JSON usually has them:

        | json_file | segments | images |
        |---|---|---|
        | X.json | panoptic_X | X |
        | annotations/panoptic_X.json (official COCO) | annotations/panoptic_X | X |
        | gtFine/cityscapes_panoptic_X[_trainId].json (official Cityscapes) | the JSON's name | leftImg8bit/X |
        """
        beside, name = json_file.parent, json_file.stem
        pngs = beside / name
        if name.startswith(CITYSCAPES):
            photos = beside.parent / "leftImg8bit" / name.removeprefix(CITYSCAPES).removesuffix("_trainId")
        elif name.startswith("panoptic_"):
            photos = beside.parent / name.removeprefix("panoptic_")
        else:
            pngs, photos = beside / f"panoptic_{name}", beside / name
        return cls(json_file=json_file, segments=segments or pngs, images=images or photos)


class ShardSplit(BaseModel):
    """A set that `upsnet data shards` wrote: the place of its index, a path or a URL that ends in .shards.json.

    cache: a folder of this machine for copies of its shards, of cache_gb GB at most (shard_cache.py).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    shards: str
    cache: Path | None = None
    cache_gb: float = Field(200.0, gt=0, le=1e6)

    @field_validator("shards")
    @classmethod
    def _names_an_index(cls, place: str) -> str:
        if not os.path.basename(place).removesuffix(INDEX) or not place.endswith(INDEX):
            raise ValueError(f"{place}: give the index of a set in shards, NAME{INDEX}")
        return place

    @property
    def name(self) -> str:
        return os.path.basename(self.shards).removesuffix(INDEX)

    @property
    def json_file(self) -> str:
        """The place of its COCO panoptic JSON, which lies beside the index."""
        return f"{self.shards.removesuffix(INDEX)}.json"


def as_split(values: Any) -> Split | ShardSplit:
    """What a configuration says, by its keys: errors (of pydantic) are then those of one kind."""
    if isinstance(values, Split | ShardSplit):
        return values
    if isinstance(values, dict) and "shards" in values and values.keys() & Split.model_fields.keys():
        raise ValueError(
            "it lies either in shards or in folders (json_file, segments, images): give one kind of keys; on the "
            "command line --set 'data.train={shards: PLACE}'"
        )
    return (ShardSplit if isinstance(values, dict) and "shards" in values else Split).model_validate(values)


AnySplit = Annotated[Split | ShardSplit, BeforeValidator(as_split)]


def usual_split(place: PathLike, segments: Path | None = None, images: Path | None = None) -> Split | ShardSplit:
    """The set of a JSON, in the folders given or the usual ones, or of a shards' index.

    Raises InputError for folders of a set in shards, and for a JSON behind a URL.
    """
    text = os.fspath(place)
    if text.endswith(INDEX):
        if segments or images:
            raise InputError(f"{text}: has its photos and PNGs in shards; --gt-folder and --images go with folders")
        return ShardSplit(shards=text)
    if storage.is_url(text):
        raise InputError(
            f"{text}: behind a URL a data set is read from shards, not from folders: `upsnet data shards` makes them; "
            f"give the URL of its NAME{INDEX}"
        )
    return Split.usual(Path(text), segments, images)


def split_in(folder: PathLike, name: str) -> Split | ShardSplit:
    """The set of a name in a folder or behind a URL: its shards where their index is there, else the usual folders."""
    index = storage.join(os.fspath(folder), f"{name}{INDEX}")
    if storage.is_url(index) or os.path.exists(index):
        return ShardSplit(shards=index)
    return Split.usual(Path(folder) / f"{name}.json")
