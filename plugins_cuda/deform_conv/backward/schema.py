"""The gradient of deformable convolution v1 and v2, declared. A GPU runs its definition, with `columns` inside."""

from plugins_cuda.deform_conv.schema import SCHEMA as FORWARD
from plugins_cuda.schema import Attribute, Schema, Tensor, Type

SCHEMA = Schema(
    name="deform_conv_backward",
    node="",
    arguments=(
        Tensor("x", Type.ANY_FEATURES, "B C H W", channels_last=True),
        Tensor("offset", Type.AS_SUMS, "B P Ho Wo"),
        Tensor("weight", Type.LIKE_FIRST, "O D kh kw"),
        Tensor("mask", Type.AS_SUMS, "B Q Ho Wo", optional=True),
        Tensor("grad_output", Type.LIKE_FIRST, "B O Ho Wo", channels_last=True),
        Attribute("stride", int, least=1, count=2),
        Attribute("padding", int, least=0, count=2),
        Attribute("dilation", int, least=1, count=2),
        Attribute("group", int, least=1, size="C/D"),
        Attribute("offset_group", int, least=1, size="P/2/kh/kw"),
    ),
    outputs=(
        Tensor("grad_x", Type.LIKE_FIRST, "B C H W", channels_last=True),
        Tensor("grad_offset", Type.AS_SUMS, "B P Ho Wo"),
        Tensor("grad_weight", Type.LIKE_FIRST, "O D kh kw"),
        Tensor("grad_mask", Type.AS_SUMS, "B Q Ho Wo", optional="mask"),
    ),
    sizes=FORWARD.sizes,
    on_gpu=False,
    float64=True,
)
