"""The operators' benchmark: inputs, floors and verdicts by hand, and that it runs. Times are nobody's business here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torchvision

from plugins_cuda.benchmark import __main__ as command
from plugins_cuda.benchmark import inputs
from plugins_cuda.benchmark.cases import OPERATORS, Case, Goal, Variant, fusion_work, roi_work
from plugins_cuda.benchmark.ceilings import Ceilings, Work
from plugins_cuda.benchmark.inputs import QUICK, Sizes
from plugins_cuda.benchmark.memory import forget_peak, fusion_peak, peak_resident
from plugins_cuda.benchmark.timing import time_cpu

CPU = torch.device("cpu")
CEILINGS = Ceilings(bandwidth=100.0, operations=1000.0, matrix_operations={"float32": 1000.0, "float16": 4000.0})


def test_boxes_are_clustered_inside_the_image():
    boxes, owner = inputs.clustered_boxes(inputs.generator(), 3, 200, 64, 96)
    assert boxes.shape == (3, 200, 4)
    assert (boxes[..., :2] >= 0).all() and (boxes[..., 2] <= 96).all() and (boxes[..., 3] <= 64).all()
    assert (boxes[..., 2:] - boxes[..., :2] >= 1).all()
    assert owner.max() < 10
    kept = torchvision.ops.nms(boxes[0], torch.rand(200, generator=inputs.generator()), 0.5)
    assert 3 <= len(kept) <= 120, "most of a cluster is suppressed"


def test_inputs_are_seeded():
    for make in (inputs.proposals, inputs.detections, inputs.deformed, inputs.panoptic):
        one, again, other = make(QUICK, seed=1), make(QUICK, seed=1), make(QUICK, seed=2)
        assert all(torch.equal(one[name], again[name]) for name in one)
        assert not all(torch.equal(one[name], other[name]) for name in one)


def test_inputs_have_the_sizes_of_the_goals():
    tensors = inputs.detections(inputs.FULL)
    assert tensors["scores"].shape == (1, 80_000)
    assert 100 < int((tensors["scores"] > 0.05).sum()) < 20_000
    assert tensors["classes"][0, :81].tolist() == [*range(80), 0]


def test_floor_is_the_slowest_part():
    assert CEILINGS.floor(Work(50, 100), "float32") == 0.5
    assert CEILINGS.floor(Work(50, 900), "float32") == 0.9
    assert CEILINGS.floor(Work(50, 100, 8000), "float16") == 2.0
    assert CEILINGS.floor(Work(50, 100, 8000), "bfloat16") == 8.0, "no measured rate: the plain one"


def test_work_by_hand():
    sizes = Sizes(height=32, width=32, channels=2, rois=2, output_size=1)
    features = [torch.zeros(1, 2, 32 // stride, 32 // stride) for stride in (4, 8, 16, 32)]
    # Both on P2, pixels 0..1 and 1..2 of each side: 4 + 4 - 1 touched; two bins.
    rois = torch.tensor([[[0.0, 0, 7, 7], [4.0, 4, 11, 11]]])
    assert roi_work(features, rois, sizes, 4) == Work(2 * (7 + 2) * 4 + 32, 32 * 2 * 2)
    tensors = {"semantic": torch.zeros(1, 3, 8, 8), "boxes": torch.tensor([[[0.0, 0, 9, 4]]])}
    panoptic = Sizes(height=32, width=32, stuff=2, things=1)
    assert fusion_work(tensors, panoptic) == Work(4 * 192 + 16 + 1024, 3.5 * 3 * 1024 + 8 * 50)


@pytest.mark.parametrize("operator", OPERATORS)
def test_every_case_has_a_floor_and_a_baseline_that_runs(operator: str):
    for make in OPERATORS[operator](QUICK, CPU):
        case = make()
        assert case.operator == operator
        assert case.work.bytes > 0 and case.work.operations > 0
        with torch.inference_mode():
            assert case.baseline is None or case.baseline() is not None


@pytest.mark.parametrize("operator", OPERATORS)
def test_ours_computes_what_the_baseline_computes(operator: str):
    for make in OPERATORS[operator](QUICK, CPU):
        case = make()
        ours, baseline = case.ours(), case.baseline()
        if operator == "nms" and isinstance(baseline, torch.Tensor):
            indices, counts = ours
            ours, baseline = indices[0, : int(counts)], baseline
        elif operator == "roi_align_fpn":
            ours = ours[0]
        for one, other in zip(*(r if isinstance(r, tuple) else (r,) for r in (ours, baseline)), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_calls_take_turns():
    order: list[str] = []
    calls = {name: lambda name=name: order.append(name) for name in "ab"}
    times = time_cpu(calls, rounds=3, least=0.0)
    assert order == list("aabb" + "ab" * 3)
    assert {name: len(values) for name, values in times.items()} == {"a": 3, "b": 3}
    order.clear()
    time_cpu(calls, rounds=9, least=0.0, budget=0.0)
    assert order == list("aabb" + "ab" * 3), "three rounds at least"


def case_with(goal: Goal) -> Case:
    return Case("nms", "x", "float32", "–", lambda: None, lambda: None, "other", Work(1, 1), goal)


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
def test_verdicts(goal: Goal, met: bool | None):
    row = command.judged(case_with(goal), {"ours": [2.0, 1.0, 9.0], "baseline": [6.0, 6.0, 7.0]}, {})
    assert (row["ratio"], row["least_s"]["ours"], row["met"]) == (3.0, 1.0, met)


def test_goal_is_not_met_without_its_baseline():
    assert command.judged(case_with(Goal(ratio=2)), {"ours": [1.0]}, {})["met"] is False


def test_case_that_fails_leaves_the_others(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    def broken() -> Case:
        def fail() -> None:
            raise RuntimeError("no such kernel\nmore")

        return Case("nms", "x", "float32", "–", fail, None, "other", Work(1, 1), Goal())

    sound = next(OPERATORS["roi_align_fpn"](QUICK, CPU))
    monkeypatch.setattr(command, "OPERATORS", {"nms": lambda *_: iter([broken, sound])})
    monkeypatch.setattr(command, "measure_ceilings", lambda *_, **__: CEILINGS)
    assert command.main(["--device", "cpu", "--quick", "--rounds", "1"]) == 1
    assert "failed: RuntimeError: no such kernel" in " ".join(capsys.readouterr().out.split())


def test_layouts():
    x = Variant(torch.float16, channels_last=True).of(torch.zeros(1, 4, 5, 6), CPU)
    assert x.dtype == torch.float16 and x.is_contiguous(memory_format=torch.channels_last)


def test_command_in_an_image_that_has_only_pytorch(project_root: Path, tmp_path: Path):
    """No pydantic, rich, typer, tqdm, onnx, pytest: what `make gpu-check` may meet."""
    missing = ["pydantic", "rich", "typer", "tqdm", "onnx", "onnxruntime", "onnxscript", "hypothesis", "pytest"]
    code = f"""
import sys
sys.modules.update(dict.fromkeys({missing!r}))
import plugins_cuda.gpu_check, plugins_cuda.kernel_suite
from plugins_cuda.benchmark.__main__ import main
sys.exit(main(["--device", "cpu", "--quick", "--rounds", "1", "--only", "roi_align_fpn", "--json", sys.argv[1]]))
"""
    path = tmp_path / "new" / "bench.json"
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], cwd=project_root, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(path.read_text())
    assert [row["layout"] for row in result["rows"]] == ["NCHW", "channels_last"]
    assert all(row["median_s"]["ours"] > 0 and row["floor_s"] > 0 for row in result["rows"])
    assert "Operators on" in done.stdout
    assert list(path.parent.iterdir()) == [path]


def test_peak_memory_counts_from_where_it_was_forgotten():
    torch.ones(30_000_000)  # 120 MB, and gone
    forget_peak()
    before = peak_resident()
    torch.ones(10_000_000)
    assert 36e6 < peak_resident() - before < 60e6


def test_memory_of_the_fusion_is_measured_in_a_process_of_its_own():
    assert 0 <= fusion_peak(inputs.panoptic(QUICK), QUICK.stuff, "reference") < 1e8
    with pytest.raises(RuntimeError, match=r"measuring the memory of theirs failed: .*KeyError"):
        fusion_peak(inputs.panoptic(QUICK), QUICK.stuff, "theirs")


def test_no_gpu_is_said_plainly(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert command.main(["--device", "cuda"]) == 2
    assert "no NVIDIA GPU" in capsys.readouterr().out
