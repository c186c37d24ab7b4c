"""The best anchors of a region proposal network, declared."""

from plugins_cuda.schema import Attribute, Schema, Tensor, Type

SCHEMA = Schema(
    name="best_anchors",
    node="BestAnchors",
    arguments=(
        Tensor("maps", Type.AS_FLOAT32, "B C H# W#", each=("p2", "p3", "p4", "p5", "p6")),
        Tensor("base_anchors", Type.AS_FLOAT32, "5 A 4"),
        Tensor("sizes", Type.INT32, "B 2"),
        Attribute("top_n", int, least=1),
        Attribute("inclusive", bool, False),
    ),
    outputs=(Tensor("boxes", Type.FLOAT32, "B 5 top_n 4"), Tensor("scores", Type.FLOAT32, "B 5 top_n")),
    sizes={"batch": "B", "channels": "C", "heights": "H#", "widths": "W#", "anchors": "A"},
    on_gpu=False,
)
