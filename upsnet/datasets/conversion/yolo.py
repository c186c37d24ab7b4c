"""YOLO segmentation text files, as Ultralytics' networks are trained with -> COCO panoptic.

Read are data.yaml (`path`; `train`, `val`, `test` as a folder, a .txt that lists photos, or a list of these; `names`),
or, as Label Studio has it, classes.txt beside images/ and labels/; and for the photo .../images/x/a.jpg the rows of
.../labels/x/a.txt, or of a.txt beside a photo that is in no folder `images` (yolo_rows.py). No such file, or an empty
one, means a photo without objects. Parts and holes of an outline, which is one ring, hang together by lines that go
there and back: they are painted as they were drawn. Of two outlines the smaller is on top, as Ultralytics has it.

The format cannot hold: crowds, colours, which class is stuff (--stuff), outlines finer than the digits of its shares.
Keypoints are left out. Ultralytics leaves out, with a warning, photos of which a row is wrong; here they are faults.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path, PureWindowsPath
from typing import Annotated, NamedTuple

import typer

from upsnet.datasets.conversion.command import converter
from upsnet.datasets.conversion.labels import Item, LabelClass, Labels, Size, Source
from upsnet.datasets.conversion.photo_folder import PhotoFolder
from upsnet.datasets.conversion.text import read_text
from upsnet.datasets.conversion.yolo_rows import CORNERS, Rows, read_rows
from upsnet.datasets.conversion.yolo_yaml import Description, describe, find
from upsnet.datasets.listing import Listing
from upsnet.errors import InputError
from upsnet.sources import PHOTO_SUFFIXES

LOOKED_AT = 50  # files of rows, to see whether they may be boxes with four corners
SHOWN = 8  # classes in a message
SPARE = ("test", "minival")  # splits that training does not need


class Absent(InputError):
    """A split without photos, or without labels."""


class Photo(NamedTuple):
    """path: absolute, `..` taken out by name. name: below the folder, or the data set."""

    path: str
    name: str


def read(
    path: Annotated[Path, typer.Argument(help="data.yaml, or the folder that has it (or classes.txt).")],
    root: Annotated[
        Path | None,
        typer.Option(help="Where the folders in data.yaml start (default: its `path`, else its own folder)."),
    ] = None,
    oriented_boxes: Annotated[
        bool, typer.Option("--oriented-boxes", help="Four points are a turned box, not an outline (YOLO OBB).")
    ] = False,
) -> Source:
    """YOLO segmentation text files (data.yaml, images/, labels/) -> COCO panoptic.

    The splits are those of data.yaml. A photo without a label file has no objects, as YOLO has it.
    Rows of four numbers are boxes, which --boxes must allow; keypoints are left out.
    """
    if not path.exists():
        raise InputError(f"{path}: no such file or folder; give data.yaml, or the folder that has it")
    about = describe(find(path))
    classes = [LabelClass(number, name, number) for number, name in about.names.items()]
    source = Source("YOLO", about.file, classes, {})
    reader = _Reader(source, about, _root(about, root, source.remarks))
    listed = list(islice((f"{number} '{name}'" for number, name in about.names.items()), SHOWN))
    more = f", ... ({len(about.names)} in all)" if len(about.names) > len(listed) else ""
    rows = Rows(frozenset(about.names), ", ".join(listed) + more, about.keypoints, oriented_boxes)
    for name, places in about.places.items():
        try:
            source.splits[name] = reader.items(name, places, rows)
        except Absent as error:  # data.yaml often names a test split that was never there, or has no truth
            if name not in SPARE or not source.splits:
                raise
            source.remarks.append(f"the split {name} is left out: {error}")
    _say_what_is_twice(source)
    if not oriented_boxes and not about.keypoints and reader.has_four_points():
        source.remarks.append(
            f"all rows of the first {len(reader.some_labels)} label files have four points: if they are boxes, "
            "give --oriented-boxes"
        )
    return source


def _root(about: Description, given: Path | None, remarks: list[str]) -> Path:
    """The folder where the places of data.yaml start."""
    own = Path(os.path.abspath(about.file.parent))
    if given is not None:
        if not given.is_dir():
            raise InputError(f"--root {given}: no such folder")
        return Path(os.path.abspath(given))
    if about.path is None:
        return own
    for start in (own / about.path, Path.cwd() / about.path):
        if os.path.isdir(start):
            return Path(os.path.abspath(start))
    remarks.append(f"{about.file}: its path '{about.path:.300}' is not there; its folders were looked for in {own}")
    return own


def _say_what_is_twice(source: Source) -> None:
    seen: dict[Path, str] = {}
    for name, items in source.splits.items():
        twice = [item.photo for item in items if seen.setdefault(item.photo, name) != name]
        if twice:
            other = seen[twice[0]]
            source.remarks.append(f"{len(twice)} photos are in {other} and in {name}, as {twice[0]}")


class _Reader:
    """The photos of each split and their label files."""

    def __init__(self, source: Source, about: Description, root: Path) -> None:
        self._source, self._about, self._root = source, about, root
        self._listing = Listing(Path("/"))
        self._orphans: set[str] = set()
        self.some_labels: list[str] = []

    def items(self, split: str, places: list[str], rows: Rows) -> list[Item]:
        photos: dict[str, str] = {}
        listed = 0
        folders = []
        for place in places:
            path = self._find(split, place)
            if path.is_dir():
                folders.append(path)
            for photo in self._of_folder(path) if path.is_dir() else self._of_list(path):
                photos.setdefault(*photo)
                listed += 1
        if not photos:
            raise Absent(f"{self._about.file}: {split}: no photo in {', '.join(places):.300}")
        if listed > len(photos):
            self._source.remarks.append(f"{split}: {listed - len(photos)} photos were listed again")
        labels = self._labels(split, photos)
        self._orphaned(folders, photos, labels)
        self.some_labels += list(islice(labels.values(), max(0, LOOKED_AT - len(self.some_labels))))
        return [
            Item(Path(photo), name, partial(_read, file=labels.get(photo), rows=rows)) for photo, name in photos.items()
        ]

    def _find(self, split: str, place: str) -> Path:
        """Roboflow writes ../train/images for train/images."""
        tries = [place, place.replace("\\", "/")]
        tries += [each[3:] for each in tries if each.startswith("../")]
        for each in tries:
            if os.path.exists(self._root / each):
                return self._root / each
        cure = "correct it, take the split out, or give --root"
        if os.path.isabs(place) or PureWindowsPath(place).is_absolute():  # which --root does not change
            own = self._tail(place, os.path.isdir)
            hint = os.path.relpath(own, self._root) if own else f"a folder below {self._root}"
            cure = f"it is another machine's: write {hint} in its place, or take the split out"
        raise Absent(f"{self._about.file}: {split}: there is no {self._root / place!s:.400}; {cure}")

    @staticmethod
    def _of_folder(path: Path) -> Iterator[Photo]:
        start = os.path.abspath(path)
        for name in PhotoFolder(path).names():
            yield Photo(os.path.join(start, name), name)

    def _of_list(self, file: Path) -> Iterator[Photo]:
        """Of a .txt that has a photo in each line; one that cannot be found is a fault."""
        if file.suffix.lower() != ".txt":
            raise InputError(f"{self._about.file}: {file} is neither a folder nor a .txt that lists photos")
        elsewhere = 0
        for number, line in enumerate(read_text(file).splitlines(), 1):
            if not (text := line.strip()):
                continue
            path = self._listed(text, file.parent)
            if path is None and (path := self._tail(text)) is not None:
                elsewhere += 1
            if path is None:
                cure = "correct the line, or bring the photo"
                self._source.faults.append(
                    f"{file}: line {number}: there is no {text:.300}, nor below {self._root}; {cure}"
                )
                continue
            below = os.path.relpath(path, self._root)
            yield Photo(path, os.path.basename(path) if below.startswith("..") else below)
        if elsewhere:
            where = f"the photos are those below {self._root} whose paths end as these"
            self._source.remarks.append(f"{file}: {elsewhere} of its paths are not there as they stand; {where}")

    def _listed(self, text: str, beside: Path) -> str | None:
        """The photo that a line of a list names: ./x beside the list, others below the root."""
        places = (beside, self._root) if text.startswith("./") else (self._root, beside)
        return next((path for path in (os.path.abspath(each / text) for each in places) if os.path.isfile(path)), None)

    def _tail(self, text: str, is_there: Callable[[str], bool] = os.path.isfile) -> str | None:
        """Of a path of another machine: what is there below the root of its last folders, as many as can be."""
        parts = [each for each in text.replace("\\", "/").split("/") if each not in ("", ".", "..")]
        ends = (os.path.join(self._root, *parts[index:]) for index in range(len(parts)))
        return next((path for path in ends if is_there(path)), None)

    def _labels(self, split: str, photos: dict[str, str]) -> dict[str, str]:
        """The label files that are there, by photo."""
        for resolve in (False, True):  # a folder of photos may be a link into a data set
            wanted = {photo: label_of(os.path.realpath(photo) if resolve else photo) for photo in photos}
            found = {photo: label for photo, label in wanted.items() if label in self._listing}
            if found:
                break
        else:
            photo = next(iter(photos))
            cure = "bring the labels, or take the split out of data.yaml"
            raise Absent(
                f"{self._about.file}: {split}: none of its {len(photos)} photos has a label file, "
                f"which would be {label_of(photo)} for {photo}; {cure}"
            )
        missing = [photo for photo in photos if photo not in found]
        if missing:
            self._source.remarks.append(
                f"{split}: {len(missing)} of {len(photos)} photos have no label file, which means no objects in YOLO, "
                f"as {missing[0]} without {wanted[missing[0]]}"
            )
        return found

    def _orphaned(self, folders: list[Path], photos: dict[str, str], labels: dict[str, str]) -> None:
        """Faults for label files without a photo, in the folders of labels and below those that belong to `folders`."""
        beside = {os.path.dirname(photo) for photo in photos}
        there = {
            label_of(os.path.join(place, name))
            for place in beside | {os.path.realpath(place) for place in beside}
            for name in self._listing.names(place)
            if name.lower().endswith(PHOTO_SUFFIXES)
        } | {*labels.values(), *self._orphans}
        places = {os.path.dirname(label) for label in labels.values()}
        for folder in folders:
            top = os.path.dirname(label_of(os.path.join(os.path.abspath(folder), "x.jpg")))
            places |= {place for place, _, _ in os.walk(top)}
        for place in sorted(places):
            for name in sorted(self._listing.names(place)):
                file = os.path.join(place, name)
                if name.lower().endswith(".txt") and not name.startswith(".") and file not in there:
                    self._orphans.add(file)
                    if _has_rows(file):
                        self._source.faults.append(
                            f"{file}: labels to which no photo belongs; bring it, rename one, or remove them"
                        )

    def has_four_points(self) -> bool:
        """Whether all rows that are no boxes have four points."""
        counts = set()
        for file in self.some_labels:
            try:
                counts |= {len(line.split()) - 1 for line in read_text(Path(file)).splitlines()}
            except InputError:
                return False  # a fault of its photo
        return counts - {-1} == {CORNERS}


def _read(size: Size, file: str | None, rows: Rows) -> Labels:
    return Labels([]) if file is None else read_rows(size, Path(file), rows)


def label_of(photo: str) -> str:
    """The label file of a photo: `labels` for the last folder called `images`, `.txt` for the suffix."""
    before, images, after = photo.rpartition(f"{os.sep}images{os.sep}")
    return os.path.splitext(f"{before}{os.sep}labels{os.sep}{after}" if images else photo)[0] + ".txt"


def _has_rows(file: str) -> bool:
    """Whether a text looks like labels: classes.txt and the like do not."""
    try:
        first = read_text(Path(file)).split(maxsplit=5)[:5]
        return len([float(text) for text in first]) == 5
    except (InputError, ValueError):
        return False


main = converter(read)
