"""A checkpoint through torch-tensorrt, where there is no GPU.

    python -m tests.export.convert_without_gpu CHECKPOINT ENGINE    builds, and saves
    python -m tests.export.convert_without_gpu ENGINE               loads what that saved

What only a GPU does is stubbed: the device's facts, running an engine, and looking into one that was just built. The
converters, the networks of TensorRT and its builder are real, and so is what is saved. The last line is JSON.
"""

from __future__ import annotations

import base64
import inspect
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

FACTS = SimpleNamespace(name="stub", major=8, minor=6, total_memory=24 << 30, multi_processor_count=84)


class Engine:
    """One that was built, and which nobody can look into."""

    def __init__(self, data: Any) -> None:
        self.data = bytes(data)

    def get_aliased_input_tensor(self, name: str) -> None:
        return None

    def create_serialization_config(self) -> SimpleNamespace:
        return SimpleNamespace(set_flag=lambda flag: None, clear_flag=lambda flag: None)

    def serialize(self) -> bytes:
        return self.data

    def serialize_with_config(self, config: object) -> bytes:
        return self.data


def stub_the_gpu() -> None:
    torch.cuda.get_device_capability = lambda *_: (FACTS.major, FACTS.minor)  # type: ignore[assignment]
    torch.cuda.get_device_properties = lambda *_: FACTS  # type: ignore[assignment]
    torch.cuda.get_device_name = lambda *_: FACTS.name  # type: ignore[assignment]
    torch.cuda.current_device = lambda: 0  # type: ignore[assignment]
    torch.cuda.mem_get_info = lambda *_: (FACTS.total_memory, FACTS.total_memory)  # type: ignore[assignment]
    torch.cuda.empty_cache = lambda: None  # type: ignore[assignment]
    torch.nn.Module.cuda = lambda self, *_: self  # type: ignore[assignment, method-assign]


def stub_the_engines(built: list[int]) -> None:
    """torch-tensorrt's own modules, after it was imported. built: gets the bytes of each engine."""
    import tensorrt
    from torch_tensorrt.dynamo import _compiler, utils
    from torch_tensorrt.dynamo.conversion import _TRTInterpreter
    from torch_tensorrt.dynamo.runtime import _TorchTensorRTModule as module
    from torch_tensorrt.dynamo.runtime._serialized_engine_layout import ENGINE_IDX
    from torch_tensorrt.dynamo.runtime._TRTEngine import TRTEngine

    class Runtime:
        def __init__(self, logger: object) -> None:
            pass

        def deserialize_cuda_engine(self, data: Any) -> Engine:
            built.append(len(bytes(data)))
            return Engine(data)

    class TensorRT:
        def __getattr__(self, name: str) -> Any:
            return Runtime if name == "Runtime" else getattr(tensorrt, name)

    def setup_engine(self: Any) -> None:
        info = list(self._pack_engine_info())
        info[ENGINE_IDX] = base64.b64encode(info[ENGINE_IDX])
        self.engine = TRTEngine.__new__(TRTEngine)
        self.engine.info = info

    _TRTInterpreter.trt = TensorRT()
    for each in (_compiler, utils):
        each.to_torch_device = lambda device: torch.device("cpu")
    module.TorchTensorRTModule.setup_engine = setup_engine
    TRTEngine.__getstate__ = lambda self: (self.info, "TRTEngine")
    TRTEngine.__del__ = lambda self: None


def build(checkpoint: Path, engine: Path) -> dict[str, Any]:
    from export import torch_tensorrt
    from training.checkpoint import load_model
    from training.predictor import make_manifest

    package, built = torch_tensorrt.import_package(), list[int]()
    stub_the_engines(built)
    _, config, categories, _ = load_model(checkpoint)
    outcome = torch_tensorrt.build(checkpoint, engine, make_manifest(config, categories))
    functions = {"compile": package.dynamo.compile, "save": package.save, "load": package.load}
    signatures = {name: list(inspect.signature(function).parameters) for name, function in functions.items()}
    return {"outcome": outcome.model_dump(mode="json"), "engines": built, "signatures": signatures}


def load(engine: Path) -> dict[str, Any]:
    from torch_tensorrt.dynamo.runtime import _TRTEngine

    from export import torch_tensorrt_predictor

    _TRTEngine._reconstruct_trt_engine = _TRTEngine.EngineSerializer
    program = torch_tensorrt_predictor.load(engine)
    operators = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    ours = [name for name in operators if name.startswith(("upsnet.", "tensorrt."))]
    return {"operators": ours, "modules": sorted({name.partition(".")[0] for name in sys.modules})}


if __name__ == "__main__":
    stub_the_gpu()
    files = [Path(name) for name in sys.argv[1:]]
    print(json.dumps(build(*files) if len(files) > 1 else load(*files)))
