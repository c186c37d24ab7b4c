"""Parses one ONNX file with TensorRT-RTX and builds it, on a CPU: rtx_build.py MODEL LIBRARY PROFILES.

PROFILES is JSON: {input: [minimum, optimum, maximum shapes]}. Prints one JSON object: the plugins among the parsed
layers, input and output types, whether it was built, and what TensorRT logged as an error. test_registration.py runs
it as a process of its own.
"""

from __future__ import annotations

import ctypes
import json
import sys
from importlib import import_module
from typing import Any

LIKELY_WITHOUT_A_GPU = "CUDA initialization failure"


def main(model: str, library: str, profiles: dict[str, list[list[int]]]) -> dict[str, object]:
    trt: Any = import_module("tensorrt_rtx_bindings")

    class Logger(trt.ILogger):  # type: ignore[name-defined]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: object, message: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                self.errors.append(message)

    logger = Logger()
    builder = trt.Builder(logger)
    ctypes.CDLL(library)  # as Triton, trtexec and polygraphy do; now that there is a logger, it must say nothing
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    parsed = parser.parse_from_file(model)
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    plugins = []
    for layer in layers:
        if layer.type == trt.LayerType.PLUGIN_V3:
            layer.__class__ = trt.IPluginV3Layer
            plugins.append(layer.plugin.get_capability_interface(trt.PluginCapabilityType.CORE).plugin_name)
    config = builder.create_builder_config()
    profile = builder.create_optimization_profile()
    for name, shapes in profiles.items():
        profile.set_shape(name, *shapes)
    config.add_optimization_profile(profile)
    engine = builder.build_serialized_network(network, config) if parsed else None
    outputs = [network.get_output(index) for index in range(network.num_outputs)]
    return {
        "plugins": plugins,
        "layers": [str(layer.type) for layer in layers],
        "outputs": {output.name: [str(output.dtype), list(output.shape)] for output in outputs},
        "built": engine is not None,
        "errors": [line for line in logger.errors if LIKELY_WITHOUT_A_GPU not in line],
    }


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], sys.argv[2], json.loads(sys.argv[3]))))
