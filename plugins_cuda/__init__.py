"""The operators that no framework has, one room each.

A function here runs the compiled library of its device (`library.py` compiles it on first use). Where there is none, it
runs plain PyTorch: `<room>/reference.py`, the definition. So does its gradient, `<room>/backward`. While
`torch.onnx.export(dynamo=True)` traces it, it emits one node `upsnet::<Name>`, whose body in standard operators
`onnx_functions` gives. A plugin that TensorRT knows by that name replaces the body. The exporter (opset_version=20, as
the bodies) must append the bodies:

    model.functions.extend(plugins_cuda.onnx_functions())

(Opset import `upsnet` version 1 is already there wherever a node was traced. Mapping the operators to onnxscript
functions with a translation table instead does not get through the exporter's inliner.)

| function | node |
|---|---|
| roi_align_fpn | RoiAlignFpn |
| nms | PaddedNms, with classes PaddedBatchedNms |
| deform_conv | DeformConv2d, with a mask ModulatedDeformConv2d |
| panoptic_fusion | PanopticFusion |
| best_anchors | BestAnchors |
| used_rows, all_rows | UsedRows, AllRows |
| top_k | ONNX's own TopK |
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from plugins_cuda.best_anchors import best_anchors
from plugins_cuda.deform_conv import deform_conv
from plugins_cuda.nms import nms
from plugins_cuda.panoptic_fusion import panoptic_fusion
from plugins_cuda.roi_align_fpn import roi_align_fpn
from plugins_cuda.top_k import top_k
from plugins_cuda.used_rows import all_rows, used_rows

if TYPE_CHECKING:
    import onnx

__all__ = [
    "all_rows",
    "best_anchors",
    "deform_conv",
    "nms",
    "onnx_functions",
    "panoptic_fusion",
    "roi_align_fpn",
    "top_k",
    "used_rows",
]


def onnx_functions() -> list[onnx.FunctionProto]:
    """The bodies of the nodes, domain `upsnet` version 1, in standard operators of opset 20, and the functions that
    they call.

    Needs onnx and onnxscript.
    """
    from plugins_cuda.best_anchors.onnx_function import best_anchors_functions
    from plugins_cuda.deform_conv.onnx_function import deform_conv_functions
    from plugins_cuda.nms.onnx_function import nms_functions
    from plugins_cuda.panoptic_fusion.onnx_function import panoptic_fusion_functions
    from plugins_cuda.roi_align_fpn.onnx_function import roi_align_fpn_function
    from plugins_cuda.used_rows.onnx_function import used_rows_functions

    return [
        roi_align_fpn_function(),
        *nms_functions(),
        *deform_conv_functions(),
        *panoptic_fusion_functions(),
        *best_anchors_functions(),
        *used_rows_functions(),
    ]
