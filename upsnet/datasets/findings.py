"""What can be wrong with a data set in the COCO panoptic format, and the findings about one."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from upsnet.errors import InputError
from upsnet.files import PathLike

LISTED = 10_000  # findings of one kind that a report spells out; all are counted


class Kind(NamedTuple):
    error: bool  # else a warning
    meaning: str


# In the order of the table. An error: training or the official evaluation would stop there or reckon wrongly, so that
# everything refuses the data set. A warning: what is needed here is there. docs/format.md lists both.
KINDS: Mapping[str, Kind] = {
    "other-format": Kind(True, "a file of another kind"),
    "json": Kind(True, "the JSON is not COCO panoptic"),
    "shard": Kind(True, "shard missing, cut or changed"),
    "category": Kind(True, "bad or repeated entry of the category table"),
    "image-twice": Kind(True, "image id listed twice"),
    "file-twice": Kind(True, "two images or annotations with one file name"),
    "annotation-twice": Kind(True, "image with two annotations"),
    "not-annotated": Kind(True, "image without annotation"),
    "not-listed": Kind(True, "annotation of an image that is not listed"),
    "photo-missing": Kind(True, "no photo"),
    "photo-unreadable": Kind(True, "damaged or cut photo"),
    "png-missing": Kind(True, "no PNG"),
    "png-unreadable": Kind(True, "damaged PNG, or not 8-bit RGB"),
    "size": Kind(True, "width or height no integer, or photo, PNG and JSON differ in size"),
    "segment-count": Kind(True, "more segments in an image than training can number"),
    "segment-id": Kind(True, "segment id not an integer in 1 .. 2^24 - 1"),
    "segment-twice": Kind(True, "segment id listed twice in an image"),
    "only-png": Kind(True, "segment in the PNG, not in the JSON"),
    "only-json": Kind(True, "segment in the JSON, not in the PNG"),
    "unknown-category": Kind(True, "segment of a category that the table lacks"),
    "iscrowd": Kind(True, "iscrowd neither 0 nor 1"),
    "area": Kind(True, "area missing or not the PNG's"),
    "iscrowd-missing": Kind(False, "no iscrowd: 0 is taken (the official tools want it)"),
    "bbox": Kind(False, "bbox not the PNG's (other tools want it)"),
    "bbox-missing": Kind(False, "no bbox (other tools want it)"),
    "size-missing": Kind(False, "no width or height in the JSON (other tools want them)"),
    "stuff-crowd": Kind(False, "iscrowd on stuff: its pixels are ignored"),
    "stuff-twice": Kind(False, "stuff category with two segments in an image"),
    "nothing-to-learn": Kind(False, "no segment that is no crowd in the whole data set: every loss on them is 0"),
    "other-categories": Kind(False, "another table of categories than that of the other data sets in the folder"),
    "exif-turned": Kind(False, "photo that its EXIF turns: its labels are taken to be painted on the turned photo"),
    "empty": Kind(False, "image without any segment"),
    "photo-unlisted": Kind(False, "file in the photos' folder that the JSON does not list"),
    "png-unlisted": Kind(False, "file in the PNGs' folder that the JSON does not list"),
    "color": Kind(False, "category without a colour, or with another's"),
    "one-sided": Kind(False, "no thing or no stuff category"),
}


Report = Callable[[str, str], None]  # takes the kind and the text of a finding


class Finding(NamedTuple):
    kind: str  # of KINDS
    text: str  # one line that names the image or file; where it is about one image, it begins with "image ID"


def image_of(text: str) -> int | None:
    """The id of the image that a finding is about; None: it is about the table, the files or the whole data set."""
    found = re.match(r"image (-?\d+)\b", text)
    return int(found[1]) if found else None


@dataclass
class CategoryCount:
    """What the data set holds of one category."""

    segments: int = 0
    crowds: int = 0
    images: int = 0
    pixels: int = 0

    def add(self, other: CategoryCount) -> None:
        self.segments += other.segments
        self.crowds += other.crowds
        self.images += other.images
        self.pixels += other.pixels


@dataclass
class Tally:
    """Findings and counts, of a few images or of a whole split."""

    images: int = 0
    void_pixels: int = 0
    categories: dict[int, CategoryCount] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    texts: dict[str, list[str]] = field(default_factory=dict)

    def note(self, kind: str, text: str) -> None:
        self.counts[kind] = self.counts.get(kind, 0) + 1
        texts = self.texts.setdefault(kind, [])
        if len(texts) < LISTED:
            texts.append(text)

    def report(self, findings: Iterable[Finding]) -> None:
        for finding in findings:
            self.note(*finding)

    def add(self, other: Tally) -> None:
        self.images += other.images
        self.void_pixels += other.void_pixels
        for category_id, count in other.categories.items():
            self.categories.setdefault(category_id, CategoryCount()).add(count)
        for kind, number in other.counts.items():
            self.counts[kind] = self.counts.get(kind, 0) + number
            texts = self.texts.setdefault(kind, [])
            texts.extend(other.texts[kind][: LISTED - len(texts)])

    @property
    def errors(self) -> int:
        return sum(count for kind, count in self.counts.items() if KINDS[kind].error)

    @property
    def warnings(self) -> int:
        return sum(self.counts.values()) - self.errors

    def findings(self) -> dict[str, dict[str, Any]]:
        """By kind, in the order of KINDS: level, meaning, count and the first LISTED texts."""
        return {
            kind: {
                "level": "error" if KINDS[kind].error else "warning",
                "meaning": KINDS[kind].meaning,
                "count": self.counts[kind],
                "texts": self.texts[kind],
            }
            for kind in KINDS
            if kind in self.counts
        }

    def lines(self, path: object) -> list[str]:
        """One line a kind: the first finding, and how many more there are."""
        lines = []
        for kind, finding in self.findings().items():
            more = f" (and {self.counts[kind] - 1:,} more: {finding['meaning']})" if self.counts[kind] > 1 else ""
            lines.append(f"{path}: {finding['texts'][0]}{more}")
        return lines


class Strict:
    """A Report for all but the doctor: the first error is an InputError of its words, warnings are gathered."""

    def __init__(self, path: PathLike) -> None:
        self.path, self.warnings = path, Tally()

    def __call__(self, kind: str, text: str) -> None:
        if KINDS[kind].error:
            raise InputError(f"{self.path}: {text}")
        self.warnings.note(kind, text)
