"""Box, mask and semantic heads of UPSNet (Xiong et al., CVPR 2019). chains.py has Panoptic FPN's semantic head."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from training.model.deform import DeformConv
from training.model.layout import is_channels_last
from training.model.norm import RoiNorm, groups_of, make_norm, normalise
from training.model_config import BoxHeadConfig, MaskHeadConfig, SubnetConfig

BOX_POOL, MASK_POOL, MASK_SIZE = 7, 14, 28


class BoxHead(nn.Module):
    """RoI features [N, C, 7, 7] -> class logits [N, 1 + T] (background first) and deltas [N, 1 + T, 4]."""

    def __init__(self, in_channels: int, num_things: int, config: BoxHeadConfig) -> None:
        super().__init__()
        self.fc6 = nn.Linear(in_channels * BOX_POOL**2, config.hidden)
        self.fc7 = nn.Linear(config.hidden, config.hidden)
        self.logits = nn.Linear(config.hidden, 1 + num_things)
        self.deltas = nn.Linear(config.hidden, 4 * (1 + num_things))
        for layer in (self.fc6, self.fc7):
            nn.init.kaiming_uniform_(layer.weight, a=1)
        nn.init.normal_(self.logits.weight, std=0.01)
        nn.init.normal_(self.deltas.weight, std=0.001)
        for layer in (self.fc6, self.fc7, self.logits, self.deltas):
            nn.init.zeros_(layer.bias)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        hidden = F.relu(self.fc7(F.relu(self.fc6(features.flatten(1)))))
        return self.logits(hidden).float(), self.deltas(hidden).float().unflatten(1, (-1, 4))


class MaskHead(nn.Module):
    """RoI features [N, C, 14, 14] and labels [N] (thing index) -> mask logits [N, 28, 28] of the label's class."""

    def __init__(self, in_channels: int, num_things: int, config: MaskHeadConfig) -> None:
        super().__init__()
        widths = [in_channels] + [config.channels] * config.layers
        self.convs = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in itertools.pairwise(widths))
        self.norms = nn.ModuleList(
            RoiNorm(groups_of(width), width) if config.norm == "group" else nn.Identity() for width in widths[1:]
        )
        self.deconv = nn.ConvTranspose2d(config.channels, config.channels, 2, stride=2)
        self.score = nn.Conv2d(config.channels, 1 + num_things, 1)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_in", nonlinearity="relu")
                nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    def forward(self, features: Tensor, labels: Tensor) -> Tensor:
        for conv, norm in zip(self.convs, self.norms, strict=True):
            features = F.relu(norm(conv(features)))
        deconv, score, channels = self.deconv, self.score, self.deconv.out_channels
        assert deconv.bias is not None and score.bias is not None
        # A transposed convolution of 2x2 and stride 2 is a 1x1 convolution to the four pixels of a cell, which `score`
        # can read where they lie. Of `score` only the RoI's own class is computed.
        weight = deconv.weight.permute(2, 3, 1, 0).flatten(0, 2)[:, :, None, None]
        cells = F.relu(F.conv2d(features, weight, deconv.bias.repeat(4)))
        own = score.weight[1:].reshape(-1, 1, 1, channels)[labels]
        bias = score.bias[1:].reshape(-1, 1, 1, 1)[labels]
        if is_channels_last(cells):  # the four cells of a pixel lie one behind another: nothing is copied
            pixels = cells.permute(0, 2, 3, 1).reshape(-1, 4 * MASK_POOL**2, channels)
            logits = (pixels @ own.reshape(-1, channels, 1)).reshape(-1, MASK_POOL, MASK_POOL, 4).permute(0, 3, 1, 2)
            return F.pixel_shuffle(logits + bias, 2).squeeze(1)
        logits = own @ cells.reshape(-1, 4, channels, MASK_POOL**2) + bias
        return F.pixel_shuffle(logits.reshape(-1, 4, MASK_POOL, MASK_POOL), 2).squeeze(1)


class SemanticHead(nn.Module):
    """[P2..P5] -> semantic logits [B, S + T, H/4, W/4], stuff channels first.

    One subnet of (deformable) convolutions is shared by the levels; their outputs, brought to 1/4, are concatenated and
    scored. As a 1x1 convolution and interpolation commute, each level is scored where it lies.
    """

    def __init__(self, in_channels: int, num_classes: int, config: SubnetConfig) -> None:
        super().__init__()
        widths = [in_channels, *config.channels]
        self.convs = nn.ModuleList(
            DeformConv(a, b) if config.deformable else nn.Conv2d(a, b, 3, padding=1)
            for a, b in itertools.pairwise(widths)
        )
        self.norms = nn.ModuleList(make_norm(config.norm, width) for width in config.channels)
        self.score = nn.Conv2d(4 * widths[-1], num_classes, 1)
        nn.init.normal_(self.score.weight, std=0.01)
        nn.init.zeros_(self.score.bias)  # type: ignore[arg-type]

    def forward(self, levels: Sequence[Tensor], sizes: Tensor) -> Tensor:
        """sizes [B, 2]: height and width of each image inside the padding, network pixels."""
        outputs = []
        for index, x in enumerate(self.features(levels, sizes)):
            own = slice(index * x.shape[1], (index + 1) * x.shape[1])
            x = F.conv2d(x, self.score.weight[:, own], None if index else self.score.bias)
            if index > 0:
                x = F.interpolate(x, scale_factor=float(2**index), mode="bilinear", align_corners=False)
            outputs.append(x)
        return sum(outputs[1:], outputs[0])

    def features(self, levels: Sequence[Tensor], sizes: Tensor) -> list[Tensor]:
        """What `score` reads of each level, B x C x h x w."""
        outputs = []
        for level, x in enumerate(levels):
            for conv, norm in zip(self.convs, self.norms, strict=True):
                x = F.relu(normalise(norm, conv(x), sizes, 4 * 2**level))
            outputs.append(x)
        return outputs
