"""The profile of the GPU check: what the tools' output means, and the step with programs that stand for the tools."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.autograd import DeviceType

from plugins_cuda.gpu_check import profile as step
from plugins_cuda.gpu_check import workload
from plugins_cuda.gpu_check.traces import METRICS, Launch, by_case, from_ncu, from_nsys

NMS = "void upsnet::nms::<unnamed>::nms_kernel<(bool)1>(upsnet::nms::Params, upsnet::nms::Box *, long *)"
PACK = "void upsnet::deform_conv::(anonymous namespace)::pack_weights_kernel<__half, 64>(upsnet::deform_conv::Problem)"
SPIN = "at::cuda::<unnamed>::spin_kernel(long)"
FILL = "void at::native::vectorized_elementwise_kernel<4, at::native::FillFunctor<unsigned char>>(int)"

HEAD = (
    '"ID","Process ID","Process Name","Host Name","Kernel Name","Context","Stream","Block Size","Grid Size","Device",'
    '"CC","Section Name","Metric Name","Metric Unit","Metric Value"'
)


def ncu_lines(*launches: tuple[str, dict[str, str]]) -> str:
    """What ncu writes: each metric of each launch on a line."""
    lines = ["==PROF== Connected to process 42 (/usr/bin/python3.12)", "==WARNING== Found outstanding work", HEAD]
    for number, (name, metrics) in enumerate(launches):
        place = f'"{number}","42","python3.12","127.0.0.1","{name}","1","7","(1024, 1, 1)","(1, 1, 1)","0","9.0"'
        section = "Command line profiler metrics"
        lines += [f'{place},"{section}","{metric}","unit","{value}"' for metric, value in metrics.items()]
    return "\n".join([*lines, "==PROF== Disconnected from process 42"]) + "\n"


COUNTED = {
    "gpu__time_duration.sum": "12,345",
    "sm__warps_active.avg.pct_of_peak_sustained_active": "49.91",
    "smsp__issue_active.avg.pct_of_peak_sustained_active": "n/a",
    "dram__bytes.sum": "2,200,000",
    "lts__t_bytes.sum": "3500000",
}


def test_ncu_is_understood() -> None:
    found = from_ncu(ncu_lines((SPIN, {"gpu__time_duration.sum": "1,000"}), (NMS, COUNTED)))
    assert [launch.kernel for launch in found] == [SPIN, "nms_kernel"]
    assert found[0] == Launch(SPIN, 1e-6)
    assert found[1].seconds == pytest.approx(12.345e-6)
    assert found[1].counters == {"occupancy": 49.91, "dram_bytes": 2.2e6, "l2_bytes": 3.5e6}
    assert from_ncu("==ERROR== ERR_NVGPUCTRPERM - The user does not have permission\n") == []


@pytest.mark.parametrize("value", ["(!) n/a", "n/a", "nan", "inf", "-inf", "", "N/A (see manual)"])
def test_a_counter_that_is_no_number_is_absent(value: str) -> None:
    counters = {metric: "1,234.5" for metric in METRICS.values()} | {METRICS["dram_bytes"]: value}
    (found,) = from_ncu(ncu_lines((NMS, counters)))
    assert set(found.counters) == set(METRICS) - {"nanoseconds", "dram_bytes"}
    assert found.counters["l2_bytes"] == 1234.5 and found.seconds == pytest.approx(1.2345e-6)


def test_ncu_that_was_stopped_in_mid_line() -> None:
    """Wherever it is cut: no figure is another than that which the whole has."""
    text = ncu_lines((SPIN, {"gpu__time_duration.sum": "1,000"}), (NMS, COUNTED)).removesuffix(
        "==PROF== Disconnected from process 42\n"
    )
    (spin, whole), last = from_ncu(text), text.index('"1","42"')
    for end in range(last, len(text)):
        first, *rest = from_ncu(text[:end])
        assert first == spin
        for launch in rest:
            assert launch.kernel == whole.kernel and launch.seconds in (0.0, whole.seconds)
            assert launch.counters.items() <= whole.counters.items()
    assert from_ncu(HEAD[:40]) == from_ncu(HEAD) == []


def test_nsys_is_understood() -> None:
    text = f"""Processing [profile.sqlite] with [cuda_gpu_trace.py]...
Start (ns),Duration (ns),CorrId,GrdX,GrdY,GrdZ,BlkX,BlkY,BlkZ,Reg/Trd,Bytes (MB),Device,Ctx,Strm,Name
300,1500,7,1,1,1,1024,1,1,40,,NVIDIA H200 (0),1,7,"{PACK}"
100,50,3,1,1,1,1,1,1,16,,NVIDIA H200 (0),1,7,{SPIN}
200,20,5,,,,,,,,0.004,NVIDIA H200 (0),1,7,[CUDA memset]
"""
    found = from_nsys(text)
    assert [(launch.kernel, launch.seconds) for launch in found] == [
        (SPIN, pytest.approx(50e-9)),
        ("[CUDA memset]", pytest.approx(20e-9)),
        ("pack_weights_kernel", pytest.approx(1.5e-6)),
    ]
    assert from_nsys("no report\n") == []


def test_launches_are_told_apart_by_separators() -> None:
    def ran(name: str, seconds: float = 1.0) -> Launch:
        return Launch(name, seconds, {"occupancy": 10 * seconds})

    spin, other = ran(SPIN), ran(FILL)
    first = [spin, ran(NMS, 9), other, spin, ran(NMS, 3), other, spin, ran(NMS, 2), other, spin, ran(NMS, 4), spin]
    second = [spin, ran(PACK, 7), ran("Memset (Device)", 5)] * 4 + [spin]
    found = by_case([ran(NMS, 100), *first, other, *second], cases=2, warm=1, repeats=3)
    assert [[(each.seconds, each.counters["occupancy"]) for each in case] for case in found] == [
        [(3, 30)],
        [(7, 70), (5, 50)],
    ]
    assert len(by_case([*first, *second[:5]], cases=2, warm=1, repeats=3)) == 1, "it was cut short"
    with pytest.raises(ValueError, match="different kernels"):
        by_case([*first[:3], spin, ran(NMS), spin, ran(PACK), spin, ran(NMS), spin], cases=1, warm=1, repeats=3)
    with pytest.raises(ValueError, match="no kernel of ours"):
        by_case([spin, other] * 5, cases=1, warm=1, repeats=3)


# --- the workload ----------------------------------------------------------------------------------------------------

CASES = 16 + 16 + 3 + 8  # two types and two layouts, but for NMS


@pytest.mark.usefixtures("fake_cuda")
def test_workload_measures_itself_with_events_where_the_profiler_sees_nothing(tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    workload.main(["--quick", "--warm", "1", "--repeats", "2", "--json", str(path)])
    result = json.loads(path.read_text())
    assert result["refused"] == {"torch.profiler": "no kernel of ours in it"}
    assert len(result["cases"]) == CASES
    for case in result["cases"]:
        assert case["source"] == "CUDA events" and case["floor_s"] > 0
        assert [kernel["name"] for kernel in case["kernels"]] == ["all kernels"]


@pytest.mark.usefixtures("fake_cuda")
def test_workload_reads_the_profilers_kernels(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Range:
        def __init__(self, start: float, length: float) -> None:
            self.start, self.length = start, length

        def elapsed_us(self) -> float:
            return self.length

    class Ran:
        device_type = DeviceType.CUDA

        def __init__(self, name: str, start: float, length: float) -> None:
            self.name, self.time_range = name, Range(start, length)

    class Profiler:
        def __init__(self, activities: Any) -> None:
            self.ran: list[Ran] = []

        def __enter__(self) -> Profiler:
            monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: self.add(SPIN, 1), raising=True)
            monkeypatch.setattr(workload, "flushing", lambda: lambda: self.add(FILL, 70))
            return self

        def add(self, name: str, length: float) -> None:
            self.ran.append(Ran(name, len(self.ran), length))
            if name == SPIN:
                self.ran.append(Ran(NMS, len(self.ran), 20))

        def __exit__(self, *_: object) -> None: ...

        def events(self) -> list[Ran]:
            return self.ran[::-1]

    monkeypatch.setattr(workload, "profile", Profiler)
    workload.main(["--quick", "--repeats", "3", "--json", str(tmp_path / "profile.json")])
    result = json.loads((tmp_path / "profile.json").read_text())
    assert result["refused"] == {}
    kernels = [{"name": NMS, "seconds": pytest.approx(20e-6), "counters": {}}]
    assert [(case["source"], case["kernels"]) for case in result["cases"]] == [("torch.profiler", kernels)] * CASES


@pytest.mark.usefixtures("fake_cuda")
def test_a_profiler_that_cannot_start_leaves_the_events(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def closed(activities: object) -> None:
        tried.append(activities)
        raise RuntimeError("CUPTI_ERROR_INSUFFICIENT_PRIVILEGES\nmore")

    tried: list[object] = []
    monkeypatch.setattr(workload, "profile", closed)
    workload.main(["--quick", "--repeats", "1", "--json", str(tmp_path / "profile.json")])
    result = json.loads((tmp_path / "profile.json").read_text())
    assert result["refused"] == {"torch.profiler": "CUPTI_ERROR_INSUFFICIENT_PRIVILEGES"}
    assert {case["source"] for case in result["cases"]} == {"CUDA events"} and len(tried) == 1


@pytest.mark.usefixtures("fake_cuda")
def test_workload_says_where_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    workload.main(["--quick", "--warm", "0", "--repeats", "1"])
    assert len(capsys.readouterr().out.splitlines()) == CASES


# --- the step --------------------------------------------------------------------------------------------------------

TWO_CASES = {
    "refused": {},
    "cases": [
        {
            "operator": "nms", "case": room, "dtype": "float32", "layout": "–", "floor_s": 1e-6,
            "source": "CUDA events", "kernels": [{"name": "all kernels", "seconds": 5e-5, "counters": {}}],
        }
        for room in ("pairs", "proposals")
    ],
}  # fmt: skip


class Tools:
    """Programs that stand for Python, ncu and nsys."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.found = folder, dict[str, str]()
        (folder / "own.json").write_text(json.dumps(TWO_CASES))
        self.python = self.add(
            "python", f'while [ "$1" != --json ]; do shift; done; cp {folder}/own.json "$2"; echo done'
        )
        monkeypatch.setattr(step, "find_tool", self.found.get)

    def add(self, name: str, text: str) -> str:
        path = self.folder / name
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)
        self.found[name] = str(path)
        return str(path)

    def run(self) -> str:
        return step.profile(self.python, self.folder, time.monotonic() + 60)

    @property
    def result(self) -> Any:
        return json.loads((self.folder / "profile.json").read_text())

    @property
    def sources(self) -> list[str]:
        return [case["source"] for case in self.result["cases"]]


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tools:
    return Tools(tmp_path, monkeypatch)


def call(*metrics: str) -> list[tuple[str, dict[str, str]]]:
    return [(SPIN, {"gpu__time_duration.sum": "9"}), (NMS, {metric: COUNTED[metric] for metric in metrics or COUNTED})]


def test_without_tools_the_workloads_own_times_stand(tools: Tools, capsys: pytest.CaptureFixture[str]) -> None:
    said = tools.run()
    assert said.startswith("2 cases by CUDA events, written to") and said.endswith("; ncu: not found; nsys: not found")
    assert tools.result["cases"] == TWO_CASES["cases"]
    table = capsys.readouterr().out
    assert "50.0 x" in table and "all kernels" in table


def test_ncu_gives_counters(tools: Tools, capsys: pytest.CaptureFixture[str]) -> None:
    spin = [(SPIN, {"gpu__time_duration.sum": "9"})]
    (tools.folder / "out.csv").write_text(ncu_lines(*call(), *spin, *call(), *spin))
    tools.add("ncu", f'echo "$@" > {tools.folder}/call; cp {tools.folder}/out.csv {tools.folder}/ncu.csv')
    assert tools.run().startswith("2 cases by ncu, written to")
    assert tools.sources == ["ncu", "ncu"]
    kernel = tools.result["cases"][0]["kernels"][0]
    assert kernel["counters"] == {"occupancy": 49.91, "dram_bytes": 2.2e6, "l2_bytes": 3.5e6}
    asked = (tools.folder / "call").read_text()
    assert "--clock-control none" in asked and "regex:upsnet|spin_kernel" in asked
    assert f"--metrics {','.join(METRICS.values())} " in asked
    assert asked.rstrip().endswith("plugins_cuda.gpu_check.workload --warm 0 --repeats 1")
    assert "nms_kernel" in capsys.readouterr().out


def test_ncu_that_was_stopped_has_some_cases(tools: Tools) -> None:
    (tools.folder / "out.csv").write_text(ncu_lines(*call(), (SPIN, {"gpu__time_duration.sum": "9"}), *call()))
    tools.add("ncu", f"cp {tools.folder}/out.csv {tools.folder}/ncu.csv; exit 1")
    assert tools.run().startswith("1 cases by ncu, 1 cases by CUDA events")


@pytest.mark.parametrize(
    ("written", "reason"), [('"ID","Name"\n"1","2"', "KeyError: 'Metric Value'"), ("", "exit status 1: no output")]
)
def test_output_that_is_not_understood_leaves_the_workloads_times(tools: Tools, written: str, reason: str) -> None:
    (tools.folder / "out.csv").write_text(written)
    tools.add("ncu", f"cp {tools.folder}/out.csv {tools.folder}/ncu.csv; exit 1")
    assert tools.run().startswith("2 cases by CUDA events, written to")
    assert reason in tools.result["refused"]["ncu"]
    assert tools.result["cases"] == TWO_CASES["cases"]


def test_a_case_without_a_floor_has_no_ratio() -> None:
    (case, *_) = TWO_CASES["cases"]
    whole, kernel = step.table([case | {"floor_s": 0.0}])  # type: ignore[operator]
    assert whole[2:5] == ["–", "50.0", "0.0"] and kernel[2] == "all kernels"


def test_a_metric_that_ncu_does_not_know_is_left_out(tools: Tools) -> None:
    unknown = METRICS["issue_slots"]
    spin = [(SPIN, {"gpu__time_duration.sum": "9"})]
    (tools.folder / "out.csv").write_text(ncu_lines(*call(), *spin, *call(), *spin))
    tools.add(
        "ncu",
        f"""case "$*" in
*{unknown}*) echo '==ERROR== Failed to find metric regex:^{unknown}$' > {tools.folder}/ncu.csv; exit 1;;
*) cp {tools.folder}/out.csv {tools.folder}/ncu.csv;;
esac""",
    )
    assert tools.run().startswith("2 cases by ncu")


PERMISSION = "==ERROR== ERR_NVGPUCTRPERM - The user does not have permission to access NVIDIA GPU Performance Counters"


def test_refused_counters_fall_to_nsys(tools: Tools) -> None:
    tools.add("ncu", f"echo '==PROF== Connected'; echo '{PERMISSION}'; exit 1")
    case = [(SPIN, 5), (NMS, 30000)] * 6 + [(SPIN, 5)]
    rows = [f'{start},{length},1,"{name}"' for start, (name, length) in enumerate(case * 2)]
    (tools.folder / "trace").write_text("\n".join(["Start (ns),Duration (ns),CorrId,Name", *rows]))
    report, trace = tools.folder / "nsys_profile.nsys-rep", tools.folder / "trace"
    tools.add("nsys", f'if [ "$1" = profile ]; then touch {report}; else cat {trace}; fi')
    assert tools.run().startswith("2 cases by nsys")
    assert tools.result["refused"] == {"ncu": PERMISSION}
    assert tools.result["cases"][1]["kernels"][0]["seconds"] == pytest.approx(30e-6)


def test_nsys_without_a_report_is_said(tools: Tools) -> None:
    tools.add("ncu", f"echo '{PERMISSION}'; exit 1")
    tools.add("nsys", "echo 'Failed to create a report: importer binary could not be found'; exit 1")
    assert tools.run().startswith("2 cases by CUDA events")
    assert tools.result["refused"]["nsys"] == "Failed to create a report: importer binary could not be found"
    assert tools.sources == ["CUDA events"] * 2


def test_nsys_is_not_asked_where_pytorchs_profiler_saw_the_kernels(tools: Tools) -> None:
    seen = {**TWO_CASES, "cases": [case | {"source": "torch.profiler"} for case in TWO_CASES["cases"]]}  # type: ignore[operator]
    (tools.folder / "own.json").write_text(json.dumps(seen))
    tools.add("nsys", "touch asked")
    assert tools.run().startswith("2 cases by torch.profiler")
    assert set(tools.result["refused"]) == {"ncu"}
