"""Non-maximum suppression, declared."""

from plugins_cuda.schema import Attribute, Schema, Tensor, Type

SCHEMA = Schema(
    name="nms",
    node="PaddedNms",
    arguments=(
        Tensor("boxes", Type.AS_FLOAT32, "B N 4"),
        Tensor("scores", Type.AS_FLOAT32, "B N"),
        Attribute("iou_threshold", float, least=0, most=1),
        Attribute("score_threshold", float),
        Attribute("max_output", int, least=0),
        Tensor("classes", Type.INT64, "B N", optional=True, node="PaddedBatchedNms"),
        Attribute("top_k", int, 0, gone=True),
        Attribute("inclusive", bool, False),
    ),
    outputs=(Tensor("indices", Type.INT64, "B max_output"), Tensor("counts", Type.INT32, "B")),
    sizes={"batch": "B", "num_boxes": "N"},
)
