"""What a page says of one split: its images and segments, the doctor's findings by image, and which images it shows."""

from __future__ import annotations

import random
from array import array
from collections.abc import Collection
from typing import NamedTuple

from upsnet.datasets.doctor.check import Checkup
from upsnet.datasets.findings import KINDS, Finding, Tally, image_of
from upsnet.datasets.folder import Record
from upsnet.datasets.panoptic_json import PanopticJson


class Listed(NamedTuple):
    """An image of the JSON."""

    name: str
    size: tuple[int, int] | None  # height, width where the JSON has them
    categories: frozenset[int]
    is_annotated: bool = True


class Survey:
    """One split: what the doctor said, sorted by image, and what the JSON lists."""

    def __init__(self, checkup: Checkup) -> None:
        self.checkup = checkup
        self._chart = PanopticJson(checkup.split, Tally().note)  # what is wrong with it is in the checkup
        self.categories = self._chart.categories
        self.areas = {id: array("d") for id in self.categories}  # of segments that are no crowd and have an area
        self.images: dict[int, Listed] = {}
        for row in self._chart.rows():
            for segment in row.segments:
                if segment.category_id in self.areas and not segment.iscrowd and segment.area is not None:
                    self.areas[segment.category_id].append(segment.area)
            held = frozenset(segment.category_id for segment in row.segments) & self.categories.keys()
            self.images[row.image_id] = Listed(row.photo, row.size, held)
        for number, entry in self._chart.images.items():
            if number not in self.images:
                self.images[number] = Listed(entry["file_name"], None, frozenset(), is_annotated=False)
        self.findings = findings_by_image(checkup.tally)

    def choose(self, limit: int, seed: int, only_findings: bool, categories: Collection[int] | None) -> list[int]:
        """Image ids: those with findings, the worst first; then others by lot, of which the first show the classes that
        are not there yet, the rare ones before the common.

        categories: only images that hold one of these. The lot does not depend on the order in the JSON.
        """
        wanted = [
            number
            for number, image in sorted(self.images.items())
            if categories is None or not image.categories.isdisjoint(categories)
        ]
        random.Random(seed).shuffle(wanted)
        chosen = sorted((number for number in wanted if number in self.findings), key=self._badness)[:limit]
        if only_findings:
            return chosen
        rest = [number for number in wanted if number not in self.findings]
        first = {id: number for number in reversed(rest) for id in self.images[number].categories}
        met = {id for number in chosen for id in self.images[number].categories}
        for id in sorted(first, key=lambda id: (self._images_with(id), id)):
            if id not in met:
                chosen.append(first[id])
                met |= self.images[first[id]].categories
        taken = set(chosen)
        return (chosen + [number for number in rest if number not in taken])[:limit]

    def records(self, chosen: list[int]) -> list[Record]:
        """The chosen images in that order, with the segments that can be drawn."""
        wanted, files = set(chosen), self._chart.files
        found = {
            row.image_id: Record(
                row.image_id,
                row.photo,
                files.photo(row.image_id, row.photo),
                files.png(row.image_id, row.png),
                [segment for segment in row.segments if segment.category_id in self.categories],
                row.size,
            )
            for row in self._chart.rows()
            if row.image_id in wanted
        }
        for number in wanted - found.keys():  # without annotation
            name = self.images[number].name
            found[number] = Record(number, name, files.photo(number, name), files.png(number, ""), [])
        return [found[number] for number in chosen]

    def _badness(self, number: int) -> tuple[int, int]:
        """Errors count before warnings; the lowest is the worst."""
        errors = sum(KINDS[finding.kind].error for finding in self.findings[number])
        return -errors, errors - len(self.findings[number])

    def _images_with(self, id: int) -> int:
        count = self.checkup.tally.categories.get(id)
        return count.images if count else 0


def findings_by_image(tally: Tally) -> dict[int, list[Finding]]:
    """Of those that concern one image, in the order of KINDS."""
    found: dict[int, list[Finding]] = {}
    for kind in KINDS:
        for text in tally.texts.get(kind, ()):
            number = image_of(text)
            if number is not None:
                found.setdefault(number, []).append(Finding(kind, text))
    return found
