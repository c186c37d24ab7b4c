"""timm networks as backbones: the feature contract, pretrained files, what is frozen, deformable stages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from export.precision import prepare
from training.conventions import UPSNET
from training.model.deform import DeformConv
from training.model.timm_backbone import TimmBackbone
from training.model.upsnet import UPSNet, load_pretrained_backbone
from training.model_config import ModelConfig, TimmConfig
from upsnet.errors import InputError

# C2..C5 as the papers and timm's feature_info give them.
WIDTHS = {
    "resnet18": [64, 128, 256, 512],
    "efficientnet_b0": [24, 40, 112, 320],
    "mobilenetv3_small_050": [8, 16, 24, 288],
    "regnetx_002": [24, 56, 152, 368],
    "convnext_atto": [40, 80, 160, 320],
}
HEADS = {
    "fpn": {"channels": 8},
    "rpn": {"channels": 8, "test_top_n": 20},
    "box_head": {"hidden": 8},
    "mask_head": {"channels": 8, "layers": 1},
    "semantic_head": {"channels": [8]},
}


def backbone(name: str, **settings: object) -> TimmBackbone:
    torch.manual_seed(0)
    return TimmBackbone(TimmConfig.model_validate({"kind": "timm", "name": name} | settings))


def spread_norms(module: nn.Module) -> None:
    """Batch normalisations as training leaves them, not the identity."""
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d) and norm.running_mean is not None and norm.running_var is not None:
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.normal_(norm.bias, std=0.1)
            norm.running_mean.normal_(std=0.1)
            norm.running_var.uniform_(0.5, 1.5)


class TestFeatures:
    @pytest.mark.parametrize("name", WIDTHS)
    def test_strides_and_widths(self, name: str) -> None:
        model = backbone(name).eval()
        with torch.no_grad():
            maps = model(torch.randn(2, 3, 64, 96))
        assert model.out_channels == WIDTHS[name]
        assert [tuple(m.shape) for m in maps] == [(2, WIDTHS[name][i], 16 >> i, 24 >> i) for i in range(4)]

    @pytest.mark.parametrize(
        ("name", "reason"),
        [
            ("no_such_network", "no network of that name"),
            ("vit_tiny_patch16_224", "not [4, 8, 32]"),
            ("swin_tiny_patch4_window7_224", "one size"),
        ],
    )
    def test_others_are_refused(self, name: str, reason: str) -> None:
        with pytest.raises(InputError) as raised:
            backbone(name)
        assert name in str(raised.value) and reason in str(raised.value)

    def test_a_network_trains_under_autocast(self) -> None:
        config = ModelConfig.model_validate(HEADS | {"backbone": {"kind": "timm", "name": "resnet18"}})
        model = UPSNet(config, 3, 2)
        images = torch.randint(0, 256, (2, 64, 64, 3), dtype=torch.uint8)
        with torch.autocast("cpu", torch.bfloat16):
            pyramid = model.pyramid(images, torch.full((2, 2), 64))
            semantic = model.semantic_head(pyramid[:4], torch.full((2, 2), 64))
        assert semantic.dtype == torch.bfloat16
        semantic.float().square().mean().backward()
        first = model.get_parameter("backbone.network.conv1.weight").grad
        assert first is not None and first.dtype == torch.float32 and first.abs().sum() > 0


class TestFrozen:
    @pytest.fixture
    def weights(self, tmp_path: Path) -> Path:
        path = tmp_path / "weights.safetensors"
        save_file(timm.create_model("resnet18").state_dict(), path)
        return path

    @pytest.mark.parametrize(
        ("name", "freeze", "last", "first"),
        [
            ("resnet18", 1, "bn1.bias", "layer1.0.conv1.weight"),
            ("resnet18", 2, "layer1.1.bn2.bias", "layer2.0.conv1.weight"),
            ("efficientnet_b0", 1, "blocks.0.0.bn2.bias", "blocks.1.0.conv_pw.weight"),
            ("convnext_atto", 1, "stem_1.bias", "stages_0.blocks.0.gamma"),
        ],
    )
    def test_stages(self, weights: Path, name: str, freeze: int, last: str, first: str) -> None:
        parameters = dict(backbone(name, freeze=freeze, weights=weights).network.named_parameters())
        trained = [key for key, parameter in parameters.items() if parameter.requires_grad]
        keys = list(parameters)
        assert keys.index(last) + 1 == keys.index(first)
        assert trained == keys[keys.index(first) :]

    def test_norms_stay_as_they_are(self, weights: Path) -> None:
        model = backbone("resnet18", frozen_norm=True, weights=weights)
        spread_norms(model)
        before = {key: value.clone() for key, value in model.state_dict().items()}
        model.eval().train()
        model(torch.randn(2, 3, 64, 64))[-1].mean().backward()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.grad is not None:
                    parameter.sub_(parameter.grad)
        changed = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
        assert changed and all(".bn" not in f".{key}" and "downsample.1" not in key for key in changed)
        assert not model.network.layer4[0].bn1.training and model.network.layer4.training

    def test_norms_of_frozen_stages_stay_too(self, weights: Path) -> None:
        model = backbone("resnet18", freeze=2, weights=weights).train()
        assert not model.network.bn1.training and not model.network.layer1[1].bn2.training
        assert model.network.layer2[0].bn1.training


class TestPretrained:
    @pytest.fixture(scope="class")
    def whole(self) -> Any:  # timm has no types
        """A classifier, as timm saves them: names "stages.0.", with its last layer."""
        torch.manual_seed(7)
        return timm.create_model("convnext_atto").eval()

    @pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
    def test_a_file(self, whole: Any, tmp_path: Path, suffix: str) -> None:
        path = tmp_path / f"weights{suffix}"
        save_file(whole.state_dict(), path) if suffix == ".safetensors" else torch.save(whole.state_dict(), path)
        config = HEADS | {"backbone": {"kind": "timm", "name": "convnext_atto", "weights": path}}
        model = UPSNet(ModelConfig.model_validate(config), 3, 2).eval()
        assert str(path) in load_pretrained_backbone(model)
        x = torch.randn(1, 3, 64, 64)
        with torch.no_grad():
            torch.testing.assert_close(model.backbone(x)[-1], whole.forward_features(x))

    def test_another_network_is_refused(self, whole: Any, tmp_path: Path) -> None:
        torch.save(whole.state_dict(), tmp_path / "other.pth")
        model = backbone("resnet18", weights=tmp_path / "other.pth")
        before = [value.clone() for value in model.state_dict().values()]
        with pytest.raises(InputError, match=r"other\.pth: not weights of resnet18.*without conv1\.weight"):
            model.load_pretrained()
        assert all(torch.equal(a, b) for a, b in zip(before, model.state_dict().values(), strict=True))

    @pytest.mark.parametrize("name", ["absent.pth", "absent.safetensors", "text.pth", "text.safetensors", "list.pth"])
    def test_unreadable_files(self, tmp_path: Path, name: str) -> None:
        if name.startswith("text"):
            (tmp_path / name).write_text("weights")
        elif name.startswith("list"):
            torch.save({"a": [1, 2]}, tmp_path / name)
        with pytest.raises(InputError, match=name):
            backbone("resnet18", weights=tmp_path / name).load_pretrained()

    def test_no_network(self, monkeypatch: pytest.MonkeyPatch) -> None:
        model = backbone("resnet18", pretrained=True)

        def unreachable(*_: object, **named: object) -> None:
            assert named["pretrained"]
            raise OSError("no route to host\nmore")

        monkeypatch.setattr(timm, "create_model", unreachable)
        with pytest.raises(InputError, match=r"no route to host\).*weights: FILE.*pretrained: false"):
            model.load_pretrained()

    def test_nothing_to_load(self) -> None:
        assert backbone("resnet18").load_pretrained() == ""
        for key in ({"freeze": 2}, {"frozen_norm": True}):
            with pytest.raises(InputError, match="these are random; start from a network with --init"):
                backbone("resnet18", **key).load_pretrained()
        hybrid = {"stem": [4, 4], "widths": [4, 4, 4, 4], "depths": [1, 1, 1, 1], "expansion": 1}
        assert load_pretrained_backbone(UPSNet(ModelConfig.model_validate(HEADS | {"backbone": hybrid}), 3, 2)) == ""


class TestDeformable:
    def test_starts_as_the_ordinary_network(self, tmp_path: Path) -> None:
        path = tmp_path / "weights.pth"
        plain = backbone("resnet18").eval()
        spread_norms(plain)
        torch.save(plain.network.state_dict(), path)
        model = backbone("resnet18", deformable_stages=[3, 4, 5], weights=path).eval()
        model.load_pretrained()
        stages = [getattr(model.network, f"layer{i}") for i in (1, 2, 3, 4)]
        assert [isinstance(block.conv2, DeformConv) for stage in stages for block in stage] == [False] * 2 + [True] * 6
        x = torch.randn(1, 3, 64, 64)
        with torch.no_grad():
            for found, wanted in zip(model(x), plain(x), strict=True):
                torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)

    def test_upsnets_bottlenecks_keep_their_size(self) -> None:
        config = TimmConfig(kind="timm", name="resnet14t", deformable_stages=(3,))
        block = TimmBackbone(config, UPSNET).network.layer2[0]
        assert block.conv1.stride == (2, 2) and block.conv2.stride == 1

    @pytest.mark.parametrize(("name", "stage"), [("regnetx_002", 3), ("resnext26ts", 3), ("resnext50_32x4d", 3)])
    def test_other_networks_are_refused(self, name: str, stage: int) -> None:
        with pytest.raises(InputError, match=name):
            backbone(name, deformable_stages=[stage])


class TestFolded:
    """`prepare` of the export, on networks whose normalisations are timm's own."""

    @pytest.mark.parametrize("name", ["resnet18", "mobilenetv3_small_050", "regnetx_002", "convnext_atto"])
    def test_computes_the_same(self, name: str) -> None:
        torch.manual_seed(0)
        model = UPSNet(ModelConfig.model_validate(HEADS | {"backbone": {"kind": "timm", "name": name}}), 3, 2).eval()
        spread_norms(model)
        full, half = prepare(model, "fp32").backbone, prepare(model, "fp16").backbone
        assert not any(isinstance(module, nn.BatchNorm2d) for module in full.modules())
        x = torch.randn(1, 3, 64, 64)
        with torch.no_grad():
            wanted: list[Tensor] = model.backbone(x)
            for found, rough, exact in zip(full(x), half(x), wanted, strict=True):
                torch.testing.assert_close(found, exact, rtol=1e-3, atol=1e-4 * exact.abs().max().item())
                assert rough.dtype == torch.float16
                assert (rough - exact).abs().max() < 0.02 * exact.abs().max()

    def test_a_norm_before_its_convolution_stays(self) -> None:
        """In pre-activation networks some normalisations read sums: they have no convolution to go into."""
        config = ModelConfig.model_validate(HEADS | {"backbone": {"kind": "timm", "name": "densenet121"}})
        model = UPSNet(config, 3, 2).eval()
        spread_norms(model)
        full = prepare(model, "fp32").backbone
        norms = [sum(isinstance(m, nn.BatchNorm2d) for m in each.modules()) for each in (model.backbone, full)]
        assert norms == [121, 62]
        x = torch.randn(1, 3, 64, 64)
        with torch.no_grad():
            torch.testing.assert_close(full(x)[-1], model.backbone(x)[-1], rtol=1e-3, atol=1e-3)
