"""A data set in the COCO panoptic format, as the labels that docs/own-data.md begins with: one folder a format.

python -m tests.label_folders labels    # 40 drawn photos, to try the page on
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from pathlib import Path

from tests.folders import local
from tests.upsnet.datasets.conversion.cvat_writer import write_cvat
from tests.upsnet.datasets.conversion.instances_writer import write_instances
from tests.upsnet.datasets.conversion.labelme_writer import write_labelme
from tests.upsnet.datasets.conversion.mask_writer import write_masks
from tests.upsnet.datasets.conversion.supervisely_writer import write_supervisely
from tests.upsnet.datasets.conversion.yolo_writer import write_yolo
from upsnet.datasets.folder import PanopticFolder
from upsnet.datasets.shapes import write_shapes


def write_labels(truth: PanopticFolder, folder: Path) -> None:
    """photos/ and classes.json, and beside them coco/, masks/, yolo/, labelme/, cvat/, supervisely/."""
    (folder / "photos").mkdir(parents=True)
    for record in truth.records:
        shutil.copyfile(local(record.photo), folder / "photos" / local(record.photo).name)
    listed = [{"id": each.id, "name": each.name, "isthing": int(each.isthing)} for each in truth.categories]
    (folder / "classes.json").write_text(json.dumps(listed))
    write_instances(truth, folder / "coco", "polygons")
    write_masks(local(truth.split.json_file), folder / "masks", "grey")
    write_yolo(truth, folder / "yolo")
    write_labelme(truth, folder / "labelme")
    write_cvat(truth, folder / "cvat")
    write_supervisely(truth, folder / "supervisely")


def main(folder: Path, images: int = 40) -> None:
    with tempfile.TemporaryDirectory() as drawn:
        truth = write_shapes(Path(drawn) / "shapes", {"train": images}, progress=False) / "train.json"
        write_labels(PanopticFolder(truth), folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
