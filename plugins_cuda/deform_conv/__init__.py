"""Deformable convolution v1 and v2."""

from plugins_cuda.deform_conv import reference
from plugins_cuda.deform_conv.backward import gradient
from plugins_cuda.deform_conv.schema import SCHEMA
from plugins_cuda.pytorch import Call, operator

STEPS = ("stride", "padding", "dilation")


def _check(call: Call) -> None:
    def require(condition: bool, name: str, wanted: str) -> None:
        if not condition:
            raise ValueError(f"deform_conv: {name} must {wanted}, got {tuple(call.tensors[name][0].shape)}")

    x, weight, offset = (call.tensors[name][0].shape for name in ("x", "weight", "offset"))
    groups, offset_groups, kernel = call.sizes["group"], call.sizes["offset_group"], weight[2:]
    taps = kernel[0] * kernel[1]
    require(0 not in x[1:], "x", "have something in it")
    require(0 not in weight and groups * weight[1] == x[1], "weight", f"be [O, {x[1]} / groups, kh, kw]")
    require(weight[0] % groups == 0, "weight", f"have output channels for each of {groups} groups")
    size = []
    for axis, (stride, padding, dilation) in enumerate(zip(*map(call.pair, STEPS), strict=True)):
        size.append((x[2 + axis] + 2 * padding - dilation * (kernel[axis] - 1) - 1) // stride + 1)
    require(size[0] >= 1 and size[1] >= 1, "x", f"be large enough for a kernel of {tuple(kernel)} and its padding")
    require(offset_groups >= 1 and x[1] % offset_groups == 0, "offset", f"have groups that divide {x[1]} channels")
    require(list(offset[1:]) == [2 * taps * offset_groups, *size], "offset", f"be [B, G * {2 * taps}, *{size}]")
    if "mask" in call.tensors:
        require(call.sizes["Q"] == taps * offset_groups, "mask", f"have {taps * offset_groups} channels")


deform_conv = operator(SCHEMA, reference.deform_conv, gradient, _check)
