"""libupsnet_cpu.so holds its fronts once for each level of x86-64: the choice, and that a level keeps to itself."""

from __future__ import annotations

import platform
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

from plugins_cuda import generate, library
from upsnet.errors import InputError

pytestmark = pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="levels are x86-64's")
ROOMS = ["roi_align_fpn", "nms", "deform_conv", "panoptic_fusion", "best_anchors"]
ROOMS += ["roi_align_fpn_backward", "deform_conv_backward"]
# AVX and later begin with v or use registers of their own; BMI and what else v3 has.
BEYOND_V2 = re.compile(r"^[kv]|[yz]mm|^(andn|bextr|bls|bzhi|lzcnt|movbe|mulx|pdep|pext |rorx|sarx|shlx|shrx)")

# The library's function against ours: floats of all sizes, and products a hair beside half of c's last bit, which a sum
# in double loses.
FUSED = """
#include <cmath>
#include <cstdio>
#include <random>
#include "panoptic_fusion/kernel.cuh"
std::mt19937 draw(1);
float number() { return std::ldexp(float(draw() & 0xffffff) - 0x800000, int(draw() % 60) - 50); }
bool is_exact(float a, float b, float c) {
  const float ours = upsnet::panoptic_fusion::multiply_add(a, b, c), exact = std::fmaf(a, b, c);
  if (ours != exact) std::printf("%a * %a + %a: %a, not %a", a, b, c, ours, exact);
  return ours == exact;
}
int main() {
  for (int i = 0; i < 1000000; ++i) {
    const float hair = std::ldexp(float(i % 300), -23), c = 0x800000 + (draw() & 0x7fffff), sign = i % 2 ? 1 : -1;
    const int exponent = int(draw() % 40) - 20;
    if (!is_exact(number(), number(), number())) return 1;
    if (!is_exact(1 + hair, std::ldexp(1 - hair, exponent), std::ldexp(sign * c, exponent + 1))) return 1;
  }
}
"""


def supported() -> str:
    """The highest level of this CPU, as Linux sees it."""
    flags = Path("/proc/cpuinfo").read_text().split("flags", 1)[1].split("\n", 1)[0].split()
    needs = {"v4": {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}, "v3": {"avx2", "fma", "bmi2", "f16c"}}
    return next((level for level, features in needs.items() if features <= set(flags)), "v2")


@pytest.mark.parametrize("level", [*library.CPU_LEVELS, None])
def test_the_variable_is_a_ceiling(level: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("UPSNET_CPU_LEVEL", raising=False)
    path = library.load("cpu").path
    if level:
        monkeypatch.setenv("UPSNET_CPU_LEVEL", level)
    code = f"import ctypes; print(ctypes.CDLL({str(path)!r}).upsnet_cpu_level())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert f"v{done.stdout.strip()}" == min(level or "v4", supported())


def test_an_unknown_level_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UPSNET_CPU_LEVEL", "avx2")
    with pytest.raises(InputError, match="UPSNET_CPU_LEVEL=avx2: give v2, v3, v4, or unset it"):
        library.load("cpu")


class Disassembly:
    """The functions of a library, by number: their instructions, and whose addresses they hold."""

    def __init__(self, path: Path) -> None:
        self.named: dict[str, int] = {}  # exported and static names; the last one where several share it
        self.code: dict[int, list[str]] = defaultdict(list)
        owners: dict[str, int] = {}  # address of an instruction -> function
        function = 0
        for line in subprocess.check_output(["objdump", "-d", "--no-show-raw-insn", path], text=True).splitlines():
            if line.endswith(">:"):
                function += 1
                self.named[line.split("<", 1)[1][:-2]] = function
            elif found := re.match(r" +([0-9a-f]+):\t(.+)", line):
                owners[found[1]] = function
                self.code[function].append(found[2])
        self.mentions: dict[int, set[int]] = {}
        for function, code in self.code.items():
            addresses = re.findall(r"\b([0-9a-f]+) <", "\n".join(code))
            self.mentions[function] = {owners[address] for address in addresses if address in owners}

    def reached_from(self, name: str) -> set[int]:
        """Every function of the library that may run when this one does."""
        reached: set[int] = set()
        waiting = {self.named[name]}
        while waiting:
            reached |= waiting
            waiting = set().union(*(self.mentions[function] for function in waiting)) - reached
        return reached

    def instructions(self, functions: set[int]) -> list[str]:
        return [instruction for function in functions for instruction in self.code[function]]


@pytest.fixture(scope="module")
def disassembly() -> Disassembly:
    return Disassembly(library.load("cpu").path)


@pytest.mark.parametrize("room", ROOMS)
def test_nothing_beyond_v2_runs_at_v2(disassembly: Disassembly, room: str) -> None:
    """Neither by a flag nor through an inline function that the linker took from another level."""
    code = disassembly.instructions(disassembly.reached_from(f"upsnet_{room}_cpu_v2"))
    assert len(code) > 1000, "the loops are among it"
    assert [each for each in code if BEYOND_V2.search(each)] == []


@pytest.mark.parametrize("room", ROOMS)
def test_higher_levels_have_code_of_their_own(disassembly: Disassembly, room: str) -> None:
    levels = [disassembly.reached_from(f"upsnet_{room}_cpu_{level}") for level in library.CPU_LEVELS]
    calls_elsewhere = {number for name, number in disassembly.named.items() if "@plt" in name}
    assert levels[0] & levels[1] | levels[1] & levels[2] <= calls_elsewhere
    code = ["\n".join(disassembly.instructions(level)) for level in levels]
    assert ["%ymm" in text for text in code] == [False, True, True]
    assert "%zmm" not in code[1]
    assert "%zmm" in code[2] or not room.startswith("deform_conv")  # elsewhere GCC prefers half of a register


@pytest.mark.parametrize("room", ROOMS)
@pytest.mark.parametrize("level", library.CPU_LEVELS)
def test_no_level_calls_openmp(disassembly: Disassembly, room: str, level: str) -> None:
    """The pool is the caller's: other libraries link the same objects, without OpenMP."""
    openmp = {number for name, number in disassembly.named.items() if re.match("GOMP_|omp_|__kmpc_", name)}
    assert openmp and not openmp & disassembly.reached_from(f"upsnet_{room}_cpu_{level}")


def test_the_choice_itself_runs_anywhere(disassembly: Disassembly) -> None:
    code = disassembly.instructions(disassembly.reached_from("upsnet_cpu_level"))
    assert code and [each for each in code if BEYOND_V2.search(each)] == []


def test_one_rounding_without_such_an_instruction(tmp_path: Path, project_root: Path) -> None:
    (tmp_path / "fused.cpp").write_text(FUSED)
    subprocess.run([sys.executable, generate.__file__, tmp_path, "panoptic_fusion"], check=True)
    folders = [f"-I{tmp_path}", f"-I{project_root / 'plugins_cuda'}"]
    flags = ["-std=c++17", "-O2", "-march=x86-64-v2", "-ffp-contract=off", *folders]
    subprocess.run(["g++", *flags, tmp_path / "fused.cpp", "-o", tmp_path / "fused"], check=True)
    assert subprocess.run([tmp_path / "fused"], capture_output=True, text=True).stdout == ""
