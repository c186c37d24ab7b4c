from __future__ import annotations

import io

from rich.console import Console

from eval.tables import class_table
from upsnet.categories import Categories
from upsnet.tables import make_table


def test_a_class_may_have_the_name_of_a_style() -> None:
    names = ["[red]", "[/]", "[link=x]y", "a\\"]
    categories = Categories.from_coco([{"id": index, "name": name, "isthing": 0} for index, name in enumerate(names)])
    stream = io.StringIO()
    Console(file=stream, width=200).print(class_table({}, categories), make_table("[/]", "figure"))
    assert all(name in stream.getvalue() for name in names)
