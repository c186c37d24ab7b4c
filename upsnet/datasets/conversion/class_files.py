"""Tables of classes as people have them: JSON, CSV, text. docs/own-data.md lists the forms.

JSON: a list of categories or a file that holds one (COCO, panoptic and instances; Supervisely's meta.json; Mapillary's
config.json; Cityscapes' labels; CVAT's labels), a list of names, or an object {"road": 7}, {"7": "road"},
{"road": [128, 64, 128]}. YAML: the same, as YOLO's data.yaml. CSV, TSV and text with a line of column names: CamVid's
class_dict.csv, Roboflow's _classes.csv, ADE20K's objectInfo150.txt. Text: CVAT's labelmap.txt; a name a line; or with
a number or a colour before or after each name, as CamVid's label_colors.txt has them.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from upsnet.datasets.conversion.labels import Color
from upsnet.datasets.conversion.text import read_text
from upsnet.errors import InputError, first_line
from upsnet.files import read_json
from upsnet.json_values import MOST_ID, breaks_line, flag, is_visible, whole

MOST_BYTES = 1 << 22  # of a text; a JSON may be a whole data set's
# What a file calls the values of a class, in the order in which they are looked for, in small letters without " ", "_".
NAMES = ("readable", "name", "classname", "class", "labelname", "label", "title", "category")
IDS = ("id", "classid", "categoryid", "labelid", "idx", "index")
VALUES = ("value", "pixelvalue", "pngindex", "pixel", "pixelid", "greyvalue", "grayvalue")
COLORS = ("color", "colour", "rgb", "colorrgb", "hex")
CHANNELS = (("r", "g", "b"), ("red", "green", "blue"))
THINGS = ("isthing", "thing", "things", "hasinstances", "instances", "kind", "type")
STUFF = ("isstuff", "stuff")
VOIDS = ("void", "isvoid", "ignore", "ignored", "ignoreineval")
LISTS = ("categories", "labels", "classes", "names")
WORDS = {
    **{"1": True, "true": True, "yes": True, "thing": True, "things": True, "object": True},
    **{"0": False, "false": False, "no": False, "stuff": False},
}
# What people call pixels that nobody labelled, or that are not to be looked at: void, unless the table or the user says
# what they are.
NO_CLASS = frozenset(
    {"background", "_background_", "unlabeled", "unlabelled", "__ignore__", "ignore", "ignored", "void"}
)

LABELMAP = re.compile(r"(?P<name>.+?):(?P<color>\s*\d+\s*,\s*\d+\s*,\s*\d+\s*|\s*):[^:]*:[^:]*")
LINES = (
    re.compile(r"(?P<r>\d+)[\s,;]+(?P<g>\d+)[\s,;]+(?P<b>\d+)[\s,;]+(?P<name>\D.*)"),
    re.compile(r"(?P<name>.*\D)[\s,;]+(?P<r>\d+)[\s,;]+(?P<g>\d+)[\s,;]+(?P<b>\d+)"),
    re.compile(r"(?P<value>\d+)\s*[\s:=,;]\s*(?P<name>\S.*)"),
)


class ClassRow(NamedTuple):
    """A class as a table has it; None: the table does not say."""

    name: str
    id: int | None = None
    value: int | None = None  # of its pixels in a mask of one channel
    color: Color | None = None
    isthing: bool | None = None
    void: bool = False

    @property
    def is_void(self) -> bool:
        return self.void or (self.isthing is None and self.name.strip().casefold() in NO_CLASS)


class ClassTable(NamedTuple):
    """What a file says, in its order. `values` of a list of bare names are their places, from 0."""

    path: Path
    rows: list[ClassRow]
    counted: bool = False  # the values are places in the list, which no file says
    numbers_all: bool = False  # each pixel of a map of instances is one's: 0 too (Mapillary)


def read_class_table(path: Path) -> ClassTable:
    """Names have no blanks at their ends, but for those of JSON and YAML, which are as they are written.

    InputError names the file and the line, or the entry, that cannot be understood.
    """
    suffix = path.suffix.lower()
    if suffix == ".json":
        table = _of_json(path, read_json(path))
    elif suffix in (".yaml", ".yml"):
        table = _of_json(path, _read_yaml(path))
    else:
        table = _of_text(path, read_text(path, MOST_BYTES))
    if not table.rows:
        raise InputError(f"{path}: lists no class")
    lacking = next((row.name for row in table.rows if row.id is None), None)
    if lacking is not None and any(row.id is not None for row in table.rows):
        raise InputError(f"{path}: class '{lacking}' has no id, others have; give one to all or to none")
    return table


def numbered(rows: Sequence[ClassRow]) -> list[ClassRow]:
    """The same with ids: where they have none 1, 2, ... in their order, those that are void last."""
    if all(row.id is not None for row in rows):
        return list(rows)
    places = sorted(range(len(rows)), key=lambda place: rows[place].void)
    return [row._replace(id=places.index(place) + 1) for place, row in enumerate(rows)]


def _read_yaml(path: Path) -> Any:
    try:
        import yaml

        from upsnet.strict_yaml import load_yaml
    except ModuleNotFoundError:
        raise InputError(
            f"{path}: reading YAML needs the package pyyaml; give the table as JSON, CSV or text"
        ) from None
    try:
        return load_yaml(read_text(path, MOST_BYTES))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: not valid YAML: {first_line(error)}") from error


def _of_json(path: Path, content: object) -> ClassTable:
    holder: object = content
    if isinstance(content, Mapping):
        holder = next((content[key] for key in LISTS if isinstance(content.get(key), list | Mapping)), content)
    if isinstance(holder, Mapping):
        return _of_mapping(path, holder)
    if not isinstance(holder, list):
        raise InputError(f"{path}: holds no list of classes; give one as JSON, CSV or text")
    if all(isinstance(each, str) for each in holder):
        return _counted(path, holder, [f"entry {place}" for place in range(len(holder))])
    rows, numbers_all = [], False
    for place, entry in enumerate(holder):
        where = f"{path}: class {place}"
        if not isinstance(entry, Mapping):
            raise InputError(f"{where} is not an object: {entry!r:.40}")
        numbers_all |= "readable" in entry and "instances" in entry
        rows.append(_row({_plain(key): value for key, value in entry.items()}, where, strict=True))
    if numbers_all:  # Mapillary's values are places in its list
        scored = [entry.get("evaluate") is not False for entry in holder]
        rows = [row._replace(value=place, void=not scored[place]) for place, row in enumerate(rows)]
        return ClassTable(path, rows, False, True)
    return ClassTable(path, rows)


def _of_mapping(path: Path, content: Mapping[Any, Any]) -> ClassTable:
    """{"7": "road"}, {"road": 7}, {"road": [128, 64, 128]}, {"road": {"id": 7, ...}}."""
    rows = []
    for key, value in content.items():
        where = f"{path}: {str(key)!r:.40}"
        if isinstance(value, str) and _number(key) is not None:
            rows.append(_row({"value": key, "name": value}, where))
        elif isinstance(value, str | list):
            rows.append(_row({"name": key, "color": value}, where, strict=True))
        elif isinstance(value, Mapping):
            fields = {_plain(inner): each for inner, each in value.items()}
            number = {"value": _number(key)} if _number(key) is not None else {"name": key}
            rows.append(_row(number | fields, where, strict=True))
        elif whole(value) is not None:
            rows.append(_row({"name": key, "value": value}, where, strict=True))
        else:
            raise InputError(f"{where}: {value!r:.40} is neither a number, nor a colour, nor a name")
    return ClassTable(path, rows)


def _of_text(path: Path, text: str) -> ClassTable:
    numbered = [(number, line.strip()) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    lines = [(number, line) for number, line in numbered if not line.startswith("#")]
    if not lines:
        raise InputError(f"{path}: lists no class")
    header = [_plain(cell) for cell in _cells(lines[0][1])]
    if len(header) > 1 and not set(header).isdisjoint(NAMES) and not LABELMAP.fullmatch(lines[0][1]):
        return ClassTable(path, list(_of_columns(path, header, lines)))
    for form in (LABELMAP, *LINES):
        found = [form.fullmatch(line) for _, line in lines]
        if all(found):
            rows = [
                _row({key: value.strip() or None for key, value in match.groupdict().items()}, f"{path}: line {number}")
                for match, (number, _) in zip(found, lines, strict=True)
                if match
            ]
            if form is LABELMAP:  # a mask of one channel holds places in it
                rows = [row._replace(value=place) for place, row in enumerate(rows)]
            return ClassTable(path, rows, counted=form is LABELMAP)
    if path.suffix.lower() in (".csv", ".tsv") and len(header) > 1:
        wanted = "name, and id, value, r, g, b, color or isthing"
        raise InputError(f"{path}: line {lines[0][0]}: no column is called 'name'; columns can be {wanted}")
    return _counted(path, [line for _, line in lines], [f"line {number}" for number, _ in lines])


def _cells(line: str) -> list[str]:
    delimiter = next((each for each in ("\t", ";", ",") if each in line), ",")
    return next(csv.reader([line], delimiter=delimiter, skipinitialspace=True))


def _of_columns(path: Path, header: list[str], lines: list[tuple[int, str]]) -> Iterator[ClassRow]:
    for number, line in lines[1:]:
        cells = _cells(line)
        if len(cells) != len(header):
            raise InputError(f"{path}: line {number}: {len(cells)} values, the first line has {len(header)} columns")
        fields = {key: value.strip() or None for key, value in zip(header, cells, strict=True)}
        yield _row(fields, f"{path}: line {number}")


def _counted(path: Path, names: list[str], places: list[str]) -> ClassTable:
    """A name each. Labelme's convention: `__ignore__` as the first is -1, not 0."""
    first = 1 if names and names[0] == "__ignore__" else 0
    rows = [_row({"name": name}, f"{path}: {place}") for name, place in zip(names, places, strict=True)]
    rows = [row._replace(value=place - first if place >= first else None) for place, row in enumerate(rows)]
    return ClassTable(path, rows, counted=True)


def _row(fields: Mapping[str, Any], where: str, strict: bool = False) -> ClassRow:
    """strict: numbers are no texts."""
    name = _first(fields, NAMES)
    if not isinstance(name, str) or not name.strip():
        raise InputError(f"{where}: has no name")
    if breaks_line(name) or not is_visible(name):
        raise InputError(f"{where}: its name {name!r:.40} has a line break, a control character, or nothing visible")
    numbers: list[int | None] = []
    for keys in (IDS, VALUES):
        given = _first(fields, keys)
        number = whole(given) if strict else _number(given)
        if given is not None and (number is None or abs(number) > MOST_ID):
            quoted = "; write it without quotes" if strict and _number(given) is not None else ""
            raise InputError(f"{where}: '{keys[0]}' is {given!r:.40}, not an integer{quoted}")
        numbers.append(number)
    id, value = numbers
    things, stuff = _truth(_first(fields, THINGS)), _truth(_first(fields, STUFF))
    isthing = things if things is not None else None if stuff is None else not stuff
    void = bool(_truth(_first(fields, VOIDS)))
    return ClassRow(
        name, value if id is None else id, id if value is None else value, _color(fields, where), isthing, void
    )


def _first(fields: Mapping[str, Any], keys: tuple[str, ...]) -> Any:
    return next((fields[key] for key in keys if fields.get(key) is not None), None)


def _plain(key: object) -> str:
    return re.sub(r"[\s_-]", "", str(key)).casefold()


def _number(value: object) -> int | None:
    """An integer, or a text of one."""
    if isinstance(value, str):
        return int(value) if re.fullmatch(r"-?\d{1,18}", value.strip()) else None
    return whole(value)


def _truth(value: object) -> bool | None:
    if isinstance(value, str):
        return WORDS.get(value.strip().casefold())
    number = flag(value)
    return None if number is None else bool(number)


def _color(fields: Mapping[str, Any], where: str) -> Color | None:
    given = _first(fields, COLORS)
    for keys in CHANNELS:
        if given is None and all(fields.get(key) is not None for key in keys):
            given = [fields[key] for key in keys]
    if given is None:
        return None
    color = parse_color(given)
    if color is None:
        raise InputError(f"{where}: {given!r:.40} is no colour; write it as 128,64,128 or #804080")
    return color


def parse_color(value: object) -> Color | None:
    """[128, 64, 128], "128,64,128", "(128, 64, 128)" or "#804080"; a fourth value, the opacity, does not count."""
    if isinstance(value, str):
        if match := re.fullmatch(r"#?([0-9a-fA-F]{6})([0-9a-fA-F]{2})?", value.strip()):
            return tuple(bytes.fromhex(match[1]))  # type: ignore[return-value]
        value = re.split(r"[\s,;]+", value.strip().strip("()[]").strip())
    if not isinstance(value, list | tuple) or len(value) not in (3, 4):
        return None
    channels = [_number(channel) for channel in value[:3]]
    if any(channel is None or not 0 <= channel <= 255 for channel in channels):
        return None
    return tuple(channels)  # type: ignore[return-value,arg-type]
