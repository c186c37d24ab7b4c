"""Imported networks beside golden outputs of the original ones with random weights (shared data; see its README).

Not compared: polygons (instances come from the panoptic PNG here), the pictures' preprocessing (photos are
resized to the exact size by design, the original resizes by a factor), and what the original does when nothing is found
or every mask is empty: it injects a dummy instance, this network has none.
"""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import box_iou

import plugins_cuda
from plugins_cuda.panoptic_fusion.reference import mask_terms, merge, panoptic_labels, prune, segment_term
from training.config import load_config
from training.conventions import UPSNET as ORIGINAL
from training.importers.arrays import Arrays
from training.importers.family import fit
from training.importers.upsnet.golden.detections import coded, two_channels
from training.importers.upsnet.golden.dump import dump
from training.importers.upsnet.golden.inputs import read_inputs
from training.importers.upsnet.keys import original_names
from training.importers.upsnet.weights import sources
from training.model import boxes as B
from training.model.upsnet import UPSNet

pytestmark = pytest.mark.numeric
Recipe = dict[str, Any]  # a module's names

CONFIGS = Path(__file__).resolve().parents[3] / "training/configs"
# The golden networks -> the configurations that make them.
NETWORKS = {name: name for name in ("coco_r50", "coco_hybrid", "cityscapes_r50")} | {
    "coco_r101_dcn": "coco_r101_dcn_3x"
}

# Largest difference, for stages that start from the stored arrays: the README's recommendation.
ABSOLUTE = {
    **dict.fromkeys(["C2", "C3", "C4", "C5"], 1e-4),
    **dict.fromkeys(["P2", "P3", "P4", "P5", "P6", "fcn_score", "fcn_feat", "sem_full_sample"], 3e-4),
    **{f"rpn_cls_logit_P{level}": 3e-4 for level in range(2, 7)},
    **{f"rpn_bbox_delta_P{level}": 1e-4 for level in range(2, 7)},
    **dict.fromkeys(["proposal_boxes", "det_boxes", "pan_det_boxes"], 1e-3),
    **dict.fromkeys(["proposal_scores", "det_scores", "pan_det_scores"], 1e-6),
    **dict.fromkeys(["all_cls_score", "all_bbox_pred", "cand_delta", "roi_cls_score", "roi_bbox_pred"], 3e-4),
    **dict.fromkeys(["all_cls_prob", "cand_prob", "roi_pool7", "mask_pool14"], 1e-4),
    **dict.fromkeys(["roi_decoded", "roi_decoded_clipped"], 5e-3),
    **dict.fromkeys(["mask_logits", "pan_det_mask_logits", "det_mask_prob", "pan_mask_energy"], 1e-3),
    **dict.fromkeys(["pan_void_logit", "pan_max_logit"], 3e-4),
    "pan_mask_energy_sum": 1e-2,
    "pan_seg_inst_sum": 1e-2,
}
# Bits and areas at a threshold.
NEARLY_EXACT = {"sem_near_tie", "pan_near_tie", "det_mask_area", "det_mask_bits_first6"}
# Maps of labels: the best of logits that every CPU rounds in its own way, so they are free where two nearly tie.
TIES = {
    **dict.fromkeys(["sem_argmax", "sem_orig"], "sem_near_tie"),
    **dict.fromkeys(["pan_argmax_net", "pan_orig_before", "pan_orig_after", "pan_net_after"], "pan_near_tie"),
}


def build(name: str) -> UPSNet:
    config = load_config(CONFIGS / f"{NETWORKS[name]}.yaml", ("model.conventions=upsnet",))
    return UPSNet(config.model, *((11, 8) if name == "cityscapes_r50" else (53, 80)))


def imported(name: str, recipe: Recipe) -> UPSNet:
    weights = {key: torch.from_numpy(np.asarray(value)) for key, value in recipe["state"](name).items()}
    model = build(name)
    state, problems = fit(model.state_dict(), sources(model), weights)
    assert problems == []
    model.load_state_dict(state)
    return model.eval()


@pytest.fixture(scope="module")
def folder(shared_data: Path) -> Path:
    return shared_data / "upsnet_golden"


@pytest.fixture(scope="module")
def recipe(folder: Path) -> Recipe:
    """What makes the weights of a golden network: key_shapes(name) and state(name)."""
    return runpy.run_path(str(folder / "make_checkpoint.py"))


@pytest.fixture(scope="module")
def golden(folder: Path) -> Arrays:
    return dict(np.load(folder / "cityscapes_r50.npz"))


@pytest.fixture(scope="module")
def edge(folder: Path) -> dict[str, Tensor]:
    return {name: torch.from_numpy(value) for name, value in np.load(folder / "edge.npz").items()}


@pytest.fixture(scope="module")
def network(recipe: Recipe) -> UPSNet:
    return imported("cityscapes_r50", recipe)


@pytest.fixture(scope="module")
def staged(network: UPSNet, folder: Path) -> Arrays:
    """Every stage starts from the stored arrays."""
    return dump(network, read_inputs(folder / "common.npz", "", folder / "cityscapes_r50.npz"), full=True)


@pytest.fixture(scope="module")
def whole(network: UPSNet, folder: Path) -> Arrays:
    """The network from end to end."""
    return dump(network, read_inputs(folder / "common.npz", "", None), full=True)


def assert_same_labels(found: Arrays, golden: Arrays, name: str) -> None:
    """Equal but at near ties, and there in 100 pixels of the network at most (README)."""
    near = np.unpackbits(golden[TIES[name]]).reshape(256, 320).astype(bool)
    differs = found[name] != golden[name]
    differs = differs.any(-1) if differs.ndim == 3 else differs  # category and number of an instance
    if differs.shape != near.shape:
        near = near[:240, :320]  # no padding
    enlarged = len(differs) // len(near)  # 2: at the photo's size, to the nearest
    near = near.repeat(enlarged, 0).repeat(enlarged, 1)
    assert not differs[~near].any() and differs.sum() <= 100 * enlarged**2, name


@pytest.mark.parametrize("name", NETWORKS)
def test_every_key_of_the_checkpoint_has_its_place(recipe: Recipe, name: str) -> None:
    with torch.device("meta"):
        model = build(name)
    names = original_names(model)
    found = {names[key]: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
    assert len(found) == len(names), "two tensors of ours have one name there"
    assert found == dict(recipe["key_shapes"](name))


class TestStages:
    def test_the_same_arrays(self, staged: Arrays, golden: Arrays) -> None:
        assert staged.keys() == golden.keys()
        kinds = {name: (value.shape, value.dtype) for name, value in golden.items()}
        assert {name: (value.shape, value.dtype) for name, value in staged.items()} == kinds

    def test_real_numbers_are_within_tolerance(self, staged: Arrays, golden: Arrays) -> None:
        worst = {name: np.abs(staged[name] - golden[name]).max() for name in ABSOLUTE}
        assert {name: error for name, error in worst.items() if not error <= ABSOLUTE[name]} == {}

    @pytest.mark.parametrize("name", TIES)
    def test_labels_differ_only_at_near_ties(self, staged: Arrays, golden: Arrays, name: str) -> None:
        assert_same_labels(staged, golden, name)

    def test_everything_else_is_equal(self, staged: Arrays, golden: Arrays) -> None:
        """Also what is chosen by a threshold: no probability is closer to its own than 4e-5, no IoU than 1e-5, and
        scores of neighbours are 1e-5 apart, where CPUs differ by 1e-6."""
        rest = golden.keys() - ABSOLUTE.keys() - NEARLY_EXACT - TIES.keys()
        assert [name for name in sorted(rest) if not np.array_equal(staged[name], golden[name])] == []
        assert {"anchor_base_P2", "cand_index", "roi_level", "det_cls", "pan_det_cls", "pan_keep"} <= rest

    def test_pasted_masks(self, staged: Arrays, golden: Arrays) -> None:
        area, name = golden["det_mask_area"], "det_mask_bits_first6"
        np.testing.assert_allclose(staged["det_mask_area"], area, rtol=5e-3, atol=5)
        differs = np.unpackbits(np.bitwise_xor(staged[name], golden[name]), axis=1).sum(1)
        assert (differs <= 5 + 5e-3 * area[: len(differs)]).all()


class TestEndToEnd:
    @pytest.mark.parametrize("name", ["sem_argmax", "pan_argmax_net"])
    def test_labels_differ_only_at_near_ties(self, whole: Arrays, golden: Arrays, name: str) -> None:
        assert_same_labels(whole, golden, name)

    @pytest.mark.parametrize("branch", ["det", "pan_det"])
    def test_detections(self, whole: Arrays, golden: Arrays, branch: str) -> None:
        """Matched by best IoU within the class: rows with nearly equal scores may swap."""
        keys = ("boxes", "scores", "cls")
        found, wanted = ({key: each[f"{branch}_{key}"] for key in keys} for each in (whole, golden))
        assert len(found["boxes"]) == len(wanted["boxes"])
        grow = np.array([0, 0, 1, 1], np.float32)
        iou = box_iou(torch.from_numpy(found["boxes"] + grow), torch.from_numpy(wanted["boxes"] + grow)).numpy()
        match = (iou * (found["cls"][:, None] == wanted["cls"])).argmax(0)
        assert len(np.unique(match)) == len(match)
        np.testing.assert_array_equal(found["cls"][match], wanted["cls"])
        np.testing.assert_allclose(found["boxes"][match], wanted["boxes"], atol=1e-2)
        np.testing.assert_allclose(found["scores"][match], wanted["scores"], atol=3e-4)
        if branch == "pan_det":
            masks = whole["pan_det_mask_logits"][match]
            np.testing.assert_allclose(masks, golden["pan_det_mask_logits"], atol=3e-2)

    def test_the_last_maps(self, whole: Arrays, golden: Arrays) -> None:
        for name in ("pan_orig_before", "sem_orig", "pan_orig_after", "pan_net_after"):
            assert (whole[name] != golden[name]).mean() < 1e-3, name

    def test_the_operator_gives_the_map_after_the_rules(self, network: UPSNet, staged: Arrays, golden: Arrays) -> None:
        """The fused operator, fed with the stored arrays, as `UPSNet.forward` feeds it; every CPU rounds it alike."""
        masks = torch.from_numpy(golden["pan_det_mask_logits"])[None]
        panoptic, segments, _ = plugins_cuda.panoptic_fusion(
            torch.from_numpy(golden["fcn_score"])[None],
            torch.from_numpy(golden["pan_det_boxes"])[None],
            torch.from_numpy(golden["pan_det_cls"]).long()[None] - 1,
            torch.from_numpy(golden["pan_det_scores"])[None],
            masks,
            torch.tensor([masks.shape[1]], dtype=torch.int32),
            torch.tensor([[240, 320]], dtype=torch.int32),
            torch.tensor([0.5]),
            num_stuff=network.num_stuff,
            stuff_area_limit=network.config.panoptic.stuff_area_limit,
            mask_overlap_threshold=network.config.panoptic.mask_overlap,
        )
        category = torch.cat([torch.tensor([255.0]), segments[0, :, 0]])[panoptic[0].long()]
        np.testing.assert_array_equal(category[:240, :320].numpy(), golden["pan_net_after"][..., 0])
        numbers = golden["pan_net_after"][..., 1].astype(int)
        pairs = np.unique(np.stack([panoptic[0, :240, :320].numpy()[numbers > 0], numbers[numbers > 0]]), axis=1)
        assert len(np.unique(pairs[0])) == len(np.unique(pairs[1])) == pairs.shape[1], "one segment an instance"


class TestCornerCases:
    def test_coder(self, edge: dict[str, Tensor]) -> None:
        boxes, deltas = edge["coder_boxes"], edge["coder_deltas"]
        decoded = ORIGINAL.decode(deltas.unflatten(1, (2, 4)), boxes[:, None], B.BOX_WEIGHTS)
        torch.testing.assert_close(decoded.flatten(1), edge["coder_decoded_w10_10_5_5"], rtol=1e-5, atol=1e-3)
        decoded = ORIGINAL.decode(deltas[:, :4] / 10, boxes, B.RPN_WEIGHTS)
        torch.testing.assert_close(decoded, edge["coder_decoded_w1"], rtol=1e-5, atol=1e-3)
        targets = ORIGINAL.encode(edge["coder_gt"], boxes, B.BOX_WEIGHTS)
        torch.testing.assert_close(targets, edge["coder_targets_w10_10_5_5"], rtol=1e-5, atol=1e-5)

    def test_pruning(self, edge: dict[str, Tensor]) -> None:
        order = edge["rem_scores"].argsort(descending=True, stable=True)
        terms = mask_terms(edge["rem_logits"][order], edge["rem_boxes"][order], 256, 320)
        keep = prune(terms > 0, edge["rem_cls"][order], 0.3)
        assert order[keep].tolist() == edge["rem_keep"].tolist()
        torch.testing.assert_close(terms[keep][:, 1::4, 2::4], edge["rem_energy"], rtol=1e-5, atol=1e-4)
        assert (terms[keep] != 0).sum((1, 2)).tolist() == edge["rem_energy_area"].tolist()
        torch.testing.assert_close(terms[keep].double().sum((1, 2)), edge["rem_energy_sum"], rtol=1e-6, atol=1e-2)

    def test_terms_at_a_quarter(self, edge: dict[str, Tensor]) -> None:
        boxes = edge["term_boxes"] / 4
        terms = mask_terms(edge["term_mask_logits"], boxes, 64, 80)
        torch.testing.assert_close(terms, edge["term_mask_out"], rtol=1e-5, atol=1e-4)
        channels = edge["term_seg_channels"]
        segments = torch.stack([segment_term(channel, box) for channel, box in zip(channels, boxes, strict=True)])
        support = torch.from_numpy(np.unpackbits(edge["term_seg_support"].numpy())).reshape(channels.shape) > 0
        torch.testing.assert_close(segments, channels * support, rtol=0, atol=0)

    @pytest.mark.parametrize("limit", [1, 50, 51, 395, 396, 4096])
    def test_rules(self, edge: dict[str, Tensor], limit: int) -> None:
        before, things = edge["merge_pan"].long(), edge["merge_cls"].long() - 1
        before[before == 255] = 53 + len(things)
        after = merge(before, edge["merge_seg"].long(), len(things), 53, 133, torch.tensor(float(limit)))
        assert torch.equal(two_channels(before, after, things, 53), edge[f"merge_out_limit{limit}"])

    def test_nothing_found(self, edge: dict[str, Tensor], folder: Path, recipe: Recipe) -> None:
        """coco_r50 with no detection; the original's dummy instance wins no pixel there. Its semantic branch has the
        global context, over the padding too."""
        model = imported("coco_r50", recipe)
        inputs = read_inputs(folder / "common.npz", "", None)
        with torch.no_grad():
            _, pyramid = inputs.pyramid(model)
            semantic = model.semantic_head(pyramid[:4], inputs.sizes)
        full = F.interpolate(semantic, scale_factor=4, mode="bilinear", align_corners=False)[0]
        none = torch.zeros(0, dtype=torch.int64)
        labels = panoptic_labels(full, torch.zeros(0, 256, 320), torch.zeros(0, 4), none, 53)
        assert (coded(labels, 53) != edge["nodet_pan_argmax_net"]).sum() <= 100
