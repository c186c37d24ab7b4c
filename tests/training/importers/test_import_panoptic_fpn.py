"""`upsnet import` of detectron2's Panoptic FPN: every tensor in its place and order, or named in one line."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests.training.importers.detectron2_files import STUFF, TABLE, THINGS, config, config_text, network, theirs
from tests.training.importers.original import call
from training.checkpoint import load_model
from training.config import Config, load_config
from training.importers.building import build, table_of
from training.importers.command import main
from training.importers.family import EPSILON, fit
from training.importers.panoptic_fpn.weights import PANOPTIC_FPN
from training.model.upsnet import UPSNet
from upsnet.categories import Categories
from upsnet.datasets import coco_categories
from upsnet.errors import InputError

Weights = dict[str, Tensor]
CATEGORIES = Categories.from_coco(TABLE)
FILE = Path("file.pkl")
CLASSES, SEMANTIC = "roi_heads.box_predictor.cls_score.", "sem_seg_head.predictor."


@pytest.fixture(scope="module")
def model() -> UPSNet:
    return network()


@pytest.fixture(scope="module")
def whole(model: UPSNet) -> Weights:
    return theirs(model)


@pytest.fixture
def weights(whole: Weights) -> Weights:
    """To change: the dictionary, not its tensors."""
    return dict(whole)


def built(weights: Weights, settings: Config | None = None, partial: bool = False) -> tuple[UPSNet, list[str]]:
    return build(settings or config(), PANOPTIC_FPN, weights, CATEGORIES, FILE, partial)


def fitted(model: UPSNet, weights: Weights, settings: Config | None = None) -> tuple[Weights, list[str]]:
    """What goes into a network like `model`, and what the user hears."""
    weights, lines = PANOPTIC_FPN.prepare(weights, settings or config(), FILE)
    state, problems = fit(model.state_dict(), PANOPTIC_FPN.sources(model), weights)
    return state, lines + problems


def same(state: Weights, wanted: UPSNet) -> list[str]:
    """Names of the tensors that are not equal."""
    return [name for name, tensor in wanted.state_dict().items() if not torch.equal(state[name], tensor)]


def test_command(tmp_path: Path, model: UPSNet, weights: Weights) -> None:
    """A zoo pickle, with what its files hold besides; the checkpoint has the configuration and the table."""
    arrays = {name: tensor.numpy() for name, tensor in weights.items()}
    anchors = {f"proposal_generator.anchor_generator.cell_anchors.{i}": arrays[f"{CLASSES}bias"] for i in range(5)}
    (tmp_path / "zoo.pkl").write_bytes(pickle.dumps({"model": arrays | anchors, "__author__": "x"}, 3))
    (tmp_path / "config.yaml").write_text(config_text())
    (tmp_path / "table.json").write_text(json.dumps(TABLE))
    options = ["--config", tmp_path / "config.yaml", "--categories", tmp_path / "table.json"]
    result = call(main, tmp_path / "zoo.pkl", *options, "--out", tmp_path / "run/last.safetensors")
    assert result.exit_code == 0, result.output
    assert "detectron2's Panoptic FPN" in result.stdout and len(result.stdout.splitlines()) == 1
    found, settings, categories, step = load_model(tmp_path / "run/last.safetensors")
    assert same(found.state_dict(), model) == [] and step == 0 and categories == CATEGORIES
    assert settings == load_config(tmp_path / "config.yaml") and settings.model.conventions == "detectron2"


def test_order_of_classes(model: UPSNet, weights: Weights) -> None:
    """By hand: the background first, the stuff before the things, zeros where the background has nothing."""
    head = {
        f"{SEMANTIC}bias": torch.tensor([90.0, 1, 2, 3]),  # things, then three kinds of stuff
        f"{CLASSES}bias": torch.tensor([10.0, 11, 80]),  # two things, then the background
        "roi_heads.box_predictor.bbox_pred.bias": torch.arange(8.0),
        "roi_heads.mask_head.predictor.bias": torch.tensor([5.0, 6]),
    }
    state, _ = fitted(model, weights | head)
    assert state["semantic_head.score.bias"].tolist() == [1, 2, 3, 90]
    assert state["box_head.logits.bias"].tolist() == [80, 10, 11]
    assert state["box_head.deltas.bias"].tolist() == [0, 0, 0, 0, *range(8)]
    assert state["mask_head.score.bias"].tolist() == [0, 5, 6]
    first = weights["backbone.bottom_up.stem.conv1.weight"]
    assert torch.equal(state["backbone.network.conv1.weight"][:, 0], first[:, 2])


def test_every_key_that_does_not_fit_is_named(model: UPSNet, weights: Weights) -> None:
    del weights["sem_seg_head.p4.2.norm.bias"]
    weights["backbone.fpn_lateral2.weight"] = weights["backbone.fpn_lateral2.weight"][:, :-1]
    weights["roi_heads.mask_head.predictor.bias"] = torch.tensor([torch.nan, 0])
    weights["roi_heads.box_head.fc1.bias"] = torch.zeros(16, dtype=torch.int64)
    weights["roi_heads.box_head.fc2.bias"] = torch.full((16,), 1e300, dtype=torch.float64)
    variance = "backbone.bottom_up.res3.1.conv2.norm.running_var"
    weights[variance] = weights[variance].clone()
    weights[variance][-1] = -1.0
    weights["spare.weight"] = torch.zeros(3)
    named = [
        "missing sem_seg_head.p4.2.norm.bias [8]",
        "backbone.fpn_lateral2.weight is [8, 255, 1, 1] instead of [8, 256, 1, 1]",
        "roi_heads.mask_head.predictor.bias is not finite",
        "roi_heads.box_head.fc1.bias is int64 instead of float32",
        "roi_heads.box_head.fc2.bias is not finite",
        f"{variance} is below 0, and no variance is",
        "unexpected spare.weight [3]",
    ]
    with pytest.raises(InputError) as error:
        built(weights)
    assert all(text in str(error.value) for text in named) and "7 keys" in str(error.value)
    found, lines = built(weights, partial=True)
    assert set(lines) == set(named)
    names = {"semantic_head.chains.2.1.norm.bias", "fpn.lateral.0.weight", "mask_head.score.bias", "box_head.fc6.bias"}
    names |= {"box_head.fc7.bias", "backbone.network.layer2.1.bn2.running_var"}
    assert set(same(found.state_dict(), model)) == names


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64, torch.bfloat16])
def test_other_types_become_float32(model: UPSNet, weights: Weights, dtype: torch.dtype) -> None:
    changed = {name: tensor.to(dtype) for name, tensor in weights.items() if "backbone" not in name}
    state, lines = fitted(model, weights | changed)
    assert lines == []
    assert all(not tensor.is_floating_point() or tensor.dtype == torch.float32 for tensor in state.values())
    name = "proposal_generator.rpn_head.conv.weight"
    assert torch.equal(state["rpn.conv.weight"], weights[name].to(dtype).float())


class TestDepth:
    def test_the_other_configuration_is_named(self, weights: Weights) -> None:
        settings = config(backbone={"kind": "timm", "name": "resnet101"})
        with pytest.raises(InputError, match=r"resnet50 \(6 blocks in res4\).* a resnet101: .*panoptic_fpn_r50\.yaml"):
            built(weights, settings)

    def test_a_deeper_one(self, weights: Weights) -> None:
        more = {f"backbone.bottom_up.res4.{i}.conv1.weight": torch.zeros(1) for i in range(23)}
        with pytest.raises(InputError, match=r"resnet101 \(23 blocks.* a resnet50: .*panoptic_fpn_r101\.yaml"):
            built(weights | more)

    def test_blocks_of_no_resnet_are_named(self, model: UPSNet, weights: Weights) -> None:
        more = {f"backbone.bottom_up.res4.{i}.conv1.weight": torch.zeros(1) for i in (6, 7)}
        assert fitted(model, weights | more)[1] == [f"unexpected {name} [1]" for name in more]

    @pytest.mark.parametrize(
        "backbone", [{"kind": "hybrid"}, {"kind": "bottleneck"}, {"kind": "timm", "name": "resnet18"}]
    )
    def test_another_backbone(self, weights: Weights, backbone: dict[str, str]) -> None:
        with pytest.raises(InputError, match="resnet50"):
            built(weights, config(backbone=backbone))


class TestRunning:
    """Means and variances of the backbone's normalisations."""

    def test_absent_pairs_are_0_and_1(self, model: UPSNet, weights: Weights) -> None:
        kept = {name: tensor for name, tensor in weights.items() if "running" not in name}
        state, lines = fitted(model, kept)
        assert len(lines) == 1 and lines[0].startswith("the backbone's normalisations lack running_mean")
        assert all(not tensor.any() for name, tensor in state.items() if name.endswith("running_mean"))
        assert all((tensor == 1).all() for name, tensor in state.items() if name.endswith("running_var"))

    def test_one_pair(self, model: UPSNet, weights: Weights) -> None:
        norm = "backbone.bottom_up.res3.1.conv2.norm"
        del weights[f"{norm}.running_mean"], weights[f"{norm}.running_var"]
        assert (
            f"1 of the backbone's normalisations lack running_mean and running_var ({norm}"
            in fitted(model, weights)[1][0]
        )

    def test_half_a_pair_is_missing(self, model: UPSNet, weights: Weights) -> None:
        del weights["backbone.bottom_up.res3.1.conv2.norm.running_var"]
        assert fitted(model, weights)[1] == ["missing backbone.bottom_up.res3.1.conv2.norm.running_var [128]"]

    def test_what_the_network_can_compute_with(self, model: UPSNet, weights: Weights) -> None:
        """A variance is 0 in a channel that is always the same, and a rounding may put it below."""
        assert all(norm.eps == EPSILON for norm in model.modules() if isinstance(norm, nn.BatchNorm2d))
        name = "backbone.bottom_up.res3.1.conv2.norm.running_var"
        for value, lines in ((0.0, []), (-1e-7, []), (-EPSILON, [f"{name} is below 0, and no variance is"])):
            assert fitted(model, weights | {name: torch.full((128,), value)})[1] == lines

    def test_counters_are_ignored(self, model: UPSNet, weights: Weights) -> None:
        weights["backbone.bottom_up.res3.1.conv2.norm.num_batches_tracked"] = torch.tensor(7)
        assert same(fitted(model, weights)[0], model) == []


class TestPixels:
    @staticmethod
    def pixels(mean: list[float]) -> Weights:
        return {"pixel_mean": torch.tensor(mean).reshape(3, 1, 1), "pixel_std": torch.ones(3, 1, 1)}

    def test_the_usual_ones_are_ignored(self, model: UPSNet, weights: Weights) -> None:
        state, lines = fitted(model, weights | self.pixels([103.53, 116.28, 123.675]))
        assert lines == [] and same(state, model) == []

    def test_others_need_a_configuration(self, model: UPSNet, weights: Weights) -> None:
        """BGR in the file, RGB in the configuration."""
        weights |= self.pixels([10.0, 20, 30])
        with pytest.raises(InputError, match=r"set model\.pixel_mean: \[30\.0, 20\.0, 10\.0\], now \[123\.675"):
            built(weights)
        assert fitted(model, weights, config(pixel_mean=[30, 20, 10]))[1] == []

    @pytest.mark.parametrize("values", [torch.zeros(0), torch.full((3,), torch.nan), torch.ones(4)])
    def test_odd_ones(self, weights: Weights, values: Tensor) -> None:
        with pytest.raises(InputError, match=r"model\.pixel_std"):
            built(weights | {"pixel_std": values})


class TestConfiguration:
    def test_every_key_to_set_is_named(self) -> None:
        settings = load_config(Path(__file__).parents[3] / "training/configs/coco_r50.yaml")
        with pytest.raises(InputError) as error:
            PANOPTIC_FPN.check(settings, Path("coco_r50.yaml"), FILE)
        keys = ["conventions: detectron2", "semantic_head.kind: chains", "panoptic.merge: heuristic"]
        keys += ["panoptic.by_class: true", "fpn.global_context: false"]
        assert all(f"model.{key}" in str(error.value) for key in keys)
        assert str(error.value).startswith("coco_r50.yaml: file.pkl") and "panoptic_fpn_r50.yaml" in str(error.value)

    @pytest.mark.parametrize("name", ["panoptic_fpn_r50", "panoptic_fpn_r101"])
    def test_the_shipped_ones_fit(self, project_root: Path, name: str) -> None:
        PANOPTIC_FPN.check(load_config(project_root / f"training/configs/{name}.yaml"), Path(name), FILE)

    def test_command(self, tmp_path: Path) -> None:
        torch.save({f"{SEMANTIC}weight": torch.zeros(4, 1, 1, 1)}, tmp_path / "file.pth")
        (tmp_path / "config.yaml").write_text(config_text(conventions="ours"))
        arguments = ["--config", tmp_path / "config.yaml", "--out", tmp_path / "out.safetensors"]
        result = call(main, tmp_path / "file.pth", *arguments)
        assert result.exit_code == 2 and "set model.conventions: detectron2; or take" in result.stderr
        result = call(main, tmp_path / "file.pth", *arguments, "--set", "model.conventions=detectron2")
        assert result.exit_code == 2 and "no Panoptic FPN: lacks" in result.stderr and "\n" not in result.stderr[:-1]


class TestClasses:
    def test_coco_is_known(self) -> None:
        weights = {f"{SEMANTIC}weight": torch.zeros(54, 1), f"{CLASSES}weight": torch.zeros(81, 1)}
        assert table_of(PANOPTIC_FPN, weights, FILE) == coco_categories()

    def test_others_need_categories(self, weights: Weights) -> None:
        with pytest.raises(InputError, match=f"{STUFF} stuff and {THINGS} thing classes, .* give --categories"):
            table_of(PANOPTIC_FPN, weights, FILE)

    @pytest.mark.parametrize(("name", "rows", "count"), [(f"{CLASSES}weight", 91, "90"), (f"{SEMANTIC}bias", 12, "11")])
    def test_tensors_that_contradict_each_other(self, weights: Weights, name: str, rows: int, count: str) -> None:
        weights[name] = torch.zeros(rows, *weights[name].shape[1:])
        with pytest.raises(InputError, match=r"file\.pkl: its tensors contradict each other") as error:
            table_of(PANOPTIC_FPN, weights, FILE)
        assert f"{count} by {name}" in str(error.value) and "--categories" not in str(error.value)
        with pytest.raises(InputError, match="contradict each other"):
            build(config(), PANOPTIC_FPN, weights, coco_categories(), FILE)

    def test_another_number(self, weights: Weights) -> None:
        with pytest.raises(InputError, match="has 3 stuff and 2 thing classes, expected 53 and 80"):
            build(config(), PANOPTIC_FPN, weights, coco_categories(), FILE)

    @pytest.mark.parametrize(("name", "words"), [(SEMANTIC, "Mask R-CNN"), (CLASSES, "cascades")])
    def test_another_network_of_detectron2(self, weights: Weights, name: str, words: str) -> None:
        del weights[f"{name}weight"]
        with pytest.raises(InputError, match=f"no Panoptic FPN: lacks {name}weight; .*{words}"):
            built(weights)

    def test_one_kind_alone(self, weights: Weights) -> None:
        weights[f"{SEMANTIC}weight"] = weights[f"{SEMANTIC}weight"][:1]
        with pytest.raises(InputError, match=r"which has stuff and things: .* make 0 and 2"):
            built(weights)

    def test_listed_order(self, model: UPSNet, weights: Weights) -> None:
        """A network whose classes are not in the order of their ids, as another metadata may have them."""
        listed = [CATEGORIES[i] for i in (4, 2, 0, 3, 1)]  # things 1, 0; stuff 2, 0, 1
        bias = model.state_dict()["semantic_head.score.bias"]
        found = build(config(), PANOPTIC_FPN, weights, CATEGORIES, FILE, listed=listed)[0].state_dict()
        own = model.state_dict()
        assert torch.equal(found["semantic_head.score.bias"], bias[[1, 2, 0, 3]])
        assert torch.equal(found["box_head.logits.weight"], own["box_head.logits.weight"][[0, 2, 1]])
        assert torch.equal(found["mask_head.score.weight"], own["mask_head.score.weight"][[0, 2, 1]])
        deltas = own["box_head.deltas.bias"].reshape(3, 4)
        assert torch.equal(found["box_head.deltas.bias"], deltas[[0, 2, 1]].flatten())
        assert torch.equal(found["rpn.conv.weight"], own["rpn.conv.weight"])

    def test_cityscapes_is_for_upsnet(self, weights: Weights) -> None:
        with pytest.raises(InputError, match="--to-cityscapes is for UPSNet"):
            build(config(), PANOPTIC_FPN, weights, CATEGORIES, FILE, cityscapes=True)
