"""Every configuration builds, counts what the published network counts, and follows the published schedules."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.folders import local
from training.config import Config, differing_keys, load_config
from training.model.upsnet import UPSNet
from training.model_config import HybridConfig, TimmConfig
from training.schedule import make_plan
from upsnet.errors import InputError

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted((ROOT / "training/configs").glob("*.yaml"))
NAMES = [path.stem for path in FILES]
COCO, CITYSCAPES = (53, 80), (11, 8)  # stuff and thing categories
RESNET_50, RESNET_101 = 23_508_032, 42_500_160  # torchvision's counts less the classifier
OFFSETS = 4 * (128 * 9 * 18 + 18) + 23 * (256 * 9 * 18 + 18) + 3 * (512 * 9 * 18 + 18)  # of res3 to res5
EFFICIENTNET_B0 = 3_595_388  # the published 5 288 548 less the last convolution, its norm and the classifier
HYBRID = 200_556_448  # 200.6 M as published: MBConv blocks in ResNet-50's layout


def config_of(name: str, *overrides: str) -> Config:
    return load_config(ROOT / f"training/configs/{name}.yaml", overrides)


def build(config: Config, classes: tuple[int, int]) -> UPSNet:
    with torch.device("meta"):
        return UPSNet(config.model, *classes)


@pytest.mark.parametrize("name", NAMES)
def test_file_is_its_name_and_builds(name: str) -> None:
    config = config_of(name)
    assert config.name == name
    model = build(config, CITYSCAPES if name.startswith("cityscapes") else COCO)
    assert all(parameter.is_meta for parameter in model.parameters())
    frozen = {key.split(".")[0] for key, parameter in model.named_parameters() if not parameter.requires_grad}
    assert frozen <= {"backbone"}
    if isinstance(config.model.backbone, HybridConfig):
        assert not frozen  # there are no pretrained weights of it


@pytest.mark.parametrize(
    ("name", "weights"),
    [
        ("coco_r50", RESNET_50),
        ("coco_r50_plus", RESNET_50),
        ("coco_r101_dcn_3x", RESNET_101 + OFFSETS),
        ("cityscapes_r50", RESNET_50),
        ("cityscapes_r101", RESNET_101),
        ("coco_efficientnet_b0", EFFICIENTNET_B0),
        ("coco_hybrid", HYBRID),
    ],
)
def test_parameters_of_backbones(name: str, weights: int) -> None:
    assert sum(p.numel() for p in build(config_of(name), COCO).backbone.parameters()) == weights


@pytest.mark.parametrize("name", ["coco_r50", "coco_hybrid", "coco_r101_dcn_3x", "cityscapes_r50"])
def test_networks_with_the_originals_conventions(name: str) -> None:
    """Their tensors are held against the original's in importers/test_golden.py."""
    config = config_of(name, "model.conventions=upsnet")
    assert config.model.pixel_mean == (122.7717, 115.9465, 102.9801)
    assert config.model.pixel_std == (1, 1, 1)
    assert config.model.fpn.upsample == ("bilinear" if name == "coco_hybrid" else "nearest")


@pytest.mark.parametrize(
    ("name", "processes", "images", "lr", "iterations", "decay"),
    [
        ("coco_r50", 16, 16, 0.02, 90_000, (60_000, 80_000)),
        ("coco_r50", 8, 8, 0.01, 180_000, (120_000, 160_000)),
        ("coco_r50", 4, 4, 0.005, 360_000, (240_000, 320_000)),
        ("coco_r50", 1, 1, 0.00125, 1_440_000, (960_000, 1_280_000)),
        ("coco_r101_dcn_3x", 16, 16, 0.02, 270_000, (210_000, 250_000)),
        ("coco_hybrid", 4, 4, 0.005, 360_000, (240_000, 320_000)),
        ("coco_hybrid", 1, 4, 0.005, 360_000, (240_000, 320_000)),
        ("cityscapes_r50", 16, 16, 0.02, 12_000, (9_000,)),
        ("cityscapes_r50", 4, 4, 0.005, 48_000, (36_000,)),
        ("cityscapes_r101", 16, 16, 0.02, 3_000, (2_000,)),
    ],
)
def test_published_schedules(
    name: str, processes: int, images: int, lr: float, iterations: int, decay: tuple[int, ...]
) -> None:
    schedule = config_of(name).schedule
    plan = make_plan(schedule, processes)
    assert (plan.images_per_step, plan.iterations, plan.decay_steps) == (images, iterations, decay)
    assert plan.lr == pytest.approx(lr)
    assert (plan.images_per_gpu, plan.passes) == (images // processes, 1)
    assert plan.warmup == (0 if name == "cityscapes_r101" else 1500)
    assert (schedule.optimizer, schedule.momentum, schedule.weight_decay) == ("sgd", 0.9, 1e-4)
    assert (schedule.policy, schedule.clip_norm, schedule.ema) == ("step", None, None)


@pytest.mark.parametrize(
    ("name", "short_sides", "test_side", "max_side", "loss", "stuff_limit", "layers"),
    [
        ("coco_r50", (), 800, 1333, (0.2, 0.04, 0.1), 4096, (256, 128, 128)),
        ("coco_hybrid", (), 500, 1333, (0.2, 0.04, 0.1), 4096, (256, 128, 128)),
        ("coco_r101_dcn_3x", tuple(range(640, 833, 32)), 800, 1333, (0.2, 0.04, 0.1), 4096, (256, 128, 128)),
        ("cityscapes_r50", tuple(range(800, 1025, 32)), 1024, 2048, (1.0, 0.0, 0.5), 2048, (128, 128)),
        ("cityscapes_r101", tuple(range(800, 1025, 32)), 1024, 2048, (1.0, 0.0, 0.5), 2048, (128, 128)),
    ],
)
def test_published_sizes_and_losses(
    name: str,
    short_sides: tuple[int, ...],
    test_side: int,
    max_side: int,
    loss: tuple[float, float, float],
    stuff_limit: int,
    layers: tuple[int, ...],
) -> None:
    config = config_of(name)
    assert config.data.short_sides == short_sides
    assert (config.data.resize.short_side, config.data.resize.max_side) == (test_side, max_side)
    assert (config.loss.semantic, config.loss.semantic_roi, config.loss.panoptic) == loss
    assert config.model.panoptic.stuff_area_limit == stuff_limit
    assert config.model.semantic_head.channels == layers
    assert config.model.fpn.global_context == name.startswith("coco")
    augment = config.data.augment
    assert (augment.flip, augment.color, augment.scale) == (0.5, 0.0, (1.0, 1.0))
    rpn, box = config.model.rpn, config.model.box_head
    assert (rpn.anchor_scale, rpn.train_top_n, rpn.test_top_n, rpn.samples) == (8.0, 2000, 1000, 256)
    assert (box.hidden, box.samples, box.positive_fraction) == (1024, 512, 0.25)
    if isinstance(config.model.backbone, TimmConfig):
        assert config.model.backbone.freeze == 2
        assert config.model.backbone.frozen_norm
    else:
        assert config.model.backbone == HybridConfig()


@pytest.mark.parametrize("name", ["shapes_long", "shapes_hard"])
def test_other_shapes_train_the_network_of_the_demo(name: str) -> None:
    demo, other = config_of("shapes_best"), config_of(name)
    assert (other.model, other.loss) == (demo.model, demo.loss)
    assert local(other.data.train.json_file).parent == Path(f"data/{name}")


PLUS = {  # what coco_r50_plus has and coco_r50 has not
    *("name", "model.fpn.norm", "model.mask_head.norm", "model.box_head.regression"),
    *("loss.boxes", "loss.dice", "data.augment.scale", "data.augment.copy_paste", "data.workers"),
    *("schedule.images", "schedule.images_per_step", "schedule.policy", "schedule.decay", "schedule.ema"),
}


def test_coco_r50_plus_is_coco_r50_and_options() -> None:
    plain, plus = config_of("coco_r50"), config_of("coco_r50_plus")
    assert set(differing_keys(plain, plus)) == PLUS
    for processes in (1, 2, 4, 8, 16):
        plan = make_plan(plus.schedule, processes)
        assert (plan.images_per_step, plan.iterations, plan.passes) == (16, 270_000, 16 // processes)
        assert plan.lr == pytest.approx(0.02)
    more = sum(p.numel() for p in build(plus, COCO).parameters()) - sum(
        p.numel() for p in build(plain, COCO).parameters()
    )
    norms = 8 * 256 + 4 * 256  # lateral and smooth, masks
    assert more == 2 * norms


@pytest.mark.parametrize("divisor", [1, 16, 48])
def test_padding_makes_whole_places_of_every_level(divisor: int) -> None:
    words = rf"shapes.yaml: data: resize: divisor {divisor} is no multiple of 32"
    with pytest.raises(InputError, match=words):
        config_of("shapes", f"data.resize={{short_side: 48, max_side: 80, divisor: {divisor}}}")
    assert config_of("shapes", "data.resize={short_side: 48, max_side: 80, divisor: 64}").data.resize.divisor == 64
