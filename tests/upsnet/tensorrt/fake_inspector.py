"""The fake TensorRT's inspector and refitter."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import onnx

from tests.upsnet.tensorrt.fake_builder import Strict
from tests.upsnet.tensorrt.fake_plan import Tensor
from tests.upsnet.tensorrt.fake_runtime import ICudaEngine


class EngineInspector(Strict):
    execution_context = None

    def __init__(self, engine: ICudaEngine) -> None:
        self._engine, self._trt = engine, engine._trt

    def get_layer_information(self, layer_index: int, format: Any) -> str:
        layer = self._engine._plan.layers[layer_index]
        if format != self._trt.LayerInformationFormat.JSON or self._engine._plan.verbosity != "DETAILED":
            return json.dumps(layer.name)

        def tensors(of: list[Tensor]) -> list[dict[str, Any]]:
            return [
                {"Name": each.name, "Dimensions": [s if isinstance(s, int) else -1 for s in each.shape],
                 "Format/Datatype": _described(each.dtype)} for each in of
            ]  # fmt: skip

        kind = {"PLUGIN_V3": "PluginV3"}.get(layer.kind, "gemm" if layer.kind == "CONVOLUTION" else "kgen")
        return json.dumps({
            "Name": layer.name, "LayerType": kind, "Inputs": tensors(layer.inputs), "Outputs": tensors(layer.outputs),
            "ParameterType": layer.kind.title(), "TacticName": f"fake_{layer.kind.lower()}", "StreamId": 0,
            "Metadata": f"[ONNX Layer: {layer.name}]",
        })  # fmt: skip

    def get_engine_information(self, format: Any) -> str:
        layers = [self.get_layer_information(index, format) for index in range(self._engine.num_layers)]
        return json.dumps({"Layers": [json.loads(each) for each in layers], "Bindings": list(self._engine._tensors)})


def _described(kind: str) -> str:
    names = {"FLOAT": "Float", "HALF": "Half", "BF16": "BFloat16", "INT8": "Int8", "FP8": "FP8"}
    return f"Row major linear {names.get(kind, kind.title())} format"


class Refitter(Strict):
    max_threads = 1

    def __init__(self, engine: ICudaEngine, logger: Any) -> None:
        self._engine, self._trt = engine, engine._trt
        if not engine.refittable:
            self._trt._world.log(logger, "ERROR", "Refitter: the engine is not refittable")
            raise TypeError("pybind11::init(): factory function returned nullptr")
        self._model = onnx.load_from_string(engine._plan.onnx)
        self._new: dict[str, np.ndarray] = {}

    def get_all_weights(self) -> list[str]:
        return [each.name for each in self._model.graph.initializer]

    def get_missing_weights(self) -> list[str]:
        return [each for each in self.get_all_weights() if self._engine._stripped and each not in self._new]

    def set_named_weights(self, name: str, weights: Any, location: Any = None) -> bool:
        array = np.asarray(getattr(weights, "_array", weights))
        found = {each.name: each for each in self._model.graph.initializer}.get(name)
        if found is None or array.size != int(np.prod(found.dims)):
            return False
        self._new[name] = array
        return True

    def refit_cuda_engine(self) -> bool:
        if self.get_missing_weights():
            return False
        for each in self._model.graph.initializer:
            if each.name in self._new:
                kind = onnx.helper.tensor_dtype_to_np_dtype(each.data_type)
                array = self._new[each.name].astype(kind).reshape(tuple(each.dims))
                each.CopyFrom(onnx.numpy_helper.from_array(array, each.name))
        self._engine._plan.onnx = self._model.SerializeToString()
        self._engine._session, self._engine._stripped = None, False
        return True


class Weights(Strict):
    """Of a NumPy array."""

    def __init__(self, a: np.ndarray) -> None:
        self._array = a

    @property
    def size(self) -> int:
        return int(self._array.size)
