"""`upsnet golden --truth`: the losses of an imported network, their gradients, given samples, hostile files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.training.importers.original import BOXES, CLASSES, CONFIG, HEIGHT, WIDTH, network, truth
from training.config import Config, LossConfig, parse_config
from training.data.batch import Batch
from training.data.sample import IGNORE
from training.importers.arrays import Arrays
from training.importers.upsnet.golden.inputs import Inputs
from training.importers.upsnet.golden.losses import loss_arrays
from training.importers.upsnet.golden.truth import read_truth
from training.importers.upsnet.keys import original_names
from training.losses import TrainingLosses
from training.model.upsnet import UPSNet
from upsnet.errors import InputError

ANCHORS = 3 * (16 * 24 + 8 * 12 + 4 * 6 + 2 * 3 + 1 * 2)
NAMES = ["rpn_cls", "rpn_box", "rcnn_cls", "rcnn_box", "mask", "semantic", "semantic_roi", "panoptic"]


@pytest.fixture(scope="module")
def settings() -> Config:
    return parse_config(CONFIG, "test")


@pytest.fixture(scope="module")
def model() -> UPSNet:
    return network().eval()


def photo() -> np.ndarray:
    """uint8 RGB, black in the padding."""
    image = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    image[60:] = 0
    return image


def image_of(settings: Config) -> Inputs:
    """The photo as the original reads it."""
    pixels = photo().astype(np.float32) - np.array(settings.model.pixel_mean, np.float32)
    pixels[60:] = 0
    return Inputs(pixels.transpose(2, 0, 1)[::-1], 60, WIDTH, 0.5, {})


def batch_of(arrays: Arrays, seed: int) -> Batch:
    return Batch(
        images=torch.from_numpy(photo())[None],
        sizes=torch.tensor([[60, WIDTH]], dtype=torch.int32),
        scales=torch.tensor([0.5]),
        semantic=torch.from_numpy(arrays["semantic"])[None],
        instances=torch.from_numpy(arrays["instances"])[None],
        boxes=[torch.from_numpy(arrays["gt_boxes"] + np.array([0, 0, 1, 1], np.float32))],
        labels=[torch.from_numpy(arrays["gt_classes"] - 1)],
        seeds=torch.tensor([seed]),
        image_ids=[7],
    )


def losses_of(tmp_path: Path, model: UPSNet, settings: Config, arrays: Arrays) -> Arrays:
    np.savez(tmp_path / "truth.npz", allow_pickle=False, **arrays)
    image = image_of(settings)
    return loss_arrays(model, image, read_truth(tmp_path / "truth.npz", model, image), settings)


def numbers(arrays: Arrays) -> dict[str, float]:
    return {name: float(value) for name, value in arrays.items() if name.startswith(("loss_", "grad_norm/"))}


def expected(model: UPSNet, batch: Batch) -> dict[str, Tensor]:
    return TrainingLosses(model, LossConfig(semantic=1, semantic_roi=1, panoptic=1))(batch)


def test_drawn_samples(tmp_path: Path, model: UPSNet, settings: Config) -> None:
    """The same values as from the uint8 image, the same gradients as autograd's, and samples of the right form."""
    found = losses_of(tmp_path, model, settings, truth())
    values = expected(model, batch_of(truth(), settings.seed))
    assert {f"loss_{name}" for name in [*NAMES, "total"]} == {name for name in found if name.startswith("loss_")}
    for name, value in values.items():
        assert found[f"loss_{name}"] == pytest.approx(value.item(), rel=1e-6), name
    model.zero_grad()
    weighted = TrainingLosses(model, settings.loss)(batch_of(truth(), settings.seed))
    sum(weighted.values()).backward()
    assert found["loss_total"] == pytest.approx(sum(weighted.values()).item(), rel=1e-6)
    names, parameters = original_names(model), dict(model.named_parameters())
    assert {f"grad_norm/{names[key]}" for key in parameters} == {name for name in found if name.startswith("grad_norm")}
    for key, parameter in parameters.items():
        assert parameter.grad is not None
        norm = parameter.grad.norm().item()
        assert found[f"grad_norm/{names[key]}"] == pytest.approx(norm, rel=1e-5, abs=1e-9), key
    labels = found["used_rpn_labels"]
    assert found["rpn_label_counts"].tolist() == [(labels == 1).sum(), (labels == 0).sum()]
    assert labels.shape == (ANCHORS,) and (labels >= 0).sum() == 32 and (labels == 1).any()
    assert (found["used_roi_labels"] > 0).sum() == len(found["used_mask_targets"]) > 0
    assert len(found["used_kept"]) == 2 and found["used_panoptic_target"].max() == IGNORE
    assert np.unique(found["used_panoptic_target"]).tolist() == [0, 1, 2, 3, 4, IGNORE]


def test_the_total_is_as_the_configuration_weighs_it(tmp_path: Path, model: UPSNet, settings: Config) -> None:
    """The boxes' weight has not the name of its term, and the dice loss is there where it has a weight."""
    loss = settings.loss.model_copy(update={"boxes": 3.0, "dice": 0.5})
    found = losses_of(tmp_path, model, settings.model_copy(update={"loss": loss}), truth())
    weighted = TrainingLosses(model, loss)(batch_of(truth(), settings.seed))
    assert found["loss_total"] == pytest.approx(sum(weighted.values()).item(), rel=1e-6)
    for name, weight in (("rcnn_box", 3.0), ("dice", 0.5)):
        assert found[f"loss_{name}"] == pytest.approx(weighted[name].item() / weight, rel=1e-6)


def test_given_samples(tmp_path: Path, model: UPSNet, settings: Config) -> None:
    """Those of another seed, in another order, from the definition: the values of that seed's step."""
    arrays, batch = truth(), batch_of(truth(), 123)
    losses = TrainingLosses(model, LossConfig(semantic=1, semantic_roi=1, panoptic=1))
    with torch.no_grad():
        proposed = model.rpn(model.pyramid(batch.images, batch.sizes))
        drawn = losses.targets(batch, proposed)
    labels = np.full(ANCHORS, -1)
    labels[drawn.rpn.anchors[0].numpy()] = drawn.rpn.labels[0]
    foreground = int((drawn.rois.labels > 0).sum())
    assert 1 < foreground < 24 and not (drawn.rois.labels == IGNORE).any()
    arrays |= {
        "rpn_labels": labels,
        "rois": drawn.rois.rois[0].flip(0).numpy(),
        "roi_labels": drawn.rois.labels[0].flip(0).numpy(),
        "mask_targets": drawn.masks[0, :foreground].flip(0).numpy(),
        "kept": np.array([np.flatnonzero((box == BOXES).all(1))[0] for box in drawn.panoptic.boxes[0].numpy()]),
        "crop_labels": drawn.crops.numpy(),
    }
    other = numbers(losses_of(tmp_path, model, settings, truth()))
    values = expected(model, batch)
    for more in ({}, {"panoptic_target": drawn.panoptic.pixels[0].numpy().astype(np.uint8)}):
        found = losses_of(tmp_path, model, settings, arrays | more)
        for name, value in values.items():
            assert found[f"loss_{name}"] == pytest.approx(value.item(), rel=1e-6), name
    assert all(found[f"loss_{name}"] != other[f"loss_{name}"] for name in ("rpn_cls", "rcnn_cls", "panoptic"))
    assert np.array_equal(found["used_roi_owners"][:foreground], drawn.rois.owners[0, :foreground].flip(0))


@pytest.mark.parametrize("instances", [3, 0])
def test_used_samples_give_the_same_again(tmp_path: Path, model: UPSNet, settings: Config, instances: int) -> None:
    arrays = truth()
    arrays |= {"gt_boxes": BOXES[:instances], "gt_classes": CLASSES[:instances]}
    arrays["instances"] = arrays["instances"] if instances else np.zeros_like(arrays["instances"])
    first = losses_of(tmp_path, model, settings, arrays)
    assert all(np.isfinite(value) for value in numbers(first).values())
    used = {name.removeprefix("used_"): value for name, value in first.items() if name.startswith("used_")}
    again = losses_of(tmp_path, model, settings.model_copy(update={"seed": 99}), arrays | used)
    assert numbers(again) == pytest.approx(numbers(first), rel=1e-5, abs=1e-9)
    assert all(np.array_equal(again[name], value) for name, value in first.items() if name.startswith("used_"))


def test_masks_in_both_forms(tmp_path: Path, model: UPSNet, settings: Config) -> None:
    """Visible pixels as masks or as numbers are the same; whole masks that overlap change the masks' targets."""
    arrays, rows = truth(), np.arange(1, 4)[:, None, None]
    one = losses_of(tmp_path, model, settings, arrays)
    visible = arrays.pop("instances")
    two = losses_of(tmp_path, model, settings, arrays | {"gt_masks": (visible == rows).astype(np.uint8)})
    assert one.keys() == two.keys() and all(np.array_equal(one[name], two[name]) for name in one)
    whole = np.zeros((3, HEIGHT, WIDTH), bool)
    for mask, (x1, y1, x2, y2) in zip(whole, BOXES.astype(int), strict=True):
        mask[y1 : y2 + 1, x1 : x2 + 1] = True
    rois = {"rois": BOXES, "roi_labels": CLASSES, "kept": np.array([2, 0])}
    found = losses_of(tmp_path, model, settings, arrays | {"gt_masks": whole} | rois)
    assert (found["used_mask_targets"] == 1).all(), "a rectangle fills its own box"
    cut = losses_of(tmp_path, model, settings, arrays | {"instances": visible} | rois)["used_mask_targets"]
    assert not cut[2].all() and cut[:2].all()
    # Pixel 26, 34 is in both, and row 0 was kept last; 34, 42 is in row 2 alone; 54, 34 in row 1, which is not kept.
    assert [found["used_panoptic_target"][y, x] for x, y in ((6, 8), (8, 10), (13, 8))] == [2 + 1, 2 + 0, 2 + 2]


BAD = {
    "gt_boxes": np.zeros((3, 5), np.float32),
    "gt_classes": np.array([0, 1, 2]),
    "semantic": np.full((HEIGHT, WIDTH), 4, np.uint8),
    "instances": np.zeros((HEIGHT, WIDTH), np.float32),
    "rpn_labels": np.zeros(ANCHORS - 1, np.int64),
    "rois": np.zeros((0, 4), np.float32),
    "roi_labels": np.array([1, 1]),
    "roi_owners": np.array([0]),
    "mask_targets": np.full((1, 28, 28), 2),
    "crop_labels": np.zeros((2, 28, 28), np.uint8),
    "kept": np.array([3]),
    "panoptic_target": np.full((16, 24), 4),
}  # each wrong alone, beside GOOD: another shape, another type, or a value out of its range
GOOD = {"rois": BOXES[1:2], "roi_labels": np.array([1]), "kept": np.array([0])}


@pytest.mark.parametrize("name", BAD)
def test_errors_name_the_array(tmp_path: Path, model: UPSNet, settings: Config, name: str) -> None:
    given = GOOD | ({"roi_labels": np.zeros(0, np.int64)} if name == "rois" else {})
    with pytest.raises(InputError, match=rf"truth\.npz: {name} "):
        losses_of(tmp_path, model, settings, truth() | given | {name: BAD[name]})


def test_files_that_do_not_belong(tmp_path: Path, model: UPSNet, settings: Config) -> None:
    arrays = truth()
    lacks = {name: value for name, value in arrays.items() if name != "semantic"}
    owner = {"rois": BOXES, "roi_labels": np.array([1, 1, 1])}
    cases = [
        (lacks, "lacks semantic"),
        (arrays | {"roi_label": CLASSES}, "roi_label: not arrays that are read"),
        (arrays | {"gt_masks": np.zeros((3, HEIGHT, WIDTH), bool)}, "one of gt_masks and instances"),
        (arrays | {"mask_targets": np.zeros((1, 28, 28))}, "mask_targets means nothing without rois"),
        (arrays | {"rois": BOXES}, "rois means nothing without roi_labels"),
        (arrays | owner | {"roi_owners": np.array([0, 1, 2])}, "roi_owners must be the rows"),
        (arrays | {"gt_classes": np.array([2, 2, 2])} | owner, "roi_labels has a class that no instance has"),
        (arrays | {"gt_boxes": BOXES[:, [2, 3, 0, 1]]}, "gt_boxes has a box that ends before"),
        (arrays | {"gt_boxes": BOXES * np.float32(np.nan)}, "gt_boxes has the value nan"),
    ]
    for values, text in cases:
        with pytest.raises(InputError, match=text):
            losses_of(tmp_path, model, settings, values)
