"""What is known of one photo of a list, and what a block is as a whole."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol

from PIL import Image

from upsnet.bulk.photo_list import Entry
from upsnet.categories import Categories
from upsnet.datasets.coco_format import annotation, id2rgb
from upsnet.errors import InputError, first_line
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

    @property
    def crc32(self) -> int:
        """Of all that it says. A block's file has it beside each row, and what is read back is held against it."""
        about = [*self[: self._fields.index("png")], self.segments]
        return zlib.crc32(self.png, zlib.crc32(json.dumps(about, sort_keys=True).encode()))

    def checked(self, crc32: int) -> Row:
        """ValueError where that is not its own."""
        if self.crc32 != crc32:
            raise ValueError(f"{self.name!r} is not what was written")
        return self


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


# What anything may raise that is given what it does not expect.
UNEXPECTED = (ArithmeticError, AttributeError, LookupError, OSError, TypeError, ValueError)


@contextmanager
def naming_damage(place: str, *kinds: type[Exception]) -> Iterator[None]:
    """What a reader says of damaged bytes is an InputError that names the block's file, and the cure.

    kinds: of exceptions, besides `UNEXPECTED`.
    """
    damage: tuple[type[Exception], ...] = (*UNEXPECTED, *kinds)
    try:
        yield
    except InputError:  # of the bucket, or of the disk
        raise
    except damage as error:
        if isinstance(error, OSError) and error.errno:
            raise InputError(f"{place}: cannot be read: {error.strerror}") from error
        raise InputError(
            f"{place}: damaged, or no block of predictions ({first_line(error)}); delete it and start the command that "
            "made it again"
        ) from None
