"""Augmentation of a photo and its segment map together, on torchvision's tv_tensors.

All random numbers come from the generator that the caller gives: torch's global random state is not touched.
"""

from __future__ import annotations

import numpy as np
import torch
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as F

from training.config import AugmentConfig
from upsnet.errors import InputError
from upsnet.geometry import ResizeRule


class Augment(AugmentConfig):
    """What happens to a training image. One of `short_sides` takes the place of the rule's (multi-scale training)."""

    short_sides: tuple[int, ...] = ()

    def model_post_init(self, _: object) -> None:
        if not 0 < self.scale[0] <= self.scale[1] < float("inf"):
            raise InputError(f"augment: scale {list(self.scale)} must be a range of positive factors, the least first")

    def draw_rules(self, rule: ResizeRule, draws: np.random.Generator) -> tuple[ResizeRule, ResizeRule]:
        """The rule of the sample's size, and the zoomed one to resize the photo with before a window is cut out."""
        short = int(draws.choice(self.short_sides)) if self.short_sides else rule.short_side
        zoom = draws.uniform(*self.scale)
        return resized(rule, short, rule.max_side), resized(rule, round(short * zoom), round(rule.max_side * zoom))

    def apply(
        self, photo: np.ndarray, segments: np.ndarray, window: tuple[int, int], draws: np.random.Generator
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Cut out, flip, change colours. photo: uint8 H x W x 3; segments: integer H x W; window: most height, width.

        Returns the photo as uint8 3 x h x w, its channels innermost in memory, and the segments as h x w; both may be
        views of what was given. The number of draws is always the same.
        """
        image = tv_tensors.Image(torch.from_numpy(photo).permute(2, 0, 1))
        mask = tv_tensors.Mask(torch.from_numpy(segments))
        height, width = (min(most, side) for most, side in zip(window, segments.shape, strict=True))
        top, left = draws.integers(0, segments.shape[0] - height + 1), draws.integers(0, segments.shape[1] - width + 1)
        image, mask = (F.crop(t, int(top), int(left), height, width) for t in (image, mask))
        if draws.random() < self.flip:
            image, mask = F.horizontal_flip(image), F.horizontal_flip(mask)
        brightness, contrast, saturation = draws.uniform(1 - self.color, 1 + self.color, 3)
        hue = draws.uniform(-self.color, self.color) / 10
        if self.color:
            image = F.adjust_contrast(F.adjust_brightness(image, brightness), contrast)
            image = F.adjust_hue(F.adjust_saturation(image, saturation), hue)
        return image.as_subclass(torch.Tensor), mask.as_subclass(torch.Tensor)


NO_AUGMENTATION = Augment(flip=0.0)  # the photo as it is, whatever is drawn


def resized(rule: ResizeRule, short_side: int, max_side: int) -> ResizeRule:
    return rule.model_copy(update={"short_side": max(1, short_side), "max_side": max(1, max_side)})
