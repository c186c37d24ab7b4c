"""Any timm network with features at strides 4, 8, 16 and 32 as the backbone; ResNets also with deformable stages."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import timm
from safetensors import SafetensorError
from timm.layers import Format
from timm.models import load_state_dict
from timm.models.resnet import BasicBlock, Bottleneck
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from training.conventions import OURS, Conventions
from training.model.deform import DeformConv
from training.model_config import TimmConfig
from upsnet.errors import InputError, first_line

STRIDES = (4, 8, 16, 32)


class TimmBackbone(nn.Module):
    """B x 3 x H x W -> (C2, C3, C4, C5) at strides 4, 8, 16, 32; `out_channels` lists their widths.

    Built with random weights, so that a checkpoint needs nothing else; `load_pretrained` starts a new run.
    """

    def __init__(self, config: TimmConfig, conventions: Conventions = OURS) -> None:
        super().__init__()
        self.config = config
        self.network: Any = _create(config.name, pretrained=False)  # timm has no types
        strides = self.network.feature_info.reduction()
        if missing := [stride for stride in STRIDES if stride not in strides]:
            raise InputError(
                f"backbone {config.name}: has features at strides {strides} but not {missing}; "
                f"choose a network with strides 4, 8, 16 and 32, as resnet50"
            )
        if getattr(self.network, "output_fmt", Format.NCHW) != Format.NCHW:
            raise InputError(f"backbone {config.name}: takes images of one size alone; choose a convolutional network")
        self.positions = [strides.index(stride) for stride in STRIDES]
        self.out_channels = [self.network.feature_info.channels()[i] for i in self.positions]
        if conventions.stride_first:
            _stride_first(self.network, config.name)
        for stage in config.deformable_stages:
            _deform(self.network, stage, config.name)
        frozen = self._leading(config.freeze)
        if config.frozen_norm:
            norms = [module for module in self.network.modules() if isinstance(module, _BatchNorm)]
            frozen += [parameter for norm in norms for parameter in norm.parameters()]
        for parameter in frozen:
            parameter.requires_grad_(False)

    def forward(self, x: Tensor) -> list[Tensor]:
        features = self.network(x.to(next(self.parameters()).dtype))
        return [features[i] for i in self.positions]

    def train(self, mode: bool = True) -> TimmBackbone:
        """Batch normalisations whose scale is not trained keep their statistics too."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, _BatchNorm) and module.affine and not module.weight.requires_grad:
                module.eval()
        return self

    def load_pretrained(self) -> str:
        """Load what the configuration names into this new network; a line that says what, or "" for nothing.

        InputError: no connection, an unreadable file, or a file that lacks a weight of this network; nothing to load
        though some of it is frozen. A file may hold more, as its classifier; the offset convolutions of deformable
        stages are in no file and stay zero.
        """
        config = self.config
        if config.weights:
            weights, source = _read(config.weights), str(config.weights)
        elif config.pretrained:
            network = _create(config.name, pretrained=True)
            weights, source = network.state_dict(), f"timm's {config.name}.{network.pretrained_cfg.get('tag', '')}"
        elif config.freeze or config.frozen_norm:
            raise InputError(
                "model.backbone: freeze and frozen_norm keep weights as they are, and these are random; start from a "
                "network with --init, from pretrained: true or weights: FILE, or set freeze: 0 and frozen_norm: false"
            )
        else:
            return ""
        own = self.network.state_dict()
        # A network that gives features has flatter names ("stages_0.blocks") than the whole one ("stages.0.blocks").
        found = {key.replace(".", "_"): tensor for key, tensor in weights.items()}
        state = {key: found.get(key.replace(".", "_"), tensor) for key, tensor in own.items()}
        absent = [key for key in own if key.replace(".", "_") not in found and ".conv_offset." not in key]
        absent = [key for key in absent if not key.endswith("num_batches_tracked")]
        unfit = [f"{key} {list(state[key].shape)}" for key in own if state[key].shape != own[key].shape]
        if absent or unfit:
            problems = "; ".join([f"without {key}" for key in absent] + [f"another shape of {text}" for text in unfit])
            raise InputError(f"{source}: not weights of {config.name} in timm's format: {problems}")
        self.network.load_state_dict(state)
        return f"backbone {config.name}: pretrained weights from {source}"

    def _leading(self, stages: int) -> list[nn.Parameter]:
        """The first `stages` of the stem, C2, C3, C4, C5: in timm's networks parameters stand in the order of use."""
        if stages == 0:
            return []
        parameters = {name.replace(".", "_"): each for name, each in self.network.named_parameters()}
        modules = self.network.feature_info.module_name()

        def places(feature: int) -> list[int]:
            prefix = modules[feature].replace(".", "_") + "_"
            return [i for i, name in enumerate(parameters) if name.startswith(prefix)]

        chosen = [places(i) for i in self.positions]
        if not all(chosen):
            raise InputError(f"backbone {self.config.name}: its stages are not known by name; set freeze: 0")
        before = places(self.positions[0] - 1) if self.positions[0] else []
        stem = max(before) + 1 if before else min(chosen[0])
        ends = [stem, *(max(indices) + 1 for indices in chosen)]
        return list(parameters.values())[: ends[stages - 1]]


def _create(name: str, pretrained: bool) -> Any:
    """timm's network of that name. InputError: unknown, or without features, or no weights to be had."""
    if not timm.is_model(name):
        raise InputError(f"backbone {name}: timm has no network of that name; see timm.list_models()")
    try:
        return timm.create_model(name, features_only=True, pretrained=pretrained)
    except (RuntimeError, AttributeError, AssertionError, OSError, ValueError) as error:
        if pretrained:
            raise InputError(
                f"backbone {name}: timm's weights cannot be had ({first_line(error)}); "
                "give a file with model.backbone.weights: FILE, or train it whole with pretrained: false"
            ) from None
        raise InputError(f"backbone {name}: gives no features ({first_line(error)}); choose another network") from None


def _read(path: Path) -> dict[str, Tensor]:
    """A file of weights, .safetensors or torch.save's; nothing but tensors and plain values is unpickled."""
    try:
        weights = load_state_dict(str(path))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; model.backbone.weights are weights in timm's format") from None
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, OSError, TypeError) as error:
        raise InputError(f"{path}: not a file of weights ({first_line(error)})") from None
    if not all(isinstance(value, Tensor) for value in weights.values()):
        raise InputError(f"{path}: not a file of weights alone; save the network's state_dict")
    return weights


def _stride_first(network: nn.Module, name: str) -> None:
    """Bottlenecks: the stride moves from the 3x3 to the first 1x1, as the original ResNets (He et al., CVPR 2016)."""
    for block in network.modules():
        if isinstance(block, Bottleneck):
            if not isinstance(block.aa, nn.Identity):
                raise InputError(
                    f"backbone {name}: blurs where it strides, as no ResNet with these conventions does; use resnet50"
                )
            if block.conv2.stride != (1, 1):
                block.conv1.stride, block.conv2.stride = block.conv2.stride, (1, 1)


def _deform(network: nn.Module, stage: int, name: str) -> None:
    """The last 3x3 of every block of a ResNet's stage 2..5 becomes deformable; its weights stay."""
    blocks = list(getattr(network, f"layer{stage - 1}", nn.Identity()).children())
    if not blocks or not all(isinstance(block, Bottleneck | BasicBlock) for block in blocks):
        raise InputError(f"backbone {name}: deformable_stages are for ResNets; leave it empty")
    for block in blocks:
        conv = block.conv2
        if conv.groups != 1 or conv.dilation != (1, 1) or conv.kernel_size != (3, 3):
            raise InputError(f"backbone {name}: its 3x3 convolutions have groups or a dilation; use resnet50")
        deform = DeformConv(conv.in_channels, conv.out_channels, stride=conv.stride[0], bias=False)
        deform.weight = conv.weight
        block.conv2 = deform
