"""What CMake says on machines that lack a part, or where nvcc does not work."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from plugins_cuda import library, sass
from upsnet.kernels import building

REASON = "host_config.h:143:2: error: #error -- unsupported GNU version!"


def configure(folder: Path, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if name not in ("CUDACXX", "LD_PRELOAD")}
    command = [sass.find("cmake"), "-S", str(library.SOURCES), "-B", str(folder), *options]
    return subprocess.run(command, capture_output=True, text=True, env={**kept, **environment})


@pytest.mark.parametrize("flags", ["", " -O1"])
def test_an_nvcc_that_refuses_the_host_compiler_says_why_in_one_line(tmp_path: Path, flags: str) -> None:
    nvcc = tmp_path / "nvcc"
    nvcc.write_text(f"#!/bin/sh\necho 'In file included from x:' >&2\necho '{REASON}' >&2\nexit 1\n")
    nvcc.chmod(0o755)
    done = configure(tmp_path / "build", CUDACXX=f"{nvcc}{flags}")
    assert done.returncode != 0
    assert f"{nvcc}{flags} does not work here: {REASON}" in done.stderr
    assert building._first_error(done.stderr).endswith(REASON)


def test_an_nvcc_that_is_named_and_not_there(tmp_path: Path) -> None:
    done = configure(tmp_path / "build", CUDACXX="/nonexistent")
    assert done.returncode != 0
    assert "/nonexistent does not work here: no such file or directory" in done.stderr.lower()


def test_without_nvcc_the_rest_is_built_and_a_warning_says_what_is_not(tmp_path: Path) -> None:
    done = configure(tmp_path / "build", "-DCMAKE_CUDA_COMPILER=NOTFOUND")
    assert done.returncode == 0
    assert "libupsnet_cuda.so and libupsnet_plugins.so are not built: no nvcc" in " ".join(done.stderr.split())


@pytest.mark.parametrize("architecture", ["70", "61-real", "52-virtual"])
def test_a_gpu_that_is_too_old(tmp_path: Path, architecture: str) -> None:
    """No compiler is needed to say so."""
    done = configure(tmp_path, f"-DCMAKE_CUDA_ARCHITECTURES=90;{architecture}", "-DCMAKE_CUDA_COMPILER=NOTFOUND")
    check_too_old(done, architecture)


def check_too_old(done: subprocess.CompletedProcess[str], architecture: str) -> None:
    assert done.returncode != 0
    (line,) = (line for line in done.stderr.splitlines() if "sm_" in line)
    assert f"sm_{architecture[:2]}: this GPU is too old" in line
    assert "sm_75 or newer" in line


def test_the_variable_of_gpus_is_heeded_where_a_compiler_is(tmp_path: Path) -> None:
    """CUDAARCHS, CMake's own."""
    check_too_old(configure(tmp_path / "a", CUDACXX="/nonexistent", CUDAARCHS="90;70"), "70")
    done = configure(tmp_path / "b", "-DCMAKE_CUDA_COMPILER=NOTFOUND", CUDAARCHS="90;70")
    assert done.returncode == 0, done.stderr


def test_openmp_is_wanted_by_the_cpu_library_alone(tmp_path: Path) -> None:
    """Nothing is compiled (`false` is the compiler), which takes half a minute: make goes on, to the error."""
    options = ["-DCMAKE_CXX_COMPILER_LAUNCHER=false", "-DCMAKE_CUDA_COMPILER=NOTFOUND", "-GUnix Makefiles"]
    done = configure(tmp_path, "-DCMAKE_DISABLE_FIND_PACKAGE_OpenMP=ON", *options)
    assert done.returncode == 0, done.stderr
    for target, said in (("upsnet_cpu", True), ("upsnet_onnxruntime", False)):
        command = [sass.find("cmake"), "--build", str(tmp_path), "--target", target, "--", "--keep-going"]
        made = subprocess.run(command, capture_output=True, text=True, check=False)
        assert made.returncode != 0
        assert ("error: libupsnet_cpu.so needs OpenMP" in made.stdout) == said
