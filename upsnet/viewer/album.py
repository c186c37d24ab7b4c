"""The last photos that were given, and what models said about them: in memory, and bounded."""

from __future__ import annotations

import base64
import secrets
import threading
import zlib
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import PurePath

import numpy as np
from PIL import Image

from upsnet.categories import Categories
from upsnet.datasets.coco_format import annotation, id2rgb
from upsnet.draw import label_points, segment_colors
from upsnet.errors import InputError
from upsnet.geometry import to_original
from upsnet.labels import clean
from upsnet.photos import encode_image, read_photo
from upsnet.prediction import PanopticPrediction
from upsnet.result import PanopticResult

MOST_PHOTOS = 24
MOST_BYTES = 256 << 20  # of all photos, encoded, with their answers
VIEW_PIXELS = 6_000_000  # a larger photo is shown smaller; figures and files are of its own size
VIEW_SIDE = 8192  # which every browser's canvas can have
LOSSLESS_PIXELS = 500_000  # up to which it is shown as a PNG
THUMB_SIDE = 96
QUALITY = 92


@dataclass(frozen=True)
class Answer:
    """What a model said about a photo, with the maps packed."""

    segments: list[
        dict[str, object]
    ]  # id, category_id, name, isthing, score, area, box, color, point (0 .. 1 of the sides)
    size: tuple[int, int]  # height, width of the photo
    packed: bytes  # its map of ids, uint8, deflated
    result: PanopticResult  # without the map
    categories: Categories
    model: str  # who answered, for people

    @classmethod
    def of(cls, prediction: PanopticPrediction, model: str) -> Answer:
        result, categories = prediction.result, prediction.categories
        colors = segment_colors(result.segments, categories)
        if result.ids.max(initial=0) > 255:  # of a graph by upsnet/contract.py it cannot be
            raise InputError(f"{prediction.source}: more than 255 segments")
        height, width = view_size(*result.ids.shape)
        found = label_points(result._replace(ids=_view(result.ids)))
        points = {place: ((x + 0.5) / width, (y + 0.5) / height) for place, (x, y) in found.items()}
        segments = [
            {**each._asdict(), "color": colors[place], "point": points.get(place)}
            for place, each in enumerate(prediction.segments)
        ]
        packed = zlib.compress(result.ids.astype(np.uint8).tobytes(), 1)
        bare = result._replace(ids=np.empty((0, 0), np.int32))
        return cls(segments, prediction.ids.shape, packed, bare, categories, model)

    def full(self) -> PanopticResult:
        """With the map, int32 H x W."""
        ids = np.frombuffer(zlib.decompress(self.packed), np.uint8).reshape(self.size)
        return self.result._replace(ids=ids.astype(np.int32))

    def view(self) -> np.ndarray:
        """uint8: the map at the size at which the page shows it."""
        ids = np.frombuffer(zlib.decompress(self.packed), np.uint8).reshape(self.size)
        return _view(ids)

    def coco_png(self) -> bytes:
        """The official COCO panoptic PNG, of the photo's size."""
        return encode_image(Image.fromarray(id2rgb(self.full().ids)), "PNG")

    def coco(self, png_name: str) -> dict[str, object]:
        """The JSON that goes with it: one image, and the categories."""
        entry = annotation(1, png_name, self.result, self.categories)
        height, width = self.size
        return {
            "images": [{"id": 1, "file_name": png_name, "height": height, "width": width}],
            "annotations": [entry],
            "categories": self.categories.to_coco(),
        }


@dataclass
class Entry:
    """A photo."""

    id: str
    name: str  # one line, for people
    content: bytes  # as it was given
    size: tuple[int, int]  # height, width, upright
    shown: bytes  # upright, of view_size, for the page
    kind: str  # of `shown`: "PNG" or "JPEG"
    thumb: bytes  # PNG
    answers: dict[str, Answer] = field(default_factory=dict)  # the last of each model, by its id

    @property
    def stem(self) -> str:
        """What its files are called."""
        return PurePath(self.name).stem or "photo"

    @property
    def bytes(self) -> int:
        return len(self.content) + len(self.shown) + len(self.thumb) + sum(len(a.packed) for a in self.answers.values())


def view_size(height: int, width: int) -> tuple[int, int]:
    """The size of a photo on the page: its own up to VIEW_PIXELS, and VIEW_SIDE."""
    factor = min(1.0, (VIEW_PIXELS / (height * width)) ** 0.5, VIEW_SIDE / max(height, width))
    return max(1, int(height * factor)), max(1, int(width * factor))


def packed_map(array: np.ndarray) -> dict[str, object]:
    """A uint8 H x W map as JSON has it: the page unpacks the bytes themselves, which no picture's colours change."""
    content = base64.b64encode(zlib.compress(np.ascontiguousarray(array).tobytes(), 1)).decode()
    return {"height": array.shape[0], "width": array.shape[1], "deflated": content}


def _view(ids: np.ndarray) -> np.ndarray:
    """A map of a photo's size at the size of its view."""
    return to_original(ids, ids.shape, view_size(*ids.shape))


def photo_name(given: str) -> str:
    """What a photo is called: the last part of a path, on one line, and short."""
    return clean(given.replace("\\", "/").rpartition("/")[2]) or "photo"


def open_photo(content: bytes, name: str) -> Entry:
    """Decodes it. InputError for what is no photo."""
    pixels = read_photo(content, name)
    height, width = pixels.shape[:2]
    image = Image.fromarray(pixels)
    rows, columns = view_size(height, width)
    shown = image if (rows, columns) == (height, width) else image.resize((columns, rows), Image.Resampling.BILINEAR)
    kind = "PNG" if rows * columns <= LOSSLESS_PIXELS else "JPEG"
    thumb = shown.copy()
    thumb.thumbnail((2 * THUMB_SIDE, 2 * THUMB_SIDE))
    return Entry(
        id=secrets.token_urlsafe(9),
        name=name,
        content=content,
        size=(height, width),
        shown=encode_image(shown, kind, **({"quality": QUALITY} if kind == "JPEG" else {})),
        kind=kind,
        thumb=encode_image(thumb, "PNG"),
    )


class Album:
    """The last photos, the newest last. Threads may share it."""

    def __init__(self, most_photos: int = MOST_PHOTOS, most_bytes: int = MOST_BYTES) -> None:
        self._most_photos, self._most_bytes = most_photos, most_bytes
        self._entries: OrderedDict[str, Entry] = OrderedDict()
        self._lock = threading.Lock()

    def add(self, entry: Entry) -> None:
        with self._lock:
            self._entries[entry.id] = entry
            self._shrink()

    def keep(self, entry: Entry, model: str, answer: Answer) -> None:
        with self._lock:
            entry.answers[model] = answer
            self._shrink()

    def _shrink(self) -> None:
        """Forgets the oldest; the newest stays, whatever its size."""
        while len(self._entries) > 1 and (
            len(self._entries) > self._most_photos
            or sum(entry.bytes for entry in self._entries.values()) > self._most_bytes
        ):
            self._entries.popitem(last=False)

    def find(self, id: str) -> Entry:
        """KeyError where there is none, or no more."""
        return self._entries[id]

    def clear(self) -> None:
        with self._lock:
            self._entries.clear()

    def __iter__(self) -> Iterator[Entry]:
        """The newest first."""
        with self._lock:
            return iter(list(self._entries.values())[::-1])
