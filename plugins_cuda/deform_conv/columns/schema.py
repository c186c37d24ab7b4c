"""Half of the gradient of a deformable convolution on a GPU, declared: between its two matrix products."""

from plugins_cuda.schema import Attribute, Schema, Tensor, Type

SCHEMA = Schema(
    name="deform_conv_columns",
    node="",
    arguments=(
        Tensor("x", Type.ANY_FEATURES, "B C H W", channels_last=True),
        Tensor("offset", Type.AS_SUMS, "B P Ho Wo"),
        Tensor("mask", Type.AS_SUMS, "B Q Ho Wo", optional=True),
        Tensor("grad_columns", Type.LIKE_FIRST, "B Ho Wo K C"),
        Attribute("kernel_size", int, least=1, count=2),
        Attribute("stride", int, least=1, count=2),
        Attribute("padding", int, least=0, count=2),
        Attribute("dilation", int, least=1, count=2),
        Attribute("deterministic", bool),
        Attribute("offset_group", int, least=1, size="P/2/K"),
    ),
    outputs=(
        Tensor("columns", Type.LIKE_FIRST, "B Ho Wo K C"),
        Tensor("grad_x", Type.LIKE_FIRST, "B C H W", channels_last=True),
        Tensor("grad_offset", Type.AS_SUMS, "B P Ho Wo"),
        Tensor("grad_mask", Type.AS_SUMS, "B Q Ho Wo", optional="mask"),
    ),
    sizes={
        "batch": "B",
        "channels": "C",
        "height": "H",
        "width": "W",
        "out_height": "Ho",
        "out_width": "Wo",
        "taps": "K",
    },
    on_cpu=False,
    float64=True,
)
