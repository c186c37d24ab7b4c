"""Real training steps and inference of a small network, in which nothing may wait for the GPU.

    python -m training.gpu_step_check --device cuda

A step or two of each case are taken first: what is made once (operators compiled, algorithms chosen) may wait. Then
PyTorch raises an error wherever it would. Left out is what needs minutes, `compute.compile`, and several processes,
`compute.exchange`. On a CPU, which nobody waits for, the steps are taken all the same. The last line says how it went,
in short; exit status 0: nothing waits, or the check was left out for want of a package, which the line says; 1:
something does, or a step failed.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from training.config import Config
    from training.data.batch import Batch
    from training.step import Stepper

NEEDED = ("torch", "torchvision", "timm", "pydantic")  # with what these require
STUFF, THINGS = 3, 4
SMALL: dict[str, Any] = {  # every part of the network, each as small as it can be
    "backbone": {"stem": [4, 8], "widths": [8, 8, 16, 16], "depths": [1, 1, 1, 1], "expansion": 2},
    "fpn": {"channels": 16},
    "rpn": {"channels": 16, "anchor_scale": 4.0, "train_top_n": 50, "test_top_n": 30, "samples": 32},
    "box_head": {"hidden": 16, "samples": 16},
    "mask_head": {"channels": 16, "layers": 1},
    "semantic_head": {"channels": [16]},
    "panoptic": {"max_detections": 8, "stuff_area_limit": 16},
}
BOTTLENECK = {"kind": "bottleneck", "stem": [4, 8], "widths": [8, 8, 16, 16], "depths": [1, 2, 1, 1], "inner": [4] * 4}
RESNET = {"kind": "timm", "name": "resnet10t", "deformable_stages": [5]}
CASES: dict[str, dict[str, Any]] = {  # what is not SMALL's, and how it is computed
    "fp32": {},
    "tf32, AdamW": {"compute": {"precision": "tf32"}, "schedule": {"optimizer": "adamw"}},
    "bf16, averaged weights": {"compute": {"precision": "bf16"}, "schedule": {"ema": 0.9}},
    "fp16, channels last": {"compute": {"precision": "fp16", "channels_last": True}, "schedule": {"clip_norm": 1.0}},
    "original conventions": {"model": {"conventions": "upsnet", "backbone": RESNET}},
    "Panoptic FPN": {
        "model": {
            "conventions": "detectron2",
            "backbone": {"kind": "timm", "name": "resnet10t"},
            "semantic_head": {"kind": "chains", "channels": 16, "groups": 4},
            "panoptic": SMALL["panoptic"] | {"merge": "heuristic", "by_class": True},
        }
    },
    "recomputed backbone": {"compute": {"precision": "bf16", "recompute_backbone": True}},
    "no deformable head": {"model": {"semantic_head": {"channels": [16], "deformable": False}}},
    "bottlenecks, group norm, GIoU, dice": {
        "model": {
            "backbone": BOTTLENECK,
            "fpn": {"channels": 16, "norm": "group"},
            "box_head": {"hidden": 16, "samples": 16, "regression": "giou"},
            "mask_head": {"channels": 16, "layers": 1, "norm": "group"},
            "semantic_head": {"channels": [16], "norm": "batch"},
        },
        "loss": {"dice": 1.0},
        "compute": {"precision": "bf16", "channels_last": True},
        "schedule": {"offset_lr": 0.1},
    },
}
BOXES = (2, 0)  # instances of the batch's images


def configuration(case: str) -> Config:
    from training.config import parse_config

    own = CASES[case]
    unread = {"json_file": "none", "segments": "none", "images": "none"}
    return parse_config(
        {
            "name": "gpu_step_check",
            "model": SMALL | own.get("model", {}),
            "loss": own.get("loss", {}),
            "compute": own.get("compute", {}),
            "data": {"train": unread, "val": unread, "resize": {"short_side": 64, "max_side": 96}},
            "schedule": {"iterations": 9, "images_per_gpu": len(BOXES), "lr": 1e-4} | own.get("schedule", {}),
        },
        case,
    )


def made_up_batch(pinned: Callable[[Tensor], Tensor], boxes: tuple[int, ...] = BOXES) -> Batch:
    """An image of 64 x 96 pixels for each number of `boxes`, on the host."""
    import torch

    from training.data.batch import Batch

    images, height, width = len(boxes), 64, 96
    draws = torch.Generator().manual_seed(0)
    photos = torch.randint(0, 256, (images, height, width, 3), dtype=torch.uint8, generator=draws)
    instances = torch.zeros(images, height, width, dtype=torch.int16)
    of_images = []
    for image, count in enumerate(boxes):
        corners = [[8.0 * (1 + i), 8.0, 8.0 * (1 + i) + 32, 40.0] for i in range(count)]
        of_images.append(torch.tensor(corners).reshape(count, 4))
        for i in range(count):
            instances[image, 8:40, 8 * (1 + i) : 8 * (1 + i) + 32] = 1 + i
    return Batch(
        images=pinned(photos),
        sizes=pinned(torch.tensor([[height, width - 6]] * images, dtype=torch.int32)),
        scales=pinned(torch.ones(images)),
        semantic=pinned((instances > 0).to(torch.uint8) * STUFF),
        instances=pinned(instances),
        boxes=[pinned(each) for each in of_images],
        labels=[pinned(torch.zeros(count, dtype=torch.int64)) for count in boxes],
        seeds=pinned(torch.arange(images)),
        image_ids=list(range(images)),
    )


def make_stepper(config: Config, device: torch.device) -> Stepper:
    from training.distributed import Process
    from training.losses import TrainingLosses
    from training.model.upsnet import UPSNet
    from training.schedule import make_plan
    from training.step import Stepper

    model = UPSNet(config.model, STUFF, THINGS)
    return Stepper(
        model, TrainingLosses(model, config.loss), config, make_plan(config.schedule, 1), Process(0, 1, device)
    )


def inference(stepper: Stepper, batch: Batch) -> None:
    """The exported graph's outputs, by the network of a stepper, from a batch on the device."""
    import torch

    stepper.model.eval()
    with torch.inference_mode():
        stepper.model(batch.images, batch.sizes, batch.scales)
    stepper.model.train()


@contextmanager
def waiting_is_an_error(device: torch.device) -> Iterator[None]:
    """Where PyTorch itself would wait, and, which its mode does not see, where it is told to."""
    import torch

    if device.type != "cuda":
        yield
        return

    def refuse(*_: object, **__: object) -> NoReturn:
        raise RuntimeError("synchronize() waits for the GPU")

    owners: tuple[Any, ...] = (torch.cuda, torch.cuda.Event, torch.cuda.Stream)
    before = [owner.synchronize for owner in owners]
    torch.cuda.set_sync_debug_mode("error")
    try:
        for owner in owners:
            owner.synchronize = refuse
        yield
    finally:
        for owner, synchronize in zip(owners, before, strict=True):
            owner.synchronize = synchronize
        torch.cuda.set_sync_debug_mode("default")


def run_case(case: str, device: torch.device) -> None:
    """RuntimeError where something waits; TrainingError where a loss is not finite."""
    import torch

    torch.manual_seed(0)
    stepper = make_stepper(configuration(case), device)
    batch = made_up_batch(lambda tensor: tensor.pin_memory() if device.type == "cuda" else tensor)
    on_device = batch.to(device)
    for step in range(2):
        stepper.step([batch], step, ())
        inference(stepper, on_device)
    stepper.reports(drain=True)
    with waiting_is_an_error(device):
        stepper.step([batch], 2, ())
        inference(stepper, on_device)
    stepper.reports(drain=True)


def line_of(error: BaseException) -> str:
    """file:line of the innermost frame in this project's own folders, and the message's first line."""
    root = Path(__file__).parents[1]
    folders = [root / "training", root / "plugins_cuda"]
    own = [
        f"{Path(frame.filename).relative_to(root)}:{frame.lineno}"
        for frame in traceback.extract_tb(error.__traceback__)
        if any(folder in Path(frame.filename).parents for folder in folders)
    ]
    return f"{own[-1]}: {type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Nothing in a training step, nor in inference, waits for the GPU.")
    parser.add_argument("--device", default="cuda", help="cuda, cuda:N or cpu")
    name = parser.parse_args(arguments).device
    if absent := [package for package in NEEDED if importlib.util.find_spec(package) is None]:
        cure = f"{sys.executable} -m pip install {' '.join(absent)}"
        print(f"training step: skipped, without {', '.join(absent)}; `{cure}` makes it run")
        return 0
    import torch

    device = torch.device(name)
    if device.type == "cuda":
        device = torch.device("cuda", device.index or 0)
        if device.index >= torch.cuda.device_count():
            print(f"training step: skipped, PyTorch sees {torch.cuda.device_count()} CUDA devices")
            return 0
        torch.cuda.set_device(device)
    failed = []
    for case in CASES:
        try:
            run_case(case, device)
        except Exception as error:  # whatever it is, the other cases are looked at too
            failed.append(case)
            print(f"{case}: {line_of(error)}")
        else:
            print(f"{case}: ok")
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else "a CPU, which nobody waits for"
    verdict = (
        f"FAILED in {len(failed)} of {len(CASES)} cases ({'; '.join(failed)})" if failed else f"{len(CASES)} cases ok"
    )
    print(f"training step: {verdict}, on {where}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
