"""What a reader of labels hands on: classes, and the shapes that somebody drew on each photo."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

Size = tuple[int, int]  # height, width
Color = tuple[int, int, int]
Overlap = Literal["smaller", "later", "earlier"]  # which of two shapes is on top


class Polygon(NamedTuple):
    """Rings of points (x, y), float64 N x 2, in pixels: the photo's upper left pixel reaches from 0 to 1.

    Its pixels are COCO's (pycocotools' frPoly): for a ring along the pixels' edges exactly those inside. A box is one.
    """

    rings: tuple[np.ndarray, ...]  # what any of them holds
    holes: tuple[np.ndarray, ...] = ()  # without what any of these holds


class Rle(NamedTuple):
    """COCO's run lengths, column by column: the photo's whole mask."""

    counts: bytes | Sequence[int]  # compressed, or plain
    size: Size


class Bitmap(NamedTuple):
    """A mask, bool h x w, whose upper left pixel lies at (x, y) of the photo. It may reach over the photo's border."""

    mask: np.ndarray
    x: int = 0
    y: int = 0


Region = Polygon | Rle | Bitmap


class Shape(NamedTuple):
    """One object, or one piece of stuff. What several regions hold together is one instance."""

    key: Hashable  # of its LabelClass
    regions: tuple[Region, ...]
    name: str  # for messages: "annotation 17", "line 3", "shapes[4]"
    crowd: bool = False
    is_box: bool = False  # somebody drew a box, not an outline: `boxes` says what it becomes
    is_ground: bool = False  # of a semantic map: below all shapes, which contest nothing of it


class LeftOut(NamedTuple):
    """Something that was drawn and holds no pixels."""

    kind: str  # "point", "line", ...
    name: str  # as Shape's


class Labels(NamedTuple):
    """Of one photo."""

    shapes: Sequence[Shape]  # in the order of the file
    size: Size | None = None  # of the photo that they were drawn on, where the labels say it
    left_out: Sequence[LeftOut] = ()


class Item(NamedTuple):
    """One photo, and the way to its labels: `read` runs in a worker process, and is a module's function or a
    functools.partial of one. It takes the photo's size (upright) and raises InputError, naming the file, for what it
    cannot read."""

    photo: Path
    name: str  # below the folder of photos that is made: inside it, with a suffix
    read: Callable[[Size], Labels]
    image_id: int | None = None  # None: numbers from 1
    unpack: Callable[[Path], None] | None = None  # writes the photo, where the labels hold it: `photo` is their file


class LabelClass(NamedTuple):
    """A class as the labels have it."""

    key: Hashable  # what shapes call it
    name: str
    id: int  # as the labels have it, or 1, 2, ... in their order
    color: Color | None = None
    isthing: bool = True
    void: bool = False  # its pixels belong to no category, unless --things or --stuff names it


@dataclass
class Source:
    """Labels of some format. A reader makes it after a look at what is small: tables and names of files."""

    format: str  # "YOLO"
    path: Path
    classes: list[LabelClass]
    splits: dict[str, list[Item]]  # "train", "val", ... as the format has them, or "all"
    overlap: Overlap = "smaller"  # where the command does not say: what the format's own tools do
    faults: list[str] = field(default_factory=list)  # images that cannot be converted, one line each with its cure
    remarks: list[str] = field(default_factory=list)  # what the user should know: photos without labels, ...

    def remark(self, names: Sequence[str], what: str) -> None:
        """How many photos or files something is to be said of, and the first of them; nothing where there are none."""
        if names:
            self.remarks.append(f"{len(names):,} {what}, as {names[0]}")


def no_labels(size: Size) -> Labels:
    """Item.read of a photo that shows no object."""
    return Labels([])


def without_shared_colors(classes: Sequence[LabelClass]) -> list[LabelClass]:
    """A colour of two classes tells nothing: neither has it."""
    shared = Counter(each.color for each in classes)
    return [each if shared[each.color] == 1 else each._replace(color=None) for each in classes]
