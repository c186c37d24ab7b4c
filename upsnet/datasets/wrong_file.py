"""What a JSON is that is not the one wanted: the formats that are mistaken for COCO panoptic, told by their keys."""

from __future__ import annotations

from typing import Any

PANOPTIC = "wanted is COCO panoptic: lists images, annotations with segments_info, and categories, and a PNG an image"
CONVERTER = "panopticapi's converters/detection2panoptic_coco_format.py makes one of masks that do not overlap"
CITYSCAPES = "`upsnet data cityscapes FOLDER` makes one of the official gtFine and leftImg8bit"
MAKE_ONE = "paint each image's segments into a PNG and list them"

# Keys that the top of such a file has -> what it is, and the way from it.
OBJECTS: tuple[tuple[frozenset[str], str, str], ...] = (
    (frozenset({"shapes", "imagePath"}), "a Labelme JSON, the polygons of one photo", MAKE_ONE),
    (frozenset({"objects", "imgWidth"}), "a Cityscapes JSON, the polygons of one photo", CITYSCAPES),
    (frozenset({"_via_img_metadata"}), "a project of the VGG Image Annotator", MAKE_ONE),
    (frozenset({"features", "type"}), "a GeoJSON", MAKE_ONE),
    (
        frozenset({"categories", "resize", "max_detections"}),
        "the manifest of an exported model",
        "give the data's JSON",
    ),
    (frozenset({"results", "per_class"}), "a report of figures", "give the JSON that it was made of"),
    (frozenset({"splits", "clean"}), "a report of `upsnet data check`", "give the JSON that it was made of"),
)
# The same, of the entries of `annotations`, none of which has segments_info.
ENTRIES: tuple[tuple[frozenset[str], str, str], ...] = (
    (frozenset({"keypoints"}), "a COCO keypoints JSON", CONVERTER),
    (frozenset({"caption"}), "a COCO captions JSON", "it has no segments"),
    (frozenset({"segmentation"}), "an instances JSON (COCO detection format)", CONVERTER),
    (frozenset({"bbox"}), "a JSON of boxes (COCO detection format)", "it has no masks to make segments of"),
)


def other_format(content: object) -> str | None:
    """What the content of a JSON is and what to do about it, where it is of a format known here; else None."""
    if isinstance(content, list):
        return _of_list(content)
    if not isinstance(content, dict):
        return None
    annotations = content.get("annotations")
    if isinstance(annotations, list):
        found = _of_entries(annotations)
        categories = content.get("categories")
        if found and isinstance(categories, list) and any(isinstance(c, dict) and "frequency" in c for c in categories):
            return _said("an LVIS JSON (instances)", CONVERTER)
        return found
    for keys, name, cure in OBJECTS:
        if keys <= content.keys():
            return _said(name, cure)
    return None


def _of_entries(entries: list[Any]) -> str | None:
    objects = [entry for entry in entries if isinstance(entry, dict)]
    if any("segments_info" in entry for entry in objects):
        return None
    for keys, name, cure in ENTRIES:
        if any(keys <= entry.keys() for entry in objects):
            return _said(name, cure)
    return None


def _of_list(entries: list[Any]) -> str | None:
    first = next((entry for entry in entries if isinstance(entry, dict)), {})
    if "segments_info" in first:
        return _said("a bare list of panoptic annotations", 'write it as {"annotations": [...]} with the other lists')
    if "image_id" in first and not first.keys().isdisjoint(("score", "bbox", "segmentation")):
        return _said("a result list of detections (COCO results format)", "it has no panoptic truth or PNGs")
    if {"id", "name"} <= first.keys():
        return _said("a bare list of categories", "it belongs into a JSON with images and annotations")
    return None


def _said(name: str, cure: str) -> str:
    return f"this is {name}; {PANOPTIC}; {cure}"
