"""Compiling the libraries: once for what they are made from, and what is said where that fails. CMake is a stand-in."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from plugins_cuda import library
from plugins_cuda.library import BuildError
from tests.plugins_cuda.toy import builds, call
from upsnet.kernels import building, tools

NO_SUCH_THING = "kernel.cu:3: error: no such thing"


def test_compiled_once_and_again_when_a_source_changes(
    cmake_log: Path, fresh: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    sources = tmp_path / "sources"
    (sources / "nms").mkdir(parents=True)
    (sources / "CMakeLists.txt").touch()
    (sources / "nms" / "cpu.cpp").write_text("one")
    monkeypatch.setattr(building, "SOURCES", sources)
    first = library.load("cpu").path
    assert capfd.readouterr().err == "compiling the operators for cpu (once), a minute or more of one core ...\n"
    assert (library.load("cpu").path, builds(cmake_log), capfd.readouterr().err) == (first, 1, "")
    (sources / "nms" / "plugin.cpp").write_text("TensorRT's alone")
    assert library.load("cpu").path == first
    (sources / "nms" / "cpu.cpp").write_text("two")
    assert library.load("cpu").path != first
    assert builds(cmake_log) == 2
    assert sorted(path.name for path in fresh.iterdir() if path.is_dir()) == sorted(
        path.parent.name for path in fresh.glob("cpu-*/libupsnet_cpu.so")
    ), "temporary folders are gone"


def test_processes_that_start_together_compile_once(cmake_log: Path, fresh: Path, project_root: Path) -> None:
    code = f"""
from pathlib import Path
from upsnet.kernels import building
building.BUILD = Path({str(fresh)!r})
print(building.find_library("cpu"))
"""
    command = [sys.executable, "-c", code]
    started = [subprocess.Popen(command, cwd=project_root, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    paths = {process.communicate()[0] for process in started}
    assert [process.returncode for process in started] == [0, 0]
    assert (len(paths), builds(cmake_log)) == (1, 1)


def test_compiler_flags_and_sanitizers_are_part_of_the_key(
    cmake_log: Path, fresh: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = {library.load("cpu").path}
    monkeypatch.setenv("UPSNET_SANITIZE", "undefined")
    paths.add(library.load("cpu").path)
    assert "-DUPSNET_SANITIZE=undefined" in cmake_log.read_text()
    other = fresh.parent / "other"
    other.write_text("#!/bin/sh\necho another compiler 1.0\n")
    other.chmod(0o755)
    monkeypatch.setenv("CXX", f"{other} -pipe")
    paths.add(library.load("cpu").path)
    assert len(paths) == 3
    others = "CXXFLAGS CUDAFLAGS CUDAHOSTCXX LDFLAGS NVCC_PREPEND_FLAGS NVCC_APPEND_FLAGS NVCC_CCBIN"
    for number, flags in enumerate(others.split(), 4):
        monkeypatch.setenv(flags, "-g")
        paths.add(library.load("cpu").path)
        assert len(paths) == number, f"{flags} is part of it"


def test_address_sanitizer_sees_the_end_of_a_tensor(tmp_path: Path, project_root: Path) -> None:
    """What `make sanitize` rests on: PyTorch's memory, written to by a library that is called from Python."""
    if hasattr(ctypes.CDLL(None), "__asan_init"):
        pytest.skip("this process runs under the address sanitizer")
    source, compiled = tmp_path / "toy.cpp", tmp_path / "toy.so"
    source.write_text('extern "C" void set(int* values, int index) { values[index] = 1; }')
    subprocess.run(["g++", "-shared", "-fPIC", "-g", "-fsanitize=address", source, "-o", compiled], check=True)
    names = ("libasan.so", "libstdc++.so")
    preloaded = [subprocess.check_output(["g++", f"-print-file-name={name}"], text=True).strip() for name in names]
    code = f"""
import ctypes, torch
toy, values = ctypes.CDLL({str(compiled)!r}), torch.zeros(12, dtype=torch.int32)
for index in (11, 12):
    toy.set(ctypes.c_void_p(values.data_ptr()), index)
    print("wrote", index, flush=True)
"""
    environment = os.environ | {"LD_PRELOAD": " ".join(preloaded), "ASAN_OPTIONS": "detect_leaks=0"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.stdout == "wrote 11\n"
    assert done.returncode != 0
    assert "AddressSanitizer: heap-buffer-overflow" in done.stderr and "in set" in done.stderr


def test_address_sanitizer_is_refused_in_time(cmake_log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if hasattr(ctypes.CDLL(None), "__asan_init"):
        pytest.skip("this process runs under the address sanitizer")
    monkeypatch.setenv("UPSNET_SANITIZE", "address,undefined")
    with pytest.raises(BuildError, match=r"needs libasan from the start .* `make sanitize`"):
        library.load("cpu")


@pytest.mark.parametrize(
    ("name", "message"), [("cpu", "no C\\+\\+ compiler was found; install g\\+\\+"), ("cuda", "no nvcc was found")]
)
def test_missing_compiler(cmake_log: Path, monkeypatch: pytest.MonkeyPatch, name: str, message: str) -> None:
    which = shutil.which
    monkeypatch.setattr(tools.shutil, "which", lambda *a, **k: which("cmake") if a[0] == "cmake" else None)
    if name == "cuda":
        monkeypatch.setenv("CXX", "g++")
    with pytest.raises(BuildError, match=message):
        library.load(name, "90")


@pytest.mark.parametrize("place", ["build", "cache"])
def test_a_library_outlives_its_compiler(
    cmake_log: Path, fresh: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """The newest of the same sources and flags, whatever compiled it."""
    if place == "cache":
        fresh.write_text("a file stands where the folder should")
    older = library.load("cpu").path
    other = fresh.parent / "other"
    other.write_text("#!/bin/sh\necho another compiler 1.0\n")
    other.chmod(0o755)
    monkeypatch.setenv("CXX", str(other))
    newer = library.load("cpu").path
    os.utime(older, (1, 1))
    other.unlink()
    building._version.cache_clear()
    assert (library.load("cpu").path, newer != older) == (newer, True)
    monkeypatch.setenv("CXXFLAGS", "-g")
    with pytest.raises(BuildError, match="does not run"):
        library.load("cpu")
    monkeypatch.delenv("CXXFLAGS")
    newer.parent.chmod(0o777)
    with pytest.raises(BuildError, match="others can write there"):
        library.load("cpu")


def test_missing_cmake(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    which = shutil.which
    monkeypatch.setattr(tools.shutil, "which", lambda *a, **k: None if a[0] == "cmake" else which(*a, **k))
    with pytest.raises(BuildError, match="cmake was not found; `pip install cmake`"):
        library.load("cpu")


def test_ninja_serves_where_make_is_not(cmake_log: Path, fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    which, there = shutil.which, {"ninja": "/some/ninja"}
    monkeypatch.delenv("CMAKE_GENERATOR", raising=False)
    monkeypatch.setattr(
        tools.shutil, "which", lambda *a, **k: there.get(a[0]) if a[0] in ("make", "ninja") else which(*a, **k)
    )
    library.load("cpu")
    assert "-GNinja -DCMAKE_MAKE_PROGRAM=/some/ninja" in cmake_log.read_text()
    there.clear()
    monkeypatch.setenv("CXXFLAGS", "-g")  # another library
    with pytest.raises(BuildError, match="neither make nor ninja was found; install make, or `pip install ninja`"):
        library.load("cpu")


def test_only_its_own_front_makes_a_library_anew(
    cmake_log: Path, fresh: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    sources = tmp_path / "sources"
    for name in ("CMakeLists.txt", "nms/cpu.cpp", "nms/onnxruntime.cpp", "onnxruntime/abi.h", "tensorrt/host.h"):
        (sources / name).parent.mkdir(parents=True, exist_ok=True)
        (sources / name).touch()
    monkeypatch.setattr(building, "SOURCES", sources)

    def changed(name: str) -> list[bool]:
        before = [building.build(each, "") for each in ("cpu", "onnxruntime")]
        (sources / name).write_text(f"{name} is changed")
        return [path != building.build(each, "") for each, path in zip(("cpu", "onnxruntime"), before, strict=True)]

    assert changed("nms/cpu.cpp") == [True, True]
    assert changed("nms/onnxruntime.cpp") == changed("onnxruntime/abi.h") == [False, True]
    assert changed("tensorrt/host.h") == [False, False]


def test_sources_that_are_not_there(fresh: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(building, "SOURCES", tmp_path / "nowhere")
    with pytest.raises(BuildError, match=r"the operators' sources are not installed: .*nowhere"):
        library.load("cpu")


def test_an_installed_package_compiles_into_the_cache(
    cmake_log: Path, fresh: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(building, "BUILD", None)
    cache = tmp_path / "cache" / "upsnet-trt" / "operators"
    assert library.load("cpu").path.is_relative_to(cache)
    assert (
        capfd.readouterr().err
        == f"compiling the operators for cpu (once, into {cache}), a minute or more of one core ...\n"
    )


def test_a_name_that_cmake_would_split(cmake_log: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "a;b").mkdir()
    monkeypatch.setattr(building, "BUILD", tmp_path / "a;b" / "operators")
    with pytest.raises(
        BuildError, match=r"^CMake compiles nothing below a folder with ';' in its name, .*/a;b/operators$"
    ):
        library.load("cpu")
    assert builds(cmake_log) == 0


def test_compiler_that_does_not_run(cmake_log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "/nowhere/g++")
    with pytest.raises(BuildError, match="'/nowhere/g\\+\\+' does not run"):
        library.load("cpu")
    monkeypatch.setenv("CXX", 'g++ "')
    with pytest.raises(BuildError, match=r"^the compiler 'g\+\+ \"' does not run: No closing quotation$"):
        library.load("cpu")


def test_failed_compilation_names_the_error_and_the_log(
    cmake_log: Path, fresh: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAIL", NO_SUCH_THING)
    with pytest.raises(BuildError, match=r"kernel\.cu:3: error: no such thing \(whole log: .*cpu-\w*\.log; delete"):
        library.load("cpu")
    (log,) = fresh.glob("cpu-*.log")
    assert "no such thing" in log.read_text()
    monkeypatch.delenv("FAIL")
    called = len(cmake_log.read_text().splitlines())
    with pytest.raises(BuildError, match=r"no such thing \(whole log: .*\.log; delete it to try again\)"):
        library.load("cpu")
    assert len(cmake_log.read_text().splitlines()) == called
    log.write_text("error: " + "x" * 1000)
    with pytest.raises(BuildError, match=r"^compiling it failed: error: x{193}\.\.\. \(whole log: "):
        library.load("cpu")
    log.unlink()
    assert call(library.load("cpu"), 1) == 101


OF_THE_MOMENT = {  # what they said where `ulimit -f` was in the way, or a compiler was killed
    "cmake": "CMake Error at a.cmake:527 (file):\n  file write failed (File too large):\n\n    /b/CompilerId.cpp\n",
    "a compiler's limit": "c++: internal compiler error: File size limit exceeded signal terminated program cc1plus",
    "a compiler, killed": "c++: fatal error: Killed signal terminated program cc1plus",
    "a disk": "fatal error: error writing to /tmp/cc1.s: No space left on device",
    "make": "gmake: Makefile: No such file or directory\ngmake: *** No rule to make target 'Makefile'.  Stop.",
}


@pytest.mark.parametrize("words", OF_THE_MOMENT.values(), ids=OF_THE_MOMENT)
def test_a_full_disk_is_not_held_against_the_sources(
    cmake_log: Path, fresh: Path, monkeypatch: pytest.MonkeyPatch, words: str
) -> None:
    monkeypatch.setenv("FAIL", words)
    with pytest.raises(
        BuildError, match=r"^compiling it failed: [^\n]+ \(whole log: [^\n]+\.log; [^\n]*tries again\)$"
    ):
        library.load("cpu")
    monkeypatch.delenv("FAIL")
    assert call(library.load("cpu"), 1) == 101
    assert not list(fresh.glob("*.log"))


@pytest.mark.parametrize("written", ["", "[  3%] Building CXX obj"], ids=["empty", "cut off"])
def test_a_log_that_names_no_error_stops_nobody(cmake_log: Path, fresh: Path, written: str) -> None:
    path = library.load("cpu").path
    path.unlink()
    path.parent.with_suffix(".log").write_text(written)
    assert library.load("cpu").path == path


def test_a_log_that_finds_no_room_is_no_log(
    cmake_log: Path, fresh: Path, monkeypatch: pytest.MonkeyPatch, project_root: Path
) -> None:
    code = f"""
import resource
from pathlib import Path
from upsnet.kernels import building
building.BUILD = Path({str(fresh)!r})
resource.setrlimit(resource.RLIMIT_FSIZE, (4000, resource.RLIM_INFINITY))
try:
    building.find_library("cpu")
except building.BuildError as error:
    print(error)
"""
    monkeypatch.setenv("FAIL", f"{NO_SUCH_THING}\n" * 200)
    answer = subprocess.check_output([sys.executable, "-c", code], text=True, cwd=project_root)
    assert re.fullmatch(r"\S+\.log: cannot be written: File too large\n", answer)
    assert not list(fresh.glob("*.log"))
    monkeypatch.delenv("FAIL")
    assert call(library.load("cpu"), 1) == 101


def test_what_a_killed_process_left_is_cleared_away(cmake_log: Path, fresh: Path, project_root: Path) -> None:
    code = f"""
from pathlib import Path
from upsnet.kernels import building
building.BUILD = Path({str(fresh)!r})
building.find_library("cpu")
"""
    command, never = [sys.executable, "-c", code], os.environ | {"WAIT_FOR": str(fresh / "never")}
    started = subprocess.Popen(command, cwd=project_root, start_new_session=True, env=never)
    while not cmake_log.exists():
        assert started.poll() is None
        time.sleep(0.02)
    assert len(list(fresh.glob(".cpu-partial-*"))) == 1
    os.killpg(started.pid, signal.SIGKILL)
    started.wait()
    assert call(library.load("cpu"), 1) == 101
    assert not list(fresh.glob(".*"))


def test_processes_that_start_together_fail_once(cmake_log: Path, fresh: Path, project_root: Path) -> None:
    """Those that waited for the one that compiled, and whoever comes later."""
    code = f"""
import os
from pathlib import Path
from upsnet.kernels import building
def come_to(lock, take=building._alone):
    Path(f"{{lock}}.{{os.getpid()}}").touch()
    return take(lock)
building.BUILD, building._alone = Path({str(fresh)!r}), come_to
try:
    building.find_library("cpu")
except building.BuildError as error:
    print(error)
"""
    command, all_came = [sys.executable, "-c", code], fresh / "all-came"
    options: Any = {"cwd": project_root, "env": os.environ | {"FAIL": NO_SUCH_THING, "WAIT_FOR": str(all_came)}}
    started = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, **options) for _ in range(3)]
    while len(list(fresh.glob("cpu.lock.*"))) < 3:
        assert all(process.poll() is None for process in started)
        time.sleep(0.02)
    all_came.touch()
    (answer,) = {process.communicate()[0] for process in started}
    assert answer.startswith("compiling it failed: kernel.cu:3: error: no such thing (whole log: ")
    assert len(cmake_log.read_text().splitlines()) == 1
    assert subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, **options).stdout == answer
    assert len(cmake_log.read_text().splitlines()) == 1


def test_a_checkout_that_is_read_only_has_its_libraries_in_the_cache(
    cmake_log: Path, fresh: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    fresh.write_text("a file stands where the folder should")
    umask = os.umask(0)
    try:
        path = library.load("cpu").path
    finally:
        os.umask(umask)
    cache = tmp_path / "cache" / "upsnet-trt" / "operators"
    assert path.is_relative_to(cache)
    assert [each.stat().st_mode & 0o777 for each in (cache, cache.parent)] == [0o700] * 2
    where = f"once, into {cache}, as {fresh} cannot be written to"
    assert capfd.readouterr().err == f"compiling the operators for cpu ({where}), a minute or more of one core ...\n"
    assert (library.load("cpu").path, builds(cmake_log)) == (path, 1)
    cache.chmod(0o770)
    with pytest.raises(BuildError, match=r"operators: others can write there, so no code is loaded from it; `chmod"):
        library.load("cpu")


@pytest.mark.parametrize("place", ["the library", "its folder", "build/operators", "before it is compiled"])
def test_what_others_can_write_to_is_not_loaded(cmake_log: Path, fresh: Path, place: str) -> None:
    fresh.mkdir()
    folder = fresh
    if place != "before it is compiled":
        path = library.load("cpu").path
        folder = {"the library": path, "its folder": path.parent}.get(place, fresh)
    folder.chmod(0o777)
    with pytest.raises(BuildError, match=rf"^{re.escape(str(folder))}: others can write there, so .* `chmod o-w "):
        library.load("cpu")
    assert builds(cmake_log) == (place != "before it is compiled")
    folder.chmod(0o775)
    assert call(library.load("cpu"), 1) == 101


def test_what_is_made_is_for_others_to_read_alone(cmake_log: Path, fresh: Path, toy: Path) -> None:
    umask, mode = os.umask(0), toy.stat().st_mode
    try:
        toy.chmod(0o777)
        path = library.load("cpu").path
    finally:
        os.umask(umask)
        toy.chmod(mode)
    assert [each.stat().st_mode & 0o777 for each in (path, path.parent, fresh)] == [0o775] * 3


def test_no_folder_can_be_written(cmake_log: Path, fresh: Path, tmp_path: Path) -> None:
    for folder in (fresh, tmp_path / "cache"):
        folder.write_text("a file stands where the folder should")
    with pytest.raises(BuildError, match=r"build cannot be written to, and there is no cache \(.*; set XDG_CACHE_HOME"):
        library.load("cpu")


def test_libraries_of_a_checkout_that_became_read_only_serve(
    cmake_log: Path, fresh: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = library.load("cpu").path
    monkeypatch.setattr(building, "_writable_folder", lambda: fresh / "nowhere")
    assert library.load("cpu").path == path


CMAKE_LOGS = {
    "nvcc refuses the host compiler, in CMake's own words": (
        """CMake Error at share/Modules/CMakeDetermineCompilerId.cmake:739 (message):
  Compiling the CUDA compiler identification source file
  "CMakeCUDACompilerId.cu" failed.

  The output was:

  1

  crt/host_config.h:143:2: error: #error --
  unsupported GNU version! gcc later than 13 is not supported!

Call Stack (most recent call first):
  CMakeLists.txt:3 (enable_language)
-- Detecting CXX compile features - errors
""",
        "crt/host_config.h:143:2: error: #error -- unsupported GNU version! gcc later than 13 is not supported!",
    ),
    "a message of ours": (
        """CMake Error at CMakeLists.txt:152 (message):
   nvcc does not work here: host_config.h:143:2: error: unsupported GNU version!


-- Configuring incomplete, errors occurred!
""",
        "nvcc does not work here: host_config.h:143:2: error: unsupported GNU version!",
    ),
    "a package": (
        """CMake Warning at a.cmake:1 (message): slow
CMake Error at FindPackageHandleStandardArgs.cmake:230 (message):
  Could NOT find OpenMP_CXX (missing: OpenMP_CXX_FLAGS OpenMP_CXX_LIB_NAMES)
Call Stack (most recent call first):
  CMakeLists.txt:48 (find_package)
""",
        "Could NOT find OpenMP_CXX (missing: OpenMP_CXX_FLAGS OpenMP_CXX_LIB_NAMES)",
    ),
    "a compiler": (
        "nms/launch.cu(3): error: expected a ;\n  int a\nmake[3]: *** [x.o] Error 1\n",
        "nms/launch.cu(3): error: expected a ;",
    ),
    "nothing": ("done\n", "no error line"),
}


@pytest.mark.parametrize(("log", "expected"), CMAKE_LOGS.values(), ids=CMAKE_LOGS)
def test_the_reason_is_what_is_shown(log: str, expected: str) -> None:
    assert building._first_error(log) == expected


def test_damaged_library(cmake_log: Path) -> None:
    path = building.build("cpu", "")
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(
        BuildError, match=r"cpu\.so is cut off: 100 bytes are left of \d+; delete it to have it made anew"
    ):
        library.load("cpu")
    path.unlink()
    assert library.load("cpu").path == path
