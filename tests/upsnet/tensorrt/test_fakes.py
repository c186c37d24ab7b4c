"""The fakes have no name and no parameter that the real packages do not have, and they refuse what those refuse."""

from __future__ import annotations

import ctypes
import inspect
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.upsnet.tensorrt import fake_cuda, fake_names
from tests.upsnet.tensorrt.fake_tensorrt import (
    CLASSES,
    IProfiler,
    IProgressMonitor,
    World,
    environment,
    install,
    write_plugins,
)
from tests.upsnet.tensorrt.graphs import expected, make_batch, write_graph
from upsnet.contract import INPUTS, OUTPUTS, PLUGINS

PROFILE = {
    "images": ((1, 32, 32, 3), (1, 64, 96, 3), (4, 96, 96, 3)),
    "sizes": ((1, 2), (1, 2), (4, 2)),
    "scales": ((1,), (1,), (4,)),
}

# Names


@pytest.fixture(scope="module")
def rtx() -> Any:
    return pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT-RTX is not installed")


def documented(function: Any) -> list[list[str]]:
    """The parameters of each overload, out of pybind11's docstring."""
    found = re.findall(r"^(?:\d+\. )?\w+\((.*)\) ->", function.__doc__ or "", re.MULTILINE)
    known = [re.findall(r"(?:^|, )(\w+):", re.sub(r"\[[^\]]*\]", "", each)) for each in found]
    return [[name for name in each if name != "self"] for each in known if "args" not in each]


@pytest.mark.parametrize("name", CLASSES)
def test_every_name_of_the_fake_tensorrt_is_one_of_the_bindings(name: str, rtx: Any) -> None:
    real, elsewhere = getattr(rtx, name), fake_names.ELSEWHERE.get(name, set())
    for member, own in inspect.getmembers(getattr(World("rtx").trt, name)):
        if member.startswith("_") or hasattr(bytes, member) or member in elsewhere:
            continue
        assert hasattr(real, member), f"{name}.{member}"
        if inspect.isfunction(own):
            taken = [each for each in inspect.signature(own).parameters if each != "self"]
            overloads = documented(getattr(real, member))
            known = {each for overload in overloads for each in overload}
            assert set(taken) <= known or not overloads, f"{name}.{member}: {taken}, really {overloads}"


def test_the_callbacks_are_those_of_the_bindings(rtx: Any) -> None:
    for own in (IProfiler, IProgressMonitor):
        for name, function in vars(own).items():
            if not name.startswith("_"):
                taken = [each for each in inspect.signature(function).parameters if each != "self"]
                assert taken == documented(getattr(getattr(rtx, own.__name__), name))[0], name


@pytest.mark.parametrize("flavour", fake_names.FLAVOURS)
def test_every_member_of_an_enumeration_is_one_of_the_bindings(flavour: str, rtx: Any) -> None:
    for name, enumeration in fake_names.enums(fake_names.FLAVOURS[flavour]).items():
        real = rtx.ILogger.Severity if name == "Severity" else getattr(rtx, name)
        names = {each.name for each in enumeration} - fake_names.ELSEWHERE.get(name, set())
        assert names <= set(real.__members__), name
        if name in ("DataType", "TensorIOMode"):
            assert all(int(real.__members__[each.name]) == int(each) for each in enumeration), name


def test_every_name_of_the_fake_cuda_is_one_of_cuda_bindings() -> None:
    real = pytest.importorskip("cuda.bindings.runtime", reason="cuda-bindings is not installed")
    for each in fake_cuda.ENUMS:
        for member in each:
            assert int(getattr(real, each.__name__).__members__[member.name]) == int(member), member
    for name, own in fake_cuda.FUNCTIONS.items():
        head = getattr(real, name).__doc__.splitlines()[0]
        really = re.findall(r"(\w+)(?=,|\))", re.sub(r": \w+", "", head.partition("(")[2]))
        taken = [each for each in inspect.signature(getattr(fake_cuda.FakeCuda, own)).parameters if each != "self"]
        assert taken == really, f"{name}: {taken}, really {head}"
    driver = pytest.importorskip("cuda.bindings.driver", reason="cuda-bindings is not installed")
    for name in fake_cuda.DRIVER_FUNCTIONS:
        taken = [each for each in inspect.signature(getattr(fake_cuda.FakeCuda, name)).parameters if each != "self"]
        assert taken == re.findall(r"(\w+)(?=,|\))", getattr(driver, name).__doc__.splitlines()[0].partition("(")[2])


# What the fakes do


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    return install(monkeypatch, "11.1")


class Caller:
    """The least that runs an engine, by the calls themselves."""

    def __init__(self, world: World, folder: Path, **config: Any) -> None:
        self.world, self.trt, self.cuda = world, world.trt, world.modules["cuda.bindings.runtime"]
        self.logger = make_logger(self.trt)
        ctypes.CDLL(str(write_plugins(folder / PLUGINS)))
        self.plan = self.build(write_graph(folder / "model.onnx"), **config)

    def build(self, model: Path, flags: tuple[str, ...] = (), profiles: tuple[Any, ...] = (PROFILE,)) -> bytes | None:
        builder = self.trt.Builder(self.logger)
        network = builder.create_network(1 << int(self.trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        parser = self.trt.OnnxParser(network, self.logger)
        if not parser.parse(model.read_bytes()):
            self.logger.errors += [parser.get_error(index).desc() for index in range(parser.num_errors)]
            return None
        config = builder.create_builder_config()
        for flag in flags:
            config.set_flag(self.trt.BuilderFlag[flag])
        for each in profiles:
            profile = builder.create_optimization_profile()
            for name, shapes in each.items():
                profile.set_shape(name, *shapes)
            config.add_optimization_profile(profile)
        return builder.build_serialized_network(network, config)

    def open(self) -> Any:
        self.engine = self.trt.Runtime(self.logger).deserialize_cuda_engine(self.plan)
        if self.engine is None:
            return None
        self.context = self.engine.create_execution_context()
        _, self.stream = self.cuda.cudaStreamCreateWithFlags(1)
        self.places: dict[str, int] = {}
        return self.engine

    def put(self, batch: Any) -> None:
        for name, array in zip(INPUTS, batch, strict=True):
            assert self.context.set_input_shape(name, array.shape)
            self.place(name, array.nbytes)
            data = np.ascontiguousarray(array)
            kind = self.cuda.cudaMemcpyKind.cudaMemcpyHostToDevice
            self.check(self.cuda.cudaMemcpyAsync(self.places[name], data.ctypes.data, data.nbytes, kind, self.stream))
        for name in OUTPUTS:
            self.place(name, int(np.prod(self.context.get_tensor_shape(name))) * 4)

    def place(self, name: str, size: int) -> None:
        status, self.places[name] = self.cuda.cudaMalloc(size)
        self.check((status,))
        assert self.context.set_tensor_address(name, self.places[name])

    def check(self, status: tuple[Any, ...]) -> None:
        assert status[0] == 0, status

    def run(self) -> bool:
        return bool(self.context.execute_async_v3(int(self.stream)))

    def get(self, name: str, kind: Any) -> np.ndarray:
        array = np.zeros(tuple(self.context.get_tensor_shape(name)), kind)
        way = self.cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self.check(self.cuda.cudaMemcpyAsync(array.ctypes.data, self.places[name], array.nbytes, way, self.stream))
        self.check(self.cuda.cudaStreamSynchronize(self.stream))
        return array


def make_logger(trt: Any) -> Any:
    class Logger(trt.ILogger):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.errors: list[str] = []

        def log(self, severity: Any, msg: str) -> None:
            self.errors.append(msg)

    return Logger()


def test_a_plan_runs_and_frees_all(world: World, tmp_path: Path) -> None:
    caller = Caller(world, tmp_path)
    assert caller.open().num_io_tensors == 6
    batch = make_batch(2)
    caller.put(batch)
    assert tuple(caller.context.get_tensor_shape("panoptic")) == (2, 64, 96)
    assert caller.run()
    wanted = expected(batch)
    assert np.array_equal(caller.get("panoptic", np.uint8), wanted.panoptic)
    assert np.array_equal(caller.get("segments", np.float32), wanted.segments)
    for address in caller.places.values():
        caller.check(caller.cuda.cudaFree(address))
    caller.check(caller.cuda.cudaStreamDestroy(caller.stream))
    assert world.cuda.held() == [
        "device memory of a context of 16384 bytes",
        f"weights of an engine of {size(caller)} bytes",
    ]
    caller.context = caller.engine = None
    assert world.cuda.held() == [] and world.cuda.misuses == []


def size(caller: Caller) -> int:
    return len(caller.engine._plan.onnx)


def test_nothing_is_there_before_the_stream_is_waited_for(world: World, tmp_path: Path) -> None:
    caller = Caller(world, tmp_path)
    caller.open()
    caller.put(make_batch(1))
    assert caller.run()
    assert set(world.cuda.view(caller.places["panoptic"], 64)) == {fake_cuda.FRESH}


def refusals() -> dict[str, Any]:
    def unset(caller: Caller) -> None:
        caller.context.set_optimization_profile_async(0, int(caller.stream))

    def outside(caller: Caller) -> None:
        assert not caller.context.set_input_shape("images", (5, 64, 96, 3))
        caller.context.set_optimization_profile_async(0, int(caller.stream))

    def named(caller: Caller) -> None:
        assert caller.context.set_input_shape("scales", (2,))

    def address(caller: Caller) -> None:
        caller.context.set_tensor_address("images", 0)

    def unaligned(caller: Caller) -> None:
        assert not caller.context.set_tensor_address("images", caller.places["images"] + 4)
        caller.context.set_tensor_address("images", 0)

    return {
        "input shapes are not set": unset,
        "Valid range for profile 0": outside,
        "Named dimension batch": named,
        "Address is not set": address,
        "not aligned": unaligned,
    }


@pytest.mark.parametrize("text", refusals())
def test_it_refuses_to_run(text: str, world: World, tmp_path: Path) -> None:
    caller = Caller(world, tmp_path)
    caller.open()
    caller.put(make_batch(1))
    refusals()[text](caller)
    assert not caller.run()
    assert any(text in each for each in caller.logger.errors), caller.logger.errors


@pytest.mark.parametrize("how", ["freed", "small"])
def test_memory_that_is_freed_or_too_small_is_an_illegal_address(how: str, world: World, tmp_path: Path) -> None:
    caller = Caller(world, tmp_path)
    caller.open()
    caller.put(make_batch(1))
    if how == "freed":
        caller.cuda.cudaFree(caller.places["panoptic"])
    else:
        caller.place("panoptic", 100)
    assert caller.run()
    assert caller.cuda.cudaStreamSynchronize(caller.stream)[0].name == "cudaErrorIllegalAddress"
    assert caller.cuda.cudaMalloc(8)[0].name == "cudaErrorIllegalAddress"  # and from then on everything


PLANS = {
    "checksum": lambda plan, world: plan[:-9],
    "kMAGIC_TAG": lambda plan, world: b"x" + plan[1:],
    "not compatible with this version": lambda plan, world: Caller.build,
    "incompatible device": lambda plan, world: plan,
    "Cannot find plugin: AllRows": lambda plan, world: plan,
}


@pytest.mark.parametrize("text", PLANS)
def test_it_does_not_load(text: str, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    caller = Caller(world, tmp_path)
    if text == "not compatible with this version":
        other = install(monkeypatch, "10.13")
        caller.plan = Caller(other, tmp_path).plan
    elif text == "incompatible device":
        world.cuda.capability = (8, 9)
    elif text.startswith("Cannot find plugin"):
        world.plugins.clear()
    else:
        caller.plan = PLANS[text](bytes(caller.plan or b""), world)
    assert caller.open() is None
    assert text in caller.logger.errors[-1]


def test_a_graph_replays_with_new_inputs_and_what_cannot_be_captured_is_refused(world: World, tmp_path: Path) -> None:
    caller, cuda = Caller(world, tmp_path), world.modules["cuda.bindings.runtime"]
    caller.open()
    caller.put(make_batch(1))
    mode = cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
    caller.check(cuda.cudaStreamBeginCapture(caller.stream, mode))
    assert not caller.run(), "its shapes are new: they have to run once before"
    assert cuda.cudaStreamEndCapture(caller.stream)[0].name == "cudaErrorStreamCaptureInvalidated"
    assert caller.run()
    caller.check(cuda.cudaStreamSynchronize(caller.stream))
    caller.check(cuda.cudaStreamBeginCapture(caller.stream, mode))
    assert caller.run()
    status, graph = cuda.cudaStreamEndCapture(caller.stream)
    caller.check((status,))
    _, ready = cuda.cudaGraphInstantiate(graph, 0)
    batch = make_batch(1, seed=1)
    world.cuda.view(caller.places["images"], batch.images.nbytes)[:] = batch.images.ravel()
    caller.check(cuda.cudaGraphLaunch(ready, caller.stream))
    assert np.array_equal(caller.get("panoptic", np.uint8), expected(batch).panoptic)
    assert not world.cuda.misuses
    caller.context.set_input_shape("images", (1, 32, 32, 3))
    caller.check(cuda.cudaGraphLaunch(ready, caller.stream))
    caller.check(cuda.cudaStreamSynchronize(caller.stream))
    assert "changed after its capture" in world.cuda.misuses[0]


@pytest.mark.parametrize("flavour", ["10.9", "10.16", "11.1", "rtx"])
def test_versions_have_what_they_have(flavour: str) -> None:
    trt = World(flavour).trt
    assert hasattr(trt.BuilderFlag, "FP16") == flavour.startswith("10")
    assert hasattr(trt.OnnxParserFlag, "ENABLE_PLUGIN_OVERRIDE") == (flavour != "10.9")
    assert hasattr(trt.ICudaEngine, "create_runtime_config") == (flavour != "10.9")
    assert hasattr(trt.IBuilderConfig, "set_compute_capability") == (flavour == "rtx")
    assert hasattr(trt, "ComputeCapability") == (flavour == "rtx")
    with pytest.raises(AttributeError):
        trt.IBuilderConfig(trt).no_such_setting = 1


def test_a_monitor_sees_the_build_and_can_end_it(world: World, tmp_path: Path) -> None:
    seen: list[str] = []

    class Monitor(IProgressMonitor):
        def phase_start(self, phase_name: str, parent_phase: str, num_steps: int) -> None:
            seen.append(phase_name)

        def step_complete(self, phase_name: str, step: int) -> bool:
            return step < 2

        def phase_finish(self, phase_name: str) -> None:
            seen.append(f"end of {phase_name}")

    ctypes.CDLL(str(write_plugins(tmp_path / PLUGINS)))
    trt = world.trt
    logger = make_logger(trt)
    builder = trt.Builder(logger)
    network, config = builder.create_network(0), builder.create_builder_config()
    assert trt.OnnxParser(network, logger).parse(write_graph(tmp_path / "model.onnx").read_bytes())
    profile = builder.create_optimization_profile()
    for name, shapes in PROFILE.items():
        profile.set_shape(name, *shapes)
    config.add_optimization_profile(profile)
    config.progress_monitor = Monitor()
    assert builder.build_serialized_network(network, config) is None
    assert seen[0] == "Building Engine" and seen[-1] == "end of Building Engine" and not logger.errors


def test_without_profile_plugin_or_weights(world: World, tmp_path: Path) -> None:
    caller = Caller(world, tmp_path, flags=("STRIP_PLAN", "REFIT"))
    assert caller.build(tmp_path / "model.onnx", profiles=()) is None
    assert "no optimization profile" in caller.logger.errors[-1]
    caller.open()
    caller.put(make_batch(1))
    assert not caller.run() and "no weights" in caller.logger.errors[-1]
    refitter = caller.trt.Refitter(caller.engine, caller.logger)
    assert not refitter.refit_cuda_engine()
    wanted = {"hundred": np.array(50, np.int32)}
    for name in refitter.get_all_weights():
        given = wanted.get(name)
        array = given if given is not None else weights(tmp_path / "model.onnx")[name]
        assert refitter.set_named_weights(name, caller.trt.Weights(array))
    assert refitter.refit_cuda_engine()
    caller.put(make_batch(1))
    assert caller.run()
    assert np.array_equal(caller.get("panoptic", np.uint8), make_batch(1).images[..., 0] // 50)
    world.plugins.clear()
    assert caller.build(tmp_path / "model.onnx") is None
    assert "Plugin not found" in caller.logger.errors[-1]


def weights(model: Path) -> dict[str, np.ndarray]:
    import onnx

    return {each.name: onnx.numpy_helper.to_array(each) for each in onnx.load(model).graph.initializer}


def test_in_a_process_of_its_own(tmp_path: Path) -> None:
    library = write_plugins(tmp_path / PLUGINS, kernel_abi=7)
    script = (
        "import ctypes, importlib.util, tensorrt_rtx as trt, cuda.bindings.runtime as cuda\n"
        f"library = ctypes.CDLL({str(library)!r})\n"
        "print(trt.__version__, cuda.cudaGetDeviceCount()[1], library.upsnet_kernel_abi(),"
        "importlib.util.find_spec('tensorrt'), len(trt.get_plugin_registry().all_creators) > 3)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment("rtx", gpus=2), capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["1.7.1.116", "2", "7", "None", "True"]
