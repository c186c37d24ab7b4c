"""One caller's way through an engine: its stream, its memory, its contexts, and the CUDA graphs of its shapes."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np

from upsnet.errors import InputError
from upsnet.tensorrt.api import can_capture, is_capturable, make_context, scratch_size, take_errors
from upsnet.tensorrt.cuda import Buffer, CudaError, Graph, Stream
from upsnet.tensorrt.engine import Engine, Shape

ALIGNMENT = 256  # bytes, of every tensor's address: TensorRT asks for it
MOST_GRAPHS = 8  # of one lane; each holds a context
PATIENCE = 16  # calls without a graph, after which another shape's makes room: capturing costs several calls
MOST_SHAPES = 64  # that are remembered

logger = logging.getLogger("upsnet")


class Place(NamedTuple):
    """Where a tensor lies in a lane's memory."""

    name: str
    offset: int
    shape: Shape
    kind: np.dtype[Any]


class Layout(NamedTuple):
    """All tensors of a call one after the other, the inputs first: each way is one copy."""

    inputs: list[Place]
    outputs: list[Place]
    outputs_start: int
    size: int

    @property
    def places(self) -> list[Place]:
        return self.inputs + self.outputs


class Ready(NamedTuple):
    """A graph, what was captured, and the context that it was captured from, which nothing else may use."""

    graph: Graph
    layout: Layout
    context: Any


class Lane:
    """For one caller at a time, any thread, inside `with cuda.current():`. After an error it is to be closed.

    A shape that comes a second time is captured: from then on copies and kernels are launched in one call. There are
    MOST_GRAPHS; later one takes the place of that which was used longest ago, at most once in PATIENCE calls.
    """

    def __init__(self, engine: Engine, profiler: Any = None) -> None:
        """profiler: an IProfiler that is told every layer's time; then nothing is captured."""
        self.engine, cuda = engine, engine.cuda
        self._profiler = profiler
        self.device, self.scratch, self.host = Buffer(cuda), Buffer(cuda), Buffer(cuda, host=True)
        self.graphs: OrderedDict[tuple[Shape, ...], Ready] = OrderedDict()
        self._seen: OrderedDict[tuple[Shape, ...], None] = OrderedDict()
        self._waited = 0  # calls without a graph since there was no place for more
        self._capture = profiler is None and can_capture(engine.api, engine.engine)
        self._context = self._new_context()
        self._profile = 0
        self._current: tuple[tuple[Shape, ...], Layout] | None = None  # what the context is set to
        self._closed = False
        self.stream = Stream(cuda)

    def run(self, arrays: Sequence[np.ndarray], profile: int) -> list[np.ndarray]:
        """The outputs for the engine's inputs, in their order. profile: one that holds them.

        InputError, with TensorRT's or CUDA's own words, where that fails.
        """
        shapes = tuple(array.shape for array in arrays)
        take_errors(self.engine.logger, own=True)  # of earlier calls
        if (ready := self.graphs.get(shapes)) is not None:
            self.graphs.move_to_end(shapes)
            self._fill(ready.layout, arrays)
            ready.graph.launch(self.stream)
            self.stream.wait()
            return self._take(ready.layout)
        if self._capture and shapes in self._seen and self._has_place():
            return self._run_and_capture(arrays, shapes, profile)
        self._remember(shapes)
        if self._current is None or self._current[0] != shapes:
            self._current = None
            layout = self._set(self._context, shapes, profile, switch=self._profile != profile)
            self._profile, self._current = profile, (shapes, layout)
        return self._run(self._context, self._current[1], arrays)

    def _has_place(self) -> bool:
        """Whether one more shape may be captured."""
        if len(self.graphs) < MOST_GRAPHS:
            return True
        self._waited += 1
        return self._waited >= PATIENCE

    def _remember(self, shapes: tuple[Shape, ...]) -> None:
        self._seen[shapes] = None
        while len(self._seen) > MOST_SHAPES:
            self._seen.popitem(last=False)

    def _run(self, context: Any, layout: Layout, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        self._fill(layout, arrays)
        self._put(context, layout)
        self.stream.wait()
        return self._take(layout)

    def _run_and_capture(
        self, arrays: Sequence[np.ndarray], shapes: tuple[Shape, ...], profile: int
    ) -> list[np.ndarray]:
        """In a context of its own: one that is changed after a capture makes the graph useless. It runs once before,
        which sees to what a new shape needs and cannot be captured."""
        self._waited = 0
        while len(self.graphs) >= MOST_GRAPHS:
            evicted, ready = self.graphs.popitem(last=False)
            self._seen.pop(evicted, None)
            self._drop(ready)
        context = self._new_context()
        layout = self._set(context, shapes, profile, switch=profile != 0)
        answer = self._run(context, layout, arrays)
        try:
            if not is_capturable(context, int(self.stream)):
                raise InputError("TensorRT says that it cannot be captured")
            graph = self.stream.capture(lambda: self._put(context, layout))
        except InputError as error:
            self._capture = False
            logger.warning("%s: CUDA graphs are off, calls are slower: %s", self.engine.plan, error)
        else:
            self.graphs[shapes] = Ready(graph, layout, context)
        return answer

    def _new_context(self) -> Any:
        context = make_context(self.engine.api, self.engine.engine, self.engine.config)
        if context is None:
            raise self.engine.error("no execution context can be made")
        if self._profiler is not None:
            context.profiler = self._profiler
        return context

    def _set(self, context: Any, shapes: tuple[Shape, ...], profile: int, switch: bool) -> Layout:
        """Shapes, addresses and memory of a context; switch: its profile, too."""
        if switch:
            self._do("set_optimization_profile_async", context, profile, int(self.stream))
            self.stream.wait()
        for tensor, shape in zip(self.engine.inputs, shapes, strict=True):
            self._do("set_input_shape", context, tensor.name, shape)
        layout = self._lay_out(context, shapes)
        scratch = max(1, scratch_size(context))
        for buffer, size in ((self.device, layout.size), (self.host, layout.size), (self.scratch, scratch)):
            self._reserve(buffer, size)
        context.set_device_memory(self.scratch.address, self.scratch.size)
        for place in layout.places:
            self._do("set_tensor_address", context, place.name, self.device.address + place.offset)
        return layout

    def _reserve(self, buffer: Buffer, size: int) -> None:
        if size > buffer.size:
            self._current = None  # that, and the graphs, have the old address
            self._drop_all()
            buffer.reserve(size, spare=buffer.size // 4)  # else each shape that is a little larger moves all

    def _lay_out(self, context: Any, shapes: tuple[Shape, ...]) -> Layout:
        place = 0

        def of(name: str, shape: Shape, kind: np.dtype[Any]) -> Place:
            nonlocal place
            if min(shape, default=0) < 0:
                raise self.engine.error(f"the shape of {name} is not known before it runs")
            made = Place(name, place, shape, kind)
            place += -(-int(np.prod(shape)) * kind.itemsize // ALIGNMENT) * ALIGNMENT
            return made

        inputs = [of(each.name, shape, each.kind) for each, shape in zip(self.engine.inputs, shapes, strict=True)]
        start = place
        named = [(each, tuple(context.get_tensor_shape(each.name))) for each in self.engine.outputs]
        outputs = [of(each.name, shape, each.kind) for each, shape in named]
        return Layout(inputs, outputs, start, place)

    def _fill(self, layout: Layout, arrays: Sequence[np.ndarray]) -> None:
        for place, array in zip(layout.inputs, arrays, strict=True):
            np.copyto(self.host.array(place.offset, place.shape, place.kind), array, casting="no")

    def _take(self, layout: Layout) -> list[np.ndarray]:
        return [self.host.array(place.offset, place.shape, place.kind).copy() for place in layout.outputs]

    def _put(self, context: Any, layout: Layout) -> None:
        """Inputs there, the network, outputs back: onto the stream."""
        start = layout.outputs_start
        self.stream.to_device(self.device.address, self.host.address, start)
        self._do("execute_async_v3", context, int(self.stream))
        self.stream.to_host(self.host.address + start, self.device.address + start, layout.size - start)

    def _do(self, name: str, context: Any, *given: Any) -> None:
        if not getattr(context, name)(*given):
            raise self.engine.error(f"{name} failed")

    def _drop_all(self) -> None:
        while self.graphs:
            self._drop(self.graphs.popitem()[1])

    def _drop(self, ready: Ready) -> None:
        ready.graph.destroy()  # before its context

    def close(self) -> None:
        """Frees all, one before what it needs, also after CUDA has failed. A second call does nothing."""
        if self._closed:
            return
        self._closed = True
        buffers = (self.scratch, self.device, self.host)
        steps: list[Callable[[], None]] = [self.stream.wait, self._drop_all, self._forget]
        for step in (*steps, *(buffer.free for buffer in buffers), self.stream.destroy):
            with suppress(CudaError):
                step()

    def _forget(self) -> None:
        self._context = None
        self.graphs.clear()
