"""`upsnet pull` from a server's file to a run that predicts, with a small network in the table."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from typer.testing import CliRunner, Result

import upsnet
from export.published import Source
from tests.training.importers.original import CONFIG, network, original_of
from tests.upsnet.zoo.conftest import files as files
from tests.upsnet.zoo.server import Files
from training.checkpoint import load_model
from upsnet.command_line import predict, pull
from upsnet.command_line.command import make_app
from upsnet.datasets import coco_categories
from upsnet.files import read_json
from upsnet.zoo.networks import CC_BY_SA, NETWORKS

NAME = "panoptic_fpn_r50_3x"  # under this name, a network of the original's kind: it is small
MADE = {
    ".pull.lock",
    "LICENSE",
    "config.yaml",
    "engine",
    "last.safetensors",
    "model.manifest.json",
    "model.onnx",
    "source.json",
}


def call(*arguments: str) -> Result:
    return CliRunner().invoke(make_app(pull.main), [NAME, "--yes", *arguments])


def times(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def published(files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Files:
    monkeypatch.setenv("UPSNET_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    stream = io.BytesIO()
    torch.save(original_of(network(53, 80)), stream)
    files.content = stream.getvalue()
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(CONFIG))
    entry = NETWORKS[NAME]._replace(
        address=files.address, file="small.pth", md5=hashlib.md5(files.content).hexdigest()[:6],
        config=str(tmp_path / "small.yaml"),
    )  # fmt: skip
    monkeypatch.setitem(NETWORKS, NAME, entry)
    return files


def test_from_a_file_to_a_prediction(published: Files, tmp_path: Path) -> None:
    run = Path("runs") / NAME
    published.cuts = [300_000]  # it breaks off once
    result = call()
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[-1] == f"now: upsnet predict photo.jpg --out out --run {NAME}"
    assert {path.name for path in run.iterdir()} == MADE
    source = Source.load(run / "source.json")
    assert source.sha256 == hashlib.sha256(published.content).hexdigest() and source.address == published.address
    text = (run / "LICENSE").read_text()
    assert all(each in text for each in (CC_BY_SA.name, CC_BY_SA.address, source.sha256, "What was changed"))
    assert f"MD5 begins with {NETWORKS[NAME].md5}, as published" in text
    model, config, categories, _ = load_model(run / "last.safetensors")
    assert categories == coco_categories() and config.name == "small"
    assert torch.equal(model.state_dict()["rpn.conv.weight"], network(53, 80).state_dict()["rpn.conv.weight"])
    assert read_json(run / "engine/engine.json")["onnxruntime"]["status"] == "built"

    before, asked = times(run), len(published.asked)
    again = call()
    assert again.exit_code == 0 and len(published.asked) == asked
    assert times(run) == before and again.stdout.count(": is there") == 3

    Image.new("RGB", (60, 40), (90, 120, 30)).save("photo.png")
    command = ["photo.png", "--out", "out", "--run", NAME]
    predicted = CliRunner().invoke(make_app(predict.main), command)
    assert predicted.exit_code == 0, predicted.output
    assert len(read_json(tmp_path / "out/predictions.json")["categories"]) == 133
    with upsnet.load(NAME) as loaded:
        assert (loaded.runtime, loaded.categories) == ("onnxruntime", coco_categories())


def test_a_step_at_a_time(published: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []
    monkeypatch.setattr("export.published._export", lambda *_: made.append("export"))
    monkeypatch.setattr("export.published._build", lambda *_: made.append("engine"))
    run = tmp_path / "elsewhere"
    assert call("--until", "download").exit_code == 0 and not run.exists()
    assert call("--until", "import", "--out", "elsewhere").exit_code == 0 and not made
    assert call("--until", "export", "--out", "elsewhere").exit_code == 0 and made == ["export"]
    result = call("--out", "elsewhere")
    assert made == ["export", "export", "engine"] and result.stdout.endswith("--run elsewhere\n")

    first = (run / "last.safetensors").read_bytes()  # another file under the same name: it is imported
    stream = io.BytesIO()
    torch.save(original_of(network(53, 80, seed=2)), stream)
    (tmp_path / "new.pth").write_bytes(stream.getvalue())
    monkeypatch.setitem(NETWORKS, NAME, NETWORKS[NAME]._replace(md5=""))
    assert call("--until", "import", "--out", "elsewhere", "--file", "new.pth").exit_code == 0
    assert (run / "last.safetensors").read_bytes() != first
    assert "no checksum of that is published" in (run / "LICENSE").read_text()
    assert Source.load(run / "source.json").sha256 == hashlib.sha256(stream.getvalue()).hexdigest()


def test_other_runs_are_left_alone(published: Files, tmp_path: Path) -> None:
    run = tmp_path / "runs" / NAME
    run.mkdir(parents=True)
    (run / "last.safetensors").write_bytes(b"trained for a week")
    result = call("--until", "import")
    assert (
        result.exit_code == 2 and "a run that was not pulled is there; give another folder with --out" in result.stderr
    )
    facts = {
        "name": "other",
        "page": "",
        "address": None,
        "file": "",
        "sha256": "",
        "licence": "",
        "licence_address": "",
    }
    Source.model_validate(facts).save(run / "source.json")
    result = call("--until", "import")
    assert result.exit_code == 2 and f"runs/{NAME}: other is there; give another folder with --out" in result.stderr
    assert (run / "last.safetensors").read_bytes() == b"trained for a week"


def test_a_file_that_cannot_be_imported_leaves_nothing(published: Files, tmp_path: Path) -> None:
    """Neither weights nor a note of whose they are; a run that is there stays whole."""
    weights = original_of(network(53, 80))
    weights.pop(next(iter(weights)))
    torch.save(weights, tmp_path / "less.pth")
    NETWORKS[NAME] = NETWORKS[NAME]._replace(md5="")  # the fixture puts the table right again
    run = tmp_path / "runs" / NAME

    def refused() -> None:
        result = call("--until", "import", "--file", "less.pth")
        assert result.exit_code == 2 and "missing" in result.stderr

    refused()
    assert [path.name for path in run.iterdir()] == [".pull.lock"]
    assert call("--until", "import").exit_code == 0
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    refused()
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before


def test_weights_without_a_note_do_not_stay(published: Files, tmp_path: Path) -> None:
    run = tmp_path / "runs" / NAME
    (run / "LICENSE").mkdir(parents=True)
    result = call("--until", "import")
    assert result.exit_code == 2 and "LICENSE: cannot be written" in result.stderr
    (run / "LICENSE").rmdir()
    assert not (run / "last.safetensors").exists() and call("--until", "import").exit_code == 0
