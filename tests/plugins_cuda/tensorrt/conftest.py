"""The plugin library, called through plugin_harness.cpp, which stands for TensorRT.

UPSNET_OPERATORS: folder with what `make plugins` built; its plugins and harness serve on a GPU. The headers of
TensorRT are needed by test_abi.py alone.
"""

from __future__ import annotations

import ctypes
import functools
import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from plugins_cuda import library

TYPES = {torch.float32: 0, torch.float16: 1, torch.int32: 3, torch.bfloat16: 7, torch.int64: 8}  # nvinfer1::DataType
DTYPES = {number: dtype for dtype, number in TYPES.items()}
FORMATS = {"linear": 0, "hwc8": 2, "hwc": 8}  # nvinfer1::TensorFormat
FLOAT32, FLOAT64, INT32, CHAR, INT64 = 1, 2, 5, 6, 10  # nvinfer1::PluginFieldType
Shape = Sequence[int]


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

    def _tensors(
        self, shapes: Sequence[Shape], dtypes: Sequence[torch.dtype], formats: Sequence[str] | None
    ) -> tuple[ctypes.Array[Desc], ctypes.Array[DynamicDesc], tuple[int, int]]:
        formats = formats or ["linear"] * len(shapes)
        descs = [
            Desc(dims_of(shape), TYPES[dtype], FORMATS[layout], 1.0)
            for shape, dtype, layout in zip(shapes, dtypes, formats, strict=True)
        ]
        dynamic = [DynamicDesc(desc, desc.dims, desc.dims, desc.dims) for desc in descs]
        counts = (len(descs) - self.num_outputs, self.num_outputs)
        return (Desc * len(descs))(*descs), (DynamicDesc * len(descs))(*dynamic), counts

    def supports(
        self, shapes: Sequence[Shape], dtypes: Sequence[torch.dtype], formats: Sequence[str] | None = None
    ) -> bool:
        """Whether these tensors go together, asked as TensorRT asks: one after the other."""
        _, tensors, counts = self._tensors(shapes, dtypes, formats)
        return all(self._call("supports", i, tensors, *counts, result=ctypes.c_bool) for i in range(len(shapes)))

    def accepts(self, shapes: Sequence[Shape], dtypes: Sequence[torch.dtype]) -> tuple[bool, bool]:
        """What configurePlugin (when building) and onShapeChange (when running) say of these tensors."""
        descs, dynamic, counts = self._tensors(shapes, dtypes, None)
        return self._call("configure", dynamic, *counts) == 0, self._call("shape_change", descs, *counts) == 0

    def run(self, inputs: list[Tensor], formats: Sequence[str] | None = None) -> list[Tensor]:
        """Everything that TensorRT does with a plugin, up to enqueue. RuntimeError when that fails."""
        shapes = self.output_shapes([tensor.shape for tensor in inputs])
        assert shapes is not None
        dtypes = self.output_types([tensor.dtype for tensor in inputs])
        device = inputs[0].device
        outputs = [torch.empty(s, dtype=t, device=device) for s, t in zip(shapes, dtypes, strict=True)]
        if formats and formats[len(inputs)] != "linear":
            outputs[0] = outputs[0].contiguous(memory_format=torch.channels_last)
        tensors = [*inputs, *outputs]
        everything = ([tensor.shape for tensor in tensors], [tensor.dtype for tensor in tensors], formats)
        assert self.supports(*everything)
        assert self.accepts(*everything[:2]) == (True, True)
        descs, dynamic, counts = self._tensors(*everything)
        size = self._call("workspace_size", dynamic, *counts, result=ctypes.c_size_t)
        workspace = torch.full((size,), 255, dtype=torch.uint8, device=device)
        pointers = [(ctypes.c_void_p * len(part))(*(t.data_ptr() for t in part)) for part in (inputs, outputs)]
        stream = torch.cuda.current_stream().cuda_stream if device.type == "cuda" else None
        last = (ctypes.c_void_p(workspace.data_ptr()), ctypes.c_void_p(stream))
        if (status := self._call("enqueue", descs, len(inputs), *pointers, *last)) != 0:
            raise RuntimeError(f"enqueue: {status}")
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


def cmake(folder: Path, targets: list[str], *options: str) -> None:
    for command in (
        ["cmake", "-S", str(library.SOURCES), "-B", str(folder), *options],
        ["cmake", "--build", str(folder), "--parallel", str(os.cpu_count()), "--target", *targets],
    ):
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]


@functools.cache
def built(device: str) -> tuple[Path, Path]:
    """The harness and the plugin library: around emulated kernels (cpu), or the real one (cuda)."""
    name = "upsnet_plugins" if device == "cuda" else "upsnet_plugins_emulated"
    given = Path(os.environ.get("UPSNET_OPERATORS", "/nowhere"))
    if (given / f"lib{name}.so").is_file():
        return given / "libupsnet_plugin_harness.so", given / f"lib{name}.so"
    compiler = "CMAKE_CUDA_ARCHITECTURES=native" if device == "cuda" else "CMAKE_CUDA_COMPILER=NOTFOUND"
    folder = library.BUILD.parent / f"plugins_{device}"
    cmake(folder, [name, "upsnet_plugin_harness"], f"-D{compiler}")
    return folder / "libupsnet_plugin_harness.so", folder / f"lib{name}.so"


@pytest.fixture(scope="session")
def plugin_files() -> tuple[Path, Path]:
    """The harness and a plugin library that needs no GPU."""
    return built("cpu")


@pytest.fixture(scope="session")
def session_harness(plugin_files: tuple[Path, Path]) -> Harness:
    return Harness(*plugin_files)


@pytest.fixture
def harness(session_harness: Harness) -> Harness:
    session_harness.messages()  # what other tests left
    return session_harness


@dataclass(frozen=True)
class Front:
    """A plugin library, and where the tensors lie that its enqueue takes."""

    device: torch.device
    harness: Harness

    def run(
        self, name: str, attributes: Mapping[str, object], inputs: list[Tensor], formats: Sequence[str] | None = None
    ) -> list[Tensor]:
        return self.harness.create(name, attributes).run(inputs, formats)


@pytest.fixture(params=["emulated", pytest.param("cuda", marks=pytest.mark.gpu)])
def front(request: pytest.FixtureRequest) -> Iterator[Front]:
    """Both plugin libraries; inside the test, operators on CPU tensors run the emulated kernels too."""
    if request.param == "cuda":
        if not torch.cuda.is_available():
            pytest.skip("no NVIDIA GPU")
        yield Front(torch.device("cuda"), cuda_harness())
    else:
        with library.emulation():
            yield Front(torch.device("cpu"), request.getfixturevalue("session_harness"))


@functools.cache
def cuda_harness() -> Harness:
    return Harness(*built("cuda"))
