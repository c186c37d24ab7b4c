"""The official COCO panoptic format: ids as colours of a PNG, and predictions as a folder of PNGs with one JSON."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Any

import numpy as np
from PIL import Image

from upsnet.categories import Categories
from upsnet.datasets.segments import ID_LIMIT
from upsnet.errors import InputError, first_line
from upsnet.files import PathLike, read_json, staged_folder, write_json
from upsnet.json_values import integer
from upsnet.photos import DECODE_ERRORS, write_png
from upsnet.result import PanopticResult
from upsnet.storage import Stored

JSON_NAME = "predictions.json"


def rgb2id(rgb: np.ndarray) -> np.ndarray:
    """uint8 ... x 3 (or more: the rest is ignored) -> int32 ids."""
    wide = rgb.astype(np.int32)
    return wide[..., 0] | wide[..., 1] << 8 | wide[..., 2] << 16


def id2rgb(ids: np.ndarray) -> np.ndarray:
    """Integer ids in [0, 2^24) -> uint8 ... x 3. Raises InputError for ids outside."""
    if ids.size and not (ids.min() >= 0 and ids.max() < ID_LIMIT):
        raise InputError(f"segment ids must lie in [0, {ID_LIMIT}), found {ids.min()} .. {ids.max()}")
    return np.stack([ids & 255, ids >> 8 & 255, ids >> 16], axis=-1).astype(np.uint8)


def read_panoptic_png(path: PathLike | Stored) -> np.ndarray:
    """A panoptic PNG -> int32 H x W ids. 8-bit RGB, or RGBA whose alpha is ignored as the official reader does.

    Raises InputError for a missing or damaged file and for any other kind of PNG (grey, palette, 16 bit): their values
    are not ids, and the official reader fails on them too or cuts them silently.
    """
    with _opened(path) as image:
        return _ids(image)


def check_panoptic_header(path: PathLike | Stored) -> None:
    """InputError as `read_panoptic_png`, but for what the pixels hold: they are not read."""
    with _opened(path):
        pass


@contextmanager
def _opened(path: PathLike | Stored) -> Iterator[Image.Image]:
    """Of the right kind. What goes wrong while it is open is said of it, too."""
    if not isinstance(path, Stored) and not os.path.isfile(path):  # a pipe would be waited for
        raise InputError(f"{path}: no such file")
    try:
        with io.BytesIO(path.read()) if isinstance(path, Stored) else open(path, "rb") as stream:
            header = stream.read(25)
            stream.seek(0)
            with Image.open(stream, formats=["PNG"]) as image:
                depth = header[24]  # bits a channel, in the first chunk; Pillow's mode hides 16-bit RGB
                if image.mode not in ("RGB", "RGBA") or depth != 8:
                    raise InputError(
                        f"{path}: a PNG of mode {image.mode}, {depth} bits a channel; "
                        f"a panoptic PNG is 8-bit RGB with id = R + 256 G + 65536 B"
                    )
                yield image
    except (FileNotFoundError, IsADirectoryError) as error:
        raise InputError(f"{path}: no such file") from error
    except DECODE_ERRORS as error:
        raise InputError(f"{path}: not a readable PNG: {first_line(error)}") from error


def _ids(image: Image.Image) -> np.ndarray:
    """rgb2id of an RGB or RGBA image from the four bytes a pixel that Pillow keeps: three times as fast."""
    four = np.frombuffer(image.tobytes("raw", "RGBX" if image.mode == "RGB" else "RGBA"), "<u4")
    return (four & np.uint32(ID_LIMIT - 1)).view(np.int32).reshape(image.height, image.width)


class PredictionWriter:
    """Streams results into `folder`: PNGs in folder/predictions/, and folder/predictions.json for them all.

        with PredictionWriter(folder, categories) as writer:
            writer.add(142238, "000000142238.jpg", result)

    Memory does not grow with the results: each goes to the folder `stage`, from where all, and what else was written
    there, move into `folder` on a clean exit. An exception leaves `folder` as it was. The JSON carries original
    category ids.
    """

    def __init__(self, folder: PathLike, categories: Categories) -> None:
        self._folder, self._categories = Path(folder), categories
        self._open = ExitStack()
        self._next_id = 1  # image ids 1 .. next - 1 were written
        self._other_ids: set[int] = set()

    def __enter__(self) -> PredictionWriter:
        self.stage = self._open.enter_context(staged_folder(self._folder))
        (self.stage / "predictions").mkdir()
        self._json = self._open.enter_context(open(self.stage / JSON_NAME, "w", encoding="utf-8"))
        self._json.write('{"annotations": [')
        self._separator = "\n"
        self._open.push(self._end_json)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._open.__exit__(kind, error, traceback)

    def _end_json(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._json.write(f'\n], "categories": {json.dumps(self._categories.to_coco())}}}\n')

    def add(self, image_id: int, file_name: str, result: PanopticResult) -> None:
        """Write one image. `file_name` is the photo's or the PNG's: the suffix becomes .png.

        Raises InputError for an image id or a file name that was already added, or one outside the folder.
        """
        name = PurePosixPath(file_name)
        if not name.name or name.is_absolute() or ".." in name.parts:
            raise InputError(f"image {image_id}: '{file_name}' is not a file name inside the folder")
        png_name = name.with_suffix(".png")
        png = self.stage / "predictions" / png_name
        if 1 <= image_id < self._next_id or image_id in self._other_ids:
            raise InputError(f"image {image_id} ({file_name}): this image id was already written")
        if png.exists():
            raise InputError(f"image {image_id} ({file_name}): {png_name} was already written")
        write_png(png, id2rgb(result.ids))
        entry = annotation(image_id, str(png_name), result, self._categories)
        self._json.write(self._separator + json.dumps(entry, allow_nan=False))
        self._separator = ",\n"
        if image_id == self._next_id:
            self._next_id += 1
        else:
            self._other_ids.add(image_id)


def add_prediction(folder: PathLike, file_name: str, result: PanopticResult, categories: Categories) -> None:
    """Write one image beside those that the folder holds; one of the same file name is replaced.

    The whole predictions.json is written again: for many images, PredictionWriter is the way.
    Raises InputError when the folder holds predictions of other categories, or something else of that name.
    """
    path, png_name = Path(folder) / JSON_NAME, str(PurePosixPath(file_name).with_suffix(".png"))
    content = read_json(path) if path.exists() else {"annotations": [], "categories": categories.to_coco()}
    if not isinstance(content, dict) or content.get("categories") != categories.to_coco():
        raise InputError(f"{path}: holds no predictions of these categories; choose another folder")
    others = _by_name(content.get("annotations"), path)
    replaced = others.pop(png_name, None)
    next_id = max((entry["image_id"] for entry in others.values()), default=0) + 1
    image_id = replaced["image_id"] if replaced else next_id
    entries = [*others.values(), annotation(image_id, png_name, result, categories)]
    write_png(Path(folder) / "predictions" / png_name, id2rgb(result.ids))
    write_json(path, {"annotations": entries, "categories": categories.to_coco()})


def _by_name(entries: object, path: Path) -> dict[str, dict[str, Any]]:
    """The annotations of a predictions.json. InputError where they are not what this project writes."""
    if not isinstance(entries, list):
        raise InputError(f"{path}: no list 'annotations'; choose another folder")
    named: dict[str, dict[str, Any]] = {}
    for index, entry in enumerate(entries):
        if not isinstance(entry, dict) or not isinstance(entry.get("file_name"), str):
            raise InputError(f"{path}: annotations[{index}] has no file_name; choose another folder")
        named[entry["file_name"]] = entry | {"image_id": integer(entry, "image_id", f"{path}: annotations[{index}]")}
    return named


def annotation(image_id: int, png_name: str, result: PanopticResult, categories: Categories) -> dict[str, Any]:
    """An entry of the JSON's `annotations`."""
    return {
        "image_id": image_id,
        "file_name": png_name,
        "segments_info": [
            {
                "id": segment.id,
                "category_id": categories[segment.category].id,
                "area": segment.area,
                "bbox": list(segment.bbox),
                "score": segment.score,
                "iscrowd": 0,
            }
            for segment in result.segments
        ],
    }
