"""`upsnet import`: every key in its place or in the report, classes moved to Cityscapes, hostile files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from typer.testing import Result

from tests.training.importers.original import TABLE, call, network, original_of, write_files
from training.checkpoint import load_model
from training.importers.command import main
from training.importers.upsnet.keys import original_names
from training.importers.upsnet.weights import (
    COCO_CHANNELS,
    COCO_THINGS,
    class_counts,
    to_cityscapes,
)
from training.model.upsnet import UPSNet
from upsnet.categories import Categories
from upsnet.datasets.cityscapes import categories
from upsnet.errors import InputError

CITYSCAPES = categories(train_ids=True)


@pytest.fixture
def files(tmp_path: Path) -> Path:
    return write_files(tmp_path)


def run(folder: Path, *arguments: str, checkpoint: str = "original.pth") -> Result:
    return call(main, folder / checkpoint, "--config", folder / "config.yaml", *arguments)


def written(folder: Path) -> list[str]:
    return ["--categories", str(folder / "categories.json"), "--out", str(folder / "out.pt")]


class TestCommand:
    @pytest.mark.parametrize("prefix", ["", "module."])
    @pytest.mark.parametrize("counters", [True, False])
    def test_every_tensor_arrives(self, files: Path, prefix: str, counters: bool) -> None:
        weights = original_of(network()).items()
        kept = {prefix + k: v for k, v in weights if counters or not k.endswith("num_batches_tracked")}
        torch.save(kept, files / "original.pth")
        result = run(files, *written(files))
        assert result.exit_code == 0, result.output
        model, config, categories, step = load_model(files / "out.pt")
        wanted = network().state_dict()
        assert all(torch.equal(tensor, wanted[key]) for key, tensor in model.state_dict().items())
        assert config.model.conventions == "upsnet" and step == 0
        assert categories.names == [entry["name"] for entry in TABLE]

    def test_every_key_that_does_not_fit_is_named(self, files: Path) -> None:
        weights = original_of(network())
        del weights["rpn.cls_score.bias"]
        weights["fpn.fpn_gap.weight"] = weights["fpn.fpn_gap.weight"][:, :-1]
        weights["spare.weight"] = torch.zeros(3)
        variance = "resnet_backbone.conv1.bn1.running_var"
        weights[variance].fill_(-1.0)
        torch.save(weights, files / "original.pth")
        result = run(files, *written(files))
        assert result.exit_code == 2 and not (files / "out.pt").exists()
        named = ["missing rpn.cls_score.bias [3]", "fpn.fpn_gap.weight is [8, 7] instead of [8, 8]"]
        named.append(f"{variance} is below 0, and no variance is")
        assert all(text in result.stderr for text in [*named, "unexpected spare.weight [3]", "4 keys"])
        result = run(files, *written(files), "--partial")
        assert result.exit_code == 0 and all(text in result.output for text in named)
        state, wanted = load_model(files / "out.pt")[0].state_dict(), network().state_dict()
        differing = [key for key in state if not torch.equal(state[key], wanted[key])]
        # a missing bias is zero in a new network, and its variance 1, as they were
        assert differing == ["fpn.context.weight"]

    def test_a_modern_configuration_is_refused(self, files: Path) -> None:
        result = run(files, *written(files), "--set", "model.conventions=ours")
        assert result.exit_code == 2 and "model.conventions: upsnet" in result.stderr

    @pytest.mark.parametrize("part", ["fpn", "semantic_head", "mask_head"])
    def test_normalisations_that_the_original_lacks(self, files: Path, part: str) -> None:
        result = run(files, *written(files), "--set", f"model.{part}.norm=group")
        assert result.exit_code == 2 and f"set model.{part}.norm: none; or take" in result.stderr

    def test_other_classes_are_refused(self, files: Path) -> None:
        (files / "categories.json").write_text(json.dumps(TABLE[:3]))
        result = run(files, *written(files))
        assert result.exit_code == 2 and "2 stuff and 2 thing classes, expected 2 and 1" in result.stderr

    @pytest.mark.parametrize(
        ("name", "words"),
        [("rcnn.cls_score.weight", "thing classes: 3 by"), ("fcn_head.score.weight", "classes in all: 5 by")],
    )
    def test_tensors_that_contradict_each_other(self, files: Path, name: str, words: str) -> None:
        weights = original_of(network())
        weights[name] = torch.cat([weights[name], weights[name][:1]])
        torch.save(weights, files / "original.pth")
        result = run(files, *written(files))
        assert result.exit_code == 2 and f"contradict each other, {words} {name}; " in result.stderr, result.stderr

    def test_nothing_to_do(self, files: Path) -> None:
        assert "--out" in run(files).stderr

    @pytest.mark.parametrize(
        "content", [[1, 2], {"epoch": 3}, {"state_dict": {"a": torch.zeros(1)}}, {"a": torch.zeros(1)}, {}]
    )
    def test_other_files_are_refused(self, files: Path, content: object) -> None:
        torch.save(content, files / "bad.pth")
        result = run(files, *written(files), checkpoint="bad.pth")
        assert result.exit_code == 2 and "bad.pth" in result.stderr

    def test_no_file_and_no_archive(self, files: Path) -> None:
        (files / "text.pth").write_text("weights")
        for name in ("text.pth", "absent.pth"):
            assert name in run(files, *written(files), checkpoint=name).stderr


class TestCityscapes:
    @pytest.fixture(scope="class")
    def coco(self) -> UPSNet:
        return network(53, 80)

    def test_rows_are_moved(self, coco: UPSNet) -> None:
        table = Categories.from_coco(CITYSCAPES)
        fresh, source = network(11, 8, seed=2).state_dict(), coco.state_dict()
        state, lines = to_cityscapes(fresh, source, table)
        network(11, 8).load_state_dict(state)
        rider = 1 + table.names.index("rider") - 11
        labels = {0: 0} | {1 + table.names.index(name) - 11: label for name, label in COCO_THINGS.items()}
        for key in ("box_head.logits.weight", "mask_head.score.weight", "box_head.logits.bias"):
            assert all(torch.equal(state[key][own], source[key][label]) for own, label in labels.items())
            assert torch.equal(state[key][rider], fresh[key][rider])
        deltas, given = (each["box_head.deltas.weight"].unflatten(0, (-1, 4)) for each in (state, source))
        assert torch.equal(deltas[3], given[3]) and torch.equal(deltas[8], given[2])  # car, bicycle
        score = "semantic_head.score.weight"
        assert torch.equal(state[score][0], source[score][20]) and torch.equal(state[score][5], fresh[score][5])
        assert torch.equal(state["fpn.smooth.0.weight"], source["fpn.smooth.0.weight"])
        assert "random: rider" in lines[0] and "random: pole, traffic sign, terrain, rider" in lines[1]

    def test_the_two_tables_agree(self) -> None:
        assert all(COCO_CHANNELS[name] == 52 + label for name, label in COCO_THINGS.items())
        assert set(COCO_CHANNELS) < {entry["name"] for entry in CITYSCAPES} and len(COCO_CHANNELS) == 15

    def test_command(self, files: Path, coco: UPSNet) -> None:
        torch.save(original_of(coco), files / "original.pth")
        (files / "categories.json").write_text(json.dumps(CITYSCAPES))
        result = run(files, *written(files), "--to-cityscapes")
        assert result.exit_code == 0 and "person <- 1" in result.output, result.output
        assert load_model(files / "out.pt")[0].num_things == 8
        (files / "categories.json").write_text(json.dumps(TABLE))
        result = run(files, *written(files), "--to-cityscapes")
        assert result.exit_code == 2 and "categories lack" in result.stderr


class TestWeights:
    def test_names_go_both_ways(self) -> None:
        names = original_names(network())
        assert len(set(names.values())) == len(names)

    def test_names_of_pretrained_backbones(self) -> None:
        """The tag of timm's weights, as the configurations have it, makes no other network."""
        backbone = {"kind": "timm", "name": "resnet50.tv_in1k"}
        names = original_names(network(backbone=backbone, fpn={"channels": 8, "upsample": "nearest"}))
        assert names["backbone.network.layer4.2.bn3.weight"] == "resnet_backbone.res5.layers.2.bn3.weight"

    @pytest.mark.parametrize("backbone", [{"kind": "bottleneck"}, {"kind": "timm", "name": "resnet18"}])
    def test_backbones_that_the_original_lacks(self, backbone: dict[str, str]) -> None:
        name = backbone.get("name", "bottleneck")
        with torch.device("meta"), pytest.raises(InputError, match=f"^backbone {name}: the original UPSNet lacks it"):
            original_names(network(backbone=backbone))


@pytest.mark.parametrize(("stuff", "things"), [(0, 3), (3, 0)])
def test_an_original_of_one_kind_is_refused(stuff: int, things: int) -> None:
    heads = {
        "fcn_head.score.weight": torch.zeros(stuff + things, 1),
        "rcnn.cls_score.weight": torch.zeros(1 + things, 1),
    }
    with pytest.raises(InputError, match=f"no UPSNet, which has stuff and things: .* {stuff} and {things} classes"):
        class_counts(heads, Path("original.pth"))
