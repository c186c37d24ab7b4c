"""`upsnet golden` of a Panoptic FPN: what is written of a photo, detectron2's merge at its size, wrong options."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import Result

from tests.training.importers.detectron2_files import STUFF, TABLE, config, config_text, network, theirs
from tests.training.importers.original import call
from training.checkpoint import Checkpoint, save, versions
from training.importers.arrays import Arrays
from training.importers.command import main as import_main
from training.importers.golden import main
from training.importers.panoptic_fpn.golden.dump import dump
from training.importers.panoptic_fpn.golden.inputs import read_inputs
from training.importers.panoptic_fpn.golden.merge import Merged, combine, differing_pixels
from training.model_config import PanopticConfig
from upsnet.categories import Categories
from upsnet.errors import InputError
from upsnet.photos import write_png

HEIGHT, WIDTH = 90, 128  # of the photo; 64 x 91 in the network


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint as upsnet import writes it, and a photo."""
    folder = tmp_path_factory.mktemp("golden")
    table, state = Categories.from_coco(TABLE), network().state_dict()
    save(folder / "last.safetensors", Checkpoint(config(), table, 0, None, state, {}, versions()))
    write_png(folder / "photo.png", np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8))
    return folder


def golden(folder: Path, out: Path, *options: object) -> Result:
    return call(main, folder / "last.safetensors", "--photo", folder / "photo.png", "--out", out, *options)


def test_command(files: Path, tmp_path: Path) -> None:
    result = golden(files, tmp_path / "out.npz")
    assert result.exit_code == 0, result.output
    arrays = dict(np.load(tmp_path / "out.npz"))
    facts = json.loads((tmp_path / "out.json").read_text())
    assert [facts[f"{name}_size"] for name in ("original", "image", "padded")] == [[90, 128], [64, 91], [64, 96]]
    assert arrays["net_uint8"].shape == (64, 91, 3) and arrays["sem_logits"].shape == (1 + STUFF, 16, 24)
    assert arrays["panoptic"].shape == arrays["sem_orig_argmax"].shape == (HEIGHT, WIDTH)
    assert arrays["p4"].shape == (1, 4, 6) and "roi_level" not in arrays
    for segment in facts["segments_info"]:
        area = int((arrays["panoptic"] == segment["id"]).sum())
        assert segment["isthing"] or segment["area"] == area
    assert arrays["panoptic"].max() <= len(facts["segments_info"])
    assert f"{facts['differing_pixels']} of {HEIGHT * WIDTH} pixels differ" in result.stdout


def test_whole_arrays_and_given_ones(files: Path, tmp_path: Path) -> None:
    assert golden(files, tmp_path / "whole.npz", "--full").exit_code == 0
    given = dict(np.load(tmp_path / "whole.npz"))
    assert given["p4"].shape == (8, 4, 6) and given["stem"].shape == (64, 16, 24)
    assert given["net_input_sample"].shape == (3, 64, 96)
    given["sem_logits"][:] = 0
    given["sem_logits"][2] = 5
    given["roi_boxes"] = np.array([[0, 0, 224, 224], [5, 5, 5, 5]], np.float32)
    given["mask_roi_index"] = np.array([0], np.int16)
    for name in ("det_boxes", "det_scores", "det_classes", "det_mask_logits", "orig_boxes"):
        given[name] = given[name][:0]
    np.savez(tmp_path / "given.npz", allow_pickle=False, **given)
    assert golden(files, tmp_path / "out", "--inputs", tmp_path / "given.npz").exit_code == 0
    arrays = dict(np.load(tmp_path / "out.npz"))
    assert (arrays["sem_orig_argmax"] == 2).all() and (arrays["panoptic"] == 1).all()
    assert arrays["roi_level"].tolist() == [4, 2] and arrays["mask_roi_pool14"].shape == (1, 1, 14, 14)
    (segment,) = json.loads((tmp_path / "out.json").read_text())["segments_info"]
    assert segment == {"id": 1, "isthing": False, "category_id": 2, "area": HEIGHT * WIDTH}


def test_given_arrays_must_fit(files: Path, tmp_path: Path) -> None:
    model, rule = network(), config().data.resize
    whole = dump(model, read_inputs(files / "photo.png", rule)).arrays

    def with_given(**arrays: np.ndarray) -> Arrays:
        np.savez(tmp_path / "given.npz", allow_pickle=False, **arrays)
        return dump(model, read_inputs(files / "photo.png", rule, tmp_path / "given.npz")).arrays

    def refused(words: str, **arrays: np.ndarray) -> None:
        with pytest.raises(InputError, match=re.escape(words)):
            with_given(**arrays)

    refused("rpn_logits_p2 is [3, 8, 8] instead of [3, 16, 24]", rpn_logits_p2=np.zeros((3, 8, 8), np.float32))
    refused("proposal_boxes is [5] instead of [any, 4]", proposal_boxes=np.zeros(5, np.float32))
    candidates: dict[str, np.ndarray] = {
        "cand_index": np.zeros((2, 2), np.int16),
        "cand_prob": np.zeros(2, np.float32),
        "cand_delta": np.zeros((2, 4), np.float32),
    }
    refused("lacks cand_prob, cand_delta", cand_index=candidates["cand_index"])
    refused("cand_prob is [3] instead of [2]", **(candidates | {"cand_prob": np.zeros(3, np.float32)}))
    far = np.full((2, 2), 999, np.int16)
    refused("cand_index has values that are negative or not below", **(candidates | {"cand_index": far}))
    refused("mask_roi_index", roi_boxes=np.zeros((1, 4), np.float32), mask_roi_index=np.array([1], np.int16))
    arrays = with_given(sem_logits=whole["sem_logits"][:, ::2, ::2] + 1)  # a sample: of no use
    assert np.array_equal(arrays["panoptic"], whole["panoptic"])


def test_a_network_of_neither_family(files: Path, tmp_path: Path) -> None:
    settings = config(fpn={"channels": 8, "global_context": False})
    table, state = Categories.from_coco(TABLE), network().state_dict()
    save(tmp_path / "other.safetensors", Checkpoint(settings, table, 0, None, state, {}, versions()))
    result = call(main, tmp_path / "other.safetensors", "--photo", files / "photo.png", "--out", tmp_path / "out.npz")
    assert result.exit_code == 2 and "not a network of the original UPSNet, nor of detectron2's" in result.stderr


def test_another_size(files: Path, tmp_path: Path) -> None:
    assert golden(files, tmp_path / "out.npz", "--short-side", 32, "--max-side", 40).exit_code == 0
    assert np.load(tmp_path / "out.npz")["net_uint8"].shape == (28, 40, 3)
    assert "max_side 40 is less than" in golden(files, tmp_path / "o.npz", "--max-side", 40).stderr


def test_wrong_options(files: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.npz"
    result = golden(files, out, "--net-input", files / "photo.png")
    assert result.exit_code == 2 and "--net-input is of no use for the network in" in result.stderr
    result = call(main, files / "last.safetensors", "--out", out)
    assert result.exit_code == 2 and "--photo is missing" in result.stderr
    assert not out.exists()


def test_dump_of_import(files: Path, tmp_path: Path) -> None:
    """The same, without a checkpoint of ours in between."""
    torch.save(theirs(network()), tmp_path / "theirs.pth")
    (tmp_path / "config.yaml").write_text(config_text())
    options = ["--config", tmp_path / "config.yaml", "--dump", tmp_path / "dump.npz"]
    result = call(import_main, tmp_path / "theirs.pth", *options, "--photo", files / "photo.png", "--short-side", 48)
    assert result.exit_code == 0 and "now: upsnet golden CHECKPOINT --photo" in result.stderr, result.output
    assert golden(files, tmp_path / "out.npz", "--short-side", 48).exit_code == 0
    found, wanted = np.load(tmp_path / "dump.npz"), np.load(tmp_path / "out.npz")
    assert set(found) == set(wanted) and all(np.array_equal(found[name], wanted[name]) for name in wanted)
    assert (tmp_path / "dump.json").read_text() == (tmp_path / "out.json").read_text()
    assert "--photo" in call(import_main, tmp_path / "theirs.pth", *options).stderr


@pytest.mark.parametrize("case", range(12))
def test_merge_cases(shared_data: Path, case: int) -> None:
    """Made by detectron2's own code: every pixel, every segment."""
    folder = shared_data / "panoptic_fpn_golden"
    facts = json.loads((folder / "merge_cases.json").read_text())[case]
    arrays = np.load(folder / "merge_cases.npz")
    scores, classes, semantic, wanted = (
        torch.from_numpy(arrays[f"{facts['case']}_{name}"]) for name in ("scores", "classes", "semantic", "panoptic")
    )
    height, width = facts["shape"]
    bits = np.unpackbits(arrays[f"{facts['case']}_masks"], axis=1, count=height * width)
    masks = torch.from_numpy(bits.reshape(-1, height, width)).bool()
    rules = PanopticConfig(
        merge="heuristic",
        score_threshold=facts["score_threshold"],
        mask_overlap=facts["overlap_threshold"],
        stuff_area_limit=facts["stuff_area_limit"],
    )
    numbers, segments = combine(masks, scores, classes, semantic.long(), rules)
    assert torch.equal(numbers, wanted)
    assert segments == facts["segments_info"]


def test_segments_without_a_pixel() -> None:
    """They are numbered: an instance below another one where the overlap may be whole, stuff that has no least area."""
    masks, labels = torch.ones(2, 2, 3, dtype=torch.bool), torch.tensor([[0, 4, 4], [0, 4, 4]])
    rules = PanopticConfig(merge="heuristic", score_threshold=0.5, mask_overlap=1, stuff_area_limit=0)
    numbers, segments = combine(masks, torch.tensor([0.5, 0.75]), torch.tensor([7, 8]), labels, rules)
    assert (numbers == 1).all()
    assert [(each["id"], each["category_id"]) for each in segments] == [(1, 8), (2, 7), (3, 4)]
    assert segments[2]["area"] == 0


def test_pixels_that_differ() -> None:
    """Numbers are names alone: the same segment may have another one."""
    stuff, thing, other = (0, 1.0), (53, 0.75), (53, 0.5)
    a = Merged(np.array([[0, 1, 2, 2]], np.uint8), {1: thing, 2: stuff}, {}, [])
    b = Merged(np.array([[0, 2, 1, 3]], np.uint8), {1: stuff, 2: thing, 3: other}, {}, [])
    assert differing_pixels(a, a) == 0 and differing_pixels(a, b) == 1
