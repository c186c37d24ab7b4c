"""What a JSON is that is not the one wanted: the formats that are mistaken for COCO panoptic, told by their keys."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import Any, NamedTuple

PANOPTIC = "wanted is COCO panoptic: lists images, annotations with segments_info, and categories, and a PNG an image"
INSTANCES = "`upsnet data from-instances` makes one of it"
LABELME = "`upsnet data from-labelme FOLDER` makes one of a folder of these"
SUPERVISELY = "`upsnet data from-supervisely PROJECT` makes one of the project's folder"
CITYSCAPES = "`upsnet data cityscapes FOLDER` makes one of the official gtFine and leftImg8bit"
EXPORT = "export it from there as COCO, of which `upsnet data from-instances` makes one"
GEOJSON = "write its outlines in pixels as COCO instances, of which `upsnet data from-instances` makes one"


class Other(NamedTuple):
    name: str  # "a GeoJSON"
    cure: str


# Keys that the top of such a file has -> what it is, and the way from it.
OBJECTS: tuple[tuple[frozenset[str], Other], ...] = (
    (frozenset({"shapes", "imagePath"}), Other("a Labelme JSON, the polygons of one photo", LABELME)),
    (frozenset({"objects", "imgWidth"}), Other("a Cityscapes JSON, the polygons of one photo", CITYSCAPES)),
    (frozenset({"objects", "size"}), Other("a Supervisely JSON, the labels of one photo", SUPERVISELY)),
    (frozenset({"classes", "tags"}), Other("a Supervisely project's meta.json", SUPERVISELY)),
    (frozenset({"_via_img_metadata"}), Other("a project of the VGG Image Annotator", EXPORT)),
    (frozenset({"features", "type"}), Other("a GeoJSON", GEOJSON)),
    (
        frozenset({"categories", "resize", "max_detections"}),
        Other("the manifest of an exported model", "give the data's JSON"),
    ),
    (frozenset({"results", "per_class"}), Other("a report of figures", "give the JSON that it was made of")),
    (frozenset({"splits", "clean"}), Other("a report of `upsnet data check`", "give the JSON that it was made of")),
    (
        frozenset({"contested_pixels", "shapes_without_segment"}),
        Other("the report of a conversion", "give the JSON that lies beside it"),
    ),
)
# The same, of the entries of `annotations`, none of which has segments_info.
ENTRIES: tuple[tuple[frozenset[str], Other], ...] = (
    (frozenset({"keypoints", "segmentation"}), Other("a COCO keypoints JSON", INSTANCES)),
    (frozenset({"keypoints"}), Other("a COCO keypoints JSON", "it has no masks to make segments of")),
    (frozenset({"caption"}), Other("a COCO captions JSON", "it has no segments")),
    (frozenset({"segmentation"}), Other("an instances JSON (COCO detection format)", INSTANCES)),
    (
        frozenset({"bbox"}),
        Other(
            "a JSON of boxes (COCO detection format)",
            "it has no masks; `upsnet data from-instances --boxes fill` makes segments of the boxes",
        ),
    ),
)
# And of the first entry of a bare list, or the first value of an object.
LISTED: tuple[tuple[frozenset[str], Other], ...] = (
    (
        frozenset({"segments_info"}),
        Other("a bare list of panoptic annotations", 'write it as {"annotations": [...]} with the other lists'),
    ),
    *(
        (
            frozenset({"image_id", key}),
            Other("a result list of detections (COCO results format)", "it has no panoptic truth or PNGs"),
        )
        for key in ("score", "bbox", "segmentation")
    ),
    (frozenset({"file_name", "annotations"}), Other("a list of detectron2's data set dicts", EXPORT)),
    (frozenset({"data", "annotations"}), Other("an export of Label Studio in its own format", EXPORT)),
    (
        frozenset({"id", "name"}),
        Other("a bare list of categories", "it belongs into a JSON with images and annotations"),
    ),
)
VIA = frozenset({"filename", "regions"})


def other_format(content: object) -> str | None:
    """What the content of a JSON is and what to do about it, where it is of a format known here; else None."""
    found = recognised(content)
    return f"this is {found.name}; {PANOPTIC}; {found.cure}" if found else None


def recognised(content: object) -> Other | None:
    if isinstance(content, list):
        first: dict[str, Any] = next((entry for entry in content if isinstance(entry, dict)), {})
        return _first(LISTED, [first])
    if not isinstance(content, dict):
        return None
    if not isinstance(content.get("annotations"), list):
        values = [value for value in islice(content.values(), 1) if isinstance(value, dict) and value.keys() >= VIA]
        return Other("a JSON of the VGG Image Annotator", EXPORT) if values else _first(OBJECTS, [content])
    objects = [entry for entry in content["annotations"] if isinstance(entry, dict)]
    if any("segments_info" in entry for entry in objects):
        return None
    found = _first(ENTRIES, objects)
    categories = content.get("categories")
    if found and isinstance(categories, list) and any(isinstance(c, dict) and "frequency" in c for c in categories):
        return Other("an LVIS JSON (instances)", INSTANCES)
    return found


def _first(table: Iterable[tuple[frozenset[str], Other]], entries: list[dict[str, Any]]) -> Other | None:
    return next((other for keys, other in table if any(keys <= entry.keys() for entry in entries)), None)
