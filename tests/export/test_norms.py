"""Networks with normalisations in FPN and heads as ONNX files: what is folded, and that they are the same network."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from export.onnx_export import to_model_proto
from export.precision import DTYPES, prepare
from tests.export.agreement import assert_onnx_runtime_agrees
from tests.training.test_norm import network
from tests.training.tiny_network import spread
from training.model.deform import DeformConv
from training.model.upsnet import UPSNet
from training.model_config import Norm
from upsnet.geometry import ResizeRule
from upsnet.manifest import ModuleType

pytestmark = pytest.mark.numeric


def trained(norm: Norm) -> UPSNet:
    """Random weights, normalisations that have seen something, offsets that move samples, and things that are found."""
    model = spread(network(norm))
    for module in model.modules():
        if isinstance(module, nn.GroupNorm | nn.BatchNorm2d):
            module.weight.data.uniform_(0.5, 1)
            module.bias.data.uniform_(-1, 1)
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None and module.running_var is not None
            module.running_mean.uniform_(-1, 1), module.running_var.uniform_(0.2, 1)
        if isinstance(module, DeformConv):
            nn.init.normal_(module.conv_offset.weight, std=0.05)
    return model


def test_batch_norms_are_folded_into_the_convolutions_before() -> None:
    """Deformable ones too; the features of every level and of the semantic head stay what they were."""
    model = trained("batch")
    folded = prepare(model, "fp32")
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    before, after = model.get_submodule("semantic_head.convs.0"), folded.get_submodule("semantic_head.convs.0")
    assert isinstance(before, DeformConv) and isinstance(after, DeformConv)
    assert not torch.equal(before.weight, after.weight) and torch.equal(
        before.conv_offset.weight, after.conv_offset.weight
    )
    images = torch.randint(0, 256, (2, 64, 96, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    sizes = torch.tensor([[64, 96], [50, 90]], dtype=torch.int32)
    with torch.inference_mode():
        levels, others = (each.pyramid(images, sizes) for each in (model, folded))
        semantic, other = (each.semantic_head(levels[:4], sizes) for each in (model, folded))
    for expected, found in zip([*levels, semantic], [*others, other], strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_what_group_norms_read_is_of_their_weights_type(precision: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU would take a mixture, CUDA's kernel does not; what comes out is of the features' type again."""
    head, group_norm, read = prepare(trained("group"), precision).mask_head, F.group_norm, list[torch.dtype]()

    def watched(x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        read.extend((x.dtype, weight.dtype, bias.dtype))
        return group_norm(x, groups, weight, bias, eps)

    monkeypatch.setattr(F, "group_norm", watched)
    features = torch.ones(2, 16, 14, 14, dtype=DTYPES[precision])
    assert head(features, torch.zeros(2, dtype=torch.int64)).dtype == DTYPES[precision]
    assert read == [torch.float32] * 3


@pytest.mark.parametrize("norm", ["batch", "group"])
def test_onnx_runtime_agrees(norm: Norm) -> None:
    model = trained(norm)
    proto = to_model_proto(prepare(model, "fp32"), ResizeRule(short_side=64, max_side=96))
    assert "BatchNormalization" not in {node.op_type for node in proto.graph.node}
    assert_onnx_runtime_agrees(model, proto)
