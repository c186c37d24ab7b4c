"""Panoptic FPN's semantic head, and its GroupNorm, which looks at an image and the padding that it has alone."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.training.tiny_network import PANOPTIC_FPN
from training.model.chains import ChainsHead, Link
from training.model.norm import GroupNorm
from training.model.upsnet import UPSNet
from training.model_config import ChainsConfig, ModelConfig

pytestmark = pytest.mark.numeric

STRIDE = 8


@pytest.fixture
def norm() -> GroupNorm:
    torch.manual_seed(0)
    norm = GroupNorm(4, 16)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    return norm


def group_norm(norm: GroupNorm, x: Tensor) -> Tensor:
    """PyTorch's own, over all of x."""
    return F.group_norm(x, norm.num_groups, norm.weight, norm.bias, norm.eps)


def sizes_of(*sizes: tuple[int, int]) -> Tensor:
    return torch.tensor(sizes, dtype=torch.int32)


class TestGroupNorm:
    @pytest.mark.parametrize("size", [(64, 96), (33, 65), (40, 90)])
    def test_alone_it_is_pytorchs(self, norm: GroupNorm, size: tuple[int, int]) -> None:
        """A padding up to multiples of 32 counts, as in detectron2; a mean far from zero costs no precision."""
        x = 10 + torch.randn(1, 16, 8, 12)
        wanted = group_norm(copy.deepcopy(norm).double(), x.double()).float()
        torch.testing.assert_close(norm(x, sizes_of(size), STRIDE), wanted, atol=1e-5, rtol=1e-5)

    def test_in_a_batch_every_image_has_its_own_padding(self, norm: GroupNorm) -> None:
        """What lies beyond it, whatever it is, changes nothing."""
        x = torch.randn(3, 16, 8, 12)
        sizes = sizes_of((64, 96), (30, 96), (60, 31))
        x[1, :, 4:], x[2, :, :, 4:] = 1e4, -1e4
        found = norm(x, sizes, STRIDE)
        for image, (height, width) in enumerate([(8, 12), (4, 12), (8, 4)]):
            own = (slice(image, image + 1), slice(None), slice(height), slice(width))
            torch.testing.assert_close(found[own], group_norm(norm, x[own]), atol=1e-5, rtol=1e-5)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_in_half_types_it_computes_in_float32(self, norm: GroupNorm, dtype: torch.dtype) -> None:
        x = (300 + torch.randn(1, 16, 8, 12)).to(dtype)  # whose squares float16 does not have
        found = norm(x, sizes_of((64, 96)), STRIDE)
        assert found.dtype == dtype
        torch.testing.assert_close(found, group_norm(norm, x.float()).to(dtype))

    def test_autocast_does_not_reach_into_it(self, norm: GroupNorm) -> None:
        x = torch.randn(1, 16, 8, 12)
        with torch.autocast("cpu", torch.bfloat16):
            found = norm(x, sizes_of((64, 96)), STRIDE)
        torch.testing.assert_close(found, group_norm(norm, x), atol=1e-5, rtol=1e-5)

    def test_gradients(self, norm: GroupNorm) -> None:
        x = torch.randn(1, 16, 4, 4, requires_grad=True)
        weights = torch.randn(1, 16, 4, 4)
        wanted = torch.autograd.grad((group_norm(norm, x) * weights).sum(), [x, norm.weight, norm.bias])
        found = torch.autograd.grad((norm(x, sizes_of((32, 32)), STRIDE) * weights).sum(), [x, norm.weight, norm.bias])
        for one, other in zip(found, wanted, strict=True):
            torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


class TestChainsHead:
    def test_against_plain_layers(self) -> None:
        """Level by level as the paper draws it (figure 3), with PyTorch's own GroupNorm and bilinear upsampling."""
        torch.manual_seed(0)
        head = ChainsHead(8, 5, ChainsConfig(kind="chains", channels=16, groups=4))
        nn.init.normal_(head.score.weight)
        levels = [torch.randn(2, 8, 32 // 2**level, 48 // 2**level) for level in range(4)]
        total = torch.zeros(())
        for level, (x, chain) in enumerate(zip(levels, head.chains, strict=True)):
            assert isinstance(chain, nn.ModuleList)
            assert len(chain) == (1, 1, 2, 3)[level]
            for link in chain:
                assert isinstance(link, Link)
                x = F.relu(group_norm(link.norm, F.conv2d(x, link.conv.weight, padding=1)))
                if level:
                    x = nn.Upsample(scale_factor=2, mode="bilinear")(x)
            total = total + x
        found = head(levels, sizes_of((128, 192), (97, 161)))
        assert found.shape == (2, 5, 32, 48)
        torch.testing.assert_close(found, head.score(total), atol=1e-4, rtol=1e-4)

    def test_channels_make_whole_groups(self) -> None:
        with pytest.raises(ValueError, match="100 channels do not make 32 groups"):
            ChainsConfig(kind="chains", channels=100, groups=32)


def test_a_batch_changes_an_image_less_than_padding_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a larger image's batch an image differs by what convolutions see beyond its border, and by nothing else: not
    by statistics of the batch's padding, which are most of the difference where they count."""
    torch.manual_seed(0)
    model = UPSNet(ModelConfig.model_validate(PANOPTIC_FPN), num_stuff=3, num_things=2).eval()
    images = torch.randint(0, 256, (2, 128, 256, 3), dtype=torch.uint8)
    sizes = sizes_of((128, 256), (64, 96))

    def logits(images: Tensor, sizes: Tensor) -> Tensor:
        with torch.inference_mode():
            return model.semantic_head(model.pyramid(images, sizes)[:4], sizes)

    def difference() -> float:
        alone = logits(images[1:, :64, :96], sizes[1:])
        return float((logits(images, sizes)[1:, :, :16, :24] - alone).abs().mean())

    own = difference()
    monkeypatch.setattr(GroupNorm, "forward", lambda norm, x, sizes, stride: group_norm(norm, x))
    assert own < 0.5 * difference()


def test_parameters_of_the_published_head() -> None:
    """reference: detectron2's sem_seg_head, 54 classes."""
    with torch.device("meta"):
        head = ChainsHead(256, 54, ChainsConfig(kind="chains"))
    links = [(256, 128)] * 4 + [(128, 128)] * 3
    expected = sum(a * b * 9 + 2 * b for a, b in links) + 128 * 54 + 54
    assert sum(p.numel() for p in head.parameters()) == expected
