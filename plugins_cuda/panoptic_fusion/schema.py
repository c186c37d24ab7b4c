"""The panoptic head, declared: what goes into step 1, and what step 3 writes."""

from plugins_cuda.schema import Attribute, Schema, Tensor, Type

SCHEMA = Schema(
    name="panoptic_fusion",
    node="PanopticFusion",
    arguments=(
        Tensor("semantic", Type.FEATURES, "B C h w", channels_last=True),
        Tensor("boxes", Type.FLOAT32, "B N 4"),
        Tensor("classes", Type.INT64, "B N"),
        Tensor("scores", Type.FLOAT32, "B N"),
        Tensor("mask_logits", Type.FEATURES, "B N M M"),
        Tensor("counts", Type.INT32, "B"),
        Tensor("sizes", Type.INT32, "B 2"),
        Tensor("scales", Type.FLOAT32, "B"),
        Attribute("num_stuff", int, least=1),
        Attribute("stuff_area_limit", float),
        Attribute("mask_overlap_threshold", float, 0.3),
        Attribute("heuristic", bool, False, node="merge", words=("logits", "heuristic")),
    ),
    outputs=(
        Tensor("panoptic", Type.UINT8, "B 4*h 4*w"),
        Tensor("segments", Type.FLOAT32, "B num_stuff+N 7"),
        Tensor("segment_count", Type.INT32, "B"),
    ),
    sizes={
        "batch": "B",
        "num_things": "C-num_stuff",
        "height": "h",
        "width": "w",
        "detections": "N",
        "mask_size": "M",
    },
)
