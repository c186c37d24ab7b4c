"""Deformable convolution v1 and v2, declared."""

from plugins_cuda.schema import Attribute, Schema, Tensor, Type

SCHEMA = Schema(
    name="deform_conv",
    node="DeformConv2d",
    arguments=(
        Tensor("x", Type.ANY_FEATURES, "B C H W", channels_last=True, trains=True),
        Tensor("offset", Type.AS_FLOAT32, "B P Ho Wo", trains=True),
        Tensor("weight", Type.LIKE_FIRST, "O D kh kw", trains=True),
        Tensor("bias", Type.AS_FLOAT32, "O", optional=True, trains=True),
        Attribute("stride", int, 1, least=1, count=2, node="strides"),
        Attribute("padding", int, 1, least=0, count=2, node="pads", twice=True),
        Attribute("dilation", int, 1, least=1, count=2, node="dilations"),
        Tensor("mask", Type.AS_FLOAT32, "B Q Ho Wo", optional=True, node="ModulatedDeformConv2d", trains=True),
        Attribute("group", int, 1, least=1, size="C/D"),
        Attribute("offset_group", int, 1, least=1, size="P/2/kh/kw"),
    ),
    outputs=(Tensor("output", Type.LIKE_FIRST, "B O Ho Wo", channels_last=True),),
    sizes={
        "batch": "B",
        "channels": "C",
        "height": "H",
        "width": "W",
        "out_channels": "O",
        "out_height": "Ho",
        "out_width": "Wo",
        "kernel_h": "kh",
        "kernel_w": "kw",
    },
)
