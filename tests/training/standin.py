"""A stand-in network that trains in seconds, and a helper process whose forked children may be killed.

`python -m tests.training.standin` is that helper: it has torch imported once, reads one JSON list of stages from each
line of its input, forks the processes of each stage in turn and answers with how they ended.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import traceback
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import training.checkpoint
from training.checkpoint import load
from training.config import Config, load_config, parse_config
from training.data.batch import Batch
from training.data.sample import IGNORE
from training.log import SPEED
from training.loop import build_network, train
from upsnet.categories import Categories

ROOT = Path(__file__).resolve().parents[2]


SMALL = {
    "backbone": {"stem": [4, 8], "widths": [8, 8, 16, 16], "depths": [1, 1, 1, 1], "expansion": 2},
    "fpn": {"channels": 16},
    "rpn": {"channels": 16, "anchor_scale": 4.0, "train_top_n": 50, "test_top_n": 30, "samples": 32},
    "box_head": {"hidden": 16, "samples": 16},
    "mask_head": {"channels": 16, "layers": 1},
    "semantic_head": {"channels": [16]},
    "panoptic": {"max_detections": 8, "stuff_area_limit": 16},
}


class TinyNetwork(nn.Module):
    """Semantic segmentation by one convolution; every stuff class is one row of the segments."""

    def __init__(self, config: Config, categories: Categories) -> None:
        super().__init__()
        self.num_stuff = categories.num_stuff
        self.rows = categories.num_stuff + config.model.panoptic.max_detections
        self.conv = nn.Conv2d(3, len(categories), 5, padding=2)

    def logits(self, images: Tensor) -> Tensor:
        return self.conv(images.permute(0, 3, 1, 2) / 255)

    def forward(self, images: Tensor, sizes: Tensor, scales: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        stuff = self.logits(images)[:, : self.num_stuff].argmax(1)
        segments = torch.zeros(len(images), self.rows, 7)
        segments[..., 0] = torch.arange(self.rows).clamp(max=self.num_stuff - 1)
        return (stuff + 1).byte(), segments, torch.full((len(images),), self.num_stuff, dtype=torch.int32)


class TinyLosses(nn.Module):
    """Cross-entropy, a mean over the images, and optionally a term that depends on the random state.

    `accident` is called in every forward with the number of forwards so far and may alter the losses.
    """

    def __init__(self, model: TinyNetwork, noise: bool, accident: Any = None) -> None:
        super().__init__()
        self.model, self.noise, self.accident, self.calls = model, noise, accident, 0

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        self.calls += 1
        logits = self.model.logits(batch.images).float()
        errors = F.cross_entropy(logits, batch.semantic.long(), ignore_index=IGNORE, reduction="none")
        labelled = (batch.semantic != IGNORE).flatten(1).sum(1)
        losses = {"semantic": (errors.flatten(1).sum(1) / labelled).mean()}
        if self.noise:
            losses["noise"] = 0.1 * torch.rand(()) * self.model.conv.bias.square().sum()
        return self.accident(self.calls, losses, self.model) if self.accident else losses


def builder(noise: bool = True, accident: Any = None) -> Any:
    def build(config: Config, categories: Categories) -> tuple[nn.Module, nn.Module]:
        model = TinyNetwork(config, categories)
        return model, TinyLosses(model, noise, accident)

    return build


def sends_signal(number: int, call: int) -> Any:
    def accident(calls: int, losses: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
        if calls == call:
            os.kill(os.getpid(), number)
        return losses

    return accident


def settings(
    shapes: Path,
    *,
    model: dict | None = None,
    compute: dict | None = None,
    zoom: tuple[float, float] = (0.8, 1.2),
    **schedule: Any,
) -> Config:
    def split(name: str) -> dict[str, str]:
        return {
            "json_file": str(shapes / f"{name}.json"),
            "segments": str(shapes / f"panoptic_{name}"),
            "images": str(shapes / name),
        }

    defaults = {"iterations": 12, "images_per_step": 2, "lr": 0.1, "warmup": 4, "log_every": 1, "checkpoint_every": 4}
    return parse_config(
        {
            "name": "tiny",
            "seed": 3,
            "model": model or {},
            "compute": compute or {},
            "data": {
                "train": split("train"),
                "val": split("val"),
                "resize": {"short_side": 64, "max_side": 96},
                "augment": {"flip": 0.5, "color": 0.3, "scale": zoom},
            },
            "schedule": defaults | {"evaluate_every": 6} | schedule,
        },
        "test",
    )


def metrics(out: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl without what depends on the clock."""
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in SPEED} for line in lines]


def assert_same_run(out: Path, reference: Path) -> None:
    """The same metrics and the same weights, bit for bit."""
    assert metrics(out) == metrics(reference)
    for name in ("last.safetensors", "best.safetensors"):
        ours, theirs = load(out / name), load(reference / name)
        assert (ours.step, ours.best_pq, ours.scaler) == (theirs.step, theirs.best_pq, theirs.scaler)
        for part in ("model", "ema", "optimizer"):
            mine, others = getattr(ours, part), getattr(theirs, part)
            assert mine.keys() == others.keys()
            assert all(torch.equal(mine[key], value) for key, value in others.items())


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


class Helper:
    """The helper process. `run` starts one process for each job, together, and waits for all.

    A job: config and out (paths), env (more environment), real (the real network), kill (forward pass, seconds: SIGKILL
    that much later), kill_in_save (the number of a checkpoint: SIGKILL when half of it is written), stop (forward pass:
    SIGTERM).
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.jobs = folder, 0
        environment = {"OMP_NUM_THREADS": str(torch.get_num_threads()), "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-m", "tests.training.standin"]
        self.process = subprocess.Popen(
            command, env=os.environ | environment, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def job(self, config: Config, out: Path, **more: Any) -> dict[str, Any]:
        self.jobs += 1
        path = self.folder / f"{self.jobs}.json"  # JSON is YAML
        path.write_text(config.model_dump_json())
        return {"config": str(path), "out": str(out), **more}

    def ranks(self, world: int, config: Config, out: Path, **more: Any) -> list[dict[str, Any]]:
        """The jobs of `world` processes in the environment that torchrun gives them."""
        shared = {"WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        ranks = [shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(world)]
        return [self.job(config, out, env=rank, **more) for rank in ranks]

    def run(self, *jobs: dict[str, Any]) -> list[int]:
        """The processes' exit codes, negative for the signal that ended one."""
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(json.dumps(jobs) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def close(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait(30)


def kills_itself(call: int, seconds: float) -> Any:
    """SIGKILL `seconds` after the forward pass number `call` has begun."""

    def accident(calls: int, losses: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
        if calls == call:
            threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGKILL)).start()
        return losses

    return accident


def break_save(number: int) -> None:
    """Let the process die of SIGKILL when half of its checkpoint number `number` is written."""
    save_file, calls = training.checkpoint.save_file, iter(range(1, 1 << 30))

    def half(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
        save_file(tensors, path, metadata)
        if next(calls) == number:
            os.truncate(path, path.stat().st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    training.checkpoint.save_file = half


def forked(job: dict[str, Any]) -> int:
    """Do a job in a child of this process; returns its process id."""
    if child := os.fork():
        return child
    code = 1
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.environ.update(job.get("env", {}))
        if "kill_in_save" in job:
            break_save(job["kill_in_save"])
        if job.get("real"):
            build = build_network
        else:
            accident = kills_itself(*job["kill"]) if "kill" in job else None
            accident = sends_signal(signal.SIGTERM, job["stop"]) if "stop" in job else accident
            build = builder(noise="env" not in job, accident=accident)
        code = train(load_config(Path(job["config"])), Path(job["out"]), "cpu", build)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def main() -> None:
    for line in sys.stdin:
        children = [forked(job) for job in json.loads(line)]
        print(json.dumps([os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]), flush=True)


if __name__ == "__main__":
    main()
