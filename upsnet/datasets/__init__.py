"""Data sets in the COCO panoptic format: reading and writing, a doctor, labels of other formats, and `shapes`.

    from upsnet import datasets

    folder = datasets.write_shapes("shapes", {"train": 2, "val": 2})
    val = datasets.PanopticFolder(folder / "val.json")  # checked: every photo and PNG is there
    photo, ids = val.read(val.records[0])

| what | names |
|---|---|
| reading | `PanopticFolder`, and its `Record`s; `Split` or `ShardSplit`, where one lies; `read_panoptic_png` |
| writing | `PredictionWriter`; `id2rgb`, `rgb2id` |
| the doctor, as `upsnet data check` | `find_splits`, `open_split`, `check_split` |
| other labels | `read_instances`, `read_masks`, `read_yolo`, `read_labelme`, `read_cvat`, `read_supervisely` |
| their `Source`, as `upsnet data from-...` | `convert`, with a `Choice` of classes and `Rules`: `Converted` |
| shards, as `upsnet data shards` | `write_shards` |
| train and val, as `upsnet data split` | `split_dataset`, `SplitRules` |
| a page of photos, as `upsnet data show` | `write_page`, with a `Selection` |
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
    from upsnet.datasets.conversion.convert import Converted, Rules, convert
    from upsnet.datasets.conversion.cvat import read as read_cvat
    from upsnet.datasets.conversion.instances import read as read_instances
    from upsnet.datasets.conversion.labelme import read as read_labelme
    from upsnet.datasets.conversion.labels import Source
    from upsnet.datasets.conversion.masks import read as read_masks
    from upsnet.datasets.conversion.supervisely import read as read_supervisely
    from upsnet.datasets.conversion.table import Choice
    from upsnet.datasets.conversion.yolo import read as read_yolo
    from upsnet.datasets.doctor.check import check_split
    from upsnet.datasets.doctor.json_file import find_splits, open_split
    from upsnet.datasets.folder import PanopticFolder, Record
    from upsnet.datasets.page.page import Selection, write_page
    from upsnet.datasets.shapes import write_shapes
    from upsnet.datasets.shards.write import write_shards
    from upsnet.datasets.split import ShardSplit, Split
    from upsnet.datasets.splitting.split import SplitRules, split_dataset

__all__ = [
    "Choice",
    "Converted",
    "PanopticFolder",
    "PredictionWriter",
    "Record",
    "Rules",
    "Selection",
    "ShardSplit",
    "Source",
    "Split",
    "SplitRules",
    "check_split",
    "coco_categories",
    "convert",
    "find_splits",
    "id2rgb",
    "make_cityscapes_split",
    "open_split",
    "prepare_coco",
    "read_cvat",
    "read_instances",
    "read_labelme",
    "read_masks",
    "read_panoptic_png",
    "read_supervisely",
    "read_yolo",
    "rgb2id",
    "split_dataset",
    "write_page",
    "write_shapes",
    "write_shards",
]

__getattr__, __dir__ = lazy.names(
    __name__,
    {
        "Choice": "upsnet.datasets.conversion.table",
        "Converted": "upsnet.datasets.conversion.convert",
        "PanopticFolder": "upsnet.datasets.folder",
        "PredictionWriter": "upsnet.datasets.coco_format",
        "Record": "upsnet.datasets.folder",
        "Rules": "upsnet.datasets.conversion.convert",
        "Selection": "upsnet.datasets.page.page",
        "ShardSplit": "upsnet.datasets.split",
        "Source": "upsnet.datasets.conversion.labels",
        "Split": "upsnet.datasets.split",
        "SplitRules": "upsnet.datasets.splitting.split",
        "check_split": "upsnet.datasets.doctor.check",
        "coco_categories": "upsnet.datasets.coco_table",
        "convert": "upsnet.datasets.conversion.convert",
        "find_splits": "upsnet.datasets.doctor.json_file",
        "id2rgb": "upsnet.datasets.coco_format",
        "make_cityscapes_split": "upsnet.datasets.cityscapes:make_split",
        "open_split": "upsnet.datasets.doctor.json_file",
        "prepare_coco": "upsnet.datasets.coco:prepare",
        "read_cvat": "upsnet.datasets.conversion.cvat:read",
        "read_instances": "upsnet.datasets.conversion.instances:read",
        "read_labelme": "upsnet.datasets.conversion.labelme:read",
        "read_masks": "upsnet.datasets.conversion.masks:read",
        "read_panoptic_png": "upsnet.datasets.coco_format",
        "read_supervisely": "upsnet.datasets.conversion.supervisely:read",
        "read_yolo": "upsnet.datasets.conversion.yolo:read",
        "rgb2id": "upsnet.datasets.coco_format",
        "split_dataset": "upsnet.datasets.splitting.split",
        "write_page": "upsnet.datasets.page.page",
        "write_shapes": "upsnet.datasets.shapes",
        "write_shards": "upsnet.datasets.shards.write",
    },
)
