"""`upsnet bench-kernels`: processes of their own, by turns."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import numpy as np
import pytest

import upsnet.command_line.main
from eval.bench_kernels import BODIES, LIBRARY, KernelBench
from eval.kernel_worker import KernelWorker
from upsnet.errors import InputError
from upsnet.geometry import collate, to_network
from upsnet.kernels.choice import find_kernels
from upsnet.runtimes.onnx_runtime import OnnxRuntimePredictor


def call(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["upsnet", "bench-kernels", *words])
    with pytest.raises(SystemExit) as stop:
        upsnet.command_line.main.main()
    return int(stop.value.code or 0)


def test_a_process_answers_as_the_predictor_does(tiny_run: Path) -> None:
    model = tiny_run / "model.onnx"
    here = OnnxRuntimePredictor(model, 1, kernels="off")
    batch = collate([to_network(np.full((60, 80, 3), 90, np.uint8), here.manifest.resize)])
    worker = KernelWorker("tiny", model, "off", threads=1)
    answer = worker.ask(batch)
    for mine, theirs in zip(here.predict(batch), answer.raw, strict=True):
        np.testing.assert_array_equal(mine, theirs)
    assert worker.manifest == here.manifest and worker.kernels == here.kernels
    assert answer.peak_mib > 10 and answer.cpu_s > 0 and worker.first_ms == answer.milliseconds
    worker.close()
    here.close()


def test_a_process_that_ends(tiny_run: Path) -> None:
    worker = KernelWorker("tiny", tiny_run / "model.onnx", "off", threads=1)
    batch = collate([to_network(np.zeros((60, 80, 3), np.uint8), worker.manifest.resize)])
    assert worker.pid is not None
    os.kill(worker.pid, signal.SIGKILL)
    with pytest.raises(InputError, match="tiny, kernels off: its process ended with exit status -9"):
        worker.ask(batch)
    worker.close()


def test_a_model_that_cannot_be_loaded(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"\x08\x0anonsense")
    with pytest.raises(InputError, match=r"model\.onnx: ONNX Runtime cannot load it"):
        KernelWorker("broken", tmp_path / "model.onnx", "off", threads=1)


def test_the_report(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if find_kernels("auto").library is None:
        pytest.skip("no library of operators can be made here")
    out, engine = tmp_path / "kernels.json", tiny_run / "engine"
    words = ["--models", str(tiny_run), str(engine), "--batch-sizes", "1", "2", "--rounds", "1", "--threads", "1"]
    assert call(monkeypatch, *words, "--limit", "2", "--out", str(out)) == 0
    report = KernelBench.load(out)
    models = [str(tiny_run), str(engine)]
    rows = [(batch, model, kernels) for batch in (1, 2) for model in models for kernels in (BODIES, LIBRARY)]
    assert [(row.batch, row.model, row.kernels) for row in report.rows] == rows
    assert report.images == 2
    first = {row.batch: row for row in reversed(report.rows)}
    for row in report.rows:
        assert row.shape[0] == row.batch and row.peak_mib > 10 and row.loading_ms > 0 and row.first_ms > 0
        assert row.identical > 0.999
        assert row.pq is not None and row.pq_difference == pytest.approx(row.pq - (first[row.batch].pq or 0))
        assert row.speedup_of_first == pytest.approx(first[row.batch].median_ms / row.median_ms)
    assert all(row.speedup == 1 for row in report.rows if row.kernels == BODIES)
    printed = capsys.readouterr().out
    assert "2 threads" not in printed and "1 thread each" in printed and "the first" in printed


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--models", "no/such"], "no/such: no such file or folder; a model is "),
        (["--photo", "no/photo.jpg"], "no/photo.jpg: "),
        (["--gt-json", "no/val.json"], "no/val.json: "),
    ],
)
def test_bad_input_is_one_line(
    words: list[str], line: str, tiny_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, *([] if "--models" in words else ["--models", str(tiny_run)]), *words) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and line in error


def test_without_a_library(
    tiny_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("UPSNET_OPERATORS", str(tmp_path))
    assert call(monkeypatch, "--models", str(tiny_run)) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: there is no library of operators to compare with: ") and error.count("\n") == 1
