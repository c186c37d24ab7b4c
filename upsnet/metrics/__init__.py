"""PQ, AP and mIoU, from arrays or from official files; nothing else of this package and no PyTorch is needed.

    from upsnet import metrics

    report = metrics.pq_of_files("val.json", "predictions.json")  # PNGs in val/ and predictions/
    report["results"]["All"]["pq"]

    stat = metrics.PQStat()
    for truth, prediction in pairs:
        stat.accumulate(truth.ids, truth.segments, prediction.ids, prediction.segments)
    stat.results(categories)["results"]["All"]["pq"]

| of arrays, image by image | of files |
|---|---|
| `PQStat` | `pq_of_files`: COCO panoptic format |
| `AveragePrecision`, with `make_objects` | `ap_of_files`: COCO instances and results |
| `MeanIoU` | `miou_of_files`: folders of label maps |

What is gathered of arrays adds up (`a += b`), travels between processes (pickle), and neither the number of parts nor
their order changes a figure. Figures are fractions, None where nothing counts. Input that cannot be scored is an
`upsnet.InputError` of one line. AP, and all three from files, use hotcoco: pip install 'upsnet-trt[metrics]'.

Each name comes with its module when it is first asked for.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from upsnet.metrics.ap_files import evaluate as ap_of_files
    from upsnet.metrics.average_precision import AveragePrecision, make_objects
    from upsnet.metrics.mean_iou import MeanIoU
    from upsnet.metrics.mean_iou import evaluate as miou_of_files
    from upsnet.metrics.pq import PQStat
    from upsnet.metrics.pq_files import evaluate as pq_of_files

__all__ = ["AveragePrecision", "MeanIoU", "PQStat", "ap_of_files", "make_objects", "miou_of_files", "pq_of_files"]

_HOMES = {
    "PQStat": ("pq", "PQStat"),
    "pq_of_files": ("pq_files", "evaluate"),
    "AveragePrecision": ("average_precision", "AveragePrecision"),
    "make_objects": ("average_precision", "make_objects"),
    "ap_of_files": ("ap_files", "evaluate"),
    "MeanIoU": ("mean_iou", "MeanIoU"),
    "miou_of_files": ("mean_iou", "evaluate"),
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'upsnet.metrics' has no attribute {name!r}")
    module, attribute = _HOMES[name]
    return getattr(importlib.import_module(f"upsnet.metrics.{module}"), attribute)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
