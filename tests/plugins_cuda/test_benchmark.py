"""The operators' benchmark runs, and its floors, turns, memory and verdicts are what they say."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from plugins_cuda.benchmark import __main__ as command
from plugins_cuda.benchmark.cases import OPERATORS, Case, Goal, fusion_work, roi_work
from plugins_cuda.benchmark.ceilings import Ceilings, Work
from plugins_cuda.benchmark.inputs import QUICK, Sizes
from plugins_cuda.benchmark.memory import ROOMS, peak_of
from plugins_cuda.benchmark.timing import time_cpu


def test_command_in_an_image_that_has_only_pytorch(project_root: Path, tmp_path: Path) -> None:
    """No pydantic, rich, typer, tqdm, onnx, pytest: what `make gpu-check` may meet."""
    missing = ["pydantic", "rich", "typer", "tqdm", "onnx", "onnxruntime", "onnxscript", "hypothesis", "pytest"]
    arguments = ["--device", "cpu", "--quick", "--rounds", "1", "--only", "roi_align_fpn", "--json"]
    code = f"""
import sys
sys.modules.update(dict.fromkeys({missing!r}))
import plugins_cuda.gpu_check, plugins_cuda.kernel_suite
from plugins_cuda.benchmark.__main__ import main
sys.exit(main([*{arguments!r}, sys.argv[1]]))
"""
    path = tmp_path / "new" / "bench.json"
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], cwd=project_root, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(path.read_text())
    assert [row["layout"] for row in result["rows"]] == [*["NCHW"] * 3, *["channels_last"] * 3, "NCHW", "channels_last"]
    assert all(row["median_s"]["ours"] > 0 and row["floor_s"] > 0 for row in result["rows"])
    assert "Operators on" in done.stdout
    assert list(path.parent.iterdir()) == [path]


def test_no_gpu_is_said_plainly(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert command.main(["--device", "cuda"]) == 2
    assert "no NVIDIA GPU" in capsys.readouterr().out


@pytest.mark.parametrize("operator", OPERATORS)
def test_ours_computes_what_the_baseline_computes(operator: str) -> None:
    for make in OPERATORS[operator](QUICK, torch.device("cpu")):
        case = make()
        assert case.operator == operator and case.work.bytes > 0 and case.work.operations > 0
        ours: Any = case.ours()
        baseline: Any = case.baseline()
        if operator == "nms" and isinstance(baseline, torch.Tensor):
            indices, counts = ours
            ours = indices[0, : int(counts)]
        elif operator == "roi_align_fpn" and isinstance(baseline, torch.Tensor):
            ours = ours[0]  # of one image
        elif "heuristic" in case.name:
            ours = instances_first(QUICK.stuff, *ours)
        for one, other in zip(*(r if isinstance(r, tuple) else (r,) for r in (ours, baseline)), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def instances_first(num_stuff: int, panoptic: Tensor, segments: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
    """As `full_size.merge` gives them."""
    categories = segments[0, : int(count), 0].long()
    order = torch.cat([torch.nonzero(categories >= num_stuff), torch.nonzero(categories < num_stuff)])[:, 0]
    number = torch.zeros(1 + len(order), dtype=torch.int32)
    number[1 + order] = torch.arange(1, 1 + len(order), dtype=torch.int32)
    return number[panoptic[0].long()], categories[order]


def test_floor_is_the_slowest_part() -> None:
    ceilings = Ceilings(bandwidth=100.0, operations=1000.0, matrix_operations={"float32": 1000.0, "float16": 4000.0})
    assert ceilings.floor(Work(50, 100), "float32") == 0.5
    assert ceilings.floor(Work(50, 900), "float32") == 0.9
    assert ceilings.floor(Work(50, 100, 8000), "float16") == 2.0
    assert ceilings.floor(Work(50, 100, 8000), "bfloat16") == 8.0, "no measured rate: the plain one"


def test_work_by_hand() -> None:
    sizes = Sizes(height=32, width=32, channels=2, rois=2, output_size=1)
    features = [torch.zeros(1, 2, 32 // stride, 32 // stride) for stride in (4, 8, 16, 32)]
    # Both on P2, pixels 0..1 and 1..2 of each side: 4 + 4 - 1 touched; two bins.
    rois = torch.tensor([[[0.0, 0, 7, 7], [4.0, 4, 11, 11]]])
    assert roi_work(features, rois, sizes, 4) == Work(2 * (7 + 2) * 4 + 32, 32 * 2 * 2)
    assert roi_work(features, rois, sizes, 4, 0) == Work(2 * (7 + 2) * 4 + 32, 2 * 2 * (4 + 4))
    tensors = {"semantic": torch.zeros(1, 3, 8, 8), "boxes": torch.tensor([[[0.0, 0, 9, 4]]])}
    small = Sizes(height=32, width=32, stuff=2, things=1)
    assert fusion_work(tensors, small) == Work(4 * 192 + 16 + 1024, 3.5 * 3 * 1024 + 8 * 50)


def test_calls_take_turns() -> None:
    order: list[str] = []
    times = time_cpu({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, rounds=3, least=0.0)
    assert order == list("aabb" + "ab" * 3)
    assert {name: len(values) for name, values in times.items()} == {"a": 3, "b": 3}


@pytest.mark.parametrize(
    ("goal", "met"),
    [
        (Goal(), None),
        (Goal(ratio=3), True),
        (Goal(ratio=3.5), False),
        (Goal(ratio=3, seconds=2), True),
        (Goal(ratio=3, seconds=1.9), False),
        (Goal(seconds=2), True),
    ],
)
def test_verdicts(goal: Goal, met: bool | None) -> None:
    case = Case("nms", "x", "float32", "–", lambda: None, lambda: None, "other", Work(1, 1), goal)
    row = command.judged(case, {"ours": [2.0, 1.0, 9.0], "baseline": [6.0, 6.0, 7.0]}, {})
    assert (row["ratio"], row["least_s"]["ours"], row["met"]) == (3.0, 1.0, met)
    alone = command.judged(case, {"ours": [1.0]}, {})
    assert alone["met"] is (False if goal.ratio else met), "a goal is not met without its baseline"


@pytest.mark.parametrize("room", ROOMS)
def test_memory_is_measured_in_a_process_of_its_own(room: str) -> None:
    assert 0 <= peak_of(room, QUICK, "reference") < 1e8


def test_peak_memory_counts_from_where_it_was_forgotten(project_root: Path) -> None:
    """In a process of its own, which has no freed memory to use again."""
    code = """
import torch
from plugins_cuda.benchmark.memory import forget_peak, peak_resident
torch.ones(30_000_000)  # 120 MB, and gone
forget_peak()
before = peak_resident()
torch.ones(10_000_000)
print(peak_resident() - before)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=project_root, capture_output=True, text=True, check=True)
    assert 36e6 < int(done.stdout) < 60e6


# --- as on a GPU -----------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("fake_cuda")
def test_benchmark_runs_as_on_a_gpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "bench.json"
    assert command.main(["--device", "cuda", "--quick", "--rounds", "2", "--json", str(path)]) == 0
    result = json.loads(path.read_text())
    assert (result["device"], result["machine"]["gpu"], result["compiled"]) == ("cuda", "Fake GPU", True)
    assert [row["operator"] for row in result["rows"]] == (
        ["panoptic_fusion"] * 24 + ["roi_align_fpn"] * 24 + ["nms"] * 3 + ["deform_conv"] * 12
    )
    for row in result["rows"]:
        assert "error" not in row
        assert {len(times) for times in row["seconds"].values()} == {2} and row["extra_bytes"]["ours"] == 2000
        assert ("baseline" in row["seconds"]) == ("baseline_refusal" not in row)
    assert "Operators on Fake GPU" in capsys.readouterr().out


def test_a_case_that_fails_loses_no_other(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def makes(sizes: Sizes, device: torch.device) -> Any:
        def broken() -> Case:
            raise RuntimeError("CUDA error: an illegal memory access was encountered\nlong text")

        def refuse() -> None:
            raise NotImplementedError("\"roi_align\" not implemented for 'BFloat16'")

        def made(ours: Any, baseline: Any) -> Any:
            return lambda: Case("nms", "x", "float32", "–", ours, baseline, "other", Work(1, 1), Goal(2))

        return [broken, made(broken, list), made(list, refuse), made(list, list)]

    monkeypatch.setattr(command, "OPERATORS", {"nms": makes})
    kept = []
    result = command.benchmark(
        torch.device("cpu"), QUICK, rounds=1, keep=lambda result: kept.append(len(result["rows"]))
    )
    assert kept == [1, 2, 3, 4, 4], "after each case, and with the memory"
    assert [row.get("error", "")[:24] for row in result["rows"]] == ["RuntimeError: CUDA error"] * 2 + ["", ""]
    refused, whole = result["rows"][2:]
    assert (refused["baseline"], refused["ratio"], refused["met"]) == (None, None, False)
    assert refused["baseline_refusal"] == "\"roi_align\" not implemented for 'BFloat16'"
    assert whole["baseline"] == "other"
    command.show(result)
    verdict = command.verdict(result["rows"])
    assert verdict.startswith("4 cases, 2 failed (nms ? ?; nms float32 –), ") and verdict.endswith("of 2 goals met")
    out = capsys.readouterr().out
    assert 'no baseline, nms float32 –: "roi_align" not implemented' in out
    assert "failed: RuntimeError: CUDA error: an illegal" in out
