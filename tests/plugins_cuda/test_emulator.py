"""The emulator itself: kernels whose results are known by hand, and mistakes that it must expose."""

from __future__ import annotations

import ast
import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

ORDERS = ["forward", "reverse", "shuffle"]
Compile = Callable[..., Path]


@pytest.fixture(scope="module")
def compile_kernels(tmp_path_factory: pytest.TempPathFactory, project_root: Path) -> Compile:
    """compile_kernels(flags...): emulator_kernels.cpp with the emulator, as a program."""
    operators = project_root / "plugins_cuda"
    sources = [Path(__file__).with_name("emulator_kernels.cpp"), operators / "emulator" / "emulator.cpp"]
    made: dict[tuple[str, ...], Path] = {}

    def compile_with(*flags: str) -> Path:
        if flags not in made:
            program = tmp_path_factory.mktemp("emulator") / "kernels"
            includes = ["-I", str(operators / "emulator"), "-I", str(operators)]
            command = ["g++", "-std=c++17", "-O1", *flags, *includes, *map(str, sources), "-o", str(program)]
            environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
            subprocess.run(command, check=True, env=environment)
            made[flags] = program
        return made[flags]

    return compile_with


def run(program: Path, kernel: str, order: str = "forward") -> subprocess.CompletedProcess[str]:
    """Without what a process under `make sanitize` has preloaded: the program brings its own."""
    environment = {name: value for name, value in os.environ.items() if name not in ("LD_PRELOAD", "ASAN_OPTIONS")}
    environment["UPSNET_EMULATOR_ORDER"] = order
    return subprocess.run([str(program), kernel], capture_output=True, text=True, env=environment, timeout=60)


@pytest.mark.parametrize("flags", [(), ("-O3", "-fvisibility=hidden")], ids=str)
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(
    "kernel",
    ["places", "shuffles", "votes", "block_votes", "atomics", "dynamic_shared", "large_shared", "impossible_grids"],
)
def test_known_results(compile_kernels: Compile, kernel: str, order: str, flags: tuple[str, ...]) -> None:
    """As the libraries are compiled, too: what a fiber holds in registers is lost when another one runs."""
    done = run(compile_kernels(*flags), kernel, order)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("flags", [(), ("-DUPSNET_BEFORE_SM_80",)])
def test_reductions_over_some_lanes(compile_kernels: Compile, flags: tuple[str, ...]) -> None:
    done = run(compile_kernels(*flags), "reductions")
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("kernel", ["divergent", "wrong_mask"])
def test_barrier_that_not_all_reach_aborts_with_a_message(compile_kernels: Compile, kernel: str) -> None:
    done = run(compile_kernels(), kernel)
    assert done.returncode < 0
    assert "block (0, 0, 0) hangs: threads wait at a barrier that others never reach" in done.stderr


def test_order_of_threads_exposes_a_race(compile_kernels: Compile) -> None:
    racy = {run(compile_kernels(), "race", order).stdout for order in ORDERS}
    sound = {run(compile_kernels(), "no_race", order).stdout for order in ORDERS}
    assert len(racy) == 3
    assert len(sound) == 1


@pytest.mark.parametrize(
    ("kernel", "message"),
    [
        ("outside_global", "AddressSanitizer: heap-buffer-overflow"),
        ("outside_shared", "AddressSanitizer: heap-buffer-overflow"),
        ("overflow", "signed integer overflow"),
    ],
)
def test_sanitizers_see_into_kernels(compile_kernels: Compile, kernel: str, message: str) -> None:
    program = compile_kernels("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-g")
    for sound in ("block_votes", "dynamic_shared", "shuffles"):
        assert run(program, sound).returncode == 0
    done = run(program, kernel)
    assert done.returncode != 0
    assert message in done.stderr
    assert "emulator_kernels.cpp:" in done.stderr


def test_make_sanitize_takes_every_test_that_runs_kernels(project_root: Path) -> None:
    """It goes by names: of a test, its file, or its `front`."""
    chosen = re.search(
        r'-k "(.*emulated.*)" \$\(ARGS\)', (project_root / "Makefile").read_text().split("\nsanitize:")[-1]
    )
    assert chosen is not None
    running = re.compile(r"library\.emulation\(|\bother_order(:|')")
    for path in Path(__file__).parent.rglob("test_*.py"):
        for test in ast.parse(path.read_text()).body:
            if (
                isinstance(test, ast.FunctionDef)
                and test.name.startswith("test_")
                and running.search(ast.unparse(test))
            ):
                names = f"{path.name} {test.name}"
                assert any(word in names for word in chosen[1].split(" or ")), names


def test_first_launches_of_several_threads(compile_kernels: Compile) -> None:
    """The sanitizer sees a race whatever the threads' timing."""
    done = run(compile_kernels("-fsanitize=thread", "-g"), "first_launches")
    if "unexpected memory mapping" in done.stderr:
        pytest.skip("g++'s thread sanitizer cannot run here: it wants `sysctl vm.mmap_rnd_bits=28`")
    assert (done.returncode, done.stderr) == (0, "")
