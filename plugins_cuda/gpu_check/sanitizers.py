"""compute-sanitizer's four tools over the kernel suite."""

from __future__ import annotations

import re
from pathlib import Path

from plugins_cuda.gpu_check.process import Ended, Skip, run_logged
from upsnet.kernels.tools import find_tool

# What each of them sees. Only memcheck is fast enough for the many small checks as well.
SIZES = {
    "memcheck": ("small", "middle"),
    "racecheck": ("middle",),
    "synccheck": ("middle",),
    "initcheck": ("middle",),
}
MARK = "========="  # before every line that the tool says
SUMMARY = re.compile(r"SUMMARY: (\d+) (?:errors?|hazards?)")
# What the tool says where it cannot work: without support for the device, in a container that lacks a capability.
REFUSAL = re.compile(
    r"not supported|not permitted|permission|internal sanitizer error|failed to (?:init|connect|attach|load)|unable to"
    r"|debugger|terminated before first instrumented|did not initialize cuda",
    re.IGNORECASE,
)


def sanitize(tool: str, python: str, out: Path, deadline: float) -> str:
    """Every tensor is an allocation of its own, so that none hides another's end. CUDA graphs could then not allocate:
    they are left out. What PyTorch asks of CUDA in vain is none of ours."""
    program = find_tool("compute-sanitizer")
    if program is None:
        raise Skip("compute-sanitizer was not found; it comes with the CUDA toolkit")
    options = ["--tool", tool, "--error-exitcode", "9", "--report-api-errors", "no", "--kernel-regex", "kns=upsnet"]
    suite = ["-m", "plugins_cuda.kernel_suite", "--device", "cuda", "--no-graphs", "--size", *SIZES[tool]]
    environment = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    return verdict(run_logged([program, *options, python, *suite], out / f"{tool}.log", deadline, environment))


def verdict(ended: Ended) -> str:
    """What the tool and the suite said. Skip when the tool cannot work here; RuntimeError for a finding, and for
    whatever else is no clean run from the first check to the last."""
    said, suite = list[str](), list[str]()
    for line in ended.lines:
        ours, mark, tools = (part.strip() for part in line.partition(MARK))  # which may begin in the middle of ours
        suite += [ours] if ours else []
        said += [tools] if mark and tools not in ("", "COMPUTE-SANITIZER") else []
    summary = next((line for line in reversed(said) if SUMMARY.search(line)), None)
    findings = [line for line in said if not SUMMARY.search(line)]
    refusal = next((line for line in findings if REFUSAL.search(line) and not line.startswith("Warning")), None)
    found = summary is not None and SUMMARY.search(summary)[1] != "0"  # type: ignore[index]
    if refusal is not None and (refusal == findings[0] or not found):
        raise Skip(refusal)
    if found or (findings and summary is None):
        raise RuntimeError(f"{summary or 'not finished'}: {'; '.join(findings[:4])} (see {ended.log})")
    if ended.status != 0 or "all passed" not in suite or summary is None:
        where = suite[-1] if suite else "no output"
        raise RuntimeError(Ended(ended.status, [where], ended.log, ended.seconds).fault())
    checks = sum(": ok (" in line for line in suite)
    if not checks:
        raise RuntimeError(f"no check ran (see {ended.log})")
    return f"{summary}; {checks} checks"
