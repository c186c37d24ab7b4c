"""All metrics together: parts add up exactly, the command line, and real photos through a small random network."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from eval import evaluate as evaluate_module
from eval.evaluate import evaluate, main, parse_metrics
from upsnet.command_line.command import make_app
from upsnet.datasets.folder import PanopticFolder
from upsnet.errors import InputError
from upsnet.geometry import collate, to_network
from upsnet.metrics.evaluation import METRICS, Partial, evaluate_records, merge
from upsnet.runtimes.options import RuntimeOptions
from upsnet.runtimes.predictor import Details, Instances

Fake = Callable[..., Any]


def details_of(self: Any, photos: Sequence[np.ndarray]) -> Details:
    """The fake predictor's segments, as a semantic map and instances too; dogs are found half a dog too far right."""
    nets = [to_network(photo, self.manifest.resize) for photo in photos]
    raw = self.predict(collate(nets))
    semantic = np.zeros(raw.panoptic.shape, np.uint8)
    boxes, categories = np.zeros((len(nets), 3, 4), np.float32), np.zeros((len(nets), 3), np.int64)
    counts = np.zeros(len(nets), np.int32)
    for index, panoptic in enumerate(raw.panoptic):
        for row in range(raw.segment_count[index]):
            category, mask = int(raw.segments[index, row, 0]), panoptic == row + 1
            semantic[index][mask] = category
            if category < 2 or not mask.any():
                continue
            (y1, y2), (x1, x2) = ((place.min(), place.max() + 1) for place in np.nonzero(mask))
            shift = (x2 - x1) / 2 if category == 2 else 0
            boxes[index, counts[index]] = x1 + shift, y1, x2 + shift, y2
            categories[index, counts[index]] = category
            counts[index] += 1
    scores = np.broadcast_to(np.array([0.9, 0.8, 0.7], np.float32), categories.shape)
    masks = np.ones((*categories.shape, 28, 28), np.float32)
    return Details(nets, raw, semantic, Instances(boxes, scores, categories, counts, masks))


@pytest.fixture
def detailed(fake: Any) -> Fake:
    """The fake predictor that gives all details."""
    return type("DetailedFake", (fake,), {"augments": False, "predict_detailed": details_of})


@pytest.fixture
def folder(gt_json: Path) -> PanopticFolder:
    return PanopticFolder(gt_json)


@pytest.mark.parametrize("world", [2, 3, 7])
def test_parts_add_up_to_the_whole_exactly(folder: PanopticFolder, detailed: Fake, world: int) -> None:
    """Pickled, as between processes; more processes than images too."""
    predictor = detailed("fake", damage=((48, 48), 0.6))
    whole = evaluate_records(predictor, folder, folder.records, METRICS)
    parts = [evaluate_records(predictor, folder, folder.records[rank::world], METRICS) for rank in range(world)]
    total = merge(pickle.loads(pickle.dumps(part)) for part in reversed(parts))
    assert total.report(folder.categories).keys() == whole.report(folder.categories).keys()
    assert total.results(folder.categories) == whole.results(folder.categories)
    assert total.pq is not None and whole.pq is not None
    assert total.pq.results(folder.categories) == whole.pq.results(folder.categories)
    assert max(len(pickle.dumps(part)) for part in parts) < 10_000


def test_figures(folder: PanopticFolder, detailed: Fake) -> None:
    """Of the photos' five dogs one is grass in the truth. Dogs are found with an IoU of a third: never."""
    figures = evaluate_records(detailed("fake"), folder, folder.records, METRICS).results(folder.categories)
    assert list(figures) == ["pq", "pq_things", "pq_stuff", "miou", "box_ap", "mask_ap"]
    assert figures["pq_things"] == pytest.approx((4 / 4.5 + 1) / 2)
    report = evaluate_records(detailed("fake"), folder, folder.records, ["ap", "miou"]).report(folder.categories)
    assert report.keys() == {"ap", "miou"}
    assert report["ap"]["box"]["per_class"]["3"] == 0 and report["ap"]["box"]["per_class"]["7"] > 0.5
    dogs, wrong = 10 * 14 * 5, 10 * 14  # the dog's box, which nothing covers
    assert report["miou"]["per_class"]["3"] == pytest.approx((dogs - wrong) / dogs, abs=0.02)
    assert report["miou"]["per_class"]["9"] == pytest.approx(1, abs=0.02)


def test_no_images_and_wrong_metrics(folder: PanopticFolder, fake: Fake) -> None:
    nothing = evaluate_records(fake("x"), folder, [])
    assert nothing.results(folder.categories) == {"pq": None, "pq_things": None, "pq_stuff": None}
    with pytest.raises(InputError, match="x gives panoptic maps alone: ap and miou need the runtime pytorch"):
        evaluate_records(fake("x"), folder, folder.records, METRICS)
    with pytest.raises(InputError, match="not 'speed'"):
        Partial(["speed"], folder.categories)  # type: ignore[list-item]
    with pytest.raises(InputError, match="not none"):
        Partial([], folder.categories)
    with pytest.raises(ValueError, match="only one of the two parts has gathered pq"):
        merge([Partial(["pq"], folder.categories), Partial(["ap"], folder.categories)])


def test_report_and_files_of_an_evaluation(folder: PanopticFolder, detailed: Fake, tmp_path: Path) -> None:
    out = tmp_path / "out"
    report = evaluate(detailed("pytorch"), folder, out, 2, METRICS)
    assert json.loads((out / "pq.json").read_text()) == report
    assert {"results", "per_class", "warnings", "runtime", "images", "ap", "miou"} <= report.keys()
    rows = json.loads((out / "instances.json").read_text())
    assert len(rows) == 15 and {row["category_id"] for row in rows} == {3, 7}
    official = json.loads((out / "predictions.json").read_text())["annotations"][0]
    assert official.keys() == {"image_id", "file_name", "segments_info"}
    assert official["file_name"].endswith(".png")
    assert {"id", "category_id", "area", "bbox", "iscrowd"} <= official["segments_info"][0].keys()


def invoke(*arguments: object) -> Any:
    return CliRunner().invoke(make_app(main), [str(argument) for argument in arguments])


class TestCommand:
    def test_tables(self, gt_json: Path, detailed: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        asked: list[RuntimeOptions] = []

        def open_fake(options: RuntimeOptions) -> Any:
            asked.append(options)
            return detailed(options.runtime)

        monkeypatch.setattr(evaluate_module, "open_runtime", open_fake)
        arguments = ["--gt-json", gt_json, "--out", tmp_path / "out", "--runtime", "pytorch"]
        answer = invoke(*arguments, "--flip", "--scales", "40", "48", "--per-class", "--device", "cpu")
        assert answer.exit_code == 0, answer.output
        assert (asked[0].short_sides, asked[0].flip, asked[0].device) == ([40, 48], True, "cpu")
        for word in ("PQ", "mIoU", "APs", "grass", "mask AP"):
            assert word in answer.output
        plain = invoke(*arguments, "--metrics", "miou")
        assert plain.exit_code == 0 and "grass" not in plain.output and "APs" not in plain.output
        assert "results" not in json.loads((tmp_path / "out/pq.json").read_text())

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (["--flip"], "--flip and --scales need --runtime pytorch: onnxruntime"),
            (["--runtime", "triton", "--scales", "640"], "--flip and --scales need --runtime pytorch: triton"),
            (["--metrics", "pq", "fid"], "no metric 'fid'; there are pq, ap, miou"),
        ],
    )
    def test_refusals(self, tmp_path: Path, options: list[str], message: str) -> None:
        answer = invoke("--out", tmp_path / "out", *options)
        assert answer.exit_code == 2 and message in answer.output
        assert not (tmp_path / "out").exists()

    def test_metrics_by_default(self) -> None:
        assert parse_metrics([], METRICS) == ("pq", "ap", "miou") and parse_metrics([], ("pq",)) == ("pq",)
        assert parse_metrics(["miou", "pq"], ()) == ("pq", "miou")


def test_real_photos_through_every_metric(shared_data: Path, project_root: Path, tmp_path: Path) -> None:
    """Two photos that no training saw, a small network with random weights, mirrored and at two sizes."""
    import torch

    from training.config import load_config
    from training.model.upsnet import UPSNet
    from training.predictor import UPSNetPredictor
    from upsnet.manifest import Manifest

    sample = shared_data / "coco_sample"
    folder = PanopticFolder(sample / "annotations/panoptic_val2017.json")
    folder.records = folder.records[:2]  # type: ignore[assignment]
    config = load_config(project_root / "training/configs/coco_sample.yaml")
    torch.manual_seed(0)
    model = UPSNet(config.model, folder.categories.num_stuff, folder.categories.num_things)
    torch.nn.init.normal_(model.box_head.logits.weight, std=8.0)
    manifest = Manifest(
        name="random", categories=list(folder.categories), resize=config.data.resize, max_detections=100
    )
    predictor = UPSNetPredictor(model, manifest, torch.device("cpu"), short_sides=(160, 192), flip=True)
    report = evaluate(predictor, folder, tmp_path / "out", 2, METRICS)
    assert report["images"] == 2 and 0 <= report["results"]["All"]["pq"] < 0.2
    assert 0 <= report["miou"]["miou"] < 0.2 and 0 <= report["ap"]["mask"]["AP"] < 0.2
    assert model.training, "the network is left as it was"
    assert json.loads((tmp_path / "out/instances.json").read_text())
