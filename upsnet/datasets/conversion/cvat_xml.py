"""CVAT's XML, which may be larger than memory: one pass says where in the file each image's shapes stand, and workers
read those places. A DOCTYPE, and so every entity, is refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple
from xml.parsers import expat

from upsnet.datasets.progress import progress_bar
from upsnet.errors import InputError

CHUNK = 1 << 20  # bytes
LARGE = 32 << 20  # bytes, from which on a bar shows
PIXELS = ("mask", "polygon", "ellipse", "box")  # entries that hold pixels
SHAPES = (*PIXELS, "polyline", "points", "cuboid", "skeleton", "tag")
Attributes = dict[str, str]


class Place(NamedTuple):
    """An element of the file: bytes from `begin`, `length` of them, perhaps without its end tag."""

    begin: int
    length: int
    line: int
    track: Attributes | None = None  # of the track that it is a shape of


class Image(NamedTuple):
    """<image>, of the format "CVAT for images"."""

    attributes: Attributes
    place: Place
    is_empty: bool  # without any entry


@dataclass
class Index:
    """What a file holds, on the whole."""

    labels: list[Attributes] = field(default_factory=list)  # of <meta>: name, color, type, parent
    used: dict[str, int] = field(default_factory=dict)  # labels of what holds pixels -> the first line
    images: list[Image] = field(default_factory=list)
    frames: dict[int, list[Place]] = field(default_factory=dict)  # shapes by frame: "CVAT for video"
    gaps: list[tuple[int, int, str]] = field(default_factory=list)  # first and last frame that a track leaves out
    tracks: list[Attributes] = field(default_factory=list)
    frame_size: tuple[int, int] | None = None  # height, width of a video's frames


class Entry(NamedTuple):
    """A shape or a tag."""

    kind: str  # "polygon"
    attributes: Attributes  # its own, without those of its track
    line: int
    values: Attributes  # the annotator's attributes, by name


def scan(file: Path) -> Index:
    """InputError for what is no XML of CVAT, with the line."""
    try:
        size = file.stat().st_size
        with open(file, "rb") as stream:
            if stream.read(2) in (b"\xff\xfe", b"\xfe\xff"):
                raise InputError(f"{file}: is in UTF-16; save it in UTF-8, as CVAT writes it")
            stream.seek(0)
            scanner = _Scanner(file)
            with progress_bar(total=size, title=file.name, unit="B", shown=size >= LARGE) as bar:
                while chunk := stream.read(CHUNK):
                    scanner.feed(chunk)
                    bar.update(len(chunk))
                scanner.feed(b"", True)
    except OSError as error:
        raise InputError(f"{file}: cannot be read: {error.strerror}") from error
    return scanner.index


class _Scanner:
    """One pass over a file."""

    def __init__(self, file: Path) -> None:
        self.file, self.index = file, Index()
        self.parser = expat.ParserCreate()
        self.parser.buffer_text = True
        self.parser.XmlDeclHandler = self._declaration
        self.parser.StartDoctypeDeclHandler = self._doctype
        self.parser.StartElementHandler = self._start
        self.parser.EndElementHandler = self._end
        self.path: list[str] = []  # elements that are open
        self.text = ""
        self.open: tuple[Attributes, int, int] | None = None  # image or shape of a track: begin, line
        self.entries = 0  # of the open image
        self.track: Attributes | None = None
        self.last: tuple[int, bool] | None = None  # frame of the track's shape before, and whether it is outside

    def feed(self, chunk: bytes, is_last: bool = False) -> None:
        try:
            self.parser.Parse(chunk, is_last)
        except expat.ExpatError as error:
            cut = "; the file ends too early" if is_last else ""
            raise InputError(f"{self.file}: line {error.lineno}: {expat.ErrorString(error.code)}{cut}") from None

    def fail(self, text: str) -> InputError:
        return InputError(f"{self.file}: line {self.parser.CurrentLineNumber}: {text}")

    def _declaration(self, version: str, encoding: str | None, standalone: int) -> None:
        if encoding and encoding.lower() not in ("utf-8", "us-ascii", "ascii"):
            raise self.fail(f"the encoding is {encoding!r:.40}; save it in UTF-8, as CVAT writes it")

    def _doctype(self, *_: object) -> None:
        raise self.fail("has a DOCTYPE, which CVAT never writes, and which is not read")

    def _start(self, name: str, attributes: Attributes) -> None:
        if not self.path and name != "annotations":
            raise self.fail(f"<{name[:40]}> is no CVAT XML, which begins with <annotations>")
        self.path.append(name)
        depth = len(self.path)
        if depth == 2:
            if name == "meta":
                self.parser.CharacterDataHandler = self._characters
            elif name == "image":
                self._opened(attributes)
            elif name == "track":
                self.track, self.last = attributes, None
                self.index.tracks.append(attributes)
        elif depth == 3 and name in SHAPES:
            label = attributes.get("label") if self.track is None else self.track.get("label")
            if name in PIXELS and label is not None:
                self.index.used.setdefault(label, self.parser.CurrentLineNumber)
            if self.track is not None:
                self._opened(attributes)
            else:
                self.entries += 1
        elif self.path[1:2] == ["meta"]:
            self.text = ""
            if name == "label":
                self.index.labels.append({})

    def _opened(self, attributes: Attributes) -> None:
        self.open = attributes, self.parser.CurrentByteIndex, self.parser.CurrentLineNumber
        self.entries = 0

    def _characters(self, text: str) -> None:
        self.text += text

    def _end(self, name: str) -> None:
        if len(self.path) == 2:
            if name == "meta":
                self.parser.CharacterDataHandler = None
            elif name == "image":
                attributes, place = self._closed()
                self.index.images.append(Image(attributes, place, not self.entries))
            elif name == "track":
                self.track = None
        elif len(self.path) == 3 and self.track is not None and self.open is not None:
            self._add_to_frame(*self._closed())
        elif self.path[1:2] == ["meta"]:
            self._meta(name, self.text.strip())
        self.path.pop()

    def _closed(self) -> tuple[Attributes, Place]:
        assert self.open is not None
        attributes, begin, line = self.open
        self.open = None
        return attributes, Place(begin, self.parser.CurrentByteIndex - begin, line, self.track)

    def _meta(self, name: str, value: str) -> None:
        parent = self.path[-2]
        if parent == "label" and name in ("name", "color", "type", "parent"):
            self.index.labels[-1][name] = value
        elif parent == "original_size" and name in ("height", "width") and value.isascii() and value.isdecimal():
            height, width = self.index.frame_size or (0, 0)
            self.index.frame_size = (int(value), width) if name == "height" else (height, int(value))

    def _add_to_frame(self, attributes: Attributes, place: Place) -> None:
        """CVAT writes the shape of every frame, those between keyframes too."""
        text = attributes.get("frame", "")
        if not (text.isascii() and text.isdecimal() and len(text) < 10):
            raise InputError(f"{self.file}: line {place.line}: the frame is {text!r:.40}, not a whole number")
        frame, is_outside = int(text), attributes.get("outside") == "1"
        if self.last is not None and not self.last[1] and frame > self.last[0] + 1:
            track = (self.track or {}).get("id", "")
            self.index.gaps.append((self.last[0] + 1, frame - 1, f"track {track:.20} (line {place.line})"))
        self.last = frame, is_outside
        if not is_outside:
            self.index.frames.setdefault(frame, []).append(place)


def entries(file: Path, places: Sequence[Place]) -> Iterator[tuple[Entry, Attributes | None]]:
    """The shapes and tags at some places, each with the attributes of its track. InputError where the file changed."""
    with open(file, "rb") as stream:
        for place in places:
            stream.seek(place.begin)
            for entry in _parse(stream.read(place.length), place, f"{file}: changed while it was read"):
                yield entry, place.track


def _parse(content: bytes, place: Place, complaint: str) -> list[Entry]:
    parser = expat.ParserCreate("utf-8")
    parser.buffer_text = True
    found: list[Entry] = []
    path: list[str] = []
    depth = 1 if place.track is None else 0  # of shapes below the place's element
    text, attribute = "", ""

    def start(name: str, attributes: Attributes) -> None:
        nonlocal text, attribute
        if len(path) == depth and name in SHAPES:
            found.append(Entry(name, attributes, place.line + parser.CurrentLineNumber - 1, {}))
        elif len(path) == depth + 1 and name == "attribute":
            text, attribute = "", attributes.get("name", "")
        path.append(name)

    def end(name: str) -> None:
        path.pop()
        if len(path) == depth + 1 and name == "attribute" and found:
            found[-1].values[attribute] = text.strip()

    def characters(more: str) -> None:
        nonlocal text
        text += more

    handlers: tuple[Callable[..., None], ...] = (start, end, characters)
    parser.StartElementHandler, parser.EndElementHandler, parser.CharacterDataHandler = handlers
    try:
        parser.Parse(content, False)  # not the last: the end tag is missing
    except expat.ExpatError:
        raise InputError(complaint) from None
    return found
