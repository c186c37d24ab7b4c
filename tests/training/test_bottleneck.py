"""The hybrid's layout of plain bottlenecks: ResNet's arithmetic, the MACs of its twin, what is done with a network."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models.resnet import Bottleneck as TorchvisionBottleneck

from export.onnx_export import to_model_proto
from export.precision import prepare
from tests.training.test_configs import config_of
from training.config import dump_config, parse_config
from training.gpu_step_check import BOTTLENECK, SMALL
from training.model.backbone import Bottleneck, HybridBackbone
from training.model.upsnet import UPSNet
from training.model_config import BottleneckConfig, HybridConfig, ModelConfig
from upsnet.errors import InputError
from upsnet.geometry import ResizeRule
from upsnet.strict_yaml import load_yaml

TWIN = ("model.backbone.kind=bottleneck", "model.backbone.inner=[42, 58, 96, 159]")  # of the demo's


def backbones() -> tuple[HybridBackbone, HybridBackbone]:
    """The demo's and its twin."""
    mbconv = config_of("shapes_best").model.backbone
    assert isinstance(mbconv, HybridConfig)
    values = mbconv.model_dump(exclude={"expansion"}) | {"kind": "bottleneck", "inner": (42, 58, 96, 159)}
    return HybridBackbone(mbconv), HybridBackbone(BottleneckConfig.model_validate(values))


def small() -> UPSNet:
    torch.manual_seed(0)
    model = UPSNet(ModelConfig.model_validate(SMALL | {"backbone": BOTTLENECK}), 3, 4)
    nn.init.normal_(model.box_head.logits.weight, std=4.0)
    return model


@pytest.mark.parametrize(("channels", "stride"), [(16, 1), (16, 2), (8, 1)])
def test_torchvisions_block(channels: int, stride: int) -> None:
    torch.manual_seed(0)
    own = Bottleneck(channels, 16, stride, inner=4)
    projection = nn.Sequential(nn.Conv2d(channels, 16, 1, stride, bias=False), nn.BatchNorm2d(16))
    theirs = TorchvisionBottleneck(channels, 4, stride, projection if len(own.shortcut) else None)
    theirs.load_state_dict({name.replace("shortcut", "downsample"): each for name, each in own.state_dict().items()})
    x = torch.randn(2, channels, 8, 12)
    torch.testing.assert_close(own(x), theirs(x))
    assert bool(len(own.shortcut)) == ((channels, stride) != (16, 1))


def test_the_twin_has_the_demos_multiplications_in_each_stage() -> None:
    macs: list[list[int]] = []
    for backbone in backbones():
        x = backbone.stem(torch.zeros(1, 3, 96, 128))
        macs.append([])
        for stage in backbone.stages:
            with FlopCounterMode(display=False) as counter:
                x = stage(x)
            macs[-1].append(counter.get_total_flops() // 2)
    assert macs[0] == [15_482_880, 16_502_784, 11_341_824, 4_380_672]
    assert macs[1] == pytest.approx(macs[0], rel=0.02)
    assert sum(macs[1]) == pytest.approx(sum(macs[0]), rel=0.01)
    mbconv, twin = (sum(p.numel() for p in backbone.parameters()) for backbone in backbones())
    assert (mbconv, twin) == (457_824, 636_425)


def test_the_configuration() -> None:
    config = config_of("shapes_best", TWIN[0], TWIN[1], "model.backbone={kind: bottleneck}")
    assert config.model.backbone == BottleneckConfig(kind="bottleneck")
    assert parse_config(load_yaml(dump_config(config)), "again") == config
    with pytest.raises(InputError, match=r"expansion: Extra inputs are not permitted"):
        config_of("shapes_best", *TWIN)


def test_its_defaults_are_resnet_50s_blocks() -> None:
    """25 557 032 parameters less the classifier's 2 049 000 and the 7x7 stem's 9 536, and the hybrid's stem."""
    with torch.device("meta"):
        network = HybridBackbone(BottleneckConfig(kind="bottleneck"))
    stem = 3 * 32 * 9 + 32 * 64 * 9 + 2 * (32 + 64)
    assert sum(p.numel() for p in network.parameters()) == 25_557_032 - 2_049_000 - 9_536 + stem


def test_without_normalisations_it_computes_the_same_and_runs_in_onnx_runtime() -> None:
    model = small()
    images = torch.randint(0, 256, (2, 64, 96, 3), dtype=torch.uint8)
    sizes, scales = torch.tensor([[64, 96]] * 2, dtype=torch.int32), torch.ones(2)
    model.train()
    model.pyramid(images, sizes)  # statistics of the normalisations
    prepared = prepare(model, "fp32")
    assert not any(isinstance(each, nn.BatchNorm2d) for each in prepared.backbone.modules())
    with torch.no_grad():
        expected = model.eval()(images, sizes, scales)
        for found, wanted in zip(prepared.pyramid(images, sizes), model.pyramid(images, sizes), strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4)
    proto = to_model_proto(prepared, ResizeRule(short_side=64, max_side=96))
    session = onnxruntime.InferenceSession(proto.SerializeToString())
    found = session.run(None, {"images": images.numpy(), "sizes": sizes.numpy(), "scales": scales.numpy()})
    assert (found[0] == np.asarray(expected[0])).mean() > 0.99
