"""A training photo at its network size, and its augmentation together with its segment map.

All random numbers come from the generator that the caller gives: torch's global random state is not touched.
"""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from training.config import AugmentConfig
from upsnet.errors import InputError
from upsnet.geometry import ResizeRule
from upsnet.photos import Least

# A JPEG is drafted where the draft still has so many times the network's pixels a side. What that changes is less than
# the choice between bilinear and bicubic (tests/training/data/test_transforms.py); at 1 it would be twice as much.
ENOUGH = 2

LUMA = (0.299, 0.587, 0.114)
TO_YIQ = np.array([LUMA, (0.596, -0.274, -0.322), (0.211, -0.523, 0.312)])


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
        height, width = (min(most, side) for most, side in zip(window, segments.shape, strict=True))
        top, left = draws.integers(0, segments.shape[0] - height + 1), draws.integers(0, segments.shape[1] - width + 1)
        photo, segments = (each[top : top + height, left : left + width] for each in (photo, segments))
        flip = draws.random() < self.flip
        brightness, contrast, saturation = draws.uniform(1 - self.color, 1 + self.color, 3)
        hue = draws.uniform(-self.color, self.color) / 10
        if self.color:
            photo = twist_colours(photo, brightness, contrast, saturation, hue)
        image, mask = torch.from_numpy(photo).permute(2, 0, 1), torch.from_numpy(segments)
        return (image.flip(-1), mask.flip(-1)) if flip else (image, mask)


NO_AUGMENTATION = Augment(flip=0.0)  # the photo as it is, whatever is drawn


def resized(rule: ResizeRule, short_side: int, max_side: int) -> ResizeRule:
    return rule.model_copy(update={"short_side": max(1, short_side), "max_side": max(1, max_side)})


def resize_photo(photo: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """uint8 H x W x 3 -> h x w x 3. What `to_network` does through Pillow, in a third of the time and less: PyTorch has
    the same filter with weights of 16 bits, so that one pixel in a hundred differs by a level."""
    if photo.shape[:2] == size:
        return photo
    image = torch.from_numpy(photo)[None].permute(0, 3, 1, 2)  # channels last, which the fast path wants
    return F.interpolate(image, size, mode="bilinear", antialias=True)[0].permute(1, 2, 0).numpy()


def drafted_for(rule: ResizeRule) -> Least:
    """The least size of a photo that `rule` is going to resize."""

    def least(height: int, width: int) -> tuple[int, int]:
        rows, columns = rule.network_size(height, width)
        return ENOUGH * rows, ENOUGH * columns

    return least


def twist_colours(photo: np.ndarray, brightness: float, contrast: float, saturation: float, hue: float) -> np.ndarray:
    """Brightness, contrast and saturation times their factors, hue turned by `hue` of the circle: uint8 H x W x 3.

    All four are linear, the hue in YIQ, so that one matrix does them: a fourteenth of the time that they take one after
    the other with the hue in HSV.
    """
    mean = LUMA @ photo.sum(0, dtype=np.int64).sum(0) / (photo.shape[0] * photo.shape[1])
    saturate = saturation * np.eye(3) + (1 - saturation) * np.array(LUMA)
    cos, sin = np.cos(2 * np.pi * hue), np.sin(2 * np.pi * hue)
    turn = np.linalg.inv(TO_YIQ) @ np.array([(1, 0, 0), (0, cos, sin), (0, -sin, cos)]) @ TO_YIQ
    matrix = np.c_[brightness * contrast * turn @ saturate, np.full(3, brightness * (1 - contrast) * mean)]
    return np.array(Image.fromarray(photo).convert("RGB", tuple(matrix.ravel().tolist())))
