"""data.yaml of a YOLO data set: the classes, where the photos of each split are, what the rows are."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from upsnet import DISTRIBUTION
from upsnet.datasets.conversion.class_files import read_class_table
from upsnet.datasets.conversion.text import read_text
from upsnet.errors import InputError, first_line

SPLITS = {"train": "train", "val": "val", "validation": "val", "test": "test", "minival": "minival"}  # key -> name
NOTHING = ("", "~", "null", "Null", "NULL")
MOST_BYTES = 4 << 20
NAMES = ("data.yaml", "dataset.yaml", "data.yml", "dataset.yml")


class Description(NamedTuple):
    """What data.yaml says, or classes.txt where there is none."""

    file: Path
    names: dict[int, str]
    places: dict[str, list[str]]  # of each split: folders of photos, or files that list them
    path: str | None  # where the places start
    keypoints: int  # numbers of a pose in each row


def find(path: Path) -> Path:
    """The data.yaml of a folder, or its classes.txt; a file is what it is."""
    if not path.is_dir():
        return path
    for name in NAMES:
        if (path / name).is_file():
            return path / name
    others = sorted(each for each in path.iterdir() if each.suffix.lower() in (".yaml", ".yml"))
    if len(others) == 1:
        return others[0]
    if others:
        raise InputError(f"{path}: has {len(others)} YAML files, none is data.yaml; give {others[0].name} or another")
    for lists in (path / "classes.txt", path / "labels" / "classes.txt"):
        if lists.is_file() and (path / "images").is_dir():
            return lists
    cure = "give the YAML that has the names of the classes and the folders of train and val"
    raise InputError(f"{path}: no data.yaml there, nor classes.txt beside the folder images; {cure}")


def describe(file: Path) -> Description:
    """InputError names the file and the key."""
    if file.suffix.lower() == ".txt":
        rows = enumerate(read_class_table(file).rows)
        names = {index if row.value is None else row.value: row.name for index, row in rows}
        root = file.parent.parent if file.parent.name == "labels" else file.parent
        return Description(file, names, {"all": ["images"]}, str(root.absolute()), 0)
    content = _load(file)
    if not isinstance(content, dict) or "names" not in content:
        raise InputError(f"{file}: not the data.yaml of a YOLO data set: it has no key `names` with the classes")
    places = {}
    for key, name in SPLITS.items():
        found = _texts(content[key]) if key in content else []
        if found is None:
            raise InputError(f"{file}: {key}: give a folder of photos, a .txt file that lists them, or a list of these")
        if found and name in places:
            raise InputError(f"{file}: has both `val` and `validation`; keep one")
        if found:
            places[name] = found
    if not places:
        raise InputError(f"{file}: names no photos; give `train` and `val`, as `train: images/train`")
    path = content.get("path", "")
    if not isinstance(path, str):
        raise InputError(f"{file}: path: give one folder")
    names = _names(file, content)
    return Description(file, names, places, None if path in NOTHING else path, _keypoints(file, content))


def _load(file: Path) -> Any:
    """Every value is a text: a class that is named `no` is called so, not False."""
    try:
        import yaml

        from upsnet.strict_yaml import load_yaml_texts
    except ImportError as error:
        raise InputError(f"this needs the package pyyaml: pip install '{DISTRIBUTION}[data]'") from error

    try:
        return load_yaml_texts(read_text(file, MOST_BYTES))
    except yaml.MarkedYAMLError as error:
        line = f" (line {error.problem_mark.line + 1})" if error.problem_mark else ""
        raise InputError(f"{file}: not valid YAML: {error.problem}{line}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InputError(f"{file}: not valid YAML: {first_line(error)}") from error


def _texts(value: object) -> list[str] | None:
    """A text or a list of texts, or nothing; None: another thing."""
    values = value if isinstance(value, list) else [value]
    texts = [each for each in values if isinstance(each, str)]
    return [each for each in texts if each not in NOTHING] if len(texts) == len(values) else None


def _names(file: Path, content: dict[str, Any]) -> dict[int, str]:
    given = content["names"]
    if isinstance(given, list):
        names = dict(enumerate(given))
    elif isinstance(given, dict):
        names = {_whole(key, f"{file}: names"): name for key, name in given.items()}
    else:
        raise InputError(f"{file}: names: give a list of the classes, or `0: person` and so on")
    for number, name in names.items():
        if not isinstance(name, str) or not name.strip():
            raise InputError(f"{file}: names: class {number} has no name")
    if not names:
        raise InputError(f"{file}: names: lists no class")
    count = content.get("nc", "")
    if count not in NOTHING and _whole(count, f"{file}: nc") != len(names):
        raise InputError(f"{file}: nc is {count}, but names has {len(names)} classes; correct one of them")
    return names


def _keypoints(file: Path, content: dict[str, Any]) -> int:
    """kpt_shape: how many keypoints of how many numbers."""
    if "kpt_shape" not in content:
        return 0
    shape = _texts(content["kpt_shape"])
    if shape is None or len(shape) != 2:
        raise InputError(f"{file}: kpt_shape: give two numbers, as [17, 3]")
    count, each = (_whole(text, f"{file}: kpt_shape") for text in shape)
    return count * each


def _whole(value: object, where: str) -> int:
    text = value if isinstance(value, str) else ""
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        shown = f"'{text[:40]}'" if text else "this"
        raise InputError(f"{where}: {shown} is not a whole number from 0 on")
    return int(text)
