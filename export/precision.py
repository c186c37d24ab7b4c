"""The network as it is exported: batch normalisation folded into the convolutions, their weights in half precision."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from panoptic.manifest import Precision
from training.model.backbone import HybridBackbone, MBConv
from training.model.deform import DeformConv
from training.model.upsnet import UPSNet


def prepare(model: UPSNet, precision: Precision) -> UPSNet:
    """A copy for inference that computes the same.

    fp16: the convolutions and linear layers hold half-precision weights, so features are half too. Whatever decides
    stays float32: scores, boxes, offsets, RoIs, softmax (the model casts there), biases of deformable convolutions.
    """
    model = copy.deepcopy(model).eval()
    for parent, conv, norm in list(_normalized(model)):
        _fold(parent.get_submodule(conv), parent.get_submodule(norm))
        parent.set_submodule(norm, nn.Identity())
    if precision == "fp16":
        for module in model.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
                module.half()
            elif isinstance(module, DeformConv):
                module.weight.data = module.weight.data.half()
    return model


def _normalized(model: UPSNet) -> Iterator[tuple[nn.Module, str, str]]:
    """(module, convolution in it, its batch normalisation)."""
    for module in model.modules():
        if isinstance(module, MBConv):
            yield module, "expand_conv", "bn0"
            yield module, "dw_conv", "bn1"
            yield module, "project_conv", "bn2"
        elif isinstance(module, HybridBackbone):
            yield module, "stem.0", "stem.1"
            yield module, "stem.3", "stem.4"


@torch.no_grad()
def _fold(conv: nn.Module, norm: nn.Module) -> None:
    assert isinstance(conv, nn.Conv2d | DeformConv) and isinstance(norm, nn.BatchNorm2d)
    assert norm.running_mean is not None and norm.running_var is not None
    conv.weight, conv.bias = fuse_conv_bn_weights(
        conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
    )
