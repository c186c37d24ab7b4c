"""Which library runs an engine: the kernel ABI, two libraries in one process, several TensorRTs in one process."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.plugins_cuda.tensorrt.harness import Harness
from tests.plugins_cuda.tensorrt.libraries import need, variant
from tests.plugins_cuda.tensorrt.test_plugins import NODES

pytestmark = pytest.mark.tensorrt

BUILD, RUNTIME = 0, 1  # nvinfer1::TensorRTPhase
MODULES = ["tensorrt_lean_bindings", "tensorrt_rtx_bindings"]


@pytest.fixture(scope="module")
def other_library() -> Path:
    """The plugins of another kernel ABI."""
    return variant("of_another_abi", "-DCMAKE_CXX_FLAGS=-DUPSNET_KERNEL_ABI=99")


def without_first(fields: Any) -> Any:
    """The same attributes without kernel_abi, as older engines have them."""
    assert fields.fields[0].name == b"kernel_abi"
    second = ctypes.cast(ctypes.addressof(fields.fields[1]), type(fields.fields))
    return type(fields)(fields.count - 1, second)


@pytest.mark.parametrize("name", NODES)
def test_an_engine_without_kernel_abi_is_refused(harness: Harness, name: str) -> None:
    plugin = harness.create(name, NODES[name])
    fields = without_first(plugin.serialized())
    with pytest.raises(ValueError) as refused:
        harness.create_from(name, fields, RUNTIME)
    assert str(refused.value) == (
        f"upsnet {name}, createPlugin: the engine was built for kernel ABI 1, these plugins have kernel ABI "
        f"{harness.kernel_abi}: build the engine anew with `upsnet engine`\n"
    )
    harness.create_from(name, fields, BUILD).destroy()  # an ONNX node has none
    plugin.destroy()


def test_an_engine_of_another_kernel_abi_is_refused(
    harness: Harness, plugin_files: tuple[Path, Path], other_library: Path
) -> None:
    other = Harness(plugin_files[0], other_library)
    assert (other.kernel_abi, harness.kernel_abi != 99) == (99, True)
    engine = other.create("PaddedNms", NODES["PaddedNms"]).serialized()
    other.create_from("PaddedNms", engine, RUNTIME).destroy()
    for phase in (BUILD, RUNTIME):
        with pytest.raises(ValueError, match=rf"built for kernel ABI 99, .* kernel ABI {harness.kernel_abi}: build"):
            harness.create_from("PaddedNms", engine, phase)
    harness.create_from("PaddedNms", harness.create("PaddedNms", NODES["PaddedNms"]).serialized(), RUNTIME).destroy()


def run(program: str, *arguments: object) -> tuple[list[str], list[str]]:
    """Lines of stdout and stderr."""
    done = subprocess.run([sys.executable, "-c", program, *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines(), done.stderr.splitlines()


STAND_IN = """
import ctypes, sys
tensorrt = ctypes.CDLL(sys.argv[1], ctypes.RTLD_GLOBAL)
tensorrt.harness_set_version(int(sys.argv[2]))
tensorrt.harness_messages.restype = ctypes.c_char_p
for library in sys.argv[3:]:
    ctypes.CDLL(library)
    print(tensorrt.harness_num_registered(), tensorrt.harness_messages().decode(), end="|")
"""


@pytest.mark.parametrize("version", [101602, 110100])
def test_the_first_library_wins_and_the_second_says_so(
    plugin_files: tuple[Path, Path], other_library: Path, version: int
) -> None:
    harness, library = plugin_files
    (line, rest), errors = run(STAND_IN, harness, version, library, other_library)
    assert (line.split("|")[0], rest, errors) == ("6 ", "|", [])
    assert line.split("|")[1] == (
        f"6 upsnet plugins, registration: {other_library} (kernel ABI 99) is not used, because {library} (kernel ABI "
        f"{ctypes.CDLL(str(library)).upsnet_kernel_abi()}) came first: load only the one that belongs to the engine"
    )


def test_a_copy_of_the_first_library_says_nothing(plugin_files: tuple[Path, Path], tmp_path: Path) -> None:
    harness, library = plugin_files
    copy = tmp_path / "copy.so"
    copy.write_bytes(library.read_bytes())
    assert run(STAND_IN, harness, 110100, library, copy) == (["6 |6 |"], [])


def test_an_unknown_tensorrt_is_named(plugin_files: tuple[Path, Path]) -> None:
    harness, library = plugin_files
    out, (line,) = run(STAND_IN, harness, 120000, library)
    assert out == ["0 |"] and f"TensorRT 12.0 ({harness}) is not one of 10.9 to 11.x" in line


TWO_LIBRARIES = """
import ctypes, importlib, sys
module, way, first, second, *names = sys.argv[1:]
registry = importlib.import_module(module).get_plugin_registry()
ctypes.CDLL(first)
print(registry.load_library(second) is not None if way == "load_library" else bool(ctypes.CDLL(second)))
found = [creator.name for creator in registry.all_creators]
print(*(found.count(name) for name in names))
"""


@pytest.mark.parametrize("way", ["dlopen", "load_library"])
@pytest.mark.parametrize("module", MODULES)
def test_two_libraries_and_a_real_registry(
    plugin_files: tuple[Path, Path], other_library: Path, module: str, way: str
) -> None:
    need(module)
    out, (line,) = run(TWO_LIBRARIES, module, way, plugin_files[1], other_library, *NODES)
    loaded = way == "dlopen"  # load_library answers None: there was nothing to register
    assert out == [str(loaded), " ".join("1" * len(NODES))]
    assert f"{other_library} (kernel ABI 99) is not used, because {plugin_files[1]}" in line


TWO_REGISTRIES = """
import ctypes, importlib, sys
path, ways, modules, names = sys.argv[1], sys.argv[2], sys.argv[3].split(), sys.argv[4].split()
registries = [importlib.import_module(module).get_plugin_registry() for module in modules]
for way in ways.split():
    if way == "dlopen":
        ctypes.CDLL(path)
    else:
        assert registries[int(way)].load_library(path) is not None
for registry in registries:
    found = [creator.name for creator in registry.all_creators]
    print(*(found.count(name) for name in names))
"""


@pytest.mark.parametrize("ways", ["dlopen", "0", "1", "dlopen 0", "0 1", "1 0 dlopen"])
@pytest.mark.parametrize("modules", [MODULES, MODULES[::-1]], ids=["lean first", "rtx first"])
def test_two_tensorrts_in_one_process(plugin_files: tuple[Path, Path], modules: list[str], ways: str) -> None:
    """Either registry has every plugin once, whoever loaded the library."""
    need(*modules)
    out, errors = run(TWO_REGISTRIES, plugin_files[1], ways, " ".join(modules), " ".join(NODES))
    assert (out, errors) == ([" ".join("1" * len(NODES))] * 2, [])
