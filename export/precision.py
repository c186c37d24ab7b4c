"""The network as it is exported: batch normalisation folded into the convolutions, their weights in half precision."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
from torch import nn
from torch.fx import Tracer
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_weights

from training.model.backbone import HybridBackbone
from training.model.deform import DeformConv
from training.model.upsnet import UPSNet
from upsnet.manifest import Precision


def prepare(model: UPSNet, precision: Precision) -> UPSNet:
    """A copy for inference that computes the same.

    fp16: the convolutions and linear layers hold half-precision weights, so features are half too. Whatever decides
    stays float32: scores, boxes, offsets, RoIs, softmax (the model casts there), biases of deformable convolutions.
    int8 is as fp32 here: quantization.py rounds the exported graph.
    """
    model = copy.deepcopy(model).eval()
    backbone = model.backbone
    for conv, norm in list(_normalized(backbone)):
        _fold(backbone.get_submodule(conv), backbone.get_submodule(norm))
        # timm's normalisations hold the activation that comes after.
        backbone.set_submodule(norm, getattr(backbone.get_submodule(norm), "act", nn.Identity()))
    if precision == "fp16":
        if not isinstance(backbone, HybridBackbone):
            backbone.half()  # its layer norms and scales compute on features, too
        for module in model.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
                module.half()
            elif isinstance(module, DeformConv):
                module.weight.data = module.weight.data.half()
                if module.bias is not None:
                    module.bias.data = module.bias.data.float()
    return model


class _LayerTracer(Tracer):
    """The graph of a backbone in which convolutions and batch normalisations are single nodes."""

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return isinstance(module, nn.Conv2d | DeformConv | _BatchNorm) or super().is_leaf_module(module, name)


def _normalized(backbone: nn.Module) -> Iterator[tuple[str, str]]:
    """Names of (convolution, the batch normalisation that alone reads what it gives)."""
    modules = dict(backbone.named_modules())
    for node in _LayerTracer().trace(backbone).nodes:
        if node.op == "call_module" and isinstance(modules[str(node.target)], _BatchNorm):
            (source,) = node.all_input_nodes
            conv = modules.get(str(source.target)) if source.op == "call_module" else None
            if isinstance(conv, nn.Conv2d | DeformConv) and len(source.users) == 1:
                yield str(source.target), str(node.target)


@torch.no_grad()
def _fold(conv: nn.Module, norm: nn.Module) -> None:
    assert isinstance(conv, nn.Conv2d | DeformConv) and isinstance(norm, _BatchNorm)
    assert norm.running_mean is not None and norm.running_var is not None
    conv.weight, conv.bias = fuse_conv_bn_weights(
        conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
    )
