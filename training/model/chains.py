"""The semantic head of Panoptic FPN (Kirillov et al., CVPR 2019)."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from training.model.norm import GroupNorm
from training.model_config import ChainsConfig


class ChainsHead(nn.Module):
    """[P2..P5] -> semantic logits [B, C, H/4, W/4]. Every level has a chain of its own: convolution, GroupNorm, ReLU,
    twice as large, until it is at 1/4; the sum of the four is scored."""

    def __init__(self, in_channels: int, num_classes: int, config: ChainsConfig) -> None:
        super().__init__()
        channels, groups = config.channels, config.groups
        self.chains = nn.ModuleList(
            nn.ModuleList(Link(channels if i else in_channels, channels, groups) for i in range(max(1, level)))
            for level in range(4)
        )
        self.score = nn.Conv2d(channels, num_classes, 1)
        nn.init.normal_(self.score.weight, std=0.01)
        nn.init.zeros_(self.score.bias)  # type: ignore[arg-type]

    def forward(self, levels: Sequence[Tensor], sizes: Tensor) -> Tensor:
        """sizes [B, 2]: height and width of each image inside the padding, network pixels."""
        return self.score(sum(self.features(levels, sizes)))

    def features(self, levels: Sequence[Tensor], sizes: Tensor) -> list[Tensor]:
        """What each level adds to the sum that `score` reads, B x C x H/4 x W/4."""
        outputs = []
        for level, (x, chain) in enumerate(zip(levels, self.chains, strict=True)):
            for i, link in enumerate(chain.children()):
                x = link(x, sizes, 4 * 2 ** (level - i))
                if level:
                    x = F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)
            outputs.append(x)
        return outputs


class Link(nn.Module):
    """A 3x3 convolution without bias, GroupNorm, ReLU."""

    def __init__(self, in_channels: int, channels: int, groups: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, channels, 3, padding=1, bias=False)
        self.norm = GroupNorm(groups, channels)
        nn.init.kaiming_normal_(self.conv.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor, sizes: Tensor, stride: int) -> Tensor:
        return F.relu(self.norm(self.conv(x), sizes, stride))
