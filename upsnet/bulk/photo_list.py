"""A list of photos: a text file with a path or a URL a line, or JSON lines. It is never in memory as a whole."""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from array import array
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from upsnet import storage
from upsnet.buckets import has_password
from upsnet.datasets.progress import progress_bar
from upsnet.errors import InputError
from upsnet.json_values import MOST_ID, complaint, whole

CHUNK = 2 << 20  # bytes that are read at a time
MOST_LINE = 64 << 10  # bytes
MOST_NAME = 200  # bytes
BOM = b"\xef\xbb\xbf"
KEYS = ("photo", "name", "image_id", "error")  # the last is of a failed.jsonl, which is a list too


class Entry(NamedTuple):
    """A photo of the list."""

    image_id: int
    name: str  # of its files, without suffix
    photo: str  # as the list has it
    place: str  # a path or a URL


class Block(NamedTuple):
    """Consecutive photos of a list, with all that a worker must know of it."""

    number: int  # from 0
    first: int  # position of its first photo in the list, from 1
    photos: int
    lines: bytes
    base: str  # the folder that relative paths start from
    as_json: bool

    def entries(self) -> list[Entry]:
        lines = (line for line in self.lines.split(b"\n") if line.strip())
        return [_entry(line, position, self.as_json, self.base) for position, line in enumerate(lines, self.first)]


@dataclass(frozen=True)
class PhotoList:
    """A list that was read once from end to end, and is known by where its blocks begin."""

    place: str  # a path or a URL
    base: str
    sha256: str
    photos: int
    block_size: int
    as_json: bool
    starts: np.ndarray  # int64 blocks + 1: the first byte of each block, and the end
    sums: np.ndarray  # uint32: CRC-32 of each block's bytes

    @classmethod
    def scan(cls, place: str, block_size: int) -> PhotoList:
        """Reads it. InputError, naming the line, for what is no list, and for names or ids that occur twice.

        Eight bytes a block stay in memory; and while this runs, eight for each name and each id that the list gives.
        """
        return _scan(place, block_size)

    @property
    def blocks(self) -> int:
        return len(self.sums)

    def block(self, number: int) -> Block:
        """Raises InputError where the list has changed since it was read."""
        start, end = int(self.starts[number]), int(self.starts[number + 1])
        lines = storage.read(self.place, start, end - start)
        if zlib.crc32(lines) != self.sums[number]:
            raise InputError(f"{self.place}: it has changed while it was worked on; start the command again")
        first = number * self.block_size + 1
        photos = min(self.block_size, self.photos + 1 - first)
        return Block(number, first, photos, lines, self.base, self.as_json)


def base_of(place: str) -> str:
    """The folder of a list, from which its relative paths start: not the one that a command happens to run in."""
    return place.rpartition("/")[0] if storage.is_url(place) else os.path.dirname(os.path.abspath(place))


def place_of(photo: str, base: str) -> str:
    """Where a photo of a list lies. base: `base_of` the list; an absolute path and a URL are from anywhere.

    Of a path the system resolves . and .., which are names like any other in a bucket.
    """
    if storage.is_url(photo) or os.path.isabs(photo):
        return photo
    parts = photo.split("/")
    place = storage.join(base, photo)
    if not storage.is_url(place) or not {".", ".."} & set(parts):
        return place
    kind, _, rest = base.partition("://")
    bucket, *folders = rest.rstrip("/").split("/")
    for part in parts:
        if part == "..":
            folders = folders[:-1]
        elif part != ".":
            folders.append(part)
    return f"{kind}://{'/'.join([bucket, *folders])}"


def _scan(place: str, block_size: int) -> PhotoList:
    digest, base = hashlib.sha256(), base_of(place)
    starts, sums = array("q"), array("I")
    given = _Given(place)
    photos = sum_ = 0
    end = 0
    as_json: bool | None = None
    for number, line in _lines(place):
        digest.update(line)
        if text := line.strip():
            if as_json is None:
                as_json = text.removeprefix(BOM).startswith(b"{")
            if photos % block_size == 0:
                if photos:
                    sums.append(sum_)
                starts.append(end)
                sum_ = 0
            photos += 1
            _check_line(line, f"{place}: line {number}")
            if as_json:
                given.look(number, text, photos, base)
            elif b"@" in text:
                _check_password(os.fsdecode(text), f"{place}: line {number}")
        end += len(line)
        sum_ = zlib.crc32(line, sum_)
    if not photos:
        raise InputError(f"{place}: names no photo; write a path or a URL a line")
    sums.append(sum_)
    starts.append(end)
    given.check()
    arrays = np.array(starts, np.int64), np.array(sums, np.uint32)
    return PhotoList(place, base, digest.hexdigest(), photos, block_size, bool(as_json), *arrays)


def _lines(place: str) -> Iterator[tuple[int, bytes]]:
    """Numbered from 1, with their ends."""
    if not storage.is_url(place) and not os.path.isfile(place):
        what = "a folder" if os.path.isdir(place) else "no file" if os.path.exists(place) else "no such file"
        raise InputError(f"{place}: {what}; a list of photos is a file, which is read more than once")
    size, number, rest = storage.size(place), 0, b""
    with progress_bar(total=size, title="reading the list", unit="B", shown=size > 4 * CHUNK) as bar:
        for start in range(0, size, CHUNK):
            chunk = rest + storage.read(place, start, min(CHUNK, size - start))
            bar.update(len(chunk) - len(rest))
            *lines, rest = chunk.split(b"\n")
            for number, line in enumerate(lines, number + 1):  # noqa: B020
                yield number, line + b"\n"
            if len(rest) > MOST_LINE:
                raise InputError(f"{place}: line {number + 1} has more than {MOST_LINE} bytes: no list of photos")
    if rest:
        yield number + 1, rest


def _check_line(line: bytes, where: str) -> None:
    if len(line) > MOST_LINE:
        raise InputError(f"{where} has more than {MOST_LINE} bytes: no list of photos")
    if b"\0" in line:
        raise InputError(f"{where} holds a zero byte: no list of photos; give a text file with a path or a URL a line")


def _check_password(photo: str, where: str) -> None:
    """The list's photos are named in the output."""
    if has_password(photo):
        raise InputError(
            f"{where}: a password in a URL would end up in the output; give it as fsspec's package takes it"
        )


def _entry(line: bytes, position: int, as_json: bool, base: str) -> Entry:
    """Of a line that `_scan` has seen."""
    line = line.rstrip(b"\r\n").removeprefix(BOM)
    content: dict[str, Any] = json.loads(line) if as_json else {"photo": os.fsdecode(line)}
    image_id = whole(content.get("image_id", position))
    assert image_id is not None
    photo = content["photo"]
    return Entry(image_id, content.get("name", f"{image_id:012}"), photo, place_of(photo, base))


class _Given:
    """What a JSON list says besides the photos: every line or none has a name, and an id, and no two have the same."""

    def __init__(self, place: str) -> None:
        self._place = place
        self._keys: frozenset[str] | None = None
        self._seen: dict[str, array[int]] = {"name": array("q"), "image_id": array("q")}

    def look(self, number: int, line: bytes, position: int, base: str) -> None:
        where = f"{self._place}: line {number}"
        try:
            content = json.loads(line.removeprefix(BOM))
        except (ValueError, RecursionError) as error:
            raise InputError(f"{where} is not JSON, as the first line is: {error}") from None
        _check_content(content, where)
        keys = frozenset(self._seen) & content.keys()
        if self._keys is None:
            self._keys = keys
        if keys != self._keys:
            key = next(iter(keys ^ self._keys))
            raise InputError(f"{where} {'has' if key in keys else 'lacks'} '{key}': give it in every line, or in none")
        for key in keys:
            value = content[key]
            self._seen[key].append(hash(value) if key == "name" else whole(value))  # type: ignore[arg-type]

    def check(self) -> None:
        """InputError where a name or an id occurs twice."""
        for key, seen in self._seen.items():
            values = np.sort(np.array(seen, np.int64))
            twice = set(values[1:][values[1:] == values[:-1]].tolist())
            if twice:
                self._compare(key, twice)

    def _compare(self, key: str, twice: set[int]) -> None:
        """Reads the list once more: different names may have the same hash."""
        lines: dict[object, list[int]] = defaultdict(list)
        for number, line in _lines(self._place):
            if line.strip():
                value = json.loads(line.strip().removeprefix(BOM))[key]
                value = whole(value) if key == "image_id" else value
                if (hash(value) if key == "name" else value) in twice:
                    lines[value].append(number)
        for value, numbers in lines.items():
            if len(numbers) > 1:
                raise InputError(
                    f"{self._place}: lines {numbers[0]} and {numbers[1]} have the same {key} {value!r:.60}; "
                    "give each its own"
                )


def _check_content(content: object, where: str) -> None:
    if not isinstance(content, dict):
        raise InputError(f'{where} is no object; write {{"photo": PATH OR URL}}')
    if unknown := content.keys() - set(KEYS):
        raise InputError(f"{where} has the unknown key {sorted(unknown)[0]!r:.60}; there are {', '.join(KEYS[:3])}")
    photo = content.get("photo")
    if not isinstance(photo, str) or not photo or "\0" in photo:
        raise InputError(f"{where}: {complaint(content, 'photo', 'a path or a URL')}")
    _check_password(photo, where)
    if "image_id" in content:
        image_id = whole(content["image_id"])
        if image_id is None or not 0 <= image_id <= MOST_ID:
            raise InputError(f"{where}: {complaint(content, 'image_id', f'an integer from 0 to {MOST_ID}')}")
    if "name" in content and (fault := name_fault(content["name"])):
        raise InputError(f"{where}: the name {content['name']!r:.60} {fault}")


def name_fault(name: object) -> str:
    """Why files cannot be called so, in a tar that anybody unpacks anywhere; "" where they can."""
    if not isinstance(name, str):
        return "is no text"
    parts = name.split("/")
    if not all(parts):
        return "begins or ends with a slash, or is empty; write it as seen from the output"
    if "." in name or "\\" in name:
        return "holds a dot or a backslash; write it without suffix, folders with /"
    if not name.isprintable():  # nor can half a character be printed
        return "holds a control character"
    if name.startswith("__"):
        return "begins with __, which is for the block's own files"
    if len(name.encode()) > MOST_NAME:
        return f"has more than {MOST_NAME} bytes"
    return ""
