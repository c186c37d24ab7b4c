"""Data sets in the COCO panoptic format: reading and writing, a doctor, official downloads, and `shapes`.

    from upsnet import datasets

    folder = datasets.write_shapes("shapes", {"train": 2, "val": 2})
    val = datasets.PanopticFolder(folder / "val.json")  # checked: every photo and PNG is there
    photo, ids = val.read(val.records[0])

| what | names |
|---|---|
| reading | `PanopticFolder`, and its `Record`s; `Split`, where one lies; `read_panoptic_png` |
| writing | `PredictionWriter`; `id2rgb`, `rgb2id` |
| the doctor, as `upsnet data check` | `find_splits`, `open_split`, `check_split` |
| official downloads, as `upsnet data coco` and `cityscapes` | `prepare_coco`, `make_cityscapes_split` |
| COCO's 133 categories | `coco_categories` |
| the synthetic set, as `upsnet shapes` | `write_shapes` |

Each name comes with its module when it is first asked for. What is wrong with a file is an `upsnet.InputError`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from upsnet import lazy

if TYPE_CHECKING:
    from upsnet.datasets.cityscapes import make_split as make_cityscapes_split
    from upsnet.datasets.coco import prepare as prepare_coco
    from upsnet.datasets.coco_format import PredictionWriter, id2rgb, read_panoptic_png, rgb2id
    from upsnet.datasets.coco_table import coco_categories
    from upsnet.datasets.doctor.check import check_split
    from upsnet.datasets.doctor.json_file import find_splits, open_split
    from upsnet.datasets.folder import PanopticFolder, Record
    from upsnet.datasets.shapes import write_shapes
    from upsnet.datasets.split import Split

__all__ = [
    "PanopticFolder",
    "PredictionWriter",
    "Record",
    "Split",
    "check_split",
    "coco_categories",
    "find_splits",
    "id2rgb",
    "make_cityscapes_split",
    "open_split",
    "prepare_coco",
    "read_panoptic_png",
    "rgb2id",
    "write_shapes",
]

__getattr__, __dir__ = lazy.names(
    __name__,
    {
        "PanopticFolder": "upsnet.datasets.folder",
        "PredictionWriter": "upsnet.datasets.coco_format",
        "Record": "upsnet.datasets.folder",
        "Split": "upsnet.datasets.split",
        "check_split": "upsnet.datasets.doctor.check",
        "coco_categories": "upsnet.datasets.coco_table",
        "find_splits": "upsnet.datasets.doctor.json_file",
        "id2rgb": "upsnet.datasets.coco_format",
        "make_cityscapes_split": "upsnet.datasets.cityscapes:make_split",
        "open_split": "upsnet.datasets.doctor.json_file",
        "prepare_coco": "upsnet.datasets.coco:prepare",
        "read_panoptic_png": "upsnet.datasets.coco_format",
        "rgb2id": "upsnet.datasets.coco_format",
        "write_shapes": "upsnet.datasets.shapes",
    },
)
