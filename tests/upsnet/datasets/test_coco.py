"""An official COCO download: archives are unpacked whole or not at all; what is missing is named with its source."""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from upsnet.command_line.command import make_app
from upsnet.datasets.archives import unzip_folder
from upsnet.datasets.coco import main, prepare, unpack
from upsnet.errors import InputError
from upsnet.files import read_json, write_json


@pytest.fixture
def sample(shared_data: Path, tmp_path: Path) -> Path:
    """A copy of four official images, in the layout of the download."""
    return Path(shutil.copytree(shared_data / "coco_sample", tmp_path / "coco", copy_function=shutil.copyfile))


def pack(archive: Path, folder: Path, inside: str) -> None:
    """Packs the folder as `inside`, with what macOS adds, and removes it."""
    with zipfile.ZipFile(archive, "w") as zipped:
        zipped.writestr("__MACOSX/x.jpg", "rubbish")
        zipped.writestr(f"__MACOSX/{inside}/x.jpg", "rubbish")
        for path in sorted(folder.iterdir()):
            zipped.write(path, f"{inside}/{path.name}")
    make_writable(folder)
    shutil.rmtree(folder)


def make_writable(folder: Path) -> None:
    for path in [folder, *folder.rglob("*"), *folder.parents[:1]]:
        path.chmod(0o755)


def pack_all(root: Path) -> dict[Path, bytes]:
    """The three archives as they are downloaded; returns the files that must come out of them."""
    make_writable(root)
    files = {path.relative_to(root): path.read_bytes() for path in root.rglob("*") if path.is_file()}
    pack(root / "annotations/panoptic_val2017.zip", root / "annotations/panoptic_val2017", "panoptic_val2017")
    pack(root / "panoptic_annotations_trainval2017.zip", root / "annotations", "annotations")
    pack(root / "val2017.zip", root / "val2017", "val2017")
    return files


def test_archives_are_unpacked(sample: Path) -> None:
    files = pack_all(sample)
    assert sorted(path.name for path in sample.iterdir()) == ["panoptic_annotations_trainval2017.zip", "val2017.zip"]
    outcome = prepare(sample, ("val2017",), partial=True)
    assert outcome.errors == [] and len(outcome.warnings) == 4 and outcome.counts[0].startswith("val2017: 4 photos")
    made = {path.relative_to(sample): path.read_bytes() for path in sample.rglob("*") if path.suffix != ".zip"
            and path.is_file()}  # fmt: skip
    assert made == files
    times = {path: path.stat().st_mtime_ns for path in sample.rglob("*")}
    assert prepare(sample, ("val2017",), partial=True) == outcome
    assert times == {path: path.stat().st_mtime_ns for path in sample.rglob("*")}


@pytest.mark.parametrize("cut", [False, True])
def test_a_damaged_archive_leaves_nothing(sample: Path, cut: bool) -> None:
    pack_all(sample)
    archive = sample / "val2017.zip"
    content = bytearray(archive.read_bytes())
    content[len(content) // 2] ^= 255
    archive.write_bytes(content[: len(content) // 2] if cut else content)
    left = sorted(sample.iterdir())
    with pytest.raises(InputError, match=r"val2017\.zip: damaged or cut: .*; download it again") as error:
        unpack(sample, "val2017")
    assert sorted(sample.iterdir()) == left and "\n" not in str(error.value)


def test_what_an_interrupted_unpacking_left_is_not_used(sample: Path) -> None:
    pack_all(sample)
    leftover = sample / ".val2017.unpacking"
    leftover.mkdir()
    (leftover / "half.jpg").write_bytes(b"half")
    unzip_folder(sample / "val2017.zip", sample / "val2017")
    assert len(list((sample / "val2017").iterdir())) == 4 and not leftover.exists()


def test_members_cannot_climb(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "val2017.zip", "w") as zipped:
        for name in ("val2017/..", "../val2017", "/val2017/a.jpg", "val2017/deep/a.jpg"):
            zipped.writestr(name, "x")
    with pytest.raises(InputError, match=r"val2017\.zip: holds no folder val2017"):
        unzip_folder(tmp_path / "val2017.zip", tmp_path / "val2017")
    assert [path.name for path in tmp_path.iterdir()] == ["val2017.zip"]


def test_another_archive_of_that_name(sample: Path) -> None:
    pack_all(sample)
    with zipfile.ZipFile(sample / "panoptic_annotations_trainval2017.zip", "w") as zipped:
        zipped.writestr("annotations/instances_val2017.json", "{}")
    with pytest.raises(InputError, match=r"has no annotations/panoptic_val2017\.json; it is not the official file"):
        unpack(sample, "val2017")


def test_everything_that_is_missing_is_named(tmp_path: Path) -> None:
    errors = prepare(tmp_path, ("train2017", "val2017"), partial=True).errors
    assert len(errors) == 6
    for split, three in (("train2017", errors[:3]), ("val2017", errors[3:])):
        assert f"{split}: no such folder" in three[0] and three[0].endswith(f"zips/{split}.zip")
        assert f"panoptic_{split}.json: no such file" in three[1] and "panoptic_annotations_trainval2017" in three[1]
        assert f"annotations/panoptic_{split}.zip inside" in three[2]
    assert list(tmp_path.iterdir()) == []


def test_files_that_the_json_lists_are_there(sample: Path) -> None:
    make_writable(sample)
    (sample / "val2017/000000142238.jpg").unlink()
    (sample / "annotations/panoptic_val2017/000000439180.png").rename(sample / "annotations/panoptic_val2017/x.png")
    gt_json = sample / "annotations/panoptic_val2017.json"
    content = read_json(gt_json)
    write_json(gt_json, content | {"categories": content["categories"][1:]})
    errors = prepare(sample, ("val2017",), partial=True).errors
    assert [error.split(": ", 1)[1].split(" of /")[0] for error in errors[:2]] == ["lacks 1 files"] * 2
    assert errors[0].endswith("000000142238.jpg") and errors[1].endswith("000000439180.png")
    assert "79 thing and 53 stuff categories" in errors[2]
    write_json(gt_json, [])
    with pytest.raises(InputError, match="not a COCO panoptic file"):
        prepare(sample, ("val2017",), partial=True)


def run(*arguments: object) -> Any:
    return CliRunner().invoke(make_app(main), [str(a) for a in arguments])


def test_command_line(sample: Path) -> None:
    short = run(sample, "--split", "val2017")
    assert short.exit_code == 1 and short.stderr.count("the official number is 5,000 (--partial") == 4
    part = run(sample, "--split", "val2017", "--partial")
    assert part.exit_code == 0 and part.stderr.count("warning: 4 ") == 4
    assert f"    json_file: {sample / 'annotations/panoptic_val2017.json'}" in part.output.splitlines()
    assert run(sample).exit_code == 1 and "train2017.zip" in run(sample).stderr
    assert run(sample, "--split", "test2017").exit_code == 2 and run(sample / "none").exit_code == 2
