"""The fake TensorRT's execution context: where it runs, and what it refuses."""

from __future__ import annotations

import json
import threading
import weakref
from typing import TYPE_CHECKING, Any

import numpy as np

from tests.upsnet.tensorrt.fake_builder import Dims, IHostMemory, Strict
from tests.upsnet.tensorrt.fake_cuda import Stream, Work
from tests.upsnet.tensorrt.fake_plan import NUMPY

if TYPE_CHECKING:
    from tests.upsnet.tensorrt.fake_runtime import ICudaEngine

SCRATCH = 4096  # bytes of device memory for each element of a batch
ALIGNMENT = 256


class IRuntimeConfig(Strict):
    cuda_graph_strategy = dynamic_shapes_kernel_specialization_strategy = None

    def __init__(self, trt: Any) -> None:
        self._trt = trt
        self._cache: IRuntimeCache | None = None
        self._strategy = trt.ExecutionContextAllocationStrategy.STATIC
        if trt._world.flavour.rtx:
            self.cuda_graph_strategy = trt.CudaGraphStrategy.DISABLED
            self.dynamic_shapes_kernel_specialization_strategy = trt.DynamicShapesKernelSpecializationStrategy.LAZY

    def set_execution_context_allocation_strategy(self, strategy: Any) -> None:
        self._strategy = strategy

    def get_execution_context_allocation_strategy(self) -> Any:
        return self._strategy

    def create_runtime_cache(self) -> IRuntimeCache:
        return self._trt.IRuntimeCache()

    def set_runtime_cache(self, cache: IRuntimeCache | None = None) -> bool:
        self._cache = cache
        return True

    def get_runtime_cache(self) -> IRuntimeCache | None:
        return self._cache


class IRuntimeCache(Strict):
    """The shapes for which kernels were compiled. `world.compiled`: how many were that no cache had."""

    def __init__(self) -> None:
        self._shapes: set[str] = set()

    def _add(self, shapes: str) -> None:
        self._trt._world.compiled += shapes not in self._shapes
        self._shapes.add(shapes)

    def serialize(self) -> IHostMemory:
        return IHostMemory("\n".join(["cache", *sorted(self._shapes)]).encode())

    def deserialize(self, blob: Any) -> bool:
        head, *shapes = bytes(blob).decode(errors="replace").split("\n")
        if head == "cache":
            self._shapes = set(shapes)
        return head == "cache"

    def reset(self) -> bool:
        self._shapes.clear()
        return True


class IExecutionContext(Strict):
    """_state: a number for all that was set in it; what is set after a capture makes its graphs useless.

    Contexts share profiles: PROFILE_SHARING_0806 is on and cannot be switched off from TensorRT 10.0 (NvInfer.h).
    """

    engine = property(lambda self: self._engine)
    name = ""
    profiler = None
    enqueue_emits_profile = True
    debug_sync = False
    persistent_cache_limit = 0
    active_optimization_profile = property(lambda self: self._profile)
    nvtx_verbosity = None

    def __init__(self, engine: ICudaEngine, strategy: Any, config: Any) -> None:
        self._engine, self._trt, self._cuda, self._config = engine, engine._trt, engine._cuda, config
        self._profile, self._state, self._ready = 0, 0, False
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self._inside = threading.Lock()  # no two threads at a time
        engine._contexts += 1
        self._busy: Stream | None = None
        self._works = 0
        self._user = strategy == self._trt.ExecutionContextAllocationStrategy.USER_MANAGED
        self._memory, self._size = 0, 0
        if not self._user:
            self._size = engine.device_memory_size_v2
            self._memory = self._cuda.allocate(self._size, "device memory of a context", engine._device)
        for each in engine._plan.inputs:
            if all(isinstance(size, int) for size in each.shape):
                self._shapes[each.name] = tuple(int(size) for size in each.shape)

    def __del__(self) -> None:
        self._engine._contexts -= 1
        if getattr(self, "_memory", 0) and not self._user:
            self._cuda.release(self._memory)
        self._memory = 0

    def _error(self, text: str) -> bool:
        self._trt._world.log(self._engine._logger, "ERROR", f"IExecutionContext::{text}")
        return False

    def _changed(self) -> None:
        if self._busy is not None:
            self._cuda.misuses.append("a context is changed while it runs")
        self._state, self._ready = self._state + 1, False

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        if not 0 <= profile_index < self._engine.num_optimization_profiles:
            return self._error(f"setOptimizationProfileAsync: Error Code 3: no profile {profile_index}")
        self._changed()
        self._profile = profile_index
        self._shapes = {name: shape for name, shape in self._shapes.items() if name not in self._dynamic()}
        return True

    def _dynamic(self) -> list[str]:
        return [each.name for each in self._engine._plan.inputs if not all(isinstance(s, int) for s in each.shape)]

    def set_input_shape(self, name: str, shape: Any) -> bool:
        engine, wanted = self._engine, tuple(int(each) for each in shape)
        if name not in engine._inputs:
            return self._error(f"setInputShape: Error Code 3: Given invalid tensor name: {name}.")
        low, _, high = engine._bounds(name, self._profile)
        if len(wanted) != len(low) or not all(a <= b <= c for a, b, c in zip(low, wanted, high, strict=True)):
            return self._error(
                f"setInputShape: Error Code 3: API Usage Error (Set dimension {list(wanted)} for tensor {name} does "
                f"not satisfy any optimization profiles. Valid range for profile {self._profile}: {low}..{high}.)"
            )
        self._changed()
        self._shapes[name] = wanted
        return True

    def get_tensor_shape(self, name: str) -> Dims:
        tensor = self._engine._tensors[name]
        if name in self._engine._inputs:
            return Dims(self._shapes.get(name, (-1,) * len(tensor.shape)))
        values = self._named()
        shape = [each if isinstance(each, int) else values.get(each, -1) for each in tensor.shape]
        if -1 in shape and not self.infer_shapes():  # the file has another name for it
            shape = self._engine._shapes_for(self._shapes)[name]
        return Dims(shape)

    def _named(self) -> dict[str, int]:
        """The sizes of named dimensions; ValueError where two inputs disagree."""
        values: dict[str, int] = {}
        for each in self._engine._plan.inputs:
            for name, size in zip(each.shape, self._shapes.get(each.name, ()), strict=False):
                if isinstance(name, str) and values.setdefault(name, size) != size:
                    raise ValueError(f"Named dimension {name} is {values[name]} and {size}")
        return values

    def set_tensor_address(self, name: str, memory: int) -> bool:
        if name not in self._engine._tensors:
            return self._error(f"setTensorAddress: Error Code 3: Given invalid tensor name: {name}.")
        if int(memory) % ALIGNMENT:
            return self._error(f"setTensorAddress: Error Code 3: the address of {name} is not aligned to {ALIGNMENT}")
        ready = self._ready
        self._changed()
        self._ready = ready
        self._addresses[name] = int(memory)
        return True

    def get_tensor_address(self, name: str) -> int:
        return self._addresses.get(name, 0)

    def set_device_memory(self, memory: int, size: int) -> None:
        if not self._user:
            self._error("setDeviceMemoryV2: Error Code 3: the context has its own memory")
            return
        self._changed()
        self._memory, self._size = int(memory), int(size)

    def update_device_memory_size_for_shapes(self) -> int:
        if self.infer_shapes():
            self._error("updateDeviceMemorySizeForShapes: Error Code 3: not all shapes are set")
            return 0
        return SCRATCH * self._shapes[self._engine._inputs[0]][0]

    def infer_shapes(self) -> list[str]:
        return [name for name in self._engine._inputs if name not in self._shapes]

    @property
    def all_binding_shapes_specified(self) -> bool:
        return not self.infer_shapes()

    def get_runtime_config(self) -> Any:
        return self._config

    def is_stream_capturable(self, stream: int) -> bool:
        return self._trt._world.capturable

    def report_to_profiler(self) -> bool:
        if self.profiler is None:
            return False
        for layer in self._engine._plan.layers:
            self.profiler.report_layer_time(layer.name, 0.001)
        return True

    def execute_async_v3(self, stream_handle: int) -> bool:
        if not self._inside.acquire(blocking=False):
            self._cuda.misuses.append("two threads use one context at a time")
            raise AssertionError(self._cuda.misuses[-1])
        try:
            return self._enqueue(int(stream_handle))
        finally:
            self._inside.release()

    def _enqueue(self, stream_handle: int) -> bool:
        engine, world = self._engine, self._trt._world
        if missing := self.infer_shapes():
            return self._error(f"enqueueV3: Error Code 3: input shapes are not set: {', '.join(missing)}")
        try:
            self._named()
        except ValueError as error:
            return self._error(f"enqueueV3: Error Code 7: Internal Error ({error})")
        for name in engine._tensors:
            if not self._addresses.get(name):
                return self._error(f"enqueueV3: Error Code 3: Address is not set for the tensor {name}")
        if not self._memory or self._size < self.update_device_memory_size_for_shapes():
            return self._error(f"enqueueV3: Error Code 3: {self._size} bytes of device memory are too few")
        if engine._stripped:
            return self._error("enqueueV3: Error Code 4: the engine has no weights: refit it")
        if self._cuda.device != engine._device:
            return self._error("enqueueV3: Error Code 1: Cuda Runtime (invalid resource handle: another device)")
        stream = self._cuda.stream(stream_handle)
        if stream.graph is not None:
            why = "its shapes changed since it ran last" * (not self._ready)
            why = why or "weights are streamed" * (engine._budget < engine.streamable_weights_size)
            if why or not world.capturable:
                stream.invalid = True
                return self._error(f"enqueueV3: Error Code 1: Cuda Runtime (not permitted when capturing: {why})")
        self._ready = True
        self._cuda.enqueue(stream, self._work(stream))
        if self.profiler is not None and self.enqueue_emits_profile and stream.graph is None:
            self._cuda.wait(stream)
            self.report_to_profiler()
        return True

    def _work(self, stream: Stream) -> Work:
        engine, addresses, shapes = self._engine, dict(self._addresses), dict(self._shapes)
        outputs = {each.name: tuple(self.get_tensor_shape(each.name)) for each in engine._plan.outputs}
        state, memory, size = self._state, self._memory, self._size
        me = _Reference(self)

        def run() -> None:
            context = me()
            if context is None or context._state != state:
                self_cuda.misuses.append("a graph runs whose context is gone, or was changed after its capture")
            self_cuda.view(memory, size)  # its own, or the caller's
            if context is not None and context._config is not None and context._config._cache is not None:
                context._config._cache._add(json.dumps(shapes))
            feeds = {}
            for name in engine._inputs:
                kind = np.dtype(NUMPY[engine._tensors[name].dtype])
                data = self_cuda.view(addresses[name], kind.itemsize * int(np.prod(shapes[name])))
                feeds[name] = np.frombuffer(data.tobytes(), kind).reshape(shapes[name])
            for each, array in zip(engine._plan.outputs, engine._run(feeds), strict=True):
                assert array.shape == outputs[each.name], (array.shape, outputs[each.name])
                array = np.ascontiguousarray(array, NUMPY[each.dtype])
                self_cuda.view(addresses[each.name], array.nbytes)[:] = np.frombuffer(array.tobytes(), np.uint8)

        self_cuda = self._cuda
        return Work(run, me)

    def _begin(self, stream: Stream) -> None:
        if self._busy is not None and self._busy is not stream:
            self._cuda.misuses.append("a context runs on two streams at a time")
        self._busy, self._works = stream, self._works + 1

    def _end(self) -> None:
        self._works -= 1
        self._busy = self._busy if self._works else None


class _Reference:
    """A context that a graph does not keep alive."""

    def __init__(self, context: IExecutionContext) -> None:
        self._of = weakref.ref(context)

    def __call__(self) -> IExecutionContext | None:
        return self._of()

    def _begin(self, stream: Stream) -> None:
        if (context := self._of()) is not None:
            context._begin(stream)

    def _end(self) -> None:
        if (context := self._of()) is not None:
            context._end()
