"""What is known of one photo of a list, and what a block is as a whole."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

from PIL import Image

from upsnet.bulk.photo_list import Entry
from upsnet.categories import Categories
from upsnet.datasets.coco_format import annotation, id2rgb
from upsnet.photos import encode_image
from upsnet.result import PanopticResult


class Row(NamedTuple):
    """A photo that was predicted, or one that could not be, with the reason."""

    image_id: int
    name: str
    photo: str  # as the list has it
    error: str = ""
    height: int = 0
    width: int = 0
    png: bytes = b""  # ids as COCO's panoptic PNG has them
    segments: tuple[dict[str, Any], ...] = ()  # COCO's segments_info

    @classmethod
    def predicted(cls, entry: Entry, result: PanopticResult, categories: Categories) -> Row:
        png = encode_image(Image.fromarray(id2rgb(result.ids)), "PNG")
        segments = annotation(entry.image_id, "", result, categories)["segments_info"]
        height, width = result.ids.shape
        return cls(entry.image_id, entry.name, entry.photo, "", height, width, png, tuple(segments))

    @classmethod
    def left_out(cls, entry: Entry, error: str) -> Row:
        return cls(entry.image_id, entry.name, entry.photo, error)

    @property
    def annotation(self) -> dict[str, Any]:
        """An entry of COCO's `annotations`."""
        return {"image_id": self.image_id, "file_name": f"{self.name}.png", "segments_info": list(self.segments)}


class Failure(NamedTuple):
    """A photo that was left out. A line of failed.jsonl."""

    image_id: int
    name: str
    photo: str
    error: str


class Summary(NamedTuple):
    """What a block's file says of itself, which is read without its predictions."""

    block: int
    photos: int
    model_digest: str
    left_out: list[Failure]


class Writer(Protocol):
    """Of one block's file."""

    def add(self, row: Row) -> None: ...

    def end(self) -> None:
        """Writes what is known once all rows are there."""
        ...
