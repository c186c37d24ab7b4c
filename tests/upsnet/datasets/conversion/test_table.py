"""Classes -> categories."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from upsnet.datasets.conversion.labels import LabelClass
from upsnet.datasets.conversion.table import Choice, free_color, make_table
from upsnet.errors import InputError

CLASSES = [LabelClass(0, "cat", 1, (9, 9, 9)), LabelClass(1, "road", 2), LabelClass(2, "rain", 3)]


def test_names_ids_and_colours_are_kept() -> None:
    table = make_table(CLASSES, Choice(stuff=["road"], void=["rain"]))
    assert [(each.name, each.id, each.isthing) for each in table.categories] == [("cat", 1, True), ("road", 2, False)]
    assert table.categories[0].color == (9, 9, 9)
    assert table.by_key == {0: table.categories[0], 1: table.categories[1], 2: None}


def test_a_table_gives_ids_colours_and_kinds(tmp_path: Path) -> None:
    path = tmp_path / "classes.json"
    rows = [(20, "rain", 0), (30, "road", 0), (7, "cat", 1), (8, "moose", 1)]
    path.write_text(json.dumps([{"id": id, "name": name, "isthing": thing} for id, name, thing in rows]))
    table = make_table(CLASSES, Choice(table=path))
    assert [(each.id, each.name) for each in table.categories] == [(7, "cat"), (30, "road"), (20, "rain"), (8, "moose")]
    path.write_text(json.dumps([{"id": 1, "name": "cta", "isthing": 1}]))
    with pytest.raises(InputError, match=r"classes.json: lacks the class 'cat' .* did you mean 'cta'\?"):
        make_table(CLASSES, Choice(table=path))


def test_blanks_at_the_ends_of_a_name_count(tmp_path: Path) -> None:
    """A table in JSON can have them, one in text cannot, which is said."""
    classes = [LabelClass(0, "cat ", 1)]
    rows = tmp_path / "classes.csv"
    rows.write_text('name,id\n"cat ",300\n')
    with pytest.raises(InputError, match=r"classes.csv: lacks the class 'cat ' .* only a table in JSON can have"):
        make_table(classes, Choice(table=rows))
    rows = tmp_path / "classes.json"
    rows.write_text('[{"name": "cat ", "id": 300}]')
    assert [(each.name, each.id) for each in make_table(classes, Choice(table=rows)).categories] == [("cat ", 300)]


@pytest.mark.parametrize(
    ("choice", "fault"),
    [
        (Choice(stuff=["raod"]), r"--stuff raod: no class has this name; did you mean 'road'\?"),
        (Choice(stuff=["road"], void=["road"]), "'road' is among --stuff and --void"),
        (Choice(background="cat"), "--background cat: this class is one of things"),
        (Choice(void=["cat", "road", "rain"]), "no class is left"),
    ],
)
def test_choices_that_do_not_fit(choice: Choice, fault: str) -> None:
    with pytest.raises(InputError, match=fault):
        make_table(CLASSES, choice)


def test_a_background_is_a_new_class_or_one_of_stuff() -> None:
    assert (
        make_table(CLASSES, Choice(background="rest")).background
        == make_table(CLASSES, Choice(background="rest")).categories[-1]
    )
    table = make_table(CLASSES, Choice(stuff=["road"], background="road"))
    assert table.background is not None and table.background.id == 2 and len(table.categories) == 3


def test_free_colours_differ() -> None:
    taken: set[tuple[int, int, int]] = set()
    for number in range(300):
        taken.add(free_color(number, taken))
    assert len(taken) == 300
