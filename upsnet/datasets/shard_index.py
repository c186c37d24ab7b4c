"""The index of a set in shards, NAME.shards.json: its tars, and where in them each photo and PNG is."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from typing import Annotated, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from upsnet import storage
from upsnet.errors import InputError, one_line
from upsnet.json_values import MOST_ID

CURE = "write the shards again with `upsnet data shards`"
# What members of a photo's key may end in; a photo of another suffix is named KEY.photo.
SUFFIXES = (".bmp", ".gif", ".jp2", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
PNG, ENTRY = ".panoptic.png", ".json"

Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
ImageId = Annotated[int, Field(ge=-MOST_ID - 1, le=MOST_ID)]
Place = Annotated[int, Field(ge=0, lt=2**62)]
Size = Annotated[int, Field(ge=1, lt=2**31)]


class Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Shard(Part):
    """A tar beside the index."""

    name: str = Field(pattern=r"^[^/\\\x00]+\.tar$")
    size: Place  # bytes
    sha256: Digest
    images: Place


class Images(Part):
    """One value an image, in the order of the shards: 118 000 images of COCO are 6 MB."""

    image_id: list[ImageId]
    shard: list[Place]  # row of `shards`
    photo: list[Place]  # first byte in the tar
    photo_size: list[Size]  # bytes
    png: list[Place]
    png_size: list[Size]


class Index(Part):
    version: Literal[1] = 1
    json_sha256: Digest  # of NAME.json
    shards: list[Shard]
    images: Images


def key_of(image_id: int) -> str:
    """What the members of an image are called in the tar, before their suffixes. WebDataset ends a key at its first
    dot and takes what has one key for one sample: files' names may hold dots, ids do not, and no two are the same."""
    return f"{image_id:012d}"


def photo_member(image_id: int, photo: str) -> str:
    """The name in the tar of the photo that the JSON calls `photo`."""
    suffix = os.path.splitext(photo)[1].lower()
    return f"{key_of(image_id)}{suffix if suffix in SUFFIXES else '.photo'}"


def read_index(place: str) -> tuple[Index, str]:
    """An index, and the SHA-256 of its bytes. InputError where it is not there, or not what was written."""
    content = storage.read(place)
    try:
        index = Index.model_validate_json(content)
    except ValidationError as error:
        raise InputError(f"{place}: no index of shards ({one_line(error)}); {CURE}") from None
    if fault := _fault(index):
        raise InputError(f"{place}: {fault}: it was changed after it was written; {CURE}")
    return index, hashlib.sha256(content).hexdigest()


def _fault(index: Index) -> str | None:
    """What contradicts itself. The columns are long: numpy looks at them."""
    columns = {name: np.array(values, np.int64) for name, values in index.images}
    if len({len(column) for column in columns.values()}) > 1:
        return f"images: its lists have {', '.join(f'{len(each)} ({name})' for name, each in columns.items())} values"
    if len(np.unique(columns["image_id"])) < len(columns["image_id"]):
        return "images: an image id stands there twice"
    shards = columns["shard"]
    if len(wrong := shards[shards >= len(index.shards)]):
        return f"images: {wrong[0]} is no row of the {len(index.shards)} shards"
    sizes = np.array([shard.size for shard in index.shards], np.int64)[shards]
    for kind in ("photo", "png"):
        for row in np.flatnonzero(columns[kind] + columns[f"{kind}_size"] > sizes)[:1]:
            image_id, shard = columns["image_id"][row], index.shards[shards[row]]
            return f"image {image_id}: its {kind} would lie after the end of {shard.name}"
    held = np.bincount(shards, minlength=len(index.shards))
    for shard, images in zip(index.shards, held.tolist(), strict=True):
        if shard.images != images:
            return f"{shard.name} holds {shard.images} images, of which {images} are listed"
    for name, count in Counter(shard.name for shard in index.shards).items():
        if count > 1:
            return f"{name} is listed twice"
    return None
