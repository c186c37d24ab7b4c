"""What ran on the GPU, launch by launch, as Nsight Compute, Nsight Systems and PyTorch's profiler report it."""

from __future__ import annotations

import csv
import math
import re
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

SEPARATOR = "spin_kernel"  # torch.cuda._sleep: the workload launches it between calls
# Of Nsight Compute, by our names. In base units.
METRICS = {
    "nanoseconds": "gpu__time_duration.sum",
    "occupancy": "sm__warps_active.avg.pct_of_peak_sustained_active",
    "issue_slots": "smsp__issue_active.avg.pct_of_peak_sustained_active",
    "instructions": "sm__inst_executed.sum",
    "dram_bytes": "dram__bytes.sum",
    "l2_bytes": "lts__t_bytes.sum",
}


@dataclass(frozen=True)
class Launch:
    """One kernel (or memset) that ran. counters: by the names of METRICS."""

    name: str
    seconds: float
    counters: dict[str, float] = field(default_factory=dict)

    @property
    def kernel(self) -> str:
        """Its name, without namespaces, template arguments and parameters."""
        ours = re.search(r"upsnet::(?:\w+::|\(anonymous namespace\)::|<unnamed>::)*(\w+)", self.name)
        return ours[1] if ours else self.name


def is_ours(name: str) -> bool:
    return "upsnet" in name or "memset" in name.lower()


def from_ncu(text: str) -> list[Launch]:
    """The output of `ncu --csv --print-units base --metrics ...`: a line for each metric of each launch.

    What is no number is no counter ("(!) n/a", "nan"); the last line may be cut short, where ncu was stopped."""
    lines = text.splitlines()
    rows = csv.DictReader(line for line in lines if line[:1] == line[-1:] == '"')  # not its ==PROF== and ==WARNING==
    names: dict[str, str] = {}
    counters: dict[str, dict[str, float]] = {}
    ours = {metric: name for name, metric in METRICS.items()}
    for row in rows:
        if row["Metric Value"] is None:
            continue
        names[row["ID"]] = row["Kernel Name"]
        found, value = counters.setdefault(row["ID"], {}), _number(row["Metric Value"])
        if row["Metric Name"] in ours and value is not None:
            found[ours[row["Metric Name"]]] = value
    return [Launch(names[key], each.pop("nanoseconds", 0.0) / 1e9, each) for key, each in counters.items()]


def _number(text: str) -> float | None:
    """A finite number, perhaps with commas between thousands."""
    try:
        value = float(text.replace(",", ""))
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def from_nsys(text: str) -> list[Launch]:
    """The output of `nsys stats --report cuda_gpu_trace --format csv`."""
    lines = text.splitlines()
    start = next((index for index, line in enumerate(lines) if line.startswith("Start (ns),")), len(lines))
    rows = [row for row in csv.DictReader(lines[start:]) if row.get("Name")]
    rows = [row for row in rows if row["Start (ns)"].isdigit() and row["Duration (ns)"].isdigit()]
    rows.sort(key=lambda row: int(row["Start (ns)"]))
    return [Launch(row["Name"], int(row["Duration (ns)"]) / 1e9) for row in rows]


def calls(launches: Iterable[Launch]) -> list[list[Launch]]:
    """What is ours after each separator."""
    found: list[list[Launch]] = []
    for launch in launches:
        if SEPARATOR in launch.name:
            found.append([])
        elif found and is_ours(launch.name):
            found[-1].append(launch)
    return found


def by_case(launches: Iterable[Launch], cases: int, warm: int, repeats: int) -> list[list[Launch]]:
    """The launches of one call of each case, the median of `repeats`, which came after `warm` that do not count.

    A trace that was cut short has fewer cases; ValueError for one without any, or in which calls differ.
    """
    found, period = calls(launches), warm + repeats + 1  # the last separator ends the case
    result = []
    for case in range(min(cases, len(found) // period)):
        same = found[case * period + warm : case * period + warm + repeats]
        if len({tuple(launch.name for launch in call) for call in same}) != 1:
            raise ValueError(f"calls of case {case} launched different kernels")
        result.append([_median(each) for each in zip(*same, strict=True)])
    if not any(result):
        raise ValueError("no kernel of ours in it")
    return result


def _median(launches: Sequence[Launch]) -> Launch:
    first = launches[0]
    all_have = [name for name in first.counters if all(name in launch.counters for launch in launches)]
    counters = {name: statistics.median(launch.counters[name] for launch in launches) for name in all_have}
    return Launch(first.name, statistics.median(launch.seconds for launch in launches), counters)
