"""A step in channels-last: between the photo and the losses, and on the way back, no feature changes its order."""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from training import gpu_step_check
from training.config import LossConfig
from training.losses import TrainingLosses
from training.model.layout import is_channels_last
from training.model.upsnet import UPSNet
from training.model_config import ModelConfig

ROOT = Path(__file__).resolve().parents[2]
# What is left. RoIAlign writes channels outermost, which the mask head's first convolution changes; torchvision's, of
# the semantic logits, reads them so.
FORWARD = {"aten::convolution in training/model/heads.py", "torchvision::roi_align in training/losses/total.py"}
# The gradient of the panoptic logits, which are made of masks besides, is added to that of the semantic ones; that of
# the context's mean, which is the same in all cells, to that of C5. RoIAlign's and the deformable convolution's are as
# their operators write them, and so is what is added to them. And some weights': of 2 x 2, and of those operators.
BACKWARD = {
    "aten::slice_backward",
    "aten::add.Tensor",
    "aten::mul.Tensor",
    "aten::copy_",
    "aten::new_empty_strided",
    "aten::convolution_backward",
    "aten::threshold_backward",
}


NETWORKS = [{}, {"backbone": gpu_step_check.BOTTLENECK}, {"backbone": gpu_step_check.RESNET}]


class Reordered(TorchDispatchMode):
    """Notes operations that read features with their channels innermost and write others without, or the reverse. The
    operators of plugins_cuda are not looked into."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        copies = isinstance(result, Tensor) and result.ndim == 4 and not func.is_view
        read = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor) and leaf.ndim == 4]
        if copies and {is_channels_last(each) for each in (*read, result) if ordered(each)} == {True, False}:
            frames = [frame.f_code.co_filename for frame, _ in traceback.walk_stack(None)]
            ours = [Path(name).relative_to(ROOT) for name in frames if Path(name).is_relative_to(ROOT / "training")]
            if not any("plugins_cuda" in name for name in frames if "tests" not in name):
                self.found.add(func.name() + (f" in {ours[0]}" if ours else ""))
        return result


def ordered(x: Tensor) -> bool:
    """Whether x is dense in one of the orders, and not in both."""
    return x.is_contiguous() != x.is_contiguous(memory_format=torch.channels_last)


def small_losses(backbone: dict[str, Any]) -> TrainingLosses:
    torch.manual_seed(0)
    config = ModelConfig.model_validate(gpu_step_check.SMALL | backbone)
    model = UPSNet(config, gpu_step_check.STUFF, gpu_step_check.THINGS).train()
    return TrainingLosses(model, LossConfig())


def reordered(backbone: dict[str, Any]) -> tuple[set[str], set[str]]:
    """By the forward pass and by the backward pass."""
    losses = small_losses(backbone).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    with Reordered() as forward:
        found = losses(gpu_step_check.made_up_batch(lambda tensor: tensor))
    with Reordered() as backward:
        torch.stack(list(found.values())).sum().backward()
    return forward.found, backward.found


@pytest.mark.parametrize("backbone", NETWORKS, ids=["hybrid", "bottlenecks", "deformable"])
def test_features_keep_their_order(backbone: dict[str, Any]) -> None:
    forward, backward = reordered(backbone)
    assert forward <= FORWARD
    assert {name for name in backward if " in " not in name} <= BACKWARD


def test_one_that_does_not_is_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch's softmax over channels makes them outermost."""
    monkeypatch.setattr("training.losses.semantic.is_channels_last", lambda logits: False)
    assert "aten::_log_softmax in training/losses/semantic.py" in reordered({})[0]


def test_heads_and_losses_compute_the_same() -> None:
    """On one pyramid with the same targets: values, and the gradient of its levels."""
    losses, batch = small_losses({}), gpu_step_check.made_up_batch(lambda tensor: tensor)
    with torch.no_grad():
        levels = losses.model.pyramid(batch.images, batch.sizes)
        targets = losses.targets(batch, losses.model.rpn(levels))
    results = []
    for form in (torch.contiguous_format, torch.channels_last):
        losses.to(memory_format=form)  # type: ignore[call-overload]
        pyramid = [level.contiguous(memory_format=form).requires_grad_() for level in levels]
        found = losses.of_pyramid(pyramid, batch, targets)
        results.append((found, torch.autograd.grad(torch.stack(list(found.values())).sum(), pyramid)))
    torch.testing.assert_close(results[1], results[0], rtol=1e-4, atol=1e-6)
