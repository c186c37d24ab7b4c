"""plugins_cuda/onnxruntime/abi.h against the record of ONNX Runtime's own header (abi.txt); against the header itself,
where `make onnxruntime-cpp` fetched it or ONNXRUNTIME_INCLUDE_DIR names its folder; and against the ONNX Runtime that
is installed."""

from __future__ import annotations

import ctypes
import os
import re
import subprocess
from pathlib import Path
from typing import ClassVar

import onnxruntime
import pytest

from tests.plugins_cuda.onnxruntime.abi import ABI, describe
from tests.plugins_cuda.onnxruntime.nodes import library_file
from upsnet.kernels.building import SOURCES

RECORD = Path(__file__).with_name("abi.txt").read_text().splitlines()
PLACES = {line.split()[0]: int(line.split()[1]) // 8 for line in RECORD if line.startswith("Api.")}
FETCHED = SOURCES.parent / "build" / "onnxruntime" / "include"  # by `make onnxruntime-cpp`
HEADERS = os.environ.get("ONNXRUNTIME_INCLUDE_DIR") or (str(FETCHED) if FETCHED.is_dir() else None)
CATCHER = """
extern "C" {
const void* caught;
void* RegisterCustomOps(void*, const void* base) {
  caught = base;
  return nullptr;
}
}
"""


def test_declared_as_recorded() -> None:
    declared = describe(ABI.read_text())
    assert len(declared) > 50
    assert [line for line in declared if line not in RECORD] == []


@pytest.mark.skipif(not HEADERS, reason="no C++ headers of ONNX Runtime: `make onnxruntime-cpp` was not run")
def test_declared_as_in_the_header() -> None:
    text = ABI.read_text()
    assert describe(text) == describe(text, Path(str(HEADERS)))


@pytest.mark.parametrize(
    ("right", "wrong", "line"),
    [
        (r"before_data\[22\]", "before_data[21]", "Api.GetTensorMutableData 400 p(p p )"),
        (r"(.*CustomOpDomain_Add.*\n)(.*\n)", r"\2\1", "Api.CustomOpDomain_Add 224 p(p p )"),
        (r"int64_t\* dimensions, size_t count\);", "int64_t* dimensions);", "Api.GetDimensions 496 p(p p )"),
        ("void (\\(\\*KernelDestroy)", "void (*Another)();\n  void \\1", "CustomOp.KernelDestroy 80 -(p )"),
        ("kBFloat16 = 16", "kBFloat16 = 11", "ElementType.kBFloat16 11 i4"),
        ("enum ElementType : int ", "enum ElementType : short ", "ElementType.kFloat 1 i2"),
    ],
)
def test_a_wrong_declaration_is_noticed(right: str, wrong: str, line: str) -> None:
    doctored, count = re.subn(right, wrong, ABI.read_text(), count=1)
    assert count == 1
    found = describe(doctored)
    assert line in found and line not in RECORD


class Installed:
    """The interface of the ONNX Runtime in this process, as it hands it to a library."""

    def __init__(self, folder: Path) -> None:
        source, library = folder / "catcher.cpp", folder / "libcatcher.so"
        source.write_text(CATCHER)
        environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
        subprocess.run(["g++", "-shared", "-fPIC", source, "-o", library], check=True, env=environment)
        self.options = onnxruntime.SessionOptions()  # with which the library goes
        self.options.register_custom_ops_library(str(library))
        base = ctypes.c_void_p.in_dll(ctypes.CDLL(str(library)), "caught")
        get_api, get_version = ctypes.cast(base.value or 0, ctypes.POINTER(ctypes.c_void_p * 2)).contents
        self.version = ctypes.CFUNCTYPE(ctypes.c_char_p)(get_version or 0)().decode()
        self.get_api = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_uint32)(get_api or 0)
        self.table = ctypes.cast(self.get_api(18), ctypes.POINTER(ctypes.c_void_p))

    def call(self, name: str, *arguments: object, result: object = ctypes.c_void_p) -> object:
        types = [ctypes.c_int if isinstance(each, int) else ctypes.c_void_p for each in arguments]
        return ctypes.CFUNCTYPE(result, *types)(self.table[PLACES[f"Api.{name}"]])(*arguments)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    return Installed(tmp_path_factory.mktemp("catcher"))


def test_the_installed_runtime_has_these_functions_at_these_places(installed: Installed) -> None:
    """Those that can be called without a session, by their numbers."""
    assert installed.version == onnxruntime.__version__
    assert all(installed.table[place] for place in PLACES.values())
    status = installed.call("CreateStatus", 2, b"said by us")
    assert installed.call("ReleaseStatus", ctypes.c_void_p(status), result=None) is None  # type: ignore[arg-type]
    domain = ctypes.c_void_p()
    assert installed.call("CreateCustomOpDomain", b"upsnet.test", ctypes.byref(domain)) is None and domain.value
    # A domain keeps what it is given, and gives it to no session that does not ask.
    assert installed.call("CustomOpDomain_Add", domain, ctypes.c_void_p(0x1000)) is None


# --- RegisterCustomOps, called as ONNX Runtime would -----------------------------------------------------------------


class FakeBase(ctypes.Structure):
    _fields_ = [("GetApi", ctypes.c_void_p), ("GetVersionString", ctypes.c_void_p)]


class Fake:
    """An ONNX Runtime that knows versions 1 to `newest`, and whose `failing` function fails."""

    loaded: ClassVar[list[Fake]] = []  # for good, as a runtime is: the library knows it by its table's address

    def __init__(self, newest: int, failing: str = "") -> None:
        self.loaded.append(self)
        self.said: list[tuple[int, str]] = []
        self.calls: list[str] = []
        table = (ctypes.c_void_p * 300)()
        self.held: list[object] = []
        for name in ("CreateStatus", "CreateCustomOpDomain", "CustomOpDomain_Add", "AddCustomOpDomain"):

            def called(first: object, second: object, name: str = name) -> int | None:
                self.calls.append(name)
                if name == "CreateStatus":
                    assert isinstance(first, int) and isinstance(second, bytes)
                    self.said.append((first, second.decode()))
                    return 0x1000
                if name == failing:
                    return 0x2000
                if name == "CreateCustomOpDomain":
                    ctypes.c_void_p.from_address(second).value = 0x3000  # type: ignore[arg-type]
                return None

            first, second = (ctypes.c_int, ctypes.c_char_p) if name == "CreateStatus" else (ctypes.c_void_p,) * 2
            function = ctypes.CFUNCTYPE(ctypes.c_void_p, first, second)(called)
            self.held.append(function)
            table[PLACES[f"Api.{name}"]] = ctypes.cast(function, ctypes.c_void_p)
        get_api = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_uint32)(
            lambda version: ctypes.addressof(table) if version <= newest else None
        )
        version = ctypes.create_string_buffer(b"1.9.0")
        get_version = ctypes.CFUNCTYPE(ctypes.c_void_p)(lambda: ctypes.addressof(version))
        self.held += [table, get_api, get_version]
        self.base = FakeBase(ctypes.cast(get_api, ctypes.c_void_p), ctypes.cast(get_version, ctypes.c_void_p))

    def register(self) -> int | None:
        function = ctypes.CDLL(str(library_file())).RegisterCustomOps
        function.restype = ctypes.c_void_p
        return function(ctypes.c_void_p(0x4000), ctypes.byref(self.base))


def test_a_runtime_that_is_too_old_gets_our_error() -> None:
    old = Fake(newest=17)
    assert old.register() == 0x1000
    assert old.said == [(1, "upsnet's operators: ONNX Runtime 1.9.0 is too old; they need 1.18")]
    assert old.calls == ["CreateStatus"]


def test_registers_again_and_again_with_one_domain() -> None:
    runtime = Fake(newest=18)
    assert [runtime.register() for _ in range(3)] == [None] * 3
    assert runtime.calls.count("CreateCustomOpDomain") == 1 and runtime.calls.count("AddCustomOpDomain") == 3


@pytest.mark.parametrize("failing", ["CreateCustomOpDomain", "CustomOpDomain_Add", "AddCustomOpDomain"])
def test_the_runtimes_own_errors_are_handed_on(failing: str) -> None:
    assert Fake(newest=30, failing=failing).register() == 0x2000


def test_needs_no_symbol_of_onnx_runtime() -> None:
    symbols = subprocess.check_output(["nm", "-D", library_file()], text=True)
    assert not re.search(r"\bU Ort", symbols)
    exported = {line.split()[-1] for line in symbols.splitlines() if re.search(r" [TDBRVW] ", line)}
    assert "RegisterCustomOps" in exported
