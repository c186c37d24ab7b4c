"""Training in processes of their own: killed at any moment, several at once, their number changed on the way."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training.child_processes import ROOT, ChildProcesses, free_port
from tests.training.tiny_network import SMALL, assert_same_run, metrics, settings, tiny
from training.checkpoint import load
from training.config import Config
from training.loop import train
from upsnet.datasets.shapes import write_shapes

KILLED = -signal.SIGKILL


def test_killed_at_ten_random_moments(children: ChildProcesses, shapes: Path, tmp_path: Path) -> None:
    """Most of the time goes into checkpoints and evaluations, so that many kills hit them. After each, every file that
    is there can be read; in the end the run is the unbroken one."""
    config = settings(shapes, iterations=44, checkpoint_every=1, evaluate_every=5, ema=0.9, optimizer="adamw")
    assert train(config, tmp_path / "unbroken", "cpu", tiny()) == 0
    out, draw, steps = tmp_path / "run", random.Random(0), []
    for _ in range(10):
        kill = (draw.randint(1, 3), draw.uniform(0, 0.08))
        assert children.run(children.job(config, out, kill=kill)) == [KILLED]
        steps.append(load(out / "last.safetensors").step if (out / "last.safetensors").exists() else 0)
        if (out / "best.safetensors").exists():
            load(out / "best.safetensors")
    assert steps == sorted(steps) and steps[-1] < 44
    assert children.run(children.job(config, out)) == [0]
    assert_same_run(out, tmp_path / "unbroken")
    assert not list(out.glob(".*"))


def test_killed_while_it_writes(children: ChildProcesses, unbroken: Path, shapes: Path, tmp_path: Path) -> None:
    """Half a checkpoint: the first one, one after an evaluation, the best one. What was there before still is."""
    left = []
    for number in (1, 2, 2, 3):  # of a process's checkpoints: steps 4; 6 (before its evaluation); 6 (best); then 8
        assert children.run(children.job(settings(shapes), tmp_path, kill_in_save=number)) == [KILLED]
        assert len(list(tmp_path.glob(".*.safetensors"))) == 1
        left.append(load(tmp_path / "last.safetensors").step if (tmp_path / "last.safetensors").exists() else 0)
    assert left == [0, 4, 6, 6]
    with (tmp_path / "metrics.jsonl").open("a") as stream:
        stream.write('{"step": 9, "loss": 0.5}\n{"step": 10, "lo')  # written, and half written, after the checkpoint
    assert train(settings(shapes), tmp_path, "cpu", tiny()) == 0
    assert_same_run(tmp_path, unbroken)
    assert not list(tmp_path.glob(".*"))


def assert_close_runs(out: Path, reference: Path, steps: list[int]) -> None:
    """Up to rounding: the losses of every step, and the evaluation of the last. Untrained offsets lie on pixels, where
    their gradient jumps: there rounding decides, which the norm shows, and a later loss in its fifth digit."""
    ours, theirs = (
        [line for line in metrics(run) if "loss" in line or line["step"] == steps[-1]] for run in (out, reference)
    )
    assert [line["step"] for line in ours] == steps
    for line, expected in zip(ours, theirs, strict=True):
        norms = [each.pop("grad_norm", 0.0) for each in (line, expected)]
        assert norms[0] == pytest.approx(norms[1], rel=1e-2)
        assert line == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(("first", "second"), [(2, 2), (2, 1), (1, 2)])
def test_the_number_of_processes_may_change(
    children: ChildProcesses, shapes: Path, tmp_path: Path, first: int, second: int
) -> None:
    """No images_per_step in the configuration: the run keeps the 4 of its first processes, with their learning rate."""

    def config(iterations: int, images_per_gpu: int) -> Config:
        more: dict[str, Any] = {"images_per_step": None, "lr": None, "ema": 0.9, "clip_norm": 1.0, "evaluate_every": 6}
        return settings(shapes, iterations=iterations, images_per_gpu=images_per_gpu, **more)

    at_once = 4 // first  # then 2 -> 1 is two passes a step, and 1 -> 2 needs smaller ones in its configuration
    for iterations, world, images in ((3, first, at_once), (6, second, min(at_once, 4 // second))):
        jobs = children.ranks(world, config(iterations, images), tmp_path / "run")
        assert children.run(*jobs) == [0] * world
    assert train(config(6, 4), tmp_path / "one", "cpu", tiny(noise=False)) == 0
    assert_close_runs(tmp_path / "run", tmp_path / "one", [1, 2, 3, 4, 5, 6, 6])
    assert load(tmp_path / "run" / "last.safetensors").images_per_step == 4


def test_every_option_of_two_processes(children: ChildProcesses, shapes: Path, tmp_path: Path) -> None:
    """Gradients exchanged in bf16, channels last, a recomputed backbone: nothing is warned of, and a run that goes on
    is the unbroken one."""
    compute = {"exchange": "bf16", "channels_last": True, "recompute_backbone": True}

    def run(name: str, iterations: int, **compute: Any) -> dict[str, torch.Tensor]:
        more: dict[str, Any] = {"model": SMALL, "evaluate_every": 0, "lr": 0.005, "compute": compute}
        config, stderr = settings(shapes, iterations=iterations, **more), str(tmp_path / f"{name}.txt")
        jobs = children.ranks(2, config, tmp_path / name, real=True, stderr=stderr)
        assert children.run(*jobs) == [0, 0]
        assert "warn" not in Path(stderr).read_text().lower()
        return load(tmp_path / name / "last.safetensors").model

    unbroken, _ = run("unbroken", 3, **compute), run("run", 2, **compute)
    assert all(torch.equal(tensor, unbroken[name]) for name, tensor in run("run", 3, **compute).items())
    other = run("fp32", 3, **compute | {"exchange": "fp32"})
    differing = [name for name, tensor in other.items() if not torch.equal(tensor, unbroken[name])]
    assert differing and all(torch.allclose(other[name], unbroken[name], atol=2e-3) for name in differing)


def test_a_signal_to_one_process_stops_all(children: ChildProcesses, shapes: Path, tmp_path: Path) -> None:
    jobs = children.ranks(2, settings(shapes, iterations=100_000, evaluate_every=0), tmp_path)
    assert children.run(jobs[0], jobs[1] | {"stop": 3}) == [signal.SIGTERM, signal.SIGTERM]
    assert load(tmp_path / "last.safetensors").step == 3


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"lr": 0.002}, "(process 0's against process 1's): schedule.lr (0.1 against 0.002); give all"),
        ({"train": 5}, "train.json: other images on another machine; give all the same data"),
    ],
)
def test_machines_with_other_settings_or_other_data_are_refused(
    children: ChildProcesses, shapes: Path, tmp_path: Path, other: dict[str, Any], said: str
) -> None:
    """Their weights would part without a word: the gradients are averaged, but each machine has its own rate."""
    if count := other.get("train"):
        write_shapes(tmp_path / "shapes", {"train": count, "val": 3}, progress=False)
        others = settings(tmp_path / "shapes")
    else:
        others = settings(shapes, **other)
    first, second = children.ranks(2, settings(shapes), tmp_path / "run")
    second |= children.job(others, tmp_path / "run")
    words = [tmp_path / "0.txt", tmp_path / "1.txt"]
    jobs = [job | {"stderr": str(file)} for job, file in zip((first, second), words, strict=True)]
    assert children.run(*jobs) == [1, 1]
    for file in words:
        last = file.read_text().splitlines()[-1]
        assert last.startswith("upsnet.errors.InputError: ") and said in last
    assert not (tmp_path / "run/last.safetensors").exists()


def test_two_nodes_of_torchrun_train_the_real_network_as_one_process(children: ChildProcesses, tmp_path: Path) -> None:
    """Images of one size, or each process would pad its own, and batch normalisation sees the padding."""
    shapes = write_shapes(tmp_path / "shapes", {"train": 6, "val": 3}, sizes=[(64, 96)], progress=False)
    config = settings(
        shapes, model=SMALL, zoom=(1, 1), iterations=3, images_per_step=4, evaluate_every=3, lr=0.005, ema=0.9
    )
    (tmp_path / "small.yaml").write_text(config.model_dump_json())  # which is YAML too
    command = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc_per_node=1", "--rdzv_backend=c10d"]
    command += [f"--rdzv_endpoint=127.0.0.1:{free_port()}", "-m", "training.train", "--config", "small.yaml"]
    environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads()), "PYTHONPATH": str(ROOT)}
    nodes = [
        subprocess.Popen([*command, "--out", "two"], cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    said = [node.communicate(timeout=150)[0] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0]
    assert "4 = 2 processes x 2 images x 1 passes" in "".join(said)
    assert children.run(children.job(config, tmp_path / "one", real=True)) == [0]
    assert_close_runs(tmp_path / "two", tmp_path / "one", [1, 2, 3, 3])
    assert {"pq", "miou", "box_ap", "mask_ap"} <= set(metrics(tmp_path / "two")[-1])
