"""YAML as people write it by hand, JSON too: a key that stands twice is an error, where PyYAML takes the last one.

Needs PyYAML (extra `data`): import this where YAML is read.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import yaml

MERGE = "tag:yaml.org,2002:merge"


class _OneOfEach(yaml.constructor.BaseConstructor):
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys: set[Hashable] = set()
        for key_node, _ in node.value:  # before `<<` is resolved, whose keys may stand again
            if key_node.tag == MERGE:
                continue
            key = self.construct_object(key_node, deep=True)
            line = key_node.start_mark.line + 1
            if not isinstance(key, Hashable):
                continue  # refused below, in PyYAML's words
            if key in keys:
                raise yaml.YAMLError(f"the key {key!r} stands twice, the second time in line {line}")
            keys.add(key)
        return super().construct_mapping(node, deep)


class _Values(_OneOfEach, yaml.SafeLoader):
    pass


class _Texts(_OneOfEach, yaml.BaseLoader):
    pass


def load_yaml(text: str) -> Any:
    """As yaml.safe_load; yaml.YAMLError for a key that stands twice in one mapping, too."""
    return yaml.load(text, _Values)


def load_yaml_texts(text: str) -> Any:
    """The same with every value a text: `no` is one, not False."""
    return yaml.load(text, _Texts)


def leaves(values: Mapping[Any, object], prefix: str = "") -> dict[str, object]:
    """Nested mappings as one: {"schedule": {"lr": 1}} -> {"schedule.lr": 1}."""
    flat: dict[str, object] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= leaves(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
