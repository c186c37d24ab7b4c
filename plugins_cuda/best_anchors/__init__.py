"""The best anchors of each level as boxes. A front for CPUs; elsewhere the definition or the node's body serves."""

from plugins_cuda.best_anchors import reference
from plugins_cuda.best_anchors.schema import SCHEMA
from plugins_cuda.pytorch import Call, operator


def _check(call: Call) -> None:
    channels, anchors = call.sizes["C"], call.sizes["A"]
    if channels != 5 * anchors:
        raise ValueError(f"best_anchors: maps must have {5 * anchors} channels, five for each anchor, got {channels}")


best_anchors = operator(SCHEMA, reference.best_anchors, check=_check)
