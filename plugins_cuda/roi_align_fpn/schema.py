"""RoIAlign over a feature pyramid, declared."""

from plugins_cuda.schema import Attribute, Schema, Tensor, Type

LEVELS = ("P2", "P3", "P4", "P5")

SCHEMA = Schema(
    name="roi_align_fpn",
    node="RoiAlignFpn",
    arguments=(
        Tensor("features", Type.ANY_FEATURES, "B C H# W#", each=LEVELS, channels_last=True, trains=True),
        Tensor("rois", Type.AS_FLOAT32, "B R 4"),
        Attribute("output_size", int, least=1),
        Attribute("sampling_ratio", int, 2, least=0),
        Attribute(
            "aligned", bool, True, node="coordinate_transformation_mode", words=("output_half_pixel", "half_pixel")
        ),
        Attribute("canonical_size", float, 224.0, gone=True),
        Attribute("inclusive", bool, False),
        Attribute("rounded_levels", bool, False),
    ),
    outputs=(Tensor("output", Type.LIKE_FIRST, "B R C output_size output_size"),),
    sizes={"batch": "B", "channels": "C", "heights": "H#", "widths": "W#", "rois_per_image": "R"},
)
