"""YAML in which a key stands twice is refused, wherever it is."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from training.config import load_config
from upsnet.datasets.conversion.class_files import read_class_table
from upsnet.errors import InputError
from upsnet.strict_yaml import load_yaml, load_yaml_texts


@pytest.mark.parametrize("text", ["a: 1\nb: 2\na: 1\n", "x: [{a: 1, a: 2}]", '{"a": 1, "\\u0061": 2}', "1: x\n1: y"])
def test_a_key_that_stands_twice(text: str) -> None:
    with pytest.raises(yaml.YAMLError, match=r"the key ('a'|1) stands twice, the second time in line \d"):
        load_yaml(text)
    with pytest.raises(yaml.YAMLError, match=r"the key ('a'|'1') stands twice, the second time in line \d"):
        load_yaml_texts(text)


def test_all_else_is_as_ever() -> None:
    text = "base: &base {a: 1, b: 2}\nother: {<<: *base, a: 3}\nlist: [{a: 1}, {a: 2}]\n"
    assert load_yaml(text) == yaml.safe_load(text) and load_yaml(text)["other"] == {"a": 3, "b": 2}
    with pytest.raises(yaml.YAMLError, match="unhashable"):
        load_yaml("? [a]\n: b")


def test_texts_stay_texts() -> None:
    assert load_yaml_texts("no: no\n0: 007\n1: [~, 1.0]") == {"no": "no", "0": "007", "1": ["~", "1.0"]}


def test_a_class_table(tmp_path: Path) -> None:
    (tmp_path / "classes.yaml").write_text("cat: 1\ndog: 2\ncat: 3\n")
    with pytest.raises(InputError, match=r"classes\.yaml: not valid YAML: the key 'cat' stands twice, the second .* 3"):
        read_class_table(tmp_path / "classes.yaml")


def test_a_configuration(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("name: a\nseed: 1\nname: b\n")
    with pytest.raises(InputError, match=r"c\.yaml: .*the key 'name' stands twice, the second time in line 3"):
        load_config(tmp_path / "c.yaml")
