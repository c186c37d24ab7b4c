"""The library by its names of before 0.2 (docs/moved.md), as in `from panoptic.draw import overlay`."""

import sys
from importlib import import_module

HOMES = {
    "categories": "upsnet.categories",
    "coco_format": "upsnet.datasets.coco_format",
    "dataset": "upsnet.datasets.folder",
    "draw": "upsnet.draw",
    "errors": "upsnet.errors",
    "files": "upsnet.files",
    "geometry": "upsnet.geometry",
    "images": "upsnet.photos",
    "machine": "upsnet.machine",
    "manifest": "upsnet.manifest",
    "predictor": "upsnet.runtimes.predictor",
    "result": "upsnet.result",
    "runs": "upsnet.run_lengths",
}
for _name, _home in HOMES.items():
    sys.modules[f"{__name__}.{_name}"] = globals()[_name] = import_module(_home)
