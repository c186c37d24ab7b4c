"""What the arrays of one image start from: the image itself, and stages that another run computed."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from training.importers.arrays import Arrays, read_arrays
from training.model.upsnet import UPSNet
from upsnet.errors import InputError


class Inputs(NamedTuple):
    """One image, and the arrays of another run that stages start from."""

    image: np.ndarray  # float32 3 x H x W, BGR minus the means
    height: int  # inside the padding
    width: int
    scale: float  # network pixels for one original pixel
    given: Arrays

    @property
    def sizes(self) -> Tensor:
        return torch.tensor([[self.height, self.width]], dtype=torch.int32)

    def stage(self, name: str, own: Tensor) -> Tensor:
        """The array that a stage starts from: the given one, else the network's own."""
        return torch.from_numpy(self.given[name]).to(own.dtype) if name in self.given else own

    def pyramid(self, model: UPSNet) -> tuple[list[Tensor], list[Tensor]]:
        """[C2..C5] and [P2..P6] of the image."""
        image = torch.from_numpy(np.ascontiguousarray(self.image[::-1])) / model.pixel_std[:, None, None]
        levels = model.backbone(image[None])
        return levels, model.fpn(levels, self.sizes)


def read_inputs(net_input: Path, im_info: str, inputs: Path | None) -> Inputs:
    """InputError: unreadable files, an image of a wrong shape or type, or no size and scale of it."""
    arrays = read_arrays(net_input)
    image = arrays.get("net_input", np.zeros(0))
    image = image[0] if image.ndim == 4 and len(image) == 1 else image
    if image.dtype != np.float32 or image.ndim != 3 or len(image) != 3 or any(side % 32 for side in image.shape[1:]):
        raise InputError(f"{net_input}: net_input must be float32 3 x H x W with sides that are multiples of 32")
    if im_info:
        try:
            height, width, scale = (float(part) for part in im_info.split(","))
        except ValueError:
            raise InputError(f"--im-info {im_info}: write it as H,W,SCALE, for example 240,320,0.5") from None
    elif "im_info" in arrays and arrays["im_info"].size == 3:
        height, width, scale = arrays["im_info"].flatten().tolist()
    else:
        raise InputError(f"{net_input}: has no im_info: give --im-info H,W,SCALE, for example 240,320,0.5")
    if not (0 < height <= image.shape[1] and 0 < width <= image.shape[2] and scale > 0):
        raise InputError(f"{net_input}: im_info {height:g} x {width:g}, scale {scale:g} does not fit {image.shape[1:]}")
    return Inputs(image, int(height), int(width), scale, read_arrays(inputs) if inputs else {})
