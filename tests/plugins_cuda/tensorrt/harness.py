"""A plugin library as TensorRT sees it: the methods of IPluginV3, called through plugin_harness.cpp."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.plugins_cuda.tensorrt.profile import Profile, Shape, profile_around

TYPES = {torch.float32: 0, torch.float16: 1, torch.int32: 3, torch.bfloat16: 7, torch.int64: 8}  # nvinfer1::DataType
DTYPES = {number: dtype for dtype, number in TYPES.items()}
FORMATS = {"linear": 0, "hwc8": 2, "hwc": 8}  # nvinfer1::TensorFormat
FLOAT32, FLOAT64, INT32, CHAR, INT64 = 1, 2, 5, 6, 10  # nvinfer1::PluginFieldType
# Bytes behind a workspace, which nobody may touch: what is missing there must not be found in the heap; what they hold.
GUARD, GUARDED = 1 << 24, 0xA5
ALIGNMENT = 256  # of a workspace, as the kernels' slices of it


class Field(ctypes.Structure):
    _fields_ = (("name", ctypes.c_char_p), ("data", ctypes.c_void_p), ("type", ctypes.c_int), ("length", ctypes.c_int))


class Fields(ctypes.Structure):
    _fields_ = (("count", ctypes.c_int32), ("fields", ctypes.POINTER(Field)))


class Dims(ctypes.Structure):
    _fields_ = (("rank", ctypes.c_int32), ("d", ctypes.c_int64 * 8))


class Desc(ctypes.Structure):
    _fields_ = (("dims", Dims), ("type", ctypes.c_int32), ("format", ctypes.c_int32), ("scale", ctypes.c_float))


class DynamicDesc(ctypes.Structure):
    _fields_ = (("desc", Desc), ("min", Dims), ("max", Dims), ("opt", Dims))


def dims_of(shape: Shape) -> Dims:
    return Dims(len(shape), (ctypes.c_int64 * 8)(*shape))


def field_of(name: str, value: object, wide: bool) -> tuple[Field, object]:
    """The field, and the memory that it points to. wide: 64-bit numbers, and strings with a final zero."""
    if isinstance(value, str):
        text = ctypes.create_string_buffer(value.encode())
        return Field(name.encode(), ctypes.addressof(text), CHAR, len(value) + wide), text
    values = value if isinstance(value, list) else [value]
    element: Any  # ctypes' number types have no common one that arrays are known for
    if isinstance(values[0], float):
        kind, element = (FLOAT64, ctypes.c_double) if wide else (FLOAT32, ctypes.c_float)
    else:
        kind, element = (INT64, ctypes.c_int64) if wide else (INT32, ctypes.c_int32)
    data = (element * len(values))(*values)
    return Field(name.encode(), ctypes.addressof(data), kind, len(values)), data


def filled(shape: Shape, dtype: torch.dtype, device: torch.device) -> Tensor:
    """A tensor that nobody has written to: its bytes are 0xff."""
    size = math.prod(shape) * dtype.itemsize
    return torch.full((size,), 255, dtype=torch.uint8, device=device).view(dtype).view(list(shape))


@dataclass(frozen=True)
class Tensors:
    """A plugin's inputs and outputs: in one run, and in the profile that it is part of (None: of these sizes alone)."""

    num_outputs: int
    shapes: Sequence[Shape]
    dtypes: Sequence[torch.dtype]
    formats: Sequence[str] | None = None  # None: all are linear
    profile: Profile | None = None

    @property
    def counts(self) -> tuple[int, int]:
        return len(self.shapes) - self.num_outputs, self.num_outputs

    def layout(self, index: int) -> str:
        return self.formats[index] if self.formats else "linear"

    def outputs(self) -> list[tuple[Shape, torch.dtype]]:
        return list(zip(self.shapes, self.dtypes, strict=True))[-self.num_outputs :]

    def descs(self, shapes: Sequence[Shape] | None = None) -> ctypes.Array[Desc]:
        """As a run has them."""
        descs = [
            Desc(dims_of(shape), TYPES[dtype], FORMATS[self.layout(index)], 1.0)
            for index, (shape, dtype) in enumerate(zip(shapes or self.shapes, self.dtypes, strict=True))
        ]
        return (Desc * len(descs))(*descs)

    def dynamic(self) -> ctypes.Array[DynamicDesc]:
        """As building has them: a size that the profile leaves open is -1."""
        low, high = (self.profile.minimum, self.profile.maximum) if self.profile else (self.shapes, self.shapes)
        known = [[a if a == b else -1 for a, b in zip(*ends, strict=True)] for ends in zip(low, high, strict=True)]
        each = zip(self.descs(known), low, high, self.shapes, strict=True)
        made = [DynamicDesc(desc, dims_of(a), dims_of(b), dims_of(usual)) for desc, a, b, usual in each]
        return (DynamicDesc * len(made))(*made)


class Plugin:
    """One IPluginV3. Tensors are its inputs, then its outputs."""

    def __init__(self, functions: ctypes.CDLL, pointer: int) -> None:
        self._functions, self._pointer = functions, ctypes.c_void_p(pointer)

    def _call(self, function: str, *arguments: object, result: Any = ctypes.c_int32) -> Any:
        call = self._functions[f"harness_{function}"]
        call.restype = result
        return call(self._pointer, *arguments)

    def copy(self, how: str) -> Plugin:
        """how: clone or attach (to an execution context)."""
        pointer = self._call(how, result=ctypes.c_void_p)
        assert pointer not in (None, self._pointer.value)
        return Plugin(self._functions, pointer)

    def destroy(self) -> None:
        self._call("destroy", result=None)

    def serialized(self) -> Fields:
        return self._call("serialize", result=ctypes.POINTER(Fields)).contents

    @property
    def metadata(self) -> str:
        text = self._call("metadata", result=ctypes.c_char_p)
        assert text == self._call("timing_id", result=ctypes.c_char_p)
        return text.decode()

    @property
    def num_outputs(self) -> int:
        return self._call("num_outputs")

    def output_types(self, inputs: Sequence[torch.dtype]) -> list[torch.dtype]:
        outputs = (ctypes.c_int32 * self.num_outputs)()
        given = (ctypes.c_int32 * len(inputs))(*(TYPES[dtype] for dtype in inputs))
        assert self._call("output_types", given, len(inputs), outputs, len(outputs)) == 0
        return [DTYPES[number] for number in outputs]

    def output_shapes(self, inputs: Sequence[Shape]) -> list[tuple[int, ...]] | None:
        """None where the plugin refuses."""
        outputs = (Dims * self.num_outputs)()
        given = (Dims * len(inputs))(*map(dims_of, inputs))
        if self._call("output_shapes", given, len(inputs), outputs, len(outputs)) != 0:
            return None
        return [tuple(dims.d[: dims.rank]) for dims in outputs]

    def describe(self, inputs: Sequence[Tensor], formats: Sequence[str] | None, profile: Profile) -> Tensors:
        """The tensors of a run on these inputs, inside the profile."""

        def with_outputs(shapes: Sequence[Shape]) -> list[Shape]:
            outputs = self.output_shapes(shapes)
            assert outputs is not None, shapes
            return [*shapes, *outputs]

        given = [tensor.dtype for tensor in inputs]
        return Tensors(
            self.num_outputs,
            with_outputs([tensor.shape for tensor in inputs]),
            [*given, *self.output_types(given)],
            formats,
            Profile(with_outputs(profile.minimum), with_outputs(profile.maximum)),
        )

    def supports(
        self, shapes: Sequence[Shape], dtypes: Sequence[torch.dtype], formats: Sequence[str] | None = None
    ) -> bool:
        """Whether these tensors go together, asked as TensorRT asks: one after the other."""
        return self.supports_all(Tensors(self.num_outputs, shapes, dtypes, formats))

    def supports_all(self, tensors: Tensors) -> bool:
        described = tensors.dynamic()
        every = range(len(described))
        return all(self._call("supports", i, described, *tensors.counts, result=ctypes.c_bool) for i in every)

    def accepts(self, shapes: Sequence[Shape], dtypes: Sequence[torch.dtype]) -> tuple[bool, bool]:
        """What configurePlugin (when building) and onShapeChange (when running) say of these tensors."""
        tensors = Tensors(self.num_outputs, shapes, dtypes)
        return self.configure(tensors), self.shape_change(tensors)

    def configure(self, tensors: Tensors) -> bool:
        return self._call("configure", tensors.dynamic(), *tensors.counts) == 0

    def shape_change(self, tensors: Tensors) -> bool:
        return self._call("shape_change", tensors.descs(), *tensors.counts) == 0

    def workspace_size(self, tensors: Tensors) -> int:
        """Bytes, enough for the profile's largest shapes."""
        return self._call("workspace_size", tensors.dynamic(), *tensors.counts, result=ctypes.c_size_t)

    def enqueue(
        self, tensors: Tensors, inputs: Sequence[Tensor], workspace_size: int, outputs: list[Tensor] | None = None
    ) -> list[Tensor]:
        """The outputs, after a run in a workspace of exactly so many bytes. RuntimeError when it fails."""
        device = inputs[0].device
        outputs = outputs or [filled(shape, dtype, device) for shape, dtype in tensors.outputs()]
        if tensors.layout(len(inputs)) != "linear":
            outputs[0] = outputs[0].contiguous(memory_format=torch.channels_last)
        memory = torch.full((workspace_size + GUARD + ALIGNMENT,), 255, dtype=torch.uint8, device=device)
        workspace = memory[-memory.data_ptr() % ALIGNMENT :]
        workspace[workspace_size:] = GUARDED
        pointers = [(ctypes.c_void_p * len(part))(*(t.data_ptr() for t in part)) for part in (inputs, outputs)]
        stream = torch.cuda.current_stream().cuda_stream if device.type == "cuda" else None
        last = (ctypes.c_void_p(workspace.data_ptr()), ctypes.c_void_p(stream))
        if (status := self._call("enqueue", tensors.descs(), len(inputs), *pointers, *last)) != 0:
            raise RuntimeError(f"enqueue: {status}")
        assert bool((workspace[workspace_size:] == GUARDED).all()), "something was written behind the workspace"
        return outputs


class Harness:
    """A plugin library's creators."""

    def __init__(self, harness: Path, plugins: Path) -> None:
        self._functions = ctypes.CDLL(str(harness))
        for name in ("load", "messages"):
            getattr(self._functions, f"harness_{name}").restype = ctypes.c_char_p
        for name in ("creator", "create"):
            getattr(self._functions, f"harness_{name}").restype = ctypes.c_void_p
        self._functions.harness_field_names.restype = ctypes.POINTER(Fields)
        error = self._functions.harness_load(str(plugins).encode())
        assert error is None, error
        self.kernel_abi: int = ctypes.CDLL(str(plugins)).upsnet_kernel_abi()
        self.creators: dict[str, ctypes.c_void_p] = {}
        for index in range(self._functions.harness_num_creators()):
            creator = ctypes.c_void_p(self._functions.harness_creator(index))
            texts = (ctypes.c_char_p * 3)()
            self._functions.harness_identity(creator, texts)
            assert texts[1:] == [b"1", b""]  # version, namespace
            self.creators[(texts[0] or b"").decode()] = creator

    def messages(self) -> str:
        """What was logged since the last call."""
        return self._functions.harness_messages().decode()

    def field_names(self, name: str) -> list[str]:
        collection = self._functions.harness_field_names(self.creators[name]).contents
        return [field.name.decode() for field in collection.fields[: collection.count]]

    def create(self, name: str, attributes: Mapping[str, object], *, wide: bool = False) -> Plugin:
        made = [field_of(label, value, wide) for label, value in attributes.items()]
        return self.create_from(name, Fields(len(made), (Field * len(made))(*(field for field, _ in made))))

    def create_from(self, name: str, fields: Fields | None, phase: int = 0) -> Plugin:
        """phase: 0 while building, 1 from an engine. ValueError, with what was logged, when the plugin refuses."""
        pointer = self._functions.harness_create(self.creators[name], fields and ctypes.byref(fields), phase)
        if pointer is None:
            raise ValueError(self.messages())
        return Plugin(self._functions, pointer)

    def run(
        self,
        name: str,
        attributes: Mapping[str, object],
        inputs: Sequence[Tensor],
        formats: Sequence[str] | None = None,
        profile: Profile | None = None,
    ) -> list[Tensor]:
        """What TensorRT does with a node, from building to a run inside the profile. RuntimeError when the run fails.

        profile: by default half and twice these sizes.
        """
        builder = self.create(name, attributes)
        shapes = [tensor.shape for tensor in inputs]
        tensors = builder.describe(inputs, formats, profile or profile_around(name, attributes, shapes))
        assert builder.supports_all(tensors) and builder.configure(tensors)
        size = builder.workspace_size(tensors)
        needed = builder.workspace_size(replace(tensors, profile=None))
        assert size >= needed, f"a workspace of {size} bytes for the largest shapes, {needed} for these"
        engine = self.create_from(name, builder.serialized(), phase=1)
        context = engine.copy("attach")
        assert context.shape_change(tensors)
        outputs = context.enqueue(tensors, inputs, size)
        for plugin in (builder, engine, context):
            plugin.destroy()
        return outputs
