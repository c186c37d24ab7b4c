"""The gradient of RoIAlign over a feature pyramid, declared."""

from plugins_cuda.roi_align_fpn.schema import LEVELS
from plugins_cuda.roi_align_fpn.schema import SCHEMA as FORWARD
from plugins_cuda.schema import Attribute, Schema, Tensor, Type

SCHEMA = Schema(
    name="roi_align_fpn_backward",
    node="",
    arguments=(
        Tensor("features", Type.ANY_FEATURES, "B C H# W#", each=LEVELS, channels_last=True),  # their sizes count alone
        Tensor("rois", Type.AS_FLOAT32, "B R 4"),
        Attribute("output_size", int, least=1),
        Attribute("sampling_ratio", int, least=0),
        Attribute("aligned", bool),
        Attribute("inclusive", bool),
        Attribute("rounded_levels", bool),
        Tensor("grad_output", Type.LIKE_FIRST, "B R C output_size output_size"),
    ),
    outputs=(Tensor("grad_features", Type.LIKE_FIRST, "B C H# W#", each=LEVELS, channels_last=True),),
    sizes=FORWARD.sizes,
    float64=True,
)
