"""The modules of a network that a recipe of precisions speaks of (`upsnet.manifest.Recipe`), by their names there."""

from __future__ import annotations

import ast
import difflib
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import yaml
from pydantic import ValidationError
from torch import nn

from training.model.upsnet import UPSNet
from upsnet.errors import InputError, one_line
from upsnet.manifest import Recipe
from upsnet.strict_yaml import load_yaml

if TYPE_CHECKING:  # a machine with a GPU may lack it (docs/gpu.md)
    import onnx

SCOPES = "pkg.torch.onnx.name_scopes"  # the exporter's: "['', 'rpn', 'rpn.conv', 'conv2d_41']"
HEADS = ("rpn", "semantic_head", "box_head", "mask_head")
SHOWN = 40  # names in a message

Modules = dict[str, tuple[str, ...]]  # a module's name -> where it lies in the network


def modules_of(model: UPSNet) -> Modules:
    """The smallest modules that can have a type of their own, in the order of use: the blocks of the backbone's stages
    ("backbone.stages.1.0", of timm's networks "backbone.layer2.0"), the levels of the pyramid ("fpn.p2" to "fpn.p5":
    lateral and 3x3), "rpn", "semantic_head", "box_head", "mask_head".
    """
    inside = "backbone.network" if hasattr(model.backbone, "network") else "backbone"
    found: Modules = {f"backbone{path.removeprefix(inside)}": (path,) for path in _blocks(model, inside)}
    levels = len(model.fpn.lateral)
    for index in range(levels):
        last = ("fpn.context",) if index == levels - 1 and model.fpn.context is not None else ()
        found[f"fpn.p{index + 2}"] = (f"fpn.lateral.{index}", *last, f"fpn.smooth.{index}")
    return found | {head: (head,) for head in HEADS if hasattr(model, head)}


def _blocks(model: nn.Module, path: str) -> Iterator[str]:
    """The paths of the modules with weights inside the one at `path`: what its containers of containers hold."""
    for name, child in model.get_submodule(path).named_children():
        inner = f"{path}.{name}"
        if isinstance(child, nn.Sequential | nn.ModuleList) and any(
            next(each.children(), None) is not None for each in child
        ):
            yield from _blocks(model, inner)
        elif next(child.parameters(), None) is not None:
            yield inner


def check_recipe(recipe: Recipe, modules: Collection[str]) -> None:
    """InputError where the recipe names what is no module, nor a part of a name as "backbone"."""
    known = {
        ".".join(parts[:end]) for name in modules for parts in [name.split(".")] for end in range(1, len(parts) + 1)
    }
    for name in recipe.modules:
        if name not in known:
            close = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {close[0]}? There" if close else "there"
            raise InputError(f"no module {name!r} in this network; {hint} are {_listed(sorted(known))}")


def read_recipe(path: Path) -> Recipe:
    """From JSON or YAML. InputError for a file that is none, with its key."""
    try:
        text = path.read_text(encoding="utf-8").expandtabs(2)  # JSON may be indented with tabs, YAML not
        values = load_yaml(text)
    except (OSError, yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: also what is not UTF-8
        raise InputError(f"{path}: cannot be read as a recipe ({' '.join(str(error).split())})") from None
    if not isinstance(values, dict):
        raise InputError(f"{path}: no recipe, which is as {{default: fp16, modules: {{rpn: fp32, fpn.p2: int8}}}}")
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        raise InputError(f"{path}: {one_line(error)}") from None


def _listed(names: list[str]) -> str:
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


def module_at(path: str, modules: Mapping[str, tuple[str, ...]]) -> str | None:
    """The module that what lies at `path` in the network belongs to; None for what is in none, as the fusion."""
    for name, places in modules.items():
        if any(path == place or path.startswith(f"{place}.") for place in places):
            return name
    return None


def scope_of(node: onnx.NodeProto) -> str:
    """Where in the network the exporter traced a node: "rpn.conv"; "" where it does not say."""
    scopes = [ast.literal_eval(each.value) for each in node.metadata_props if each.key == SCOPES]
    return scopes[0][-2] if scopes and scopes[0][-2:-1] else ""
