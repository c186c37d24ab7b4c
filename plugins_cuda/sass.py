"""What nvcc makes of the kernels, without a GPU: registers, stack, shared memory, and the instructions of inner loops.

    python -m plugins_cuda.sass             # the table of this checkout
    python -m plugins_cuda.sass --record    # writes it to plugins_cuda/sass.json, which a test holds a change against

The machine code is that of sm_90. Needs nvcc, and cuobjdump: of the CUDA toolkit, or the one that Triton brings along
with PyTorch. Other releases of nvcc give other numbers: the file names the one that it is from.

An inner loop is a loop of the control flow graph that has no other inside. Of a kernel's the one is recorded that has
the most loads and operations on floating point numbers.
Static counts: what runs once counts as much as what runs a thousand times, and both sides of a branch do.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from upsnet.kernels.tools import find_tool

SOURCES = Path(__file__).parent
RECORD = SOURCES / "sass.json"
BUILD = SOURCES.parent / "build" / "sass"
RECORD_COMMAND = "python -m plugins_cuda.sass --record"
LIMITS = ("registers", "stack", "local", "shared", "barriers")  # a change must not exceed what is recorded
TOLERANCE = 1.03  # instructions: other work of the compiler than a change's own
COUNTED = {  # of an inner loop
    **dict.fromkeys(("LDG", "LDS", "LDSM", "LDGSTS", "STG", "STS", "LDL", "STL", "HMMA", "MUFU", "CALL", "BRA"), ""),
    **dict.fromkeys(("ATOMG", "ATOMS", "REDG", "ATOM", "RED"), "atomic"),
    **dict.fromkeys(("SHFL", "VOTE", "VOTEU", "MATCH", "REDUX"), "warp"),
    **dict.fromkeys(("FFMA", "FMUL", "FADD", "FMNMX", "FSETP", "FSEL", "HFMA2", "HADD2", "HMUL2"), "float"),
    **dict.fromkeys(("F2F", "F2FP", "F2I", "I2F", "I2FP", "FRND", "PRMT"), "convert"),
    **dict.fromkeys(
        ("IMAD", "IADD3", "VIADD", "LEA", "LOP3", "SHF", "ISETP", "SEL", "VIMNMX", "IABS", "POPC"), "integer"
    ),
}

Figures = dict[str, Any]
Instruction = tuple[int, str, str, bool]  # address, operation, operands, whether a predicate guards it


class MissingToolError(Exception):
    """A program of NVIDIA's that is not here; the text names it."""


def find(name: str) -> str:
    """Path of a program: where the GPU check finds it, or of those that Triton brings."""
    triton = find_spec("triton")
    places = triton.submodule_search_locations or [] if triton else []
    folders = ":".join(f"{place}/backends/nvidia/bin" for place in places)
    found = find_tool(name) or shutil.which(name, path=folders)
    if not found:
        raise MissingToolError(f"{name} was not found; it is part of the CUDA toolkit, and cuobjdump of Triton, too")
    return found


def nvcc_release() -> str:
    """As "13.0"."""
    match = re.search(r"release ([\d.]+)", _output(find("nvcc"), "--version"))
    return match[1] if match else "unknown"


def compile_kernels() -> Path:
    """The library of the CUDA kernels for sm_90, made anew where something in it changed."""
    cmake = find("cmake")
    options = [f"-DPython3_EXECUTABLE={sys.executable}", "-DCMAKE_CUDA_ARCHITECTURES=90-real"]
    _output(cmake, "-S", str(SOURCES), "-B", str(BUILD), *options, f"-DCMAKE_CUDA_COMPILER={find('nvcc')}")
    _output(cmake, "--build", str(BUILD), "--parallel", "--target", "upsnet_cuda")
    return BUILD / "libupsnet_cuda.so"


def _output(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} failed: {done.stderr[-2000:]}{done.stdout[-2000:]}")
    return done.stdout


def measure(library: Path) -> dict[str, Figures]:
    """Every kernel's figures, by the name that short_names gives it."""
    cuobjdump = find("cuobjdump")
    usage = dict(re.findall(r"Function (\w+):\s+(REG:.*)", _output(cuobjdump, "-res-usage", str(library))))
    texts = dict(
        re.findall(r"Function : (\w+)\n(.*?)\n\t*\.{5,}", _output(cuobjdump, "-sass", str(library)), re.DOTALL)
    )
    names = short_names(list(texts))
    return {names[symbol]: _figures(usage[symbol], texts[symbol]) for symbol in sorted(texts, key=names.__getitem__)}


def _figures(usage: str, text: str) -> Figures:
    used = {name: int(value) for name, value in re.findall(r"(\w+):(\d+)", usage)}
    code = instructions(text)
    operations = Counter(operation.split(".")[0] for _, operation, _, _ in code)
    loop = max(inner_loops(code), key=lambda each: (sum(map(_works, each)), len(each)), default=[])
    return {
        "registers": used["REG"],
        "stack": used["STACK"],
        "local": operations["LDL"] + operations["STL"],
        "shared": used["SHARED"],
        "barriers": operations["BAR"],
        "instructions": len(code),
        "loop": {"instructions": len(loop), **count_by_class(loop)},
    }


def _works(instruction: Instruction) -> bool:
    """Whether it loads or computes what the kernel is for, and not where that lies."""
    operation = instruction[1].split(".")[0]
    return operation.startswith(("LD", "HMMA")) or COUNTED.get(operation) == "float"


def short_names(symbols: Sequence[str]) -> dict[str, str]:
    """ "deform_conv: deform_conv_kernel<half, 64, true>" of each mangled name; "common" for what no room owns."""
    plain = subprocess.run([find("c++filt"), "-p", *symbols], capture_output=True, text=True, check=True).stdout
    short = {}
    for symbol, name in zip(symbols, plain.splitlines(), strict=True):
        room = re.search(r"upsnet::(\w+)::", name)
        kernel = re.sub(r"(\(anonymous namespace\)|\w+)::", "", name.removeprefix("void "))
        kernel = kernel.replace("__nv_bfloat16", "bfloat16").replace("__half", "half")
        short[symbol] = f"{room[1] if room else 'common'}: {kernel}"
    return short


# --- loops -----------------------------------------------------------------------------------------------------------


def instructions(text: str) -> list[Instruction]:
    """Of one function, as cuobjdump prints it; without the padding at its end."""
    found = re.findall(r"^\s+/\*([0-9a-f]{4,})\*/\s+(@\S+ +)?([A-Z]\w*[.\w]*) *([^;]*?) *;", text, re.MULTILINE)
    code = [(int(address, 16), operation, operands, bool(guard)) for address, guard, operation, operands in found]
    return [each for each in code if each[1] != "NOP"]


def count_by_class(code: Sequence[Instruction]) -> dict[str, int]:
    """How often each class of COUNTED occurs, sorted; an operation without a class is its own."""
    operations = (operation.split(".")[0] for _, operation, _, _ in code)
    return dict(sorted(Counter(COUNTED[each] or each for each in operations if each in COUNTED).items()))


def _targets(operands: str) -> list[int]:
    return [int(operands.split()[-1], 16)] if re.search(r"0x[0-9a-f]+$", operands) else []


def _edges(code: Sequence[Instruction]) -> list[list[int]]:
    """The indices of the instructions that may follow each one."""
    at = {address: index for index, (address, *_) in enumerate(code)}
    joins: dict[str, list[int]] = {}  # where threads of a divergent branch meet again
    for _, operation, operands, _ in code:
        if operation.startswith("BSSY"):
            joins.setdefault(operands.split(",")[0], []).extend(_targets(operands))
    edges = []
    for index, (_, operation, operands, guarded) in enumerate(code):
        after = [code[index + 1][0]] if index + 1 < len(code) else []
        kind = operation.split(".")[0]
        if kind in ("BRA", "JMP"):
            always = not guarded and re.fullmatch(r"0x[0-9a-f]+", operands)
            after = _targets(operands) + ([] if always else after)
        elif kind in ("EXIT", "RET", "BRX"):
            after = after if guarded else []
        elif kind == "BSYNC":
            meeting = joins.get(operands.split(",")[0].strip(), [])
            after = after if set(after) & set(meeting) else meeting + (after if guarded else [])
        edges.append([at[address] for address in after if address in at])
    return edges


def inner_loops(code: Sequence[Instruction]) -> list[list[Instruction]]:
    """The natural loops of the control flow graph that hold no other one."""
    edges = _edges(code)
    order = _reverse_postorder(edges)
    before: list[list[int]] = [[] for _ in code]
    for index in order:
        for follower in edges[index]:
            before[follower].append(index)
    above = _immediate_dominators(order, before)
    loops: dict[int, set[int]] = {}
    for index in order:
        for head in edges[index]:
            if _dominates(head, index, above):
                body = loops.setdefault(head, {head})
                waiting = [index]
                while waiting:
                    one = waiting.pop()
                    if one not in body:
                        body.add(one)
                        waiting += before[one]
    inner = [body for head, body in loops.items() if not any(other in body for other in loops if other != head)]
    return [[code[index] for index in sorted(body)] for body in inner]


def _reverse_postorder(edges: list[list[int]]) -> list[int]:
    seen, finished, stack = {0}, [], [(0, iter(edges[0]))]
    while stack:
        index, followers = stack[-1]
        fresh = next((each for each in followers if each not in seen), None)
        if fresh is None:
            finished.append(index)
            stack.pop()
        else:
            seen.add(fresh)
            stack.append((fresh, iter(edges[fresh])))
    return finished[::-1]


def _immediate_dominators(order: list[int], before: list[list[int]]) -> dict[int, int]:
    """Cooper, Harvey, Kennedy: A Simple, Fast Dominance Algorithm (2001)."""
    place = {index: number for number, index in enumerate(order)}
    above = {order[0]: order[0]}
    changed = True
    while changed:
        changed = False
        for index in order[1:]:
            known = [each for each in before[index] if each in above]
            common = known[0]
            for other in known[1:]:
                while common != other:
                    if place[common] > place[other]:
                        common = above[common]
                    else:
                        other = above[other]
            if above.get(index) != common:
                above[index], changed = common, True
    return above


def _dominates(head: int, index: int, above: dict[int, int]) -> bool:
    while index != head and above[index] != index:
        index = above[index]
    return index == head


# --- the record ------------------------------------------------------------------------------------------------------


def fatter(recorded: dict[str, Figures], found: dict[str, Figures]) -> list[str]:
    """A line for each figure that exceeds its record, and for each kernel that is on one side alone."""
    lines = [f"{name}: is not in the record" for name in found if name not in recorded]
    lines += [f"{name}: is in the record alone" for name in recorded if name not in found]
    for name in recorded.keys() & found.keys():
        old, new = recorded[name], found[name]
        pairs = {key: (old[key], new[key], 1.0) for key in LIMITS}
        pairs["instructions"] = (old["instructions"], new["instructions"], TOLERANCE)
        for key in sorted(old["loop"].keys() | new["loop"].keys()):
            pairs[f"inner loop, {key}"] = (old["loop"].get(key, 0), new["loop"].get(key, 0), TOLERANCE)
        lines += [
            f"{name}: {key}: {was} before, {now} now" for key, (was, now, most) in pairs.items() if now > was * most
        ]
    return sorted(lines)


def record(found: dict[str, Figures], path: Path) -> None:
    """One line a kernel, so that a difference of two versions can be read."""
    kernels = ",\n".join(f"  {json.dumps(name)}: {json.dumps(figures)}" for name, figures in found.items())
    path.write_text(f'{{"nvcc": "{nvcc_release()}", "architecture": "sm_90", "kernels": {{\n{kernels}\n}}}}\n')


def main(arguments: Sequence[str] | None = None) -> int:
    """See the top of this file."""
    parser = argparse.ArgumentParser(prog="python -m plugins_cuda.sass")
    parser.add_argument("--record", action="store_true", help=f"write {RECORD.name}")
    options = parser.parse_args(arguments)
    try:
        found = measure(compile_kernels())
    except MissingToolError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for name, figures in found.items():
        loop = ", ".join(f"{key} {value}" for key, value in figures["loop"].items())
        print(f"{name}: {', '.join(f'{key} {figures[key]}' for key in (*LIMITS, 'instructions'))}; inner loop: {loop}")
    if options.record:
        record(found, RECORD)
        print(f"written to {RECORD}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
