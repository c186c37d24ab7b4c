"""Categories of one kind, things alone or stuff alone: the whole way through."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import pytest
import torch
from typer.testing import CliRunner

import eval.parity
import upsnet
from export.building import build_engine
from export.onnx_export import export_onnx
from tests.one_kind import Kind, keep_kind
from tests.training.tiny_network import SMALL, metrics, settings, shapes_split
from training.checkpoint import load, load_model, save
from training.loop import train
from training.predictor import UPSNetPredictor, make_manifest
from upsnet.command_line.command import make_app
from upsnet.contract import manifest_path
from upsnet.datasets.folder import PanopticFolder
from upsnet.datasets.shapes import write_shapes
from upsnet.manifest import Manifest
from upsnet.metrics.evaluation import METRICS, evaluate_records

INSTANCE_LOSSES = {"rpn_cls", "rpn_box", "rcnn_cls", "rcnn_box", "mask", "semantic_roi", "panoptic"}


class OneKind(NamedTuple):
    kind: Kind
    data: Path
    run: Path

    @property
    def rows(self) -> int:
        """K: of things the most detections alone; of stuff one row more, which stays empty."""
        return 8 if self.kind == "things" else 5


@pytest.fixture(scope="module", params=["things", "stuff"])
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> OneKind:
    """Three steps on two photos, then exported; of things it is made to find some, which takes longer to learn."""
    folder = tmp_path_factory.mktemp(request.param)
    shapes = write_shapes(folder / "shapes", {"train": 2, "val": 3}, sizes=[(64, 64), (64, 96)], progress=False)
    data, run = keep_kind(shapes, folder / "data", request.param), folder / "run"
    assert train(settings(data, model=SMALL, iterations=3, evaluate_every=3), run, "cpu") == 0
    if request.param == "things":
        checkpoint = load(run / "last.safetensors")
        checkpoint.model["box_head.logits.weight"].normal_(std=30.0, generator=torch.Generator().manual_seed(0))
        checkpoint.model["mask_head.score.bias"].fill_(1.0)
        checkpoint.model["semantic_head.score.bias"][0] = -1.0  # of the background
        save(run / "last.safetensors", checkpoint)
    export_onnx(run / "last.safetensors", run / "model.onnx")
    build_engine(run / "model.onnx", run / "engine")
    return OneKind(request.param, data, run)


def parity(trained: OneKind, out: Path, *options: str) -> list[dict[str, Any]]:
    """The columns of parity.json."""
    words = ["--run", str(trained.run), "--out", str(out), "--batch-sizes", "1", "2", *options]
    result = CliRunner(env={"COLUMNS": "160"}).invoke(make_app(eval.parity.main), words)
    assert result.exit_code == 0, result.output
    assert (out / "report.html").read_text().count("data:image/") >= 8
    columns: list[dict[str, Any]] = json.loads((out / "parity.json").read_text())["columns"]
    return columns


def test_training_has_the_losses_and_figures_of_its_kind(trained: OneKind) -> None:
    *steps, figures = metrics(trained.run)
    things = trained.kind == "things"
    for step in steps:
        assert step.keys() & INSTANCE_LOSSES == (INSTANCE_LOSSES if things else set())
        assert step["semantic"] > 0
    absent = {"pq_stuff"} if things else {"pq_things", "box_ap", "mask_ap"}
    assert {name for name, value in figures.items() if value is None} == absent
    assert figures["pq"] == figures["pq_things" if things else "pq_stuff"]
    assert load(trained.run / "best.safetensors").best_pq == figures["pq"]


def test_the_exported_graph_keeps_its_contract(trained: OneKind) -> None:
    proto = onnx.load(trained.run / "model.onnx")
    onnx.checker.check_model(proto, full_check=True)
    (segments,) = (output for output in proto.graph.output if output.name == "segments")
    assert [size.dim_value for size in segments.type.tensor_type.shape.dim[1:]] == [trained.rows, 7]
    assert Manifest.load(manifest_path(trained.run / "model.onnx")).max_segments == trained.rows
    nodes = {node.op_type for node in proto.graph.node if node.domain == "upsnet"}
    instance = {"RoiAlignFpn", "PaddedNms", "BestAnchors", "UsedRows", "AllRows"}
    assert nodes == {"DeformConv2d", "PanopticFusion"} | (instance if trained.kind == "things" else set())


def test_runtimes_give_the_same_pixels(trained: OneKind, tmp_path: Path) -> None:
    for column in parity(trained, tmp_path, "--runtimes", "pytorch", "onnxruntime"):
        assert column["identical"] >= 0.999
        groups = {group for group, quality in column["results"].items() if quality["pq"] is not None}
        assert groups == {"All", "Things" if trained.kind == "things" else "Stuff"}


@pytest.mark.triton
def test_a_real_server_gives_the_same_pixels(trained: OneKind, triton_environment: Path, tmp_path: Path) -> None:
    columns = parity(trained, tmp_path)
    assert {column["runtime"] for column in columns} == {"pytorch", "onnxruntime", "triton"}
    assert min(column["identical"] for column in columns) >= 0.999


def test_predictions_are_of_the_kind(trained: OneKind, tmp_path: Path) -> None:
    with upsnet.load(trained.run) as model:
        predictions = list(model.stream(trained.data / "val"))
    segments = [segment for prediction in predictions for segment in prediction.segments]
    assert segments
    assert {segment.isthing for segment in segments} == {trained.kind == "things"}
    assert {segment.category_id for segment in segments} <= {category.id for category in model.categories}
    predictions[0].save_coco(tmp_path)


def test_augmented_views_and_every_metric(trained: OneKind) -> None:
    model, config, categories, _ = load_model(trained.run / "last.safetensors")
    manifest = make_manifest(config, categories)
    predictor = UPSNetPredictor(model, manifest, torch.device("cpu"), short_sides=(64, 96), flip=True)
    folder = PanopticFolder(shapes_split(trained.data, "val"))
    figures = evaluate_records(predictor, folder, folder.records, METRICS).results(categories)
    assert (figures["box_ap"] is None) == (trained.kind == "stuff")
    assert figures["miou"] is not None
    photo, _ids = folder.read(folder.records[0])
    assert np.isin(predictor.predict_detailed([photo]).semantic, range(4)).all()
