"""YAML configurations and `--set`: what is accepted, trains as far as its plan and its network are concerned."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st

from tests.fuzz.mutations import TEXTS, damaged, dump, fuzzed, mutated, refused
from training.config import Config, dump_config, load_config, parse_config
from training.model.upsnet import UPSNet
from training.schedule import lr_factor, make_plan

CONFIGS = Path("training/configs")
DOCUMENTS: list[Any] = [
    yaml.safe_load((CONFIGS / name).read_text()) for name in ("shapes.yaml", "coco_r101_dcn_3x.yaml")
]
YAML = [
    "&a [*a]",
    "2020-13-45",
    "!!python/name:os.system",
    "0x",
    "1:99:99",
    "!!float x",
    "? [a]\n: b",
    "- a",
    "'",
    "*b",
]
BOMB = "a0: &a0 [1]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 30))
OVERRIDES = [*TEXTS, *YAML, "1e400", "9" * 5000, "[" * 1500, "null", "{}", "[1, 2]", "1e999999999", ".nan"]


def consistent(text: str, folder: Path, *overrides: str) -> None:
    """What loads is finite, and is the same after it was written and read again."""
    path = folder / "config.yaml"
    path.write_text(text, encoding="utf-8", errors="surrogatepass")
    with refused("config.yaml" if not overrides else ""):
        config = load_config(path, overrides)
        assert all(math.isfinite(number) for number in numbers(config.model_dump(mode="json")))
        assert parse_config(yaml.safe_load(dump_config(config)), "again") == config
        plan(config)


def plan(config: Config) -> None:
    """What a run does with its configuration before the first image, but for memory: on "meta" tensors have none."""
    made = make_plan(config.schedule, 1)
    lr_factor(made.iterations, made)
    if config.model.backbone.kind == "hybrid" and sum(config.model.backbone.depths) < 100:
        with torch.device("meta"):
            UPSNet(config.model, 2, 2)


def numbers(value: Any) -> list[float]:
    if isinstance(value, dict | list):
        return [number for each in (value.values() if isinstance(value, dict) else value) for number in numbers(each)]
    return [value] if isinstance(value, int | float) else []


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("config")


@fuzzed(150)
@given(st.sampled_from(DOCUMENTS).flatmap(mutated))
def test_values(folder: Path, document: Any) -> None:
    consistent(dump(document), folder)


@fuzzed(60)
@given(damaged((CONFIGS / "shapes.yaml").read_bytes()))
def test_bytes(folder: Path, content: bytes) -> None:
    path = folder / "config.yaml"
    path.write_bytes(content)
    with refused("config.yaml"):
        load_config(path)


@pytest.mark.parametrize(
    "text", [*YAML, BOMB, "[" * 1500, "a: " * 1500, "9" * 5000, "a: " + "9" * 5000, "\0", "name: {[]: 1}"]
)
def test_yaml_of_its_own(folder: Path, text: str) -> None:
    consistent(text, folder)


def keys(value: Any, prefix: str = "") -> list[str]:
    if not isinstance(value, dict):
        return [prefix]
    return [prefix, *(name for key, child in value.items() for name in keys(child, f"{prefix}.{key}".lstrip(".")))]


KEYS = keys(Config.model_validate(DOCUMENTS[0]).model_dump(mode="json"))


@fuzzed(50)
@given(
    st.lists(
        st.tuples(st.sampled_from([*KEYS, "", ".", "a..b", "model.backbone.deformable"]), st.sampled_from(OVERRIDES)),
        min_size=1,
        max_size=3,
    ),
    st.sampled_from("=="),
)
def test_overrides(folder: Path, pairs: list[tuple[str, str]], sign: str) -> None:
    consistent(dump(copy.deepcopy(DOCUMENTS[0])), folder, *(f"{key}{sign}{value}" for key, value in pairs))
