"""The network as it is exported: batch normalisation folded into the convolutions, weights in the types asked for."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Tracer
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_weights

from export.modules import check_recipe, modules_of
from training.model.backbone import HybridBackbone
from training.model.deform import DeformConv
from training.model.upsnet import UPSNet
from upsnet.manifest import EIGHT_BITS, ModuleType, Precision, Recipe

DTYPES: dict[ModuleType, torch.dtype] = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
LISTS = (  # of convolutions and, in the same order, of the normalisations after them
    ("fpn.lateral", "fpn.lateral_norm"),
    ("fpn.smooth", "fpn.smooth_norm"),
    ("semantic_head.convs", "semantic_head.norms"),
)


def recipe_of(precision: Precision, recipe: Recipe | None) -> Recipe:
    """Every precision as a recipe: one of a single type has it as the default."""
    return recipe or Recipe(default="fp32" if precision in ("tf32", "mixed") else precision)


def prepare(model: UPSNet, precision: Precision, recipe: Recipe | None = None) -> UPSNet:
    """A copy for inference that computes the same.

    fp16, bf16: the convolutions and linear layers hold weights of that type, so features are of that type too. Whatever
    decides stays float32: scores, boxes, offsets, RoIs, softmax (the model casts there), biases of deformable
    convolutions. mixed: of the recipe's modules each has its type, and what goes from one to another is cast.
    Eight bits are as the floating-point type around them here: quantization.py rounds the exported graph.
    InputError for a recipe that names a module which is not there.
    """
    recipe = recipe_of(precision, recipe)
    model = copy.deepcopy(model).eval()
    backbone = model.backbone
    for conv, norm in list(_normalized(model)):
        _fold(model.get_submodule(conv), model.get_submodule(norm))
        # timm's normalisations hold the activation that comes after.
        model.set_submodule(norm, getattr(model.get_submodule(norm), "act", nn.Identity()))
    modules = modules_of(model)
    check_recipe(recipe, modules)
    types = {name: DTYPES[float_type(recipe, name)] for name in modules}
    if not isinstance(backbone, HybridBackbone):
        backbone.to(DTYPES[recipe.between])  # its layer norms and scales compute on features, too
    for name, paths in modules.items():
        for path in paths:
            module = model.get_submodule(path)
            _convert(
                module, types[name], whole=path.startswith("backbone.") and not isinstance(backbone, HybridBackbone)
            )
            if len(set(types.values())) > 1:
                _cast_inputs(module, types[name])
    if len({types[name] for name in types if name.startswith("fpn.")}) > 1:
        model.fpn.register_forward_hook(_as_one)
    return model


def float_type(recipe: Recipe, module: str) -> ModuleType:
    """The floating-point type of a module: around its layers, where these have eight bits."""
    own = recipe.type_of(module)
    return recipe.between if own in EIGHT_BITS else own


def _convert(module: nn.Module, dtype: torch.dtype, whole: bool) -> None:
    """The layers' weights; `whole`: those of normalisations too. Biases of deformable convolutions stay float32."""
    if whole:
        module.to(dtype)
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            layer.to(dtype)
        elif isinstance(layer, DeformConv):
            layer.weight.data = layer.weight.data.to(dtype)
            if layer.bias is not None:
                layer.bias.data = layer.bias.data.float()


def _cast_inputs(module: nn.Module, dtype: torch.dtype) -> None:
    """What a module is called with is cast to its type."""

    def cast(value: Any) -> Any:
        if isinstance(value, list | tuple):
            return type(value)(cast(each) for each in value)
        return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value

    module.register_forward_pre_hook(lambda _, inputs: cast(inputs))


def _as_one(_: nn.Module, __: Any, levels: list[Tensor]) -> list[Tensor]:
    """RoIAlign reads levels of one type: the widest."""
    widest = levels[0].dtype
    for level in levels:
        widest = torch.promote_types(widest, level.dtype)
    return [level.to(widest) for level in levels]


class _LayerTracer(Tracer):
    """The graph of a backbone in which convolutions and batch normalisations are single nodes."""

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return isinstance(module, nn.Conv2d | DeformConv | _BatchNorm) or super().is_leaf_module(module, name)


def _normalized(model: UPSNet) -> Iterator[tuple[str, str]]:
    """Names of (convolution, the batch normalisation that alone reads what it gives)."""
    named = dict(model.named_modules())
    for convs, norms in LISTS:
        for name, module in named.items():
            if name.startswith(f"{norms}.") and isinstance(module, _BatchNorm):
                yield f"{convs}{name.removeprefix(norms)}", name
    modules = dict(model.backbone.named_modules())
    for node in _LayerTracer().trace(model.backbone).nodes:
        if node.op == "call_module" and isinstance(modules[str(node.target)], _BatchNorm):
            (source,) = node.all_input_nodes
            conv = modules.get(str(source.target)) if source.op == "call_module" else None
            if isinstance(conv, nn.Conv2d | DeformConv) and len(source.users) == 1:
                yield f"backbone.{source.target}", f"backbone.{node.target}"


@torch.no_grad()
def _fold(conv: nn.Module, norm: nn.Module) -> None:
    assert isinstance(conv, nn.Conv2d | DeformConv) and isinstance(norm, _BatchNorm)
    assert norm.running_mean is not None and norm.running_var is not None
    conv.weight, conv.bias = fuse_conv_bn_weights(
        conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
    )
