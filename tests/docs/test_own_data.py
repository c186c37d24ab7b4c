"""docs/own-data.md: its commands, as they stand there, on labels of every format."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import Mock

import pytest
from typer.testing import CliRunner

import training.train
from tests import label_folders
from tests.docs import pages
from tests.label_folders import write_labels
from tests.upsnet.datasets.conversion.truth import pixels
from training.data.open import open_training, open_validation
from upsnet.command_line.main import COMMANDS, make_root
from upsnet.datasets.folder import PanopticFolder
from upsnet.datasets.shapes import write_shapes

PAGE = pages.ROOT / "docs/own-data.md"
LINES = [shlex.split(line, comments=True) for line in pages.commands(PAGE.read_text())]
OURS = [words[1:] for words in LINES if words and words[0] == ".venv/bin/upsnet"]
CONVERTERS = [words for words in OURS if words[1].startswith("from-") and "--limit" not in words]
OTHERS = [words for words in OURS if words not in CONVERTERS]


@pytest.fixture(scope="module")
def truth(tmp_path_factory: pytest.TempPathFactory) -> PanopticFolder:
    folder = write_shapes(tmp_path_factory.mktemp("data") / "shapes", {"train": 12}, progress=False)
    return PanopticFolder(folder / "train.json")


@pytest.fixture(scope="module")
def labels(truth: PanopticFolder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("labels")
    write_labels(truth, folder / "labels")
    return folder


@pytest.fixture
def workplace(labels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (tmp_path / "labels").symlink_to(labels / "labels")
    (tmp_path / "training").symlink_to(pages.ROOT / "training")
    monkeypatch.chdir(tmp_path)
    yield tmp_path


def run(words: list[str]) -> str:
    result = CliRunner(env={"COLUMNS": "160"}).invoke(make_root(), words)
    assert result.exit_code == 0, f"upsnet {shlex.join(words)}: {result.output}"
    return result.output


def test_the_labels_to_try_the_page_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "`.venv/bin/python -m tests.label_folders labels`" in PAGE.read_text()
    monkeypatch.chdir(tmp_path)
    label_folders.main(Path("labels"), images=2)
    named = {word for words in CONVERTERS for word in words if word.startswith("labels/")}
    assert len(named) > 6 and {word for word in named if not Path(word).exists()} == set()


def test_every_converter_is_on_the_page() -> None:
    assert {f"data {words[1]}" for words in CONVERTERS} == {name for name in COMMANDS if name.startswith("data from-")}


@pytest.mark.parametrize("words", CONVERTERS, ids=lambda words: words[1])
def test_every_format_gives_the_truth_back(words: list[str], workplace: Path, truth: PanopticFolder) -> None:
    output = run(words)
    (json_file,) = (each for each in Path("data/custom").glob("*.json") if not each.stem.endswith("_conversion"))
    made = PanopticFolder(json_file)
    crowds = words[1] != "from-yolo"  # a format that knows none
    assert pixels(made, crowds) == pixels(truth, crowds)
    assert {(each.name, each.isthing) for each in made.categories} == {
        (each.name, each.isthing) for each in truth.categories
    }
    assert "12 images" in output and "0 errors, 0 warnings" in output


def test_from_labels_to_a_network(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rest of the page, in its order, up to the first step of training."""
    train = Mock(return_value=0)
    monkeypatch.setattr(training.train, "train", train)
    run(next(words for words in CONVERTERS if words[1] == "from-labelme"))
    for words in OTHERS:
        run([*words, "--workers", "1"] if words[0] == "data" else words)
    for made in ("data/first/show.html", "data/custom/val.json", "show.html"):
        assert (workplace / made).is_file(), made
    ((config, out, _), _) = train.call_args
    assert (config.schedule.iterations, out) == (20, Path("runs/try"))
    learned = open_training(config.data, config.seed)
    held_out = open_validation(config.data, learned.categories)
    assert len(learned) + len(held_out) == 12 and len(held_out) >= 2
