"""The feature pyramid (Lin et al., CVPR 2017) with UPSNet's optional global context."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.conventions import OURS, Conventions
from training.model.norm import make_norm, normalise
from training.model_config import TOP_STRIDE, FpnConfig


class FPN(nn.Module):
    """[C2..C5] -> [P2..P6], every level with `channels` channels; P6 is P5 subsampled by two.

    With `global_context` the mean of C5 goes through a linear layer and is added to the C5 lateral.
    """

    def __init__(self, in_channels: Sequence[int], config: FpnConfig, conventions: Conventions = OURS) -> None:
        super().__init__()
        self.over_padding = conventions.context_of_padding
        self.lateral = nn.ModuleList(nn.Conv2d(c, config.channels, 1) for c in in_channels)
        self.smooth = nn.ModuleList(nn.Conv2d(config.channels, config.channels, 3, padding=1) for _ in in_channels)
        # Lists of their own: the convolutions' weights keep the names that checkpoints know.
        self.lateral_norm = nn.ModuleList(make_norm(config.norm, config.channels) for _ in in_channels)
        self.smooth_norm = nn.ModuleList(make_norm(config.norm, config.channels) for _ in in_channels)
        self.context = nn.Linear(in_channels[-1], config.channels) if config.global_context else None
        self.upsample = config.upsample
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_uniform_(module.weight, a=1)
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]

    def forward(self, features: Sequence[Tensor], sizes: Tensor) -> list[Tensor]:
        """sizes [B, 2]: height and width of each image inside the padding, network pixels."""
        laterals = self._levels(features, sizes, self.lateral, self.lateral_norm)
        if self.context is not None:
            top = features[-1]
            mean = top.float().mean(dim=(2, 3)).to(top.dtype) if self.over_padding else mean_inside(top, sizes)
            laterals[-1] = laterals[-1] + self.context(mean)[:, :, None, None]
        for i in range(len(laterals) - 1, 0, -1):
            laterals[i - 1] = laterals[i - 1] + self._upsample(laterals[i])
        outputs = self._levels(laterals, sizes, self.smooth, self.smooth_norm)
        return [*outputs, F.max_pool2d(outputs[-1], 1, stride=2)]

    def _levels(
        self, features: Sequence[Tensor], sizes: Tensor, convs: nn.ModuleList, norms: nn.ModuleList
    ) -> list[Tensor]:
        """Each of the four through its own convolution and normalisation."""
        levels = enumerate(zip(features, convs, norms, strict=True))
        return [normalise(norm, conv(x), sizes, 4 * 2**level) for level, (x, conv, norm) in levels]

    def _upsample(self, x: Tensor) -> Tensor:
        if self.upsample == "nearest":
            return F.interpolate(x, scale_factor=2.0, mode="nearest")
        return F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)


def mean_inside(feature: Tensor, sizes: Tensor) -> Tensor:
    """[B, C]: mean of C5 [B, C, h, w] over the image of sizes [B, 2] = (height, width); a cell counts by its share.

    Summed in float32. A mean over the padding too would make an image's result depend on the other images of its batch.
    """

    def shares(length: Tensor, cells: int) -> Tensor:
        return (length - torch.arange(cells, device=feature.device, dtype=torch.float32)).clamp(0, 1)

    heights, widths = (sizes / TOP_STRIDE).split(1, dim=1)  # in cells
    rows, columns = shares(heights, feature.shape[2]), shares(widths, feature.shape[3])
    share = rows[:, None, :, None] * columns[:, None, None, :]
    return ((feature.float() * share).sum(dim=(2, 3)) / share.sum(dim=(2, 3))).to(feature.dtype)
