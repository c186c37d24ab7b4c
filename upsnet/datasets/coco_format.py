"""The official COCO panoptic format: ids as colours of a PNG, and predictions as a folder of PNGs with one JSON."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Any

import numpy as np
from PIL import Image

from upsnet.categories import Categories
from upsnet.errors import InputError, first_line
from upsnet.files import PathLike, write_json
from upsnet.photos import DECODE_ERRORS, write_png
from upsnet.result import PanopticResult

ID_LIMIT = 1 << 24  # ids are 24 bits: R + 256 G + 65536 B


def rgb2id(rgb: np.ndarray) -> np.ndarray:
    """uint8 ... x 3 (or more: the rest is ignored) -> int32 ids."""
    wide = rgb.astype(np.int32)
    return wide[..., 0] | wide[..., 1] << 8 | wide[..., 2] << 16


def id2rgb(ids: np.ndarray) -> np.ndarray:
    """Integer ids in [0, 2^24) -> uint8 ... x 3. Raises InputError for ids outside."""
    if ids.size and not (ids.min() >= 0 and ids.max() < ID_LIMIT):
        raise InputError(f"segment ids must lie in [0, {ID_LIMIT}), found {ids.min()} .. {ids.max()}")
    return np.stack([ids & 255, ids >> 8 & 255, ids >> 16], axis=-1).astype(np.uint8)


def read_panoptic_png(path: PathLike) -> np.ndarray:
    """A panoptic PNG -> int32 H x W ids. 8-bit RGB, or RGBA whose alpha is ignored as the official reader does.

    Raises InputError for a missing or damaged file and for any other kind of PNG (grey, palette, 16 bit): their values
    are not ids, and the official reader fails on them too or cuts them silently.
    """
    try:
        with open(path, "rb") as stream:
            header = stream.read(25)
            stream.seek(0)
            with Image.open(stream, formats=["PNG"]) as image:
                depth = header[24]  # bits a channel, in the first chunk; Pillow's mode hides 16-bit RGB
                if image.mode not in ("RGB", "RGBA") or depth != 8:
                    raise InputError(
                        f"{path}: a PNG of mode {image.mode}, {depth} bits a channel; "
                        f"a panoptic PNG is 8-bit RGB with id = R + 256 G + 65536 B"
                    )
                return _ids(image)
    except (FileNotFoundError, IsADirectoryError) as error:
        raise InputError(f"{path}: no such file") from error
    except DECODE_ERRORS as error:
        raise InputError(f"{path}: not a readable PNG: {first_line(error)}") from error


def _ids(image: Image.Image) -> np.ndarray:
    """rgb2id of an RGB or RGBA image from the four bytes a pixel that Pillow keeps: three times as fast."""
    four = np.frombuffer(image.tobytes("raw", "RGBX" if image.mode == "RGB" else "RGBA"), "<u4")
    return (four & np.uint32(ID_LIMIT - 1)).view(np.int32).reshape(image.height, image.width)


class PredictionWriter:
    """Streams results into `folder`: PNGs in folder/predictions/, and folder/predictions.json on a clean exit.

        with PredictionWriter(folder, categories) as writer:
            writer.add(142238, "000000142238.jpg", result)

    Maps are written at once and not kept. The JSON carries original category ids. An exception leaves no JSON.
    """

    def __init__(self, folder: PathLike, categories: Categories) -> None:
        self.json_path = Path(folder) / "predictions.json"
        self.png_folder = Path(folder) / "predictions"
        self._categories = categories
        self._annotations: dict[int, dict[str, Any]] = {}
        self._file_names: set[str] = set()

    def __enter__(self) -> PredictionWriter:
        try:
            self.png_folder.mkdir(parents=True, exist_ok=True)
            self.json_path.unlink(missing_ok=True)  # an older JSON must not describe the new PNGs
        except OSError as error:
            raise InputError(f"{self.json_path.parent}: cannot be written: {error.strerror}") from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None:
            annotations = list(self._annotations.values())
            write_json(self.json_path, {"annotations": annotations, "categories": self._categories.to_coco()})

    def add(self, image_id: int, file_name: str, result: PanopticResult) -> None:
        """Write one image. `file_name` is the photo's or the PNG's: the suffix becomes .png.

        Raises InputError for an image id or a file name that was already added, or one outside the folder.
        """
        name = PurePosixPath(file_name)
        if not name.name or name.is_absolute() or ".." in name.parts:
            raise InputError(f"image {image_id}: '{file_name}' is not a file name inside the folder")
        png_name = name.with_suffix(".png")
        if image_id in self._annotations:
            raise InputError(f"image {image_id} ({file_name}): this image id was already written")
        if str(png_name) in self._file_names:
            raise InputError(f"image {image_id} ({file_name}): {png_name} was already written")
        write_png(self.png_folder / png_name, id2rgb(result.ids))
        self._file_names.add(str(png_name))
        self._annotations[image_id] = {
            "image_id": image_id,
            "file_name": str(png_name),
            "segments_info": [
                {
                    "id": segment.id,
                    "category_id": self._categories[segment.category].id,
                    "area": segment.area,
                    "bbox": list(segment.bbox),
                    "score": segment.score,
                    "iscrowd": 0,
                }
                for segment in result.segments
            ],
        }
