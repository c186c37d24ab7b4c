"""`upsnet data split`: what is written, who stays together, and what is refused."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageOps
from typer.testing import CliRunner

from tests.folders import local
from tests.upsnet.datasets.splitting.pictures import picture, write_pictures
from upsnet.command_line.command import make_app
from upsnet.datasets.doctor.check import check_split
from upsnet.datasets.folder import PanopticFolder
from upsnet.datasets.split import Split
from upsnet.datasets.splitting.command import main
from upsnet.datasets.splitting.split import Made, SplitRules, split_dataset
from upsnet.errors import InputError


def jpeg(image: Image.Image, quality: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Ten photos, of which three show one picture."""
    pictures: dict[str, Image.Image | bytes] = {f"{index}.png": picture(index) for index in range(8)}
    pictures["again.jpg"] = jpeg(picture(3).resize((64, 48)), 40)
    pictures["mirrored.jpg"] = jpeg(ImageOps.mirror(picture(3)), 90)
    return write_pictures(tmp_path / "data", pictures)


def split(data: Path, out: Path | None = None, **rules: Any) -> Made:
    return split_dataset(data, out, SplitRules(**({"workers": 1} | rules)), progress=False)


def photos(made: Made) -> dict[str, list[str]]:
    return {name: sorted(each.file_name for each in PanopticFolder(part).records) for name, part in made.splits.items()}


def run(*arguments: object) -> Any:
    return CliRunner(env={"COLUMNS": "160"}).invoke(make_app(main), [str(each) for each in arguments])


def test_what_is_written(source: Path, tmp_path: Path) -> None:
    made = split(source, tmp_path / "out", val=0.3, test=0.2)
    assert made.images == {"train": 5, "val": 3, "test": 2}
    assert all("3 of 10 images (30 %) look alike" in line for line in made.warnings)
    whole = json.loads(source.read_text())
    images = {each["id"]: each for each in whole["images"]}
    found: list[int] = []
    for name, part in made.splits.items():
        checkup = check_split(part, 1, progress=False)
        assert (checkup.tally.errors, checkup.tally.images) == (0, made.images[name])
        assert checkup.tally.counts.keys() <= {"photo-unlisted"} and not checkup.tally.counts
        content = json.loads(part.json_file.read_text())
        assert content["categories"] == whole["categories"] and content["licenses"] == [{"id": 3}]
        assert content["info"]["year"] == 2026 and content["info"]["split_of"] == "all.json"
        assert all(each == images[each["id"]] for each in content["images"])
        assert all(each in whole["annotations"] for each in content["annotations"])
        found += [each["id"] for each in content["images"]]
        for record in PanopticFolder(part).records:
            assert os.path.samefile(local(record.photo), source.parent / "all" / record.file_name)
            assert os.path.samefile(local(record.png), source.parent / "panoptic_all" / local(record.png).name)
    assert sorted(found) == sorted(images)
    assert made.pixels["val"] + made.pixels["train"] + made.pixels["test"] == 9 * 96 * 128 + 64 * 48
    stuff, thing = made.classes[:2]
    assert stuff.images == made.images and sum(thing.segments.values()) == 5 and thing.groups == 5


def test_the_same_picture_is_on_one_side(source: Path, tmp_path: Path) -> None:
    together = ["3.png", "again.jpg", "mirrored.jpg"]
    sides = set()
    for seed in range(6):
        made = split(source, tmp_path / str(seed), val=0.3, seed=seed)
        (side,) = (name for name, groups in made.groups.items() if groups == [together])
        assert set(together) <= set(photos(made)[side])
        sides.add(json.dumps(photos(made)))
    assert len(sides) > 1  # another seed deals out otherwise
    report = json.loads((tmp_path / "0" / "all_split.json").read_text())
    assert [group for groups in report["kept_together"].values() for group in groups] == [together]
    assert report["bits_that_may_differ"] == {"of_63_coarse": 8, "of_255": 56}
    apart = split(source, tmp_path / "off", duplicates="off")
    assert not any(apart.groups.values())


def test_equal_files(tmp_path: Path) -> None:
    same = jpeg(picture(1), 90)
    pictures: dict[str, Image.Image | bytes] = {"a.jpg": same, "b.jpg": same, "c.jpg": jpeg(picture(1), 80)}
    source = write_pictures(tmp_path, pictures | {f"{index}.png": picture(index) for index in range(2, 5)})
    for duplicates, together in (("same", ["a.jpg", "b.jpg"]), ("near", ["a.jpg", "b.jpg", "c.jpg"]), ("off", None)):
        made = split(source, tmp_path / duplicates, val=0.5, duplicates=duplicates)
        assert [group for groups in made.groups.values() for group in groups] == ([together] if together else [])


def test_the_order_of_the_json_and_the_workers_do_not_matter(source: Path, tmp_path: Path) -> None:
    first = photos(split(source, tmp_path / "first"))
    content = json.loads(source.read_text())
    content["images"] = content["images"][::-1]
    for image in content["images"]:
        image["id"] = 1000 - image["id"]
    for annotation in content["annotations"]:
        annotation["image_id"] = 1000 - annotation["image_id"]
    source.write_text(json.dumps(content))
    made = split(source, tmp_path / "second", workers=2)
    assert photos(made) == first
    listed = json.loads(made.splits["train"].json_file.read_text())["images"]
    assert [each["id"] for each in listed] == sorted(each["id"] for each in listed)  # the order of the source


@pytest.mark.parametrize(
    ("pattern", "groups", "unmatched"),
    [
        ("folder", [["p1/a.png", "p1/b.png"], ["p2/a.png", "p2/b.png"]], []),
        (r"^(.*)/", [["p1/a.png", "p1/b.png"], ["p2/a.png", "p2/b.png"]], ["video_7_01.png", "video_7_02.png"]),
        (r"video_\d+", [["video_7_01.png", "video_7_02.png"]], ["p1/a.png", "p1/b.png", "p2/a.png", "p2/b.png"]),
        (
            r"video_(\d)|^nothing",
            [["video_7_01.png", "video_7_02.png"]],
            ["p1/a.png", "p1/b.png", "p2/a.png", "p2/b.png"],
        ),
        ("(video)?", [["video_7_01.png", "video_7_02.png"]], ["p1/a.png", "p1/b.png", "p2/a.png", "p2/b.png"]),
        ("([ab])[.]", [["p1/a.png", "p2/a.png"], ["p1/b.png", "p2/b.png"]], ["video_7_01.png", "video_7_02.png"]),
    ],
)
def test_kept_together_by_name(tmp_path: Path, pattern: str, groups: list[list[str]], unmatched: list[str]) -> None:
    names = ["p1/a.png", "p1/b.png", "p2/a.png", "p2/b.png", "video_7_01.png", "video_7_02.png"]
    source = write_pictures(tmp_path, {name: picture(index) for index, name in enumerate(names)})
    made = split(source, tmp_path / "out", val=0.34, keep_together=pattern)
    assert made.unmatched == unmatched
    found = [group for each in made.groups.values() for group in each]
    assert [group for group in sorted(found) if group in groups] == groups
    for group in groups:
        assert any(set(group) <= set(names) for names in photos(made).values())


def test_classes_that_a_side_lacks_are_said(tmp_path: Path) -> None:
    classes = {f"{index}.png": [0] for index in range(10)} | {"4.png": [0, 1], "5.png": [0, 2], "6.png": [0, 2]}
    pictures: dict[str, Image.Image | bytes] = {name: picture(index) for index, name in enumerate(classes)}
    source = write_pictures(tmp_path, pictures, classes)
    result = run(source, "--workers", 1, "--val", 0.3)
    assert result.exit_code == 0, result.output
    assert "val lacks b: in too few images, or groups of images, for all sides\n" in result.output
    assert (
        "3 of 6 classes are in no image (crowds do not count)" in result.output
        and "no images belong together" in result.output
    )
    assert f"{tmp_path / 'val.json'}: 3 of 10 images (30.0 %)" in result.output
    assert f"upsnet train --config my.yaml --data {tmp_path}" in result.output


def test_groups_are_said(source: Path) -> None:
    result = run(source, "--workers", 1, "--val", 0.3)
    assert "3 images in 1 groups that belong together (listed in *_split.json); the largest:\n" in result.output
    assert "  3 images: 3.png, again.jpg, ...\n" in result.output
    (warning,) = (line for line in result.stdout.splitlines() if line.startswith("warning: "))
    (side,) = (name for name in ("train", "val") if (source.parent / name / "3.png").exists())
    assert warning == (
        f"warning: {source}: 3 of 10 images (30 %) look alike and are all in {side}, 3.png and again.jpg among them; "
        "where they do not show one picture, give --duplicates same"
    )
    assert "no images belong together" in run(source, "--duplicates", "same", "--replace", "--workers", 1).output
    assert "photos were not compared" in run(source, "--duplicates", "off", "--replace").output


def test_flat_photos_are_said(tmp_path: Path) -> None:
    pictures: dict[str, Image.Image | bytes] = {f"{index}.png": picture(index) for index in range(4)}
    source = write_pictures(tmp_path, pictures | {"z.png": Image.new("RGB", (32, 32), "black")})
    result = run(source.parent, "--workers", 1)
    assert "1 photos have no contrast: only equal files of them were kept together; the first is z.png" in result.output


def test_again_in_the_same_folder(source: Path) -> None:
    folder = source.parent
    first = photos(split(folder, val=0.3, test=0.2))
    with pytest.raises(InputError, match=r"train\.json: is there already; give another --out, or --replace"):
        split(folder)
    assert photos(split(folder, val=0.3, test=0.2, replace=True)) == first
    with pytest.raises(InputError, match=r"test\.json|train\.json"):
        split(folder, replace=False)
    made = split(folder, val=0.3, replace=True)  # the old test set would hold images of train
    assert sum(made.images.values()) == 10 and not (folder / "test.json").exists() and not (folder / "test").exists()


def test_a_file_that_is_no_part_of_the_split_stays(source: Path) -> None:
    made = split(source)
    (notes := made.splits["val"].images / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"notes\.txt: --replace would remove this file, which is not of the data set"):
        split(source, replace=True)
    notes.unlink()
    assert split(source, replace=True).images == made.images


def test_what_was_not_made_here_stays(source: Path, tmp_path: Path) -> None:
    other = write_pictures(tmp_path / "out", {"a.png": picture(1)}, name="val")
    with pytest.raises(InputError, match=r"val\.json: is there already; .* no earlier split of this data set"):
        split(source, tmp_path / "out", replace=True)
    assert len(PanopticFolder(other)) == 1 and not (tmp_path / "out" / "train.json").exists()
    train = write_pictures(tmp_path / "two", {f"{index}.png": picture(index) for index in range(4)}, name="train")
    with pytest.raises(InputError, match=r"train\.json: is the data set that shall be split; give another --out"):
        split(train, replace=True)
    assert split(train, tmp_path / "parts").images == {"train": 3, "val": 1}


def test_a_photo_that_cannot_be_read_leaves_nothing(source: Path, tmp_path: Path) -> None:
    photo = source.parent / "all" / "5.png"
    photo.write_bytes(photo.read_bytes()[:300])
    with pytest.raises(InputError, match=r"5\.png: not a readable image"):
        split(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    result = run(source, "--out", tmp_path / "out", "--workers", 1)
    assert (
        result.exit_code == 2
        and result.stderr.splitlines()[-1].startswith("error: ")
        and not (tmp_path / "out").exists()
    )


@pytest.mark.parametrize(
    ("rules", "words"),
    [
        ({"val": 0}, "--val 0: training needs images to validate on"),
        ({"val": 20}, "--val 20: give a share of the images between 0 and 1"),
        ({"val": float("nan")}, "--val nan: give a share"),
        ({"val": 0.5, "test": 0.5}, "leave nothing to train on"),
        ({"keep_together": "(a"}, "--keep-together '(a': not a regular expression"),
        ({"keep_together": "patient"}, "matches no photo's name; the first is '0.png'"),
        ({"keep_together": "folder"}, "its 10 images are 1 group of images that belong together, too few for train"),
        ({"keep_together": "folder"}, "too few for train, val; give another --keep-together, or none"),
        (
            {"keep_together": r"\.", "duplicates": "same"},
            "too few for train, val; give another --keep-together, or none",
        ),
    ],
)
def test_rules_that_make_no_sense(source: Path, tmp_path: Path, rules: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError) as error:
        split(source, tmp_path / "out", **rules)
    assert words in str(error.value) and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("contents", "cure"),
    [
        ([jpeg(picture(1), 90)] * 3, "their files are equal, which --duplicates off does not mind"),
        (
            [jpeg(picture(1), each) for each in (70, 80, 90)],
            "where they do not show one picture, give --duplicates same",
        ),
    ],
)
def test_the_cure_of_one_group_is_one_that_helps(tmp_path: Path, contents: list[bytes], cure: str) -> None:
    source = write_pictures(tmp_path, {f"{index}.jpg": each for index, each in enumerate(contents)})
    with pytest.raises(InputError, match=f"3 images are 1 group of .*, too few for train, val; {cure}$"):
        split(source)
    assert sum(split(source, duplicates="off" if "off" in cure else "same").images.values()) == 3


def test_looks_are_warned_of_only_where_they_made_the_group(tmp_path: Path) -> None:
    names = ["p1/a.png", "p1/b.png", "p1/c.png", "p2/a.png"]
    source = write_pictures(tmp_path, {name: picture(index) for index, name in enumerate(names)})
    made = split(source, keep_together="folder", val=0.25)
    assert [len(each) for side in made.groups.values() for each in side] == [3] and not made.warnings


@pytest.mark.parametrize("duplicates", ["near", "off"])
@pytest.mark.parametrize(
    ("mode", "words"),
    [(None, "not a readable PNG"), ("L", "a PNG of mode L, 8 bits a channel; a panoptic PNG is 8-bit")],
)
def test_a_png_that_is_none_leaves_nothing(
    source: Path, tmp_path: Path, duplicates: str, mode: str | None, words: str
) -> None:
    png = source.parent / "panoptic_all" / "5.png"
    png.write_bytes(b"x") if mode is None else Image.new(mode, (128, 96)).save(png)
    with pytest.raises(InputError) as error:
        split(source, tmp_path / "out", duplicates=duplicates)
    assert str(error.value).startswith(f"{source}: image 6: {png}: {words}") and not (tmp_path / "out").exists()


def test_folders_elsewhere(source: Path, tmp_path: Path) -> None:
    json_file = source.rename(tmp_path / "truth.json")
    where = ("--gt-folder", source.parent / "panoptic_all", "--images", source.parent / "all")
    result = run(json_file, *where, "--out", tmp_path / "out", "--workers", 1)
    assert result.exit_code == 0, result.output
    assert not check_split(Split.usual(tmp_path / "out" / "val.json"), 1, progress=False).tally.errors
    assert run(tmp_path, *where).stderr == "error: --gt-folder and --images go with a JSON, not with a folder\n"


def test_which_data_set(source: Path, tmp_path: Path) -> None:
    write_pictures(source.parent, {"a.png": picture(1)}, name="other")
    with pytest.raises(InputError, match=r"which of its data sets shall be split\? Give one JSON: .*all.json, .*other"):
        split(source.parent)
    with pytest.raises(InputError, match="no such file or folder"):
        split(tmp_path / "none.json")
    with pytest.raises(InputError, match=r"1 images are too few for train, val"):
        split(source.parent / "other.json")


def test_the_four_photos(shared_data: Path, tmp_path: Path) -> None:
    """The photo for val is the best of the four: classes that train lacks, and such that val could have and lacks."""
    made = split(shared_data / "coco_sample" / "annotations" / "panoptic_val2017.json", tmp_path / "out", val=0.25)
    assert made.images == {"train": 3, "val": 1} and not any(made.groups.values())
    assert not check_split(made.splits["val"], 1, progress=False).tally.errors
    data = PanopticFolder(made.source)
    held = {each.file_name: {part.category_id for part in each.segments if not part.iscrowd} for each in data.records}
    every = {each for of in held.values() for each in of}
    shared = {each for each in every if sum(each in of for of in held.values()) > 1}
    assert shared == {each.category.id for each in made.classes if each.groups > 1}

    def missing(val: str) -> int:
        train = set().union(*(of for name, of in held.items() if name != val))
        return len(shared - held[val]) + len(shared - train) + len(every - train)

    assert missing(photos(made)["val"][0]) == min(map(missing, held))
