"""A data set in the COCO panoptic format, read image by image: photos, truth maps and categories, without PyTorch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml

from panoptic.categories import Categories, Category
from panoptic.coco_format import read_panoptic_png
from panoptic.errors import InputError
from panoptic.files import read_json
from panoptic.images import read_photo
from panoptic.manifest import Manifest
from panoptic.result import PanopticResult, Segment, measure

CITYSCAPES = "cityscapes_panoptic_"


class Record(NamedTuple):
    """One image of the data set: where its photo and truth lie, and the truth's segments_info."""

    image_id: int
    file_name: str
    photo: Path
    png: Path
    segments: list[dict[str, Any]]


class PanopticFolder:
    """The records of one COCO panoptic JSON, in the order of its images; every photo and PNG is there.

    Raises InputError naming the image: listed twice, without annotation, photo or truth PNG missing.
    """

    def __init__(self, gt_json: Path, gt_folder: Path | None = None, images: Path | None = None) -> None:
        self.gt_json = gt_json
        self.gt_folder = gt_folder or default_gt_folder(gt_json)
        self.images = images or default_images(gt_json)
        content = read_json(gt_json)
        if not isinstance(content, dict):
            raise InputError(f"{gt_json}: not a COCO panoptic file (its content is not an object)")
        for key in ("images", "annotations", "categories"):
            if not isinstance(content.get(key), list):
                raise InputError(f"{gt_json}: not a COCO panoptic file (no list '{key}')")
        try:
            self.categories = Categories.from_coco(content["categories"])
        except InputError as error:
            raise InputError(f"{gt_json}: {error}") from None
        self._known = {category.id for category in self.categories}
        self.records = self._records(content)
        if not self.records:
            raise InputError(f"{gt_json}: lists no images, so there is nothing to evaluate")

    def _records(self, content: dict[str, Any]) -> list[Record]:
        annotations: dict[int, dict[str, Any]] = {}
        for annotation in content["annotations"]:
            image_id = _image_id(annotation, "image_id", f"{self.gt_json}: an annotation")
            if image_id in annotations:
                raise InputError(f"{self.gt_json}: image {image_id} has two annotations")
            annotations[image_id] = annotation
        records = []
        seen: set[int] = set()
        for entry in content["images"]:
            image_id = _image_id(entry, "id", f"{self.gt_json}: an image")
            if image_id in seen:
                raise InputError(f"{self.gt_json}: image {image_id} is listed twice")
            seen.add(image_id)
            if image_id not in annotations:
                raise InputError(f"{self.gt_json}: image {image_id} has no annotation")
            records.append(self._record(image_id, entry, annotations[image_id]))
        unlisted = sorted(str(image_id) for image_id in annotations.keys() - seen)
        if unlisted:
            raise InputError(f"{self.gt_json}: image {unlisted[0]} is annotated but not among the images")
        return records

    def _record(self, image_id: int, entry: dict[str, Any], annotation: dict[str, Any]) -> Record:
        where = f"{self.gt_json}: image {image_id}"
        photo = self.images / _field(entry, "file_name", where)
        png = self.gt_folder / _field(annotation, "file_name", where)
        if not photo.is_file():
            raise InputError(f"{where}: its photo {photo} is missing")
        if not png.is_file():
            raise InputError(f"{where}: its truth {png} is missing")
        segments = _field(annotation, "segments_info", where)
        if not isinstance(segments, list):
            raise InputError(f"{where}: its segments_info is not a list")
        for segment in segments:
            category = _field(segment, "category_id", f"{where}: a segment")
            if not isinstance(category, int) or category not in self._known:
                raise InputError(f"{where}: segment {segment.get('id')} has the unknown category {category}")
        return Record(image_id, photo.name, photo, png, segments)

    def __len__(self) -> int:
        return len(self.records)

    def read(self, record: Record) -> tuple[np.ndarray, np.ndarray]:
        """Photo uint8 H x W x 3 and truth ids int32 H x W (0 = void); InputError when their sizes differ."""
        photo, ids = read_photo(record.photo), read_panoptic_png(record.png)
        if photo.shape[:2] != ids.shape:
            raise InputError(
                f"image {record.image_id}: the photo {record.photo} is {_size(photo)} pixels (width x height), "
                f"its truth {record.png} {_size(ids)}"
            )
        return photo, ids


def groups(records: list[Record], size: int) -> Iterator[list[Record]]:
    """Consecutive records, `size` at a time; the last group may be shorter."""
    for start in range(0, len(records), size):
        yield records[start : start + size]


def open_dataset(
    gt_json: Path | None, gt_folder: Path | None = None, images: Path | None = None, run: Path | None = None
) -> PanopticFolder:
    """The data set the user names, else the validation set in the run's config.yaml."""
    if gt_json is not None:
        return PanopticFolder(gt_json, gt_folder, images)
    if gt_folder or images:
        raise InputError("--gt-folder and --images go with --gt-json: give it too")
    config = run / "config.yaml" if run else None
    if config is None or not config.is_file():
        raise InputError(f"no data set: give --gt-json{f' ({config} is missing)' if config else ''}")
    try:
        split = yaml.safe_load(config.read_text())["data"]["val"]
        return PanopticFolder(Path(split["json_file"]), Path(split["segments"]), Path(split["images"]))
    except (yaml.YAMLError, KeyError, TypeError):
        raise InputError(f"{config}: names no validation set (data.val); give --gt-json") from None


def default_gt_folder(gt_json: Path) -> Path:
    """The truth PNGs of panoptic_X.json (official COCO) and cityscapes_panoptic_X.json (official Cityscapes) lie in a
    folder of that name beside it; those of X.json in panoptic_X."""
    official = gt_json.stem.startswith(("panoptic_", CITYSCAPES))
    return gt_json.with_suffix("") if official else gt_json.parent / f"panoptic_{gt_json.stem}"


def default_images(gt_json: Path) -> Path:
    """The photos of X.json: the folder X beside it; of annotations/panoptic_X.json (official COCO): ../X; of
    gtFine/cityscapes_panoptic_X.json and ..._X_trainId.json (official Cityscapes): ../leftImg8bit/X."""
    if gt_json.stem.startswith(CITYSCAPES):
        return gt_json.parent.parent / "leftImg8bit" / gt_json.stem.removeprefix(CITYSCAPES).removesuffix("_trainId")
    if gt_json.stem.startswith("panoptic_"):
        return gt_json.parent.parent / gt_json.stem.removeprefix("panoptic_")
    return gt_json.with_suffix("")


def check_categories(dataset: PanopticFolder, manifest: Manifest) -> None:
    """InputError naming the categories in which data set and model differ (id, name, thing or stuff)."""
    truth = {category.id: category for category in dataset.categories}
    model = {category.id: category for category in manifest.categories}
    differences = []
    for category_id in sorted(truth.keys() | model.keys()):
        mine, theirs = truth.get(category_id), model.get(category_id)
        if mine is None or theirs is None:
            only, where = (mine, "the data set") if theirs is None else (theirs, "the model")
            assert only is not None
            differences.append(f"{category_id} '{only.name}' only in {where}")
        elif (mine.name, mine.isthing) != (theirs.name, theirs.isthing):
            differences.append(f"{category_id} {_describe(mine)} in the data set, {_describe(theirs)} in the model")
    if differences:
        more = f"; and {len(differences) - 5} more" if len(differences) > 5 else ""
        raise InputError(
            f"{dataset.gt_json}: its categories are not those of the model '{manifest.name}': "
            f"{'; '.join(differences[:5])}{more}; give the data set that the model was trained for"
        )


def truth_result(record: Record, ids: np.ndarray, categories: Categories) -> PanopticResult:
    """The truth in the form of a prediction (ids renumbered from 1, score 1), to be drawn like one."""
    renumbered = np.zeros(ids.shape, np.int32)
    for row, segment in enumerate(record.segments, 1):
        renumbered[ids == segment["id"]] = row
    area, bbox = measure(renumbered, len(record.segments) + 1)
    indices = [categories.index_of_id(segment["category_id"]) for segment in record.segments]
    segments = [Segment(row, index, 1.0, int(area[row]), bbox[row]) for row, index in enumerate(indices, 1)]
    return PanopticResult(renumbered, segments)


def _field(entry: Any, key: str, where: str) -> Any:
    if not isinstance(entry, dict) or key not in entry:
        raise InputError(f"{where} has no '{key}'")
    return entry[key]


def _image_id(entry: Any, key: str, where: str) -> int:
    value = _field(entry, key, where)
    if not isinstance(value, int):
        raise InputError(f"{where} has the {key} {value!r}: image ids must be integers")
    return value


def _describe(category: Category) -> str:
    return f"'{category.name}' ({'thing' if category.isthing else 'stuff'})"


def _size(array: np.ndarray) -> str:
    return f"{array.shape[1]} x {array.shape[0]}"
