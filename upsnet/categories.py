"""Categories, and the contiguous order (stuff first, then things) that every stage uses."""

from __future__ import annotations

import colorsys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from upsnet.errors import InputError, one_line
from upsnet.json_values import MOST_ID, complaint, flag, whole

Channel = Annotated[int, Field(ge=0, le=255)]


class Category(BaseModel):
    """One category under its original id, as the data set's JSON has it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: int
    name: str = Field(min_length=1)
    isthing: bool
    color: tuple[Channel, Channel, Channel]


class Categories:
    """An immutable table in contiguous order: stuff in id order, then things in id order.

    Contiguous index i is the channel of the semantic head and the category of a result's segment.
    """

    def __init__(self, categories: Iterable[Category]) -> None:
        """Any order in. Raises InputError for an empty table or an id that occurs twice."""
        self._table = tuple(sorted(categories, key=lambda category: (category.isthing, category.id)))
        if not self._table:
            raise InputError("categories: the list is empty")
        twice = [id for id, count in Counter(category.id for category in self._table).items() if count > 1]
        if twice:
            raise InputError(f"categories: id {twice[0]} occurs more than once")

    @classmethod
    def from_coco(cls, entries: Iterable[Mapping[str, Any]]) -> Categories:
        """From the `categories` list of a COCO panoptic JSON (isthing 0/1; without a colour one is made from the id).

        Raises InputError for an empty list, missing keys, wrong types and duplicate ids.
        """
        return cls([_from_coco(index, entry) for index, entry in enumerate(entries)])

    def to_coco(self) -> list[dict[str, Any]]:
        """The `categories` list of a COCO panoptic JSON, in contiguous order."""
        return [
            {"id": category.id, "name": category.name, "isthing": int(category.isthing), "color": list(category.color)}
            for category in self._table
        ]

    def __len__(self) -> int:
        return len(self._table)

    def __getitem__(self, index: int) -> Category:
        return self._table[index]

    def __iter__(self) -> Iterator[Category]:
        return iter(self._table)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Categories) and self._table == other._table

    def __hash__(self) -> int:
        return hash(self._table)

    def __repr__(self) -> str:
        return f"Categories({self.num_stuff} stuff, {self.num_things} things)"

    @cached_property
    def num_stuff(self) -> int:
        return sum(not category.isthing for category in self._table)

    @property
    def num_things(self) -> int:
        return len(self) - self.num_stuff

    @property
    def names(self) -> list[str]:
        return [category.name for category in self._table]

    @cached_property
    def _index(self) -> dict[int, int]:
        return {category.id: index for index, category in enumerate(self._table)}

    def index_of_id(self, id: int) -> int:
        """Original category id -> contiguous index. Raises InputError for an unknown id."""
        try:
            return self._index[id]
        except KeyError:
            raise InputError(f"category id {id} is not in the table of {len(self)} categories") from None


def differences(mine: Categories, theirs: Categories, here: str, there: str, most: int = 5) -> str:
    """In which categories two tables differ (id, name, thing or stuff): the first `most` and how many more, or "".

    `here` and `there` say whose the tables are, as "the data set" and "the model". Colours don't matter.
    """
    own, other = ({category.id: category for category in table} for table in (mine, theirs))
    found = []
    for id in sorted(own.keys() | other.keys()):
        a, b = own.get(id), other.get(id)
        if a is None or b is None:
            only, where = (a, here) if a else (b, there)
            assert only is not None
            found.append(f"{id} '{only.name}' only in {where}")
        elif (a.name, a.isthing) != (b.name, b.isthing):
            found.append(f"{id} {_described(a)} in {here}, {_described(b)} in {there}")
    more = f"; and {len(found) - most} more" if len(found) > most else ""
    return "; ".join(found[:most]) + more


def _described(category: Category) -> str:
    return f"'{category.name}' ({'thing' if category.isthing else 'stuff'})"


def _from_coco(index: int, entry: Mapping[str, Any]) -> Category:
    where = f"categories[{index}]"
    if not isinstance(entry, Mapping):
        raise InputError(f"{where}: expected an object, got {type(entry).__name__}")
    for key in ("id", "name", "isthing"):
        if key not in entry:
            raise InputError(f"{where}: key '{key}' is missing")
    id, isthing = whole(entry["id"]), flag(entry["isthing"])
    if id is None or abs(id) > MOST_ID:
        raise InputError(f"{where}: {complaint(entry, 'id', 'an integer of 64 bits')}")
    if isthing is None:
        raise InputError(f"{where}: {complaint(entry, 'isthing', '0 or 1')}")
    color = entry.get("color")
    if isinstance(color, Sequence) and not isinstance(color, str):
        color = [whole(channel) for channel in color]
    try:
        return Category(
            id=id, name=entry["name"], isthing=bool(isthing), color=_color_of_id(id) if color is None else color
        )
    except ValidationError as error:
        raise InputError(f"{where}: {one_line(error)}") from error


def _color_of_id(id: int) -> tuple[int, int, int]:
    """A vivid colour; neighbouring ids are a golden angle of hue apart."""
    red, green, blue = colorsys.hsv_to_rgb(id * 0.618033988749895 % 1.0, 0.65, 0.9)
    return round(red * 255), round(green * 255), round(blue * 255)
