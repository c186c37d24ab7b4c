"""Cross-entropy at full resolution without the full-resolution logits: 570 MB an image at 800x1344 with 133 classes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from training.data.sample import IGNORE
from training.model.layout import is_channels_last

STRIDE = 4  # of the semantic logits
CHUNK = 1 << 24  # about how many full-resolution logits exist at once, each with its gradients: 20 bytes


class UpsampledCrossEntropy(torch.autograd.Function):
    """apply(logits [B, C, h, w], target [B, 4h, 4w]) -> [B], each image's mean over its labelled pixels, 0 without one.

    The same as F.interpolate (bilinear, half-pixel) and F.cross_entropy with ignore_index. It goes through the maps in
    stripes and finds the gradient on the way, so that backward has nothing to recompute, and all that is kept between
    the passes is a gradient at quarter resolution.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, target: Tensor) -> Tensor:  # PyTorch has no public type of it
        wanted = ctx.needs_input_grad[0]
        labelled = (target != IGNORE).sum((1, 2)).clamp(min=1)
        losses = logits.new_zeros(len(logits))
        gradient = torch.zeros_like(logits) if wanted else None
        for images, first, last in stripes(*logits.shape):
            low, high = max(first - 1, 0), min(last + 1, logits.shape[2])  # with a row of neighbours on each side
            with torch.enable_grad():
                stripe = logits[images, :, low:high].detach().requires_grad_(wanted)
                full = F.interpolate(stripe, scale_factor=float(STRIDE), mode="bilinear", align_corners=False)
                full = full[:, :, STRIDE * (first - low) : STRIDE * (last - low)]
                labels = target[images, STRIDE * first : STRIDE * last].long()
                part = cross_entropy(full, labels) / labelled[images]
                if gradient is not None:
                    gradient[images, :, low:high] += torch.autograd.grad(part.sum(), stripe)[0]
            losses[images] += part.detach()
        ctx.save_for_backward(gradient)
        return losses

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_losses: Tensor) -> tuple[Tensor, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * of_losses[:, None, None, None], None


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """[B], the sum over the labelled pixels of logits [B, C, H, W]. PyTorch would copy logits whose channels are
    innermost; as the rows of a matrix they are taken where they lie."""
    if is_channels_last(logits):
        rows = logits.permute(0, 2, 3, 1).flatten(0, 2)
        losses = F.cross_entropy(rows, labels.flatten(), ignore_index=IGNORE, reduction="none")
        return losses.reshape(len(logits), -1).sum(1)
    return F.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="none").sum((1, 2))


def stripes(batch: int, classes: int, height: int, width: int) -> Iterator[tuple[slice, int, int]]:
    """Cut maps at quarter resolution into about CHUNK full-resolution logits: images, first row, end of the rows."""
    row = classes * width * STRIDE**2
    together = max(1, CHUNK // (row * height))
    rows = max(1, CHUNK // row) if together == 1 else height
    for image in range(0, batch, together):
        for first in range(0, height, rows):
            yield slice(image, image + together), first, min(first + rows, height)
