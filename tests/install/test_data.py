"""`pip install 'upsnet-trt[data]'`: labels of every format become a data set, which is split and shown."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.install.conftest import Installed
from tests.label_folders import write_labels
from upsnet.datasets.folder import PanopticFolder
from upsnet.datasets.shapes import write_shapes

SIZE_MB = 180  # with pip


@pytest.fixture(scope="module")
def labels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("labels")
    data = write_shapes(folder / "shapes", {"train": 8}, progress=False)
    write_labels(PanopticFolder(data / "train.json"), folder / "labels")
    return folder / "labels"


CONVERTERS = {
    "from-instances": ("coco/instances.json", "--photos", "photos", "--classes", "classes.json"),
    "from-masks": ("masks/classes", "--photos", "masks/photos", "--classes", "masks/classes.csv"),
    "from-yolo": ("yolo", "--classes", "classes.json"),
    "from-labelme": ("labelme", "--classes", "classes.json"),
    "from-cvat": ("cvat/annotations.xml", "--classes", "classes.json"),
    "from-supervisely": ("supervisely", "--classes", "classes.json"),
}


@pytest.mark.parametrize("command", CONVERTERS)
def test_labels_of_every_format(data_client: Installed, labels: Path, command: str) -> None:
    arguments = [str(labels / each) if not each.startswith("--") else each for each in CONVERTERS[command]]
    output, _ = data_client.upsnet("data", command, *arguments, "--out", command, "--name", "all")
    assert "8 images" in output and "0 errors, 0 warnings" in output
    assert len(json.loads((data_client.work / command / "all.json").read_text())["images"]) == 8


def test_split_check_and_show(data_client: Installed, labels: Path) -> None:
    assert data_client.size < SIZE_MB * 1e6
    source = (labels / "yolo", "--classes", labels / "classes.json")
    data_client.upsnet("data", "from-yolo", *source, "--out", "own", "--name", "all")
    data_client.upsnet("data", "split", "own", "--val", "0.25")
    checked, _ = data_client.upsnet("data", "check", "own")
    assert "own/train.json: 6 images" in checked and "own/val.json: 2 images" in checked
    data_client.upsnet("data", "show", "own", "--out", "show.html")
    assert "<html" in (data_client.work / "show.html").read_text()[:500]
