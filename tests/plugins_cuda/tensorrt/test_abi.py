"""plugins_cuda/tensorrt/abi/ against TensorRT's own headers, and the plugins built from either.

TENSORRT_INCLUDE_DIR or TENSORRT_INCLUDE_DIRS (several, with colons between): folders of NvInferRuntime.h, such as the
folder include/ of github.com/NVIDIA/TensorRT at a release. Nothing else needs them; without them the tests here skip.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from plugins_cuda import library
from tests.plugins_cuda.tensorrt import test_registration
from tests.plugins_cuda.tensorrt.libraries import variant

pytestmark = pytest.mark.tensorrt

GIVEN = ":".join(os.environ.get(name, "") for name in ("TENSORRT_INCLUDE_DIR", "TENSORRT_INCLUDE_DIRS"))
HEADERS = list(dict.fromkeys(filter(None, GIVEN.split(":"))))
if not HEADERS:
    pytest.skip("no TensorRT headers: TENSORRT_INCLUDE_DIRS is not set", allow_module_level=True)


def compare(headers: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Compiles and runs abi_check.cpp; `folder` has the declared interface."""
    program, source = folder / "abi_check", Path(__file__).with_name("abi_check.cpp")
    emulator = library.SOURCES / "emulator"  # its cuda_runtime_api.h: TensorRT's headers want CUDA's names
    command = ["g++", "-std=c++17", "-Wall", "-Wextra", "-Werror", f"-I{folder}", f"-I{emulator}", f"-isystem{headers}"]
    command += ["-Wno-deprecated-declarations", str(source), "-o", str(program)]
    made = subprocess.run(command, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    return subprocess.run([program], capture_output=True, text=True)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the declared interface."""
    shutil.copytree(library.SOURCES / "tensorrt/abi", tmp_path / "tensorrt/abi")
    return tmp_path


@pytest.mark.parametrize("headers", HEADERS)
def test_declared_as_in_the_headers(headers: str, folder: Path) -> None:
    done = compare(headers, folder)
    assert done.returncode == 0, done.stdout
    assert int(done.stdout.split(":")[1].split()[0]) > 250


@pytest.mark.parametrize(
    ("file", "right", "wrong", "line"),
    [
        ("plugin.h", "kHALF = 1", "kHALF = 2", "DataType::kHALF: declared 2, TensorRT 1"),
        ("plugin.h", "TensorRTPhase : int32_t", "TensorRTPhase : int64_t", "type of TensorRTPhase::kBUILD: declared 0"),
        ("plugin.h", "Dims min, max, opt;", "Dims min, opt, max;", "offset of DynamicPluginTensorDesc::max: declared"),
        ("plugin.h", r"virtual IPluginV3\* clone.*", "\\g<0>\nvirtual void more() = 0;",
         "length of IPluginV3's table: declared 7, TensorRT 6"),
        ("plugin.h", r"virtual int32_t getNbTactics\(\) noexcept", "virtual int32_t a() { return 0; }\n\\g<0>",
         "entry of IPluginV3OneBuild::getMetadataString: declared 15, TensorRT 14"),
        ("plugin.h", r"virtual int32_t setTactic\(int32_t\)", "virtual int32_t setTactic(int64_t)",
         "signature of IPluginV3OneRuntime::setTactic: declared 4(8 ), TensorRT 4(4 )"),
        ("plugin.h", "PLUGIN_V3ONE_CORE", "PLUGIN_V3_CORE", "kind of IPluginV3OneCore: declared PLUGIN_V3_CORE 1.0"),
        ("process.h", r"(virtual bool isParentSearch.*;)\n(.*\n)", r"\2\1\n",
         "entry of IPluginRegistry::isParentSearchEnabled: declared"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("headers", HEADERS[:1])
def test_a_wrong_declaration_is_noticed(
    headers: str, folder: Path, file: str, right: str, wrong: str, line: str
) -> None:
    path = folder / "tensorrt/abi" / file
    text = path.read_text()
    if file == "plugin.h":
        text = "\n".join(part for part in text.splitlines() if not part.startswith("static_assert"))
    doctored, count = re.subn(right, wrong, text)
    assert count > 0
    path.write_text(doctored)
    done = compare(headers, folder)
    assert done.returncode == 1 and line in done.stdout


@pytest.fixture(scope="module")
def from_headers(plugin_files: tuple[Path, Path]) -> tuple[Path, Path]:
    """The harness, and the plugins compiled from TensorRT's own headers."""
    return plugin_files[0], variant("of_headers", f"-DTENSORRT_INCLUDE_DIR={HEADERS[0]}")


@pytest.mark.parametrize("ways", ["dlopen", "dlopen load_library"])
@pytest.mark.parametrize("module", ["tensorrt_lean_bindings", "tensorrt_rtx_bindings"])
def test_plugins_of_real_headers_register(from_headers: tuple[Path, Path], module: str, ways: str) -> None:
    """As those of the declared interface do."""
    test_registration.test_every_way_of_loading(from_headers, module, ways)


@pytest.mark.parametrize("name", ["RoiAlignFpn", "PanopticFusion"])
def test_plugins_of_real_headers_build(from_headers: tuple[Path, Path], tmp_path: Path, name: str) -> None:
    """As those of the declared interface do."""
    test_registration.test_builds_with_tensorrt_rtx(from_headers, tmp_path, name, test_registration.HALF, {})
