"""Runs a TensorRT-RTX engine that holds the project's plugins once, at its profile's usual size: does it work here?

python -m plugins_cuda.rtx_engine ENGINE LIBUPSNET_PLUGINS
"""

from __future__ import annotations

import ctypes
import math
import sys
from pathlib import Path

import torch


def main(engine_path: str, plugins: str) -> None:
    try:
        import tensorrt_rtx as trt
    except ImportError:
        import tensorrt_rtx_bindings as trt
    logger = trt.Logger(trt.Logger.WARNING)
    runtime = trt.Runtime(logger)  # first: the plugins look for its registry when they are loaded
    ctypes.CDLL(plugins, mode=ctypes.RTLD_GLOBAL)
    engine = runtime.deserialize_cuda_engine(Path(engine_path).read_bytes())
    if engine is None:
        raise SystemExit("the engine cannot be deserialised here")
    context = engine.create_execution_context()
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    for name in names:
        if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT:
            context.set_input_shape(name, engine.get_tensor_profile_shape(name, 0)[1])
    tensors = {}
    for name in names:
        size = max(1, math.prod(context.get_tensor_shape(name))) * engine.get_tensor_dtype(name).itemsize
        tensors[name] = torch.zeros(size, dtype=torch.uint8, device="cuda")
        context.set_tensor_address(name, tensors[name].data_ptr())
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    if not context.execute_async_v3(stream.cuda_stream):
        raise SystemExit("the engine did not run")
    stream.synchronize()
    print("the engine runs here: " + ", ".join(f"{name} {tuple(context.get_tensor_shape(name))}" for name in names))


if __name__ == "__main__":
    main(*sys.argv[1:])
