"""The bench of a machine with a GPU, without one: rehearsed, with a stand-in for CUDA, and with processes that fail."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from eval.gpu_bench import __main__ as command
from eval.gpu_bench import cases, modules, worker
from eval.gpu_bench.cases import (
    AOT,
    CEILINGS,
    COMPILE,
    EAGER,
    GRAPH,
    NETWORKS,
    ORT,
    REFERENCE,
    TENSORRT,
    Case,
    all_cases,
)
from eval.gpu_bench.network import make_batch, make_network
from eval.gpu_bench.report import goals, print_report, with_ratios
from eval.gpu_bench.variants import Machine, open_case
from eval.gpu_bench.worker import SKIPPED, add_row
from plugins_cuda.gpu_check.process import Ended, Skip
from tests.plugins_cuda.fake_cuda import fake_cuda as fake_cuda
from upsnet.geometry import NetworkBatch

Row = dict[str, Any]
TINY = Case("tiny", EAGER, "fp32")


def rows_of(file: Path) -> list[Row]:
    return [json.loads(line) for line in file.read_text().splitlines()]


class TestCases:
    def test_each_once_and_the_baseline_first(self) -> None:
        found = all_cases()
        assert len(set(found)) == len(found) == len(NETWORKS) * (8 + 6 + 5)
        for index, case in enumerate(found):
            assert Case(case.network, REFERENCE, case.precision) in found[: index + 1]
        assert {case.precision for case in found[:12]} == {"fp16"}
        assert found[-1].variant == TENSORRT and set(cases.MOST) == {CEILINGS, *cases.SHORT.values()}

    def test_the_rehearsed_ones_are_of_the_tiny_network(self) -> None:
        assert [case._replace(network="") for case in all_cases(rehearsed=True)] == [
            case._replace(network="") for case in all_cases() if case.network == "coco_r50"
        ]


class TestNetworks:
    def test_they_find_something_and_are_always_the_same(self) -> None:
        batch = [torch.from_numpy(array) for array in make_batch("tiny", 2)]
        with torch.no_grad():
            first, second = (make_network("tiny", "fp32")[0](*batch) for _ in range(2))
        assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))
        assert int(first[2].min()) >= 3  # stuff and instances

    def test_modules_are_timed_and_counted(self) -> None:
        model = make_network("tiny", "fp32")[0]
        inputs = [torch.from_numpy(array) for array in make_batch("tiny", 1)]
        costs = modules.measure(model, inputs, passes=1)
        assert list(costs) == [*modules.PARTS, modules.REST] and all(cost.ms >= 0 for cost in costs.values())
        # One convolution of 3 x 3 and one of 1 x 1, from 16 to 16 and to 15 channels, on five levels of 64 x 96.
        places = sum(height * width for height, width in ((16, 24), (8, 12), (4, 6), (2, 3), (1, 2)))
        assert costs["RPN"].operations == 2 * places * 16 * (16 * 9 + 15)
        assert costs["box head"].bytes > 4 * sum(weight.numel() for weight in model.box_head.parameters())
        # Offsets: 18 channels; the deformable convolution itself: 16, and four for each sample; on four levels.
        places -= 2
        assert costs["semantic head"].operations == pytest.approx(
            2 * places * 9 * 16 * (18 + 16 + 4) + 2 * places * 16 * 7, rel=0.05
        )
        assert "fuse" not in vars(model) and "forward" not in vars(model.rpn)


class TestWorker:
    @pytest.fixture(autouse=True)
    def short(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(worker, "BATCHES", (1, 2))
        monkeypatch.setattr(worker, "WARM", 1)
        monkeypatch.setattr(worker, "LEAST", 2)

    def test_a_row_for_each_batch(self, tmp_path: Path) -> None:
        arguments = ["cpu", str(tmp_path), str(tmp_path / "rows.jsonl")]
        for variant in (REFERENCE, EAGER):
            assert worker.main(["tiny", variant, "fp32", *arguments]) == 0
        rows = rows_of(tmp_path / "rows.jsonl")
        assert [(row["variant"], row["batch"]) for row in rows] == [
            (variant, batch) for variant in (REFERENCE, EAGER) for batch in (1, 2)
        ]
        assert all(row["identical"] > 0.99 and row["segments"] >= 3 for row in rows)
        assert all(0 < row["median_ms"] <= row["p95_ms"] and row["calls"] == 2 for row in rows)
        assert set(rows[2]["modules"]) == {*modules.PARTS, modules.REST} and "modules" not in rows[0]

    def test_the_whole_network_is_one_graph(self, tmp_path: Path) -> None:
        """torch.compile with fullgraph; a rehearsed one is compiled as far as Inductor, which takes a minute."""
        machine, batch = Machine(torch.device("cpu"), tmp_path), make_batch("tiny", 1)
        compiled, eager = (open_case(Case("tiny", name, "fp32"), machine)(batch) for name in (COMPILE, EAGER))
        assert (compiled(batch).panoptic == eager(batch).panoptic).mean() > 0.99

    @pytest.mark.usefixtures("fake_cuda")
    def test_as_on_a_gpu(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Pinned memory, channels last, a CUDA graph that waits for nothing, the device's memory."""
        free = iter([1000 << 20, *[600 << 20] * 9])
        monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: self.clone())
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (next(free), 1000 << 20))
        monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda device: 300 << 20)
        monkeypatch.setattr(worker, "SECONDS", 0)
        assert worker.main(["tiny", GRAPH, "fp32", "cuda", str(tmp_path), str(tmp_path / "rows.jsonl")]) == 0
        assert [row["peak_mib"] for row in rows_of(tmp_path / "rows.jsonl")] == [400, 400]

    @pytest.mark.usefixtures("fake_cuda")
    def test_a_graph_answers_for_the_batch_that_it_is_given(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: self.clone())
        machine, other = Machine(torch.device("cuda"), Path()), make_batch("tiny", 1)
        other.images[:] = other.images[:, ::-1]
        with torch.no_grad():
            expected = make_network("tiny", "fp32")[0](*map(torch.from_numpy, other))[0]
        run = open_case(Case("tiny", GRAPH, "fp32"), machine)(make_batch("tiny", 1))
        assert (run(other).panoptic == expected.numpy()).mean() > 0.99

    def test_what_this_machine_lacks_is_skipped(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        arguments = ["cpu", str(tmp_path), str(tmp_path / "rows.jsonl")]
        assert worker.main(["tiny", GRAPH, "fp32", *arguments]) == SKIPPED
        assert capsys.readouterr().out.endswith("\nCUDA graphs need a GPU\n")
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
        for variant, words in ((TENSORRT, "not installed: tensorrt"), (ORT, "not installed: onnx, onnxscript, ")):
            with pytest.raises(Skip, match=words):
                open_case(Case("tiny", variant, "fp32"), Machine(torch.device("cpu"), tmp_path))
        assert not (tmp_path / "rows.jsonl").exists()

    def test_calls_end_when_their_time_is_up(self) -> None:
        calls: list[int] = []

        def run(batch: NetworkBatch) -> Any:
            calls.append(len(batch.images))
            time.sleep(0.01)

        times = worker.time_calls(run, make_batch("tiny", 1), 0.03)
        assert 2 <= len(times) == len(calls) < 20 and min(times) >= 10


class TestCommand:
    """The processes are stand-ins: each ends as the test says, and leaves the rows that it says."""

    @pytest.fixture
    def ended(self, monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple[int | None, str, Sequence[int]]]:
        """By variant: exit status, last line, the batches that became known."""
        ends: dict[str, tuple[int | None, str, Sequence[int]]] = {}

        def run_logged(line: list[str], log: Path, deadline: float, environment: dict[str, str]) -> Ended:
            network, variant, precision, _, _, rows = line[3:]
            status, last, batches = ends.get(variant, (0, "done", cases.BATCHES))
            if variant == CEILINGS:
                add_row(Path(rows), limits())
            for batch in batches if variant != CEILINGS else ():
                add_row(Path(rows), row(variant, batch, 10.0 * batch, network=network, precision=precision))
            return Ended(status, [last], log, 1.0)

        monkeypatch.setattr(command, "run_logged", run_logged)
        return ends

    def run(self, out: Path, *more: str) -> int:
        return command.main(["--rehearse", "--out", str(out), "--precisions", "fp16", *more])

    def report(self, out: Path) -> dict[tuple[Any, ...], Row]:
        found = json.loads((out / "gpu_bench.json").read_text())
        assert found["gpu"] == "a CPU (rehearsed)" and found["version"] == 1
        return {(row["variant"], row.get("batch")): row for row in found["rows"]}

    def test_one_that_hangs_fails_or_is_skipped_costs_its_own_rows(
        self, ended: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        ended[COMPILE] = (None, "compiling", [1])
        ended[AOT] = (1, "RuntimeError: no", [])
        ended[TENSORRT] = (SKIPPED, "not installed: tensorrt", [])
        assert self.run(tmp_path) == 1
        rows = self.report(tmp_path)
        assert rows[COMPILE, 1]["status"] == "done" and (COMPILE, None) not in rows
        assert (rows[COMPILE, 8]["status"], rows[COMPILE, 8]["reason"]) == ("failed", "stopped after 1 s: compiling")
        assert (rows[AOT, None]["status"], rows[AOT, None]["reason"]) == ("failed", "exit status 1: RuntimeError: no")
        assert (rows[TENSORRT, None]["status"], rows[TENSORRT, None]["reason"]) == (
            "skipped",
            "not installed: tensorrt",
        )
        assert rows[EAGER, 8]["speedup"] == 1.0 and rows[EAGER, 8]["batch_gain"] == pytest.approx(1.0)
        output = capsys.readouterr().out
        assert "skipped: not installed: tensorrt" in output and "failed for batch 8: stopped after 1 s" in output
        assert "6 done, 2 failed, 1 skipped; written to" in output

    def test_a_second_run_goes_on_and_again_begins_anew(self, ended: dict[str, Any], tmp_path: Path) -> None:
        ended[COMPILE] = (1, "no", [1])
        assert self.run(tmp_path) == 1
        with (tmp_path / "rows.jsonl").open("a") as stream:
            stream.write('{"half": ')  # the machine was taken back
        (tmp_path / "rows.jsonl").write_text((tmp_path / "rows.jsonl").read_text() + "\n")
        before = len(rows_with_variant(tmp_path, EAGER))
        del ended[COMPILE]
        assert self.run(tmp_path) == 0
        assert len(rows_with_variant(tmp_path, EAGER)) == before == 2
        assert self.report(tmp_path)[COMPILE, 8]["status"] == "done"
        assert self.run(tmp_path, "--variants", "eager", "--again") == 0
        assert {variant for variant, _ in self.report(tmp_path)} == {CEILINGS, EAGER}

    def test_without_time_nothing_is_begun(
        self, ended: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert self.run(tmp_path, "--minutes", "0.1") == 1
        output = capsys.readouterr().out
        assert output.count("no time is left") == 9 and "9 without time; written to" in output
        assert self.run(tmp_path, "--variants", "eager") == 0
        assert self.run(tmp_path, "--minutes", "0.1") == 1, "most had no time"

    def test_without_a_gpu_it_says_so(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        assert command.main(["--out", str(tmp_path / "out")]) == 2
        assert "no NVIDIA GPU that PyTorch can use; --rehearse" in capsys.readouterr().err
        assert list(tmp_path.iterdir()) == []
        assert command.main(["--list", "--networks", "coco_hybrid", "--variants", "aot"]) == 0
        assert capsys.readouterr().out.count("coco_hybrid") == 2

    def test_a_process_of_its_own(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(command, "all_cases", lambda rehearsed: [])
        assert self.run(tmp_path) == 1
        assert self.report(tmp_path)[CEILINGS, None]["bytes_per_s"] > 0


def rows_with_variant(out: Path, variant: str) -> list[str]:
    return [line for line in (out / "rows.jsonl").read_text().splitlines() if f'"variant": "{variant}"' in line]


def row(variant: str, batch: int, ms: float, **more: Any) -> Row:
    return {
        "network": "r50", "variant": variant, "precision": "fp16", "batch": batch, "status": "done", "median_ms": ms,
        "p95_ms": ms, "images_per_s": 1e3 * batch / ms, "peak_mib": 100.0, "setup_s": 1.0, "identical": None, **more,
    }  # fmt: skip


def limits() -> Row:
    return {
        "variant": CEILINGS,
        "status": "done",
        "bytes_per_s": 1e12,
        "operations_per_s": {"float32": 1e12, "float16": 1e14},
    }


class TestReport:
    def test_ratios_goals_and_the_roofline(self, capsys: pytest.CaptureFixture[str]) -> None:
        cost = {"ms": 3.0, "operations": 1e11, "bytes": 1e8}
        rows = with_ratios(
            [
                limits(),
                row(REFERENCE, 1, 40.0),
                row(EAGER, 1, 20.0, modules={"backbone": dict(cost), "FPN": {**cost, "bytes": 4e9}}),
                row(GRAPH, 1, 7.0),
                row(GRAPH, 8, 28.0),
                {"network": "r50", "variant": AOT, "precision": "fp16", "status": "failed", "reason": "no"},
            ]
        )
        assert [each.get("speedup") for each in rows] == [None, 1.0, 2.0, pytest.approx(40 / 7), None, None]
        assert rows[4]["batch_gain"] == pytest.approx(2.0)
        parts = rows[2]["modules"]
        assert parts["backbone"]["floor_ms"] == pytest.approx(1.0)  # operations
        assert parts["FPN"]["floor_ms"] == pytest.approx(4.0)  # bytes
        assert rows[2]["floor_ms"] == pytest.approx(5.0)
        assert goals(rows) == [
            ("r50: batch 1 in at most 8 ms", f"7.00 (fp16, {GRAPH})", "yes"),
            ("r50: batch 8 at least 1.5 times batch 1's images/s", f"2.00 (fp16, {GRAPH})", "yes"),
            ("r50: at least 3 times eager with reference operators", f"5.71 (fp16, {GRAPH})", "yes"),
        ]
        print_report(rows, "a GPU")
        assert "Host to host on a GPU" in capsys.readouterr().out

    def test_what_was_not_measured_is_not_met(self) -> None:
        assert {met for _, _, met in goals(with_ratios([row(EAGER, 1, 9.0)]))} == {"no", "-"}

    def test_float32_is_no_goals(self) -> None:
        rows = with_ratios([{**row(EAGER, 1, 1.0), "precision": "fp32"}])
        assert {reached for _, reached, _ in goals(rows)} == {"not measured"}


def test_photos_have_the_networks_sizes() -> None:
    for name, (height, width) in NETWORKS.items():
        batch = make_batch(name, 2)
        assert batch.images.shape == (2, height, width, 3) and batch.images.dtype == np.uint8
        assert height % 32 == width % 32 == 0
