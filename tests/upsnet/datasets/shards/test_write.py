"""`upsnet data shards`: what is in the tars, that the set is complete or not there, and what is refused."""

from __future__ import annotations

import hashlib
import io
import json
import multiprocessing
import os
import re
import shutil
import signal
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from tests.small_disk import small_disk
from tests.upsnet.datasets.shards.conftest import SIZE
from upsnet import storage
from upsnet.command_line.command import make_app
from upsnet.datasets.coco_format import id2rgb
from upsnet.datasets.folder import PanopticFolder
from upsnet.datasets.shard_index import read_index
from upsnet.datasets.shards.command import main
from upsnet.datasets.shards.write import ShardWriter, write_shards
from upsnet.datasets.split import ShardSplit, Split
from upsnet.errors import InputError


def test_the_same_data_set(shards: Path, shapes_folder: Path) -> None:
    folder, packed = PanopticFolder(shapes_folder / "val.json"), PanopticFolder(shards / "val.shards.json")
    assert packed.categories == folder.categories and len(packed) == len(folder) == 60
    assert packed.warnings == folder.warnings
    for one, other in zip(folder.records, packed.records, strict=True):
        assert (one.image_id, one.file_name, one.size) == (other.image_id, other.file_name, other.size)
        assert one.segments == other.segments
        assert all(np.array_equal(a, b) for a, b in zip(folder.read(one), packed.read(other), strict=True))
    assert packed.records.by_image_id().image_ids.tolist() == sorted(packed.records.image_ids.tolist())


def test_files_are_in_the_tars_as_they_are(shards: Path, shapes_folder: Path) -> None:
    content = json.loads((shapes_folder / "train.json").read_text())
    assert (shards / "train.json").read_bytes() == (shapes_folder / "train.json").read_bytes()
    index, _ = read_index(str(shards / "train.shards.json"))
    assert len(index.shards) > 2 and sum(shard.images for shard in index.shards) == 24
    found: dict[str, bytes] = {}
    for shard in index.shards:
        data = (shards / shard.name).read_bytes()
        assert len(data) == shard.size <= SIZE and hashlib.sha256(data).hexdigest() == shard.sha256
        with tarfile.open(fileobj=io.BytesIO(data)) as tar:
            found |= {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]
    for image, annotation in zip(content["images"], content["annotations"], strict=True):
        key = f"{image['id']:012}"
        assert found.pop(f"{key}.png") == (shapes_folder / "train" / image["file_name"]).read_bytes()
        png = shapes_folder / "panoptic_train" / annotation["file_name"]
        assert found.pop(f"{key}.panoptic.png") == png.read_bytes()
        assert json.loads(found.pop(f"{key}.json")) == {"image": image, "annotation": annotation}
    assert not found
    assert index.json_sha256 == hashlib.sha256((shards / "train.json").read_bytes()).hexdigest()


def test_webdataset_reads_them(shards: Path, shapes_folder: Path) -> None:
    webdataset = pytest.importorskip("webdataset", reason="needs webdataset, of the extra dev")
    tars = sorted(map(str, shards.glob("val-*.tar")))
    samples = list(webdataset.WebDataset(tars, shardshuffle=False).decode("rgb8"))
    folder = PanopticFolder(shapes_folder / "val.json")
    assert [sample["__key__"] for sample in samples] == [f"{image_id:012}" for image_id in folder.records.image_ids]
    for sample, record in zip(samples, folder.records, strict=True):
        photo, ids = folder.read(record)
        assert np.array_equal(sample["png"], photo) and np.array_equal(sample["panoptic.png"], id2rgb(ids))
        assert sample["json"]["annotation"]["image_id"] == record.image_id


def test_the_same_bytes_again_also_from_shards(shards: Path, shapes_folder: Path, tmp_path: Path) -> None:
    write_shards(Split.usual(shapes_folder / "val.json"), str(tmp_path / "a"), SIZE, "json", progress=False)
    packed = ShardSplit(shards=str(shards / "val.shards.json"))
    written = write_shards(packed, str(tmp_path / "b"), SIZE, progress=False)
    files = sorted(path.name for path in shards.glob("val*"))
    assert files == sorted(os.listdir(tmp_path / "a")) == sorted(os.listdir(tmp_path / "b"))
    for name in files:
        assert (shards / name).read_bytes() == (tmp_path / "a" / name).read_bytes()
        assert (shards / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert written.size == sum((tmp_path / "b" / name).stat().st_size for name in files if name.endswith(".tar"))


def test_names_of_all_kinds(tmp_path: Path) -> None:
    """The same stem in two folders, dots, spaces, capitals, another format than the suffix, a negative id."""
    names = {7: "a/1.v2.JPG", 9: "b/1.v2.JPG", -3: "ä b.photo.jpeg", 2**40: "noext"}
    content = {
        "images": [{"id": id, "file_name": name, "height": 8, "width": 9} for id, name in names.items()],
        "annotations": [
            {
                "image_id": id,
                "file_name": f"{os.path.splitext(name)[0]}.png",
                "segments_info": [{"id": 5, "category_id": 1, "area": 72, "bbox": [0, 0, 9, 8], "iscrowd": 0}],
            }
            for id, name in names.items()
        ],
        "categories": [{"id": 1, "name": "thing", "isthing": 1}, {"id": 2, "name": "stuff", "isthing": 0}],
    }
    for entry, annotation in zip(content["images"], content["annotations"], strict=True):
        photo, png = tmp_path / "x" / str(entry["file_name"]), tmp_path / "panoptic_x" / str(annotation["file_name"])
        for path in (photo, png):
            path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 9, 3), abs(int(str(entry["id"]))) % 200, np.uint8)).save(photo, "JPEG")
        Image.fromarray(id2rgb(np.full((8, 9), 5))).save(png, "PNG")
    (tmp_path / "x.json").write_text(json.dumps(content))
    write_shards(Split.usual(tmp_path / "x.json"), str(tmp_path / "out"), progress=False)
    with tarfile.open(tmp_path / "out/x-000000.tar") as tar:
        assert tar.getnames()[:4] == [
            *(f"000000000007{end}" for end in (".jpg", ".panoptic.png", ".json")),
            *(["000000000009.jpg"]),
        ]
        assert "-00000000003.jpeg" in tar.getnames() and "1099511627776.photo" in tar.getnames()
    packed, folder = PanopticFolder(tmp_path / "out/x.shards.json"), PanopticFolder(tmp_path / "x.json")
    for one, other in zip(folder.records, packed.records, strict=True):
        assert one.file_name == other.file_name == names[one.image_id]
        assert np.array_equal(folder.read(one)[0], packed.read(other)[0])


def test_what_is_faulty_is_refused_and_nothing_is_written(shapes_folder: Path, tmp_path: Path) -> None:
    data = shutil.copytree(shapes_folder, tmp_path / "data")
    photo = next(iter(sorted((data / "val").iterdir())))
    photo.write_bytes(photo.read_bytes()[:300])
    with pytest.raises(InputError, match=rf"^{data}/val\.json: image \d+: {photo}: not a readable image"):
        write_shards(Split.usual(data / "val.json"), str(tmp_path / "out"), SIZE, progress=False)
    assert sorted(os.listdir(tmp_path)) == ["data"]
    write_shards(Split.usual(data / "val.json"), str(tmp_path / "out"), SIZE, "json", progress=False)  # not looked at
    packed = PanopticFolder(tmp_path / "out/val.shards.json")
    with pytest.raises(InputError, match=r"val\.json: image \d+: .*/val-000000\.tar: \d+\.png: not a readable image"):
        packed.read(packed.records[0])
    photo.unlink()
    with pytest.raises(InputError, match=rf"its photo {photo} is missing"):
        write_shards(Split.usual(data / "val.json"), str(tmp_path / "other"), SIZE, "json", progress=False)
    photo.touch()
    with pytest.raises(InputError, match=rf"image \d+: {photo}: 0 bytes; a photo or PNG has"):
        write_shards(Split.usual(data / "val.json"), str(tmp_path / "other"), SIZE, "json", progress=False)
    assert sorted(os.listdir(tmp_path)) == ["data", "out"]


def test_a_set_that_is_there_stays(shards: Path, shapes_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=rf"^{shards}/val\.shards\.json: is there already; remove that set"):
        write_shards(Split.usual(shapes_folder / "val.json"), str(shards), progress=False)
    (tmp_path / "val.json").write_text("{}")
    with pytest.raises(
        InputError, match=rf"^{tmp_path}/val\.json: is there already, of another data set; give another"
    ):
        write_shards(Split.usual(shapes_folder / "val.json"), str(tmp_path), progress=False)
    (tmp_path / "val.json").unlink()
    with small_disk(50_000), pytest.raises(InputError, match=rf"^{tmp_path}/out/val-000000\.tar: cannot be written: "):
        write_shards(Split.usual(shapes_folder / "val.json"), str(tmp_path / "out"), progress=False)
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize(("function", "call"), [("add", 1), ("add", 40), ("replace", 1), ("replace", 0)])
def test_a_kill_leaves_no_set_and_is_no_hindrance(
    shards: Path, shapes_folder: Path, tmp_path: Path, function: str, call: int
) -> None:
    """While images are packed, and between the renames at the end, of which the index's is the last."""
    source, out = Split.usual(shapes_folder / "val.json"), tmp_path / "out"
    call = call or len(list(shards.glob("val*")))  # the last rename

    def write_and_die() -> None:
        owner: Any = ShardWriter if function == "add" else os
        original, calls = getattr(owner, function), iter(range(1, call + 1))

        def dying(*arguments: Any) -> Any:
            if next(calls) == call:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*arguments)

        setattr(owner, function, dying)
        write_shards(source, str(out), SIZE, "json", progress=False)

    child = multiprocessing.get_context("fork").Process(target=write_and_die)
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    with pytest.raises(InputError, match=r"out/val\.shards\.json: no such file"):
        PanopticFolder(out / "val.shards.json")
    write_shards(source, str(out), SIZE, "json", progress=False)
    for path in shards.glob("val*"):
        assert (out / path.name).read_bytes() == path.read_bytes()


def test_behind_a_url_the_index_comes_last(shards: Path, shapes_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("fsspec", reason="needs fsspec, of the extra remote")
    names: list[str] = []
    upload = storage.upload

    def breaking(path: Path, place: str) -> None:
        names.append(path.name)
        if len(names) == 3:
            raise InputError("the bucket is gone")
        upload(path, place)

    monkeypatch.setattr(storage, "upload", breaking)
    with pytest.raises(InputError, match="the bucket is gone"):
        write_shards(Split.usual(shapes_folder / "val.json"), "memory://set/a", SIZE, progress=False)
    assert storage.names("memory://set/a") == set(names[:2]) and names[0] == "val-000000.tar"
    write_shards(Split.usual(shapes_folder / "val.json"), "memory://set/a", SIZE, progress=False)
    assert names[-2:] == ["val.json", "val.shards.json"]
    for path in shards.glob("val*"):
        assert storage.read(f"memory://set/a/{path.name}") == path.read_bytes()
    packed, local = PanopticFolder("memory://set/a/val.shards.json"), PanopticFolder(shards / "val.shards.json")
    for one, other in zip(packed.records, local.records, strict=True):
        assert np.array_equal(packed.read(one)[0], local.read(other)[0])


def test_the_command(shapes_folder: Path, tmp_path: Path) -> None:
    run = CliRunner().invoke
    app, out = make_app(main), tmp_path / "out"
    result = run(app, [f"--gt-json={shapes_folder}/val.json", f"--out={out}", "--shard-mib=1", "--workers=1"])
    assert result.exit_code == 0, result.output
    size = sum(path.stat().st_size for path in out.glob("*.tar")) / 1e6
    assert result.stdout == f"{out}/val.shards.json: 60 images in 2 shards, {size:,.1f} MB\n"
    for arguments, said in {
        (f"--gt-json={tmp_path}/no.json", f"--out={out}"): f"error: {tmp_path}/no.json: cannot be read",
        (f"--gt-json={out}/val.json", f"--out={tmp_path}"): f"error: {out}/panoptic_val: no such folder; the PNGs of",
        (f"--gt-json={out}/no.shards.json", f"--out={tmp_path}"): f"error: {out}/no.shards.json: no such file",
        ("--gt-json=s3://b/val.json", f"--out={tmp_path}"): "error: s3://b/val.json: behind a URL a data set is read",
        (f"--gt-json={out}/val.shards.json", f"--out={tmp_path}", "--images=x"): "error: .*in shards; --gt-folder and",
    }.items():
        result = run(app, list(arguments))
        assert result.exit_code == 2, result.output
        assert result.stderr.count("\n") == 1
        assert re.match(said, result.stderr), result.stderr
