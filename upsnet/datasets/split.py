"""Where a data set in the official COCO panoptic format lies."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict

CITYSCAPES = "cityscapes_panoptic_"


class Split(BaseModel):
    """Its JSON, the folder of its PNGs (the segments' ids) and the folder of its photos."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    json_file: Path
    segments: Path
    images: Path

    @classmethod
    def usual(cls, json_file: Path, segments: Path | None = None, images: Path | None = None) -> Split:
        """The folders that are not given lie where such a JSON usually has them:

        | json_file | segments | images |
        |---|---|---|
        | X.json | panoptic_X | X |
        | annotations/panoptic_X.json (official COCO) | annotations/panoptic_X | X |
        | gtFine/cityscapes_panoptic_X[_trainId].json (official Cityscapes) | the JSON's name | leftImg8bit/X |
        """
        beside, name = json_file.parent, json_file.stem
        pngs = beside / name
        if name.startswith(CITYSCAPES):
            photos = beside.parent / "leftImg8bit" / name.removeprefix(CITYSCAPES).removesuffix("_trainId")
        elif name.startswith("panoptic_"):
            photos = beside.parent / name.removeprefix("panoptic_")
        else:
            pngs, photos = beside / f"panoptic_{name}", beside / name
        return cls(json_file=json_file, segments=segments or pngs, images=images or photos)
