"""The check of every image before the first step: once in the life of a run, shared by the processes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

import training.data.check
from tests.folders import local
from tests.training.tiny_network import shapes_split
from training.data.check import CHECKED, check_images_once
from training.distributed import Process
from upsnet.datasets.folder import PanopticFolder
from upsnet.errors import InputError

ALONE = Process(0, 1, torch.device("cpu"))


@pytest.fixture
def folder(shapes: Path, tmp_path: Path) -> PanopticFolder:
    shutil.copytree(shapes, tmp_path / "shapes")
    return PanopticFolder(shapes_split(tmp_path / "shapes"))


def spoil(folder: PanopticFolder, place: int) -> str:
    photo = local(folder.records[place].photo)
    photo.write_bytes(photo.read_bytes()[:-40])
    return f"{folder.split.json_file}: image {folder.records[place].image_id}: {photo}: not a readable image"


def test_it_is_done_once_and_again_for_another_json(folder: PanopticFolder, tmp_path: Path) -> None:
    out = tmp_path / "run"
    check_images_once([folder], out, ALONE, images=True)
    words = spoil(folder, 4)
    check_images_once([folder], out, ALONE, images=True)
    json_file = local(folder.split.json_file)
    json_file.write_text(json.dumps(json.loads(json_file.read_text()) | {"info": "changed"}))
    with pytest.raises(InputError) as caught:
        check_images_once([folder], out, ALONE, images=True)
    assert str(caught.value).startswith(words)


@pytest.mark.parametrize("content", ["[", '{"a": 1}', ""])
def test_a_record_that_is_none_counts_for_nothing(folder: PanopticFolder, tmp_path: Path, content: str) -> None:
    (tmp_path / CHECKED).write_text(content)
    words = spoil(folder, 0)
    with pytest.raises(InputError) as caught:
        check_images_once([folder], tmp_path, ALONE, images=True)
    assert str(caught.value).startswith(words) and (tmp_path / CHECKED).read_text() == content


def test_images_may_be_left_out(folder: PanopticFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spoil(folder, 0)
    check_images_once([folder], tmp_path, ALONE, images=False)
    assert not (tmp_path / CHECKED).exists()


@pytest.mark.parametrize("alone", [0, 100])
def test_the_first_of_several_errors_is_told(
    folder: PanopticFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, alone: int
) -> None:
    monkeypatch.setattr(training.data.check, "ALONE", alone)  # 0: with workers
    monkeypatch.setattr(training.data.check, "CHUNK", 2)
    spoil(folder, 5)
    words = spoil(folder, 3)
    with pytest.raises(InputError) as caught:
        check_images_once([folder], tmp_path, ALONE, images=True)
    assert str(caught.value).startswith(words)


def test_each_process_looks_at_its_share(folder: PanopticFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    spoil(folder, 4)
    found = [training.data.check._check(folder, Process(rank, 3, ALONE.device)) for rank in range(3)]
    assert [error and error[0] for error, _ in found] == [None, 4, None]
    assert [tally.images for _, tally in found] == [2, 0, 2]


def test_warnings_are_one_line_a_kind(
    folder: PanopticFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    json_file = local(folder.split.json_file)
    content = json.loads(json_file.read_text())
    for annotation in content["annotations"]:
        for info in annotation["segments_info"]:
            del info["iscrowd"]
    json_file.write_text(json.dumps(content))
    check_images_once([PanopticFolder(folder.split)], tmp_path, ALONE, images=False)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"warning: {json_file}: image 1: segment ") and "has no iscrowd; 0 is taken (and " in line
