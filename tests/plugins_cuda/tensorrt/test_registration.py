"""How TensorRT finds the plugins: plain dlopen, load_library, both; and real builds with TensorRT-RTX on the CPU.

Every case is a process of its own, as a registry lives as long as one. The packages tensorrt_lean_bindings (the lean
runtime has TensorRT's own registry) and tensorrt_rtx_bindings are there where NVIDIA has them (libraries.need).
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import onnx
import pytest

import plugins_cuda
from export.backends.tensorrt_engine import rtx_environment
from tests.plugins_cuda.tensorrt.libraries import need

pytestmark = pytest.mark.tensorrt

NAMES = {"RoiAlignFpn", "PaddedNms", "PaddedBatchedNms", "DeformConv2d", "ModulatedDeformConv2d", "PanopticFusion"}
FLOAT, UINT8, INT32, INT64, HALF = 1, 2, 6, 7, 10  # onnx.TensorProto

REGISTER = """
import ctypes, importlib, sys
module, path, ways = sys.argv[1:]
trt = importlib.import_module(module)
registry = trt.get_plugin_registry()
for way in ways.split():
    if way == "dlopen":
        ctypes.CDLL(path)
    else:
        print("handle", registry.load_library(path) is not None)
print(*(creator.name for creator in registry.all_creators))
"""

STAND_IN = """
import ctypes, sys
tensorrt = ctypes.CDLL(sys.argv[1], ctypes.RTLD_LOCAL if sys.argv[4:] else ctypes.RTLD_GLOBAL)
tensorrt.harness_set_version(int(sys.argv[3]))
plugins = ctypes.CDLL(sys.argv[2])
count = ctypes.c_int32()
print(tensorrt.harness_num_registered())
plugins.getCreators(ctypes.byref(count))
print(count.value, tensorrt.harness_num_registered())
"""


def run(program: str, *arguments: object) -> str:
    done = subprocess.run([sys.executable, "-c", program, *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("ways", ["dlopen", "load_library", "dlopen load_library", "load_library dlopen"])
@pytest.mark.parametrize("module", ["tensorrt_lean_bindings", "tensorrt_rtx_bindings"])
def test_every_way_of_loading(plugin_files: tuple[Path, Path], module: str, ways: str) -> None:
    need(module)
    *handles, names = run(REGISTER, module, plugin_files[1], ways).splitlines()
    assert (
        sorted(set(names.split()) & NAMES) == sorted(name for name in names.split() if name in NAMES) == sorted(NAMES)
    )
    assert set(handles) <= {"handle True"}


# 10701: TensorRT-RTX 1.7.1. To one that nobody knows the plugins are given when it asks, and not before.
@pytest.mark.parametrize(
    ("version", "registered"), [(100900, 6), (101602, 6), (110100, 6), (10701, 6), (100800, 0), (120000, 0)]
)
def test_the_registry_of_every_version(plugin_files: tuple[Path, Path], version: int, registered: int) -> None:
    """The harness's registry has that version's virtual table."""
    assert run(STAND_IN, *plugin_files, version).split() == [str(registered), "6", "0"]


@pytest.mark.parametrize(
    ("file", "version"),
    [
        ("libnvinfer.so.10", 101602),
        ("libnvinfer.so.11", 110100),
        ("libnvinfer_lean.so.10", 101602),
        ("libnvinfer_lean.so.11", 110100),
        ("libnvinfer_dispatch.so.10", 101602),
        ("libnvinfer_dispatch.so.11", 110100),
        ("libtensorrt_rtx.so.1", 10701),
    ],
)
def test_every_tensorrt_is_found_by_its_file(
    plugin_files: tuple[Path, Path], tmp_path: Path, file: str, version: int
) -> None:
    """As Python's bindings load it: its symbols are not the process's."""
    harness, plugins = plugin_files
    tensorrt = shutil.copy(harness, tmp_path / file)
    assert run(STAND_IN, tensorrt, plugins, version, "local").split() == ["6", "6", "0"]


@pytest.mark.parametrize(("version", "name"), [(8601, "8.6"), (7203, "7.2"), (100800, "10.8"), (120000, "12.0")])
def test_an_unknown_version_is_named(plugin_files: tuple[Path, Path], version: int, name: str) -> None:
    """Before 10 a version was a thousand times its major number."""
    command = [sys.executable, "-c", STAND_IN, *map(str, plugin_files), str(version)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stdout.split() == ["0", "6", "0"]
    assert done.stderr == (
        f"upsnet plugins, registration: TensorRT {name} ({plugin_files[0]}) is not one of 10.9 to 11.x, "
        "nor TensorRT-RTX 1.7: no plugins for it until load_library asks\n"
    )


@pytest.mark.parametrize("preload", [False, True], ids=["dlopen", "LD_PRELOAD"])
def test_says_nothing_without_tensorrt(plugin_files: tuple[Path, Path], preload: bool) -> None:
    """Under LD_PRELOAD the library is in every child process."""
    library = str(plugin_files[1])
    program = "import ctypes, sys; assert hasattr(ctypes.CDLL(sys.argv[1] or None), 'getCreators')"
    command, environment = [sys.executable, "-c", program, "" if preload else library], dict(os.environ)
    if preload:
        environment["LD_PRELOAD"] = library
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("module", ["tensorrt_lean", "tensorrt_rtx"])
def test_loaded_before_tensorrt(plugin_files: tuple[Path, Path], module: str) -> None:
    """As polygraphy does it. Nothing is registered, no TensorRT loaded that nobody asked for; load_library cures it."""
    need(f"{module}_libs")
    libraries = find_spec(f"{module}_libs")
    assert libraries is not None and libraries.submodule_search_locations is not None
    program = """
import ctypes, importlib, sys
def names():
    return [creator.name for creator in registry.all_creators if creator.name in sys.argv[3:]]
ctypes.CDLL(sys.argv[1])
assert "libnvinfer" not in open("/proc/self/maps").read() and "libtensorrt" not in open("/proc/self/maps").read()
registry = importlib.import_module(sys.argv[2]).get_plugin_registry()
print(len(names()), registry.load_library(sys.argv[1]) is not None, len(names()))
"""
    environment = {**os.environ, "LD_LIBRARY_PATH": str(libraries.submodule_search_locations[0])}
    command = [sys.executable, "-c", program, str(plugin_files[1]), f"{module}_bindings", *NAMES]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.stdout.split() == ["0", "True", "6"], done.stdout + done.stderr


Value = tuple[str, int, list[int | str]]
# Smallest, optimal and largest (batch, side of P2, boxes).
SIZES = [(1, 16, 4), (2, 32, 20), (4, 64, 20)]


def save_model(path: Path, name: str, inputs: list[Value], outputs: list[Value], attributes: dict[str, Any]) -> None:
    """One node with its body, as the exporter writes it: panoptic, fp16 out of a plugin, is cast to uint8."""
    results = [label for label, _, _ in outputs]
    nodes = [
        onnx.helper.make_node(
            name, [label for label, _, _ in inputs], results, domain="upsnet", plugin_version="1", plugin_namespace="",
            **attributes,
        )
    ]  # fmt: skip
    if name == "PanopticFusion":
        nodes[0].output[0] = "wide"
        nodes.append(onnx.helper.make_node("Cast", ["wide"], [results[0]], to=UINT8))
    values = [[onnx.helper.make_tensor_value_info(*value) for value in part] for part in (inputs, outputs)]
    graph = onnx.helper.make_graph(nodes, "one_node", values[0], values[1])
    opsets = [onnx.helper.make_opsetid("", 20), onnx.helper.make_opsetid("upsnet", 1)]
    functions = plugins_cuda.onnx_functions()
    onnx.save(onnx.helper.make_model(graph, functions=functions, opset_imports=opsets, ir_version=10), path)


def model_of(name: str, feature: int) -> tuple[list[Value], list[Value], dict[str, object]]:
    """Inputs, outputs, attributes. Sizes that are letters are dynamic: B, S (side of P2), R (boxes)."""
    nms: dict[str, object] = {"iou_threshold": 0.5, "score_threshold": 0.1, "max_output": 12}
    boxes: list[Value] = [("boxes", FLOAT, ["B", "R", 4]), ("scores", FLOAT, ["B", "R"])]
    kept: list[Value] = [("indices", INT64, ["B", 12]), ("counts", INT32, ["B"])]
    convolution: list[Value] = [
        ("x", feature, ["B", 16, "S", "S"]), ("offset", FLOAT, ["B", 18, "S", "S"]), ("weight", feature, [8, 16, 3, 3]),
        ("bias", FLOAT, [8]),
    ]  # fmt: skip
    y: list[Value] = [("y", feature, ["B", 8, "S", "S"])]
    steps: dict[str, object] = {"strides": [1, 1], "pads": [1, 1, 1, 1], "dilations": [1, 1]}
    if name == "RoiAlignFpn":
        pyramid: list[Value] = [
            (f"p{level}", feature, ["B", 16, f"S/{1 << level}", f"S/{1 << level}"]) for level in range(4)
        ]
        pooling = {"sampling_ratio": 2, "coordinate_transformation_mode": "half_pixel", "canonical_size": 224.0}
        pooled: list[Value] = [("pooled", feature, ["B", "R", 16, 7, 7])]
        return [*pyramid, ("rois", FLOAT, ["B", "R", 4])], pooled, {"output_size": 7, "inclusive": 0, **pooling}
    if name == "PaddedNms":
        return boxes, kept, nms
    if name == "PaddedBatchedNms":
        return [*boxes, ("classes", INT64, ["B", "R"])], kept, nms
    if name == "DeformConv2d":
        return convolution, y, steps
    if name == "ModulatedDeformConv2d":
        return [*convolution, ("mask", FLOAT, ["B", 9, "S", "S"])], y, steps
    inputs: list[Value] = [
        ("semantic", feature, ["B", 8, "S", "S"]), ("boxes", FLOAT, ["B", 6, 4]), ("classes", INT64, ["B", 6]),
        ("scores", FLOAT, ["B", 6]), ("mask_logits", feature, ["B", 6, 28, 28]), ("counts", INT32, ["B"]),
        ("sizes", INT32, ["B", 2]), ("scales", FLOAT, ["B"]),
    ]  # fmt: skip
    outputs: list[Value] = [
        ("panoptic", UINT8, ["B", "4S", "4S"]),
        ("segments", FLOAT, ["B", 9, 7]),
        ("segment_count", INT32, ["B"]),
    ]
    return inputs, outputs, {"num_stuff": 3, "stuff_area_limit": 50.0, "mask_overlap_threshold": 0.3}


def concrete(shape: Sequence[int | str], size: tuple[int, int, int]) -> list[int]:
    known = {"B": size[0], "R": size[2]} | {f"S/{1 << level}": size[1] >> level for level in range(4)} | {"S": size[1]}
    return [part if isinstance(part, int) else known[part] for part in shape]


# NMS has boxes and scores, which are fp32.
@pytest.mark.parametrize(
    ("name", "feature", "more"),
    [
        pytest.param(name, feature, more, id="-".join([name, label, *more.values()]))
        for name in sorted(NAMES)
        for feature, label in ((FLOAT, "fp32"), (HALF, "fp16"))
        for more in ({}, {"merge": "heuristic"})
        if ("Nms" not in name or feature == FLOAT) and (not more or name == "PanopticFusion")
    ],
)
def test_builds_with_tensorrt_rtx(
    plugin_files: tuple[Path, Path], tmp_path: Path, name: str, feature: int, more: dict[str, str]
) -> None:
    """more: attributes beside those of model_of."""
    need("tensorrt_rtx_bindings")
    inputs, outputs, attributes = model_of(name, feature)
    save_model(tmp_path / "model.onnx", name, inputs, outputs, attributes | more)
    profiles = {label: [concrete(shape, size) for size in SIZES] for label, _, shape in inputs if "B" in shape}
    script = Path(__file__).with_name("rtx_build.py")
    command = [sys.executable, str(script), str(tmp_path / "model.onnx"), str(plugin_files[1]), json.dumps(profiles)]
    with rtx_environment() as environment:
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment})
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["errors"] == [] and report["built"]
    assert report["plugins"] == [name]
    assert report["layers"] == ["LayerType.PLUGIN_V3"] + ["LayerType.CAST"] * (name == "PanopticFusion")
    types = {FLOAT: "FLOAT", HALF: "HALF", UINT8: "UINT8", INT32: "INT32", INT64: "INT64"}
    for label, element, shape in outputs:
        dims = [part if isinstance(part, int) else -1 for part in shape]
        assert report["outputs"][label] == [f"DataType.{types[element]}", dims]


LOAD_PLUGINS = """
import ctypes, importlib, sys
from pathlib import Path
from upsnet.tensorrt.api import PLUGIN_NAMES, Api, load_plugins
path, *steps = sys.argv[1:]
for step in steps:
    if step == "dlopen":
        ctypes.CDLL(path)
        continue
    module = importlib.import_module(step)
    problem = load_plugins(Api("tensorrt-rtx" if "rtx" in step else "tensorrt", module), Path(path))
    names = [each.name for each in module.get_plugin_registry().all_creators]
    print(problem or all(names.count(name) == 1 for name in PLUGIN_NAMES))
"""
LEAN, RTX = "tensorrt_lean_bindings", "tensorrt_rtx_bindings"


@pytest.mark.parametrize(
    "steps",
    [
        [RTX, RTX], ["dlopen", RTX, RTX, "dlopen", RTX], ["dlopen", LEAN], [LEAN, RTX, LEAN, RTX], [RTX, LEAN],
        [RTX, "dlopen", LEAN], ["dlopen", RTX, LEAN],
    ],
    ids=lambda steps: " ".join(each.removesuffix("_bindings") for each in steps),
)  # fmt: skip
def test_load_plugins_in_every_order(plugin_files: tuple[Path, Path], steps: list[str]) -> None:
    for module in {*steps} - {"dlopen"}:
        need(module)
    wanted = [each for each in steps if each != "dlopen"]
    assert run(LOAD_PLUGINS, plugin_files[1], *steps).split() == ["True"] * len(wanted)
