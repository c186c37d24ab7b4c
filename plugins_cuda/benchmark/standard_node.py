"""An operator as ONNX Runtime has it: what a graph without custom nodes would run."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnxruntime
import torch
from onnx import TensorProto, helper

from plugins_cuda.benchmark.timing import Call

OPSET = 19  # the first with DeformConv
IR_VERSION = 9


def deform_conv_node(inputs: Mapping[str, np.ndarray], threads: int) -> Call:
    """A session's run of one DeformConv, 3 x 3 with a border of one pixel. `inputs`: x [B, C, H, W], weight [O, C, 3,
    3], offset [B, 18, H, W], bias [O], float32. Threads do not spin between calls, where they would be in others' way.
    """
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, array.shape) for name, array in inputs.items()]
    node = helper.make_node("DeformConv", list(inputs), ["output"], pads=[1, 1, 1, 1])
    output = helper.make_tensor_value_info("output", TensorProto.FLOAT, None)
    graph = helper.make_graph([node], "deform_conv", values, [output])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
    return lambda: torch.from_numpy(session.run(None, dict(inputs))[0])
