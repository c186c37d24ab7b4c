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

from typing import TYPE_CHECKING

from upsnet import lazy

if TYPE_CHECKING:
    from upsnet.metrics.ap_files import evaluate as ap_of_files
    from upsnet.metrics.average_precision import AveragePrecision, make_objects
    from upsnet.metrics.mean_iou import MeanIoU
    from upsnet.metrics.mean_iou import evaluate as miou_of_files
    from upsnet.metrics.pq import PQStat
    from upsnet.metrics.pq_files import evaluate as pq_of_files

__all__ = ["AveragePrecision", "MeanIoU", "PQStat", "ap_of_files", "make_objects", "miou_of_files", "pq_of_files"]

__getattr__, __dir__ = lazy.names(
    __name__,
    {
        "AveragePrecision": "upsnet.metrics.average_precision",
        "MeanIoU": "upsnet.metrics.mean_iou",
        "PQStat": "upsnet.metrics.pq",
        "ap_of_files": "upsnet.metrics.ap_files:evaluate",
        "make_objects": "upsnet.metrics.average_precision",
        "miou_of_files": "upsnet.metrics.mean_iou:evaluate",
        "pq_of_files": "upsnet.metrics.pq_files:evaluate",
    },
)
