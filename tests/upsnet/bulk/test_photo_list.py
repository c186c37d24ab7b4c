from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from upsnet.bulk import photo_list
from upsnet.bulk.photo_list import Entry, PhotoList, place_of
from upsnet.errors import InputError


def write(folder: Path, content: str | bytes) -> str:
    path = folder / "list"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def entries(place: str, block_size: int = 1000) -> list[Entry]:
    photos = PhotoList.scan(place, block_size)
    blocks = [photos.block(number) for number in range(photos.blocks)]
    assert [len(block.entries()) for block in blocks] == [block.photos for block in blocks]
    found = [entry for block in blocks for entry in block.entries()]
    assert len(found) == photos.photos
    return found


def test_a_line_is_a_photo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = write(tmp_path, b"\xef\xbb\xbfa.jpg\r\n\n  \nsub/b c.jpg\n/data/d.jpg\ns3://bucket/e.jpg\ncaf\xe9.jpg")
    base = str(tmp_path)
    wanted = [
        Entry(1, "000000000001", "a.jpg", f"{base}/a.jpg"),
        Entry(2, "000000000002", "sub/b c.jpg", f"{base}/sub/b c.jpg"),
        Entry(3, "000000000003", "/data/d.jpg", "/data/d.jpg"),
        Entry(4, "000000000004", "s3://bucket/e.jpg", "s3://bucket/e.jpg"),
        Entry(5, "000000000005", "caf\udce9.jpg", f"{base}/caf\udce9.jpg"),
    ]
    assert entries(place) == wanted
    assert os.fsencode(wanted[4].place).endswith(b"caf\xe9.jpg")
    monkeypatch.chdir("/")  # relative paths start from the list's folder, wherever a command runs
    assert entries(place) == wanted


@pytest.mark.parametrize("chunk", [7, 64, 1 << 20])
def test_blocks_are_the_list_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    """Whatever the size of the blocks, and of the pieces that the list is read in."""
    monkeypatch.setattr(photo_list, "CHUNK", chunk)
    place = write(tmp_path, "".join(f"{'x' * (n % 9)}{n}.jpg\n" + "\n" * (n % 4 == 0) for n in range(50)))
    whole = entries(place)
    assert [entry.image_id for entry in whole] == list(range(1, 51))
    for block_size in (1, 7, 49, 50, 51):
        assert entries(place, block_size) == whole


def test_json_lines(tmp_path: Path) -> None:
    lines = [{"photo": "a.jpg", "name": "x/one", "image_id": 7}, {"photo": "b.jpg", "name": "two", "image_id": 3.0}]
    found = entries(write(tmp_path, "\n".join(map(json.dumps, lines))))
    assert [(each.image_id, each.name, each.photo) for each in found] == [(7, "x/one", "a.jpg"), (3, "two", "b.jpg")]
    found = entries(write(tmp_path, '{"photo": "a.jpg", "image_id": 12}\n{"photo": "b.jpg", "image_id": 5}\n'))
    assert [each.name for each in found] == ["000000000012", "000000000005"]


def line(**content: object) -> str:
    return json.dumps({"photo": "a.jpg"} | content)


BAD = {
    "": "names no photo",
    "\n \n": "names no photo",
    "a.jpg\0b.jpg\0": "line 1 holds a zero byte",
    "a.jpg\n" + "x" * 70_000: "line 2 has more than 65536 bytes",
    '{"photo": "a.jpg"}\nb.jpg\n': "line 2 is not JSON, as the first line is",
    "{}": "line 1: key 'photo' is missing",
    '{"photo": ""}': "line 1: 'photo' is '', not a path or a URL",
    line(photo=5): "line 1: 'photo' is 5",
    line(image_ID=5): "line 1 has the unknown key 'image_ID'; there are photo, name, image_id",
    line(image_id="5"): "line 1: 'image_id' is '5', not an integer from 0 .* without quotes",
    line(image_id=-1): "line 1: 'image_id' is -1",
    line(image_id=1 << 63): "line 1: 'image_id' is 9223372036854775808",
    line(name="a") + "\n" + line(): "line 2 lacks 'name': give it in every line, or in none",
    line() + "\n" + line(image_id=4): "line 2 has 'image_id': give it in every line, or in none",
    line(name="a") + "\n" + line(name="b") + "\n\n" + line(name="a"): "lines 1 and 4 have the same name 'a'; give",
    line(image_id=5) + "\n" + line(image_id=5.0): "lines 1 and 2 have the same image_id 5; give each its own",
    line(name="../a"): "line 1: the name '../a' holds a dot",
    line(name="a.jpg"): "without suffix",
    line(name="/etc/a"): "begins or ends with a slash",
    line(name="a//b"): "begins or ends with a slash",
    line(name=""): "is empty",
    line(name="a\\b"): "holds a dot or a backslash",
    line(name="a\nb"): "holds a control character",
    line(name="caf\udce9"): "holds a control character",
    line(name="__block__/000000/predictions"): "begins with __",
    line(name="x" * 201): "has more than 200 bytes",
    line(name=5): "the name 5 is no text",
    "a.jpg\nhttp://me:secret@host/a.jpg": "line 2: a password in a URL would end up in the output",
    line(photo="ftp://me:secret@host/a.jpg"): "line 1: a password in a URL would end up in the output",
}


@pytest.mark.parametrize("content", BAD, ids=range(len(BAD)))
def test_no_list(tmp_path: Path, content: str) -> None:
    place = write(tmp_path, content)
    with pytest.raises(InputError, match=BAD[content]) as caught:
        PhotoList.scan(place, 2)
    assert str(caught.value).startswith(place) and "secret" not in str(caught.value)


def test_where_photos_lie() -> None:
    """An absolute path and a URL are from anywhere, others from the list's folder."""
    for photo, base, place in (
        ("a.jpg", "/lists", "/lists/a.jpg"),
        ("a.jpg", "s3://bucket/lists", "s3://bucket/lists/a.jpg"),
        ("/data/a.jpg", "s3://bucket/lists", "/data/a.jpg"),
        ("gs://other/a.jpg", "s3://bucket/lists", "gs://other/a.jpg"),
        ("me@home.jpg", "/lists", "/lists/me@home.jpg"),
        ("./a.jpg", "s3://bucket", "s3://bucket/a.jpg"),  # as `find` writes it
        ("../p//./a..b.jpg", "s3://bucket/x/lists/", "s3://bucket/x/p//a..b.jpg"),
        ("../../../a.jpg", "s3://bucket/lists", "s3://bucket/a.jpg"),
        ("../a.jpg", "file:///lists/x", "/lists/x/../a.jpg"),
    ):
        assert place_of(photo, base) == place


def test_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for place, reason in ((tmp_path, "a folder"), (tmp_path / "no", "no such file"), (tmp_path / "pipe", "no file")):
        with pytest.raises(InputError, match=f"{place}: {reason}; a list of photos is a file"):
            PhotoList.scan(str(place), 2)


def test_a_list_that_changes_meanwhile(tmp_path: Path) -> None:
    place = write(tmp_path, "a.jpg\nb.jpg\nc.jpg\n")
    photos = PhotoList.scan(place, 2)
    write(tmp_path, "a.jpg\nb.jpg\nd.jpg\n")
    assert [entry.photo for entry in photos.block(0).entries()] == ["a.jpg", "b.jpg"]
    with pytest.raises(InputError, match="it has changed while it was worked on"):
        photos.block(1)
