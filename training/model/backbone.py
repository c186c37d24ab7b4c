"""The hybrid backbone: ResNet-50's stage layout and widths, filled with MBConv blocks, or with plain bottlenecks."""

from __future__ import annotations

from torch import Tensor, nn

from training.model_config import BottleneckConfig, HybridConfig


class MBConv(nn.Module):
    """Inverted residual (Sandler et al., CVPR 2018) with a final ReLU after the add.

    1x1 expand - BN - ReLU - depthwise 3x3 - BN - ReLU - 1x1 project - BN, plus the identity where there is a shortcut.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, expansion: int, shortcut: bool) -> None:
        super().__init__()
        hidden = in_channels * expansion
        self.expand_conv = nn.Conv2d(in_channels, hidden, 1, bias=False)
        self.bn0 = nn.BatchNorm2d(hidden)
        self.dw_conv = nn.Conv2d(hidden, hidden, 3, stride, padding=1, groups=hidden, bias=False)
        self.bn1 = nn.BatchNorm2d(hidden)
        self.project_conv = nn.Conv2d(hidden, out_channels, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn0(self.expand_conv(x)))
        y = self.relu(self.bn1(self.dw_conv(y)))
        y = self.bn2(self.project_conv(y))
        return self.relu(x + y if self.shortcut else y)


class Bottleneck(nn.Module):
    """ResNet's bottleneck (He et al., CVPR 2016), the stride in its 3x3 convolution.

    1x1 reduce - BN - ReLU - 3x3 - BN - ReLU - 1x1 - BN, plus the input, which a 1x1 convolution and BN project where
    the shape changes; then ReLU.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, inner: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, inner, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut = nn.Sequential()
        if stride != 1 or in_channels != out_channels:
            projection = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)
            self.shortcut.extend([projection, nn.BatchNorm2d(out_channels)])

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        return self.relu(self.shortcut(x) + self.bn3(self.conv3(y)))


class HybridBackbone(nn.Module):
    """B x 3 x H x W -> (C2, C3, C4, C5) at strides 4, 8, 16, 32; `out_channels` lists their widths."""

    def __init__(self, config: HybridConfig | BottleneckConfig) -> None:
        super().__init__()
        first, second = config.stem
        self.stem = nn.Sequential(
            nn.Conv2d(3, first, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(first),
            nn.ReLU(inplace=True),
            nn.Conv2d(first, second, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(second),
            nn.ReLU(inplace=True),
        )
        stages = []
        channels = second
        for index, (width, depth) in enumerate(zip(config.widths, config.depths, strict=True)):
            blocks: list[nn.Module] = []
            for block in range(depth):
                stride = 2 if block == 0 and index > 0 else 1
                if isinstance(config, HybridConfig):
                    # The first block of a stage has no shortcut: the published network changes its width there.
                    blocks.append(MBConv(channels, width, stride, config.expansion, shortcut=block > 0))
                else:
                    blocks.append(Bottleneck(channels, width, stride, config.inner[index]))
                channels = width
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.ModuleList(stages)
        self.out_channels = list(config.widths)
        for module in self.modules():
            if isinstance(module, nn.Conv2d) and module.bias is None:
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.stem(x.to(next(self.parameters()).dtype))
        features = []
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        return features
