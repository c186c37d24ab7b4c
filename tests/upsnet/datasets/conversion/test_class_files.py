"""Tables of classes in the forms that people have."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from upsnet.datasets.conversion.class_files import ClassRow, parse_color, read_class_table
from upsnet.datasets.conversion.labels import LabelClass
from upsnet.datasets.conversion.table import Choice, make_table
from upsnet.errors import InputError

GREEN = (0, 255, 7)
LABELMAP = "# label:color_rgb:parts:actions\nbackground:0,0,0::\ncat: 0, 255, 7 :head,tail:sits\nold car:::\n"
LABELMAP_ROWS = [
    ClassRow("background", None, 0, (0, 0, 0)),
    ClassRow("cat", None, 1, GREEN),
    ClassRow("old car", None, 2),
]
FORMS: list[tuple[str, object, list[ClassRow]]] = [
    ("coco.json", [{"id": 7, "name": "cat", "isthing": 1}], [ClassRow("cat", 7, 7, None, True)]),
    ("instances.json", {"categories": [{"id": 7, "name": "cat"}], "images": []}, [ClassRow("cat", 7, 7)]),
    ("meta.json", {"classes": [{"title": "cat", "color": "#00FF07", "id": 9}]}, [ClassRow("cat", 9, 9, GREEN)]),
    ("cvat.json", [{"name": "cat", "color": "#00ff07", "type": "any"}], [ClassRow("cat", color=GREEN)]),
    ("names.json", ["cat", "dog"], [ClassRow("cat", value=0), ClassRow("dog", value=1)]),
    ("id2label.json", {"0": "cat", "5": "dog"}, [ClassRow("cat", 0, 0), ClassRow("dog", 5, 5)]),
    ("label2id.json", {"cat": 3}, [ClassRow("cat", 3, 3)]),
    ("colors.json", {"cat": [0, 255, 7]}, [ClassRow("cat", color=GREEN)]),
    (
        "cityscapes.json",
        [{"name": "cat", "id": 3, "category": "animal", "hasInstances": True, "ignoreInEval": True}],
        [ClassRow("cat", 3, 3, None, True, True)],
    ),
    (
        "config.json",
        {
            "labels": [
                {"name": "animal--cat", "readable": "Cat", "instances": True, "color": [0, 255, 7], "evaluate": True},
                {"name": "void--unlabeled", "readable": "Unlabeled", "instances": False, "evaluate": False},
            ]
        },
        [ClassRow("Cat", None, 0, GREEN, True), ClassRow("Unlabeled", None, 1, None, False, True)],
    ),
    ("data.yaml", "nc: 2\nnames:\n  0: cat\n  1: dog\n", [ClassRow("cat", 0, 0), ClassRow("dog", 1, 1)]),
    ("labelmap.txt", LABELMAP, LABELMAP_ROWS),
    ("utf16.txt", LABELMAP.encode("utf-16"), LABELMAP_ROWS),
    ("class_dict.csv", "name,r,g,b\r\ncat,0,255,7\r\n", [ClassRow("cat", color=GREEN)]),
    ("_classes.csv", "Pixel Value, Class\n0, cat\n", [ClassRow("cat", 0, 0)]),
    (
        "quoted.csv",
        '\ufeffname;isthing;color\n"cat; big";no;"0,255,7"\n',
        [ClassRow("cat; big", None, None, GREEN, False)],
    ),
    (
        "info.txt",
        "Idx\tRatio\tTrain\tVal\tStuff\tName\n1\t0.5\t3\t4\t1\twall, x\n",
        [ClassRow("wall, x", 1, 1, None, False)],
    ),
    (
        "label_colors.txt",
        "0 255 7\tCat\n0 0 0\t\tVoid\n",
        [ClassRow("Cat", color=GREEN), ClassRow("Void", color=(0, 0, 0))],
    ),
    ("after.txt", "cat 0 255 7\n", [ClassRow("cat", color=GREEN)]),
    ("numbers.txt", "0: cat\n12: old car 2\n", [ClassRow("cat", 0, 0), ClassRow("old car 2", 12, 12)]),
    (
        "labels.txt",
        "__ignore__\n_background_\ncat\n",
        [ClassRow("__ignore__"), ClassRow("_background_", value=0), ClassRow("cat", value=1)],
    ),
    ("names.txt", "cat\n\n  old car, red \n", [ClassRow("cat", value=0), ClassRow("old car, red", value=1)]),
]


def write(path: Path, content: object) -> Path:
    text = content if isinstance(content, str | bytes) else json.dumps(content)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


@pytest.mark.parametrize(("name", "content", "rows"), FORMS, ids=[form[0] for form in FORMS])
def test_forms(tmp_path: Path, name: str, content: object, rows: list[ClassRow]) -> None:
    assert read_class_table(write(tmp_path / name, content)).rows == rows


@pytest.mark.parametrize(
    ("name", "content", "fault"),
    [
        ("a.csv", "name,r,g,b\ncat,0,256,7\n", r"line 2: \['0', '256', '7'\] is no colour"),
        ("a.csv", "name,r,g,b\ncat,0,25\n", "line 2: 3 values, the first line has 4 columns"),
        ("a.csv", "nome,r,g,b\ncat,0,25,1\n", "line 1: no column is called 'name'"),
        ("a.csv", "id,name\nx,cat\n", "line 2: 'id' is 'x', not an integer"),
        ("a.csv", "id,name\n1,cat\n,dog\n", "'dog' has no id, others have"),
        ("a.csv", "id,name\n1,\n", "line 2: has no name"),
        ("a.txt", "", "lists no class"),
        ("a.txt", b"\x89PNG\0\0", "not a text"),
        ("a.txt", "a" * (1 << 23), "over 4194304 bytes"),
        ("a.json", [{"id": "7", "name": "cat"}], "'id' is '7', not an integer; write it without quotes"),
        ("a.json", [{"id": 7}], "class 0: has no name"),
        ("a.json", [{"id": 7, "name": "a\nb"}], "line break"),
        ("a.json", [7], "class 0 is not an object"),
        ("a.json", 7, "holds no list of classes"),
        ("a.json", {"cat": None}, "neither a number, nor a colour, nor a name"),
        ("a.json", [{"name": "cat", "color": "green"}], "'green' is no colour"),
        ("a.json", "[" * 100_000, "not valid JSON"),
        ("a.yaml", "a: [", "not valid YAML"),
        ("none.csv", None, "cannot be read"),
    ],
)
def test_what_cannot_be_understood(tmp_path: Path, name: str, content: object, fault: str) -> None:
    if content is not None:
        write(tmp_path / name, content)
    with pytest.raises(InputError, match=fault) as caught:
        read_class_table(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)


def test_colours() -> None:
    assert (
        parse_color("(0, 255, 7)")
        == parse_color("#00ff07")
        == parse_color("00FF0780")
        == parse_color([0, 255, 7.0])
        == GREEN
    )
    assert {parse_color(each) for each in ("0,255", "0,255,-7", "#00ff0", [0, 255, True], [0, 255, 0.5], None)} == {
        None
    }


def test_a_table_says_what_it_knows_and_the_labels_say_the_rest(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", 'name,isthing,color\nbackground,,\nroad,0,\ncat,,"1,2,3"\nmoose,1,\n')
    classes = [LabelClass("c", "cat", 8), LabelClass("r", "road", 9, (4, 5, 6)), LabelClass("b", "background", 10)]
    table = make_table(classes, Choice(table=path))
    assert [(each.id, each.name, each.isthing) for each in table.categories] == [
        (2, "cat", True),
        (1, "road", False),
        (3, "moose", True),
    ]
    assert [each.color for each in table.categories[:2]] == [(1, 2, 3), (4, 5, 6)]
    assert table.by_key["b"] is None
    table = make_table(classes, Choice(table=path, background="background"))
    assert table.background == table.by_key["b"] and table.background is not None and not table.background.isthing


def test_two_classes_of_one_id_and_too_many(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "id,name\n1,cat\n1,dog\n")
    with pytest.raises(InputError, match="'cat' and 'dog' have the id 1; give each its own"):
        make_table([LabelClass("c", "cat", 8)], Choice(table=path))
    with pytest.raises(InputError, match="255 classes; the most is 254"):
        make_table([LabelClass(number, str(number), number) for number in range(255)], Choice())
