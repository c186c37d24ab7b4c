"""One step: accumulated gradients, precisions, averaged weights, batch normalisation over processes."""

from __future__ import annotations

import math
import re
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from timm.layers import BatchNormAct2d
from torch import Tensor, nn

from tests.training.child_processes import free_port
from tests.training.tiny_network import (
    Accident,
    Losses,
    TinyNetwork,
    assert_same_run,
    metrics,
    no_accident,
    sends_signal,
    settings,
    tiny,
)
from training.batch_norm import GlobalBatchNorm, synchronise
from training.checkpoint import load
from training.distributed import Process
from training.loop import Run, train
from training.step import TrainingError, autocast, average_of, compile_part

CPU = Process(0, 1, torch.device("cpu"))


class LateCPU(Process):
    """Its numbers come a step late, as a GPU's do."""

    late = 1


def final_weights(out: Path) -> dict[str, Tensor]:
    return load(out / "last.safetensors").model


def losses_of(shapes: Path, out: Path, **options: Any) -> list[float]:
    """Of a run of the tiny network without noise."""
    options = {"evaluate_every": 0, "warmup": 0} | options
    assert train(settings(shapes, **options), out, "cpu", tiny(noise=False)) == 0
    return [line["loss"] for line in metrics(out)]


def test_accumulated_gradients_are_those_of_the_whole_batch(shapes: Path, tmp_path: Path) -> None:
    whole = {"images_per_step": 8, "iterations": 4, "clip_norm": 0.5}
    expected = losses_of(shapes, tmp_path / "whole", **whole)
    assert losses_of(shapes, tmp_path / "parts", **whole, images_per_gpu=2) == pytest.approx(expected, rel=1e-6)
    weights = final_weights(tmp_path / "parts")
    for name, tensor in final_weights(tmp_path / "whole").items():
        assert torch.allclose(weights[name], tensor, rtol=0, atol=1e-6)


def test_numbers_that_come_a_step_late_as_on_a_gpu(unbroken: Path, shapes: Path, tmp_path: Path) -> None:
    """The fault is reported with its own step and images when the next step has been taken; it has left no trace in
    the weights, nor on the disk. Without a fault the run is the same, and a signal is granted a step later."""
    images: list[list[int]] = []

    def late(name: str, accident: Accident, **schedule: Any) -> Run:
        task = tiny(accident=accident, seen=lambda batch: images.append(batch.image_ids))
        return Run(settings(shapes, **schedule), tmp_path / name, LateCPU(*CPU), task)

    def not_a_number(call: int, losses: Losses, model: TinyNetwork) -> Losses:
        return losses | {"semantic": losses["semantic"] * (math.nan if call == 6 else 1)}

    run = late("nan", not_a_number, evaluate_every=0)  # an evaluation would ask for the numbers at once
    with pytest.raises(TrainingError, match=r"^step 6: not finite") as caught:
        run.loop()
    assert len(images) == 7 and f"images {images[5][0]}, {images[5][1]};" in str(caught.value)
    assert all(torch.isfinite(parameter).all() for parameter in run.model.parameters())
    out = tmp_path / "nan"
    assert load(out / "last.safetensors").step == 4 and [line["step"] for line in metrics(out)] == [1, 2, 3, 4, 5]
    assert late("run", sends_signal(signal.SIGTERM, 7)).loop() == signal.SIGTERM
    assert load(tmp_path / "run" / "last.safetensors").step == 8
    assert late("run", no_accident).loop() == 0
    assert_same_run(tmp_path / "run", unbroken)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_low_precision_learns_about_the_same(shapes: Path, tmp_path: Path, precision: str) -> None:
    options: dict[str, Any] = {"iterations": 16, "images_per_step": 6, "lr": 0.5}
    full = losses_of(shapes, tmp_path / "fp32", **options)
    low = losses_of(shapes, tmp_path / "low", **options, compute={"precision": precision})
    assert low != full and low == pytest.approx(full, rel=0.05)
    assert low[-1] < 0.9 * low[0]
    assert {tensor.dtype for tensor in final_weights(tmp_path / "low").values()} == {torch.float32}


def test_fp16_leaves_out_steps_that_overflow_and_halves_its_scale(shapes: Path, tmp_path: Path) -> None:
    """The scale survives in the checkpoint, and the resumed run is the unbroken one."""

    def overflows(call: int, losses: Losses, model: TinyNetwork) -> Losses:
        if call in (1, 3):  # the gradient of a finite loss overflows once it is scaled
            losses["semantic"] = losses["semantic"] + 1e35 * (model.conv.weight - model.conv.weight.detach()).sum()
        return losses

    compute = {"precision": "fp16"}
    config = settings(shapes, iterations=4, evaluate_every=0, warmup=0, momentum=0.9, compute=compute)
    run = Run(config, tmp_path / "a", CPU, tiny(noise=False, accident=overflows))
    assert isinstance(run.model, TinyNetwork)
    start = run.model.conv.weight.detach().clone()
    assert run.loop() == 0
    norms = [line["grad_norm"] for line in metrics(tmp_path / "a")]
    assert [norm is None for norm in norms] == [True, False, True, False]
    assert load(tmp_path / "a" / "last.safetensors").scaler["scale"] == 65536 / 4
    assert all(torch.isfinite(tensor).all() for tensor in load(tmp_path / "a" / "last.safetensors").optimizer.values())
    assert not torch.equal(run.model.conv.weight, start)


@pytest.mark.parametrize(("fault", "step"), [("gradient", 17), ("large", 1), ("loss", 1)])
def test_fp16_stops_where_a_smaller_scale_cannot_help(shapes: Path, tmp_path: Path, fault: str, step: int) -> None:
    """A gradient that is not finite at any scale down to 1; finite ones whose norm is not; a loss."""

    def accident(call: int, losses: Losses, model: TinyNetwork) -> Losses:
        weight = model.conv.weight
        extra = {
            "gradient": (weight * 0).sqrt().sum(),
            "large": 1e25 * (weight - weight.detach()).sum(),
            "loss": math.inf * weight.detach().square().sum(),
        }
        return losses | {"semantic": losses["semantic"] + extra[fault]}

    config = settings(shapes, iterations=40, evaluate_every=0, compute={"precision": "fp16"})
    with pytest.raises(TrainingError, match=rf"^step {step}: not finite") as caught:
        train(config, tmp_path, "cpu", tiny(accident=accident))
    collapsed = "fp16 overflows at a loss scale of 1 too: compute.precision=bf16, or lower schedule.lr"
    assert (collapsed in str(caught.value)) == (fault == "gradient")


def test_a_gpu_without_memory_is_one_line(shapes: Path, tmp_path: Path) -> None:
    def accident(call: int, losses: Losses, model: TinyNetwork) -> Losses:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9.00 GiB.\nAnd more")

    expected = (
        r"^images \d+, \d+ \(2 x \d+ x \d+\): CUDA out of memory\. Tried to allocate 9\.00 GiB\.; lower schedule\.im"
    )
    with pytest.raises(TrainingError, match=expected):
        train(settings(shapes), tmp_path, "cpu", tiny(accident=accident))


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_channels_last_changes_no_result(shapes: Path, tmp_path: Path, optimizer: str) -> None:
    """Also when the optimizer's state, strided as the weights are, has been through a checkpoint."""
    options: dict[str, Any] = {"optimizer": optimizer, "lr": 0.01}
    expected = losses_of(shapes, tmp_path / "plain", iterations=6, **options)
    last = options | {"compute": {"channels_last": True}}
    losses_of(shapes, tmp_path / "last", iterations=3, **last)
    assert losses_of(shapes, tmp_path / "last", iterations=6, **last) == pytest.approx(expected, rel=1e-4)


def test_compiled_parts_compute_the_same(
    shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Traced and run without the code generator, which takes minutes for C++. How long that took is said."""
    compiled_parts: list[nn.Module] = []

    def trace(part: nn.Module) -> None:
        compiled_parts.append(part)
        compile_part(part, backend="eager")

    monkeypatch.setattr("training.step.compile_part", trace)
    expected = losses_of(shapes, tmp_path / "plain", iterations=2)
    compiled = losses_of(shapes, tmp_path / "compiled", iterations=2, compute={"compile": True})
    assert compiled == pytest.approx(expected, rel=1e-5) and [type(part) for part in compiled_parts] == [nn.Conv2d]
    assert len(re.findall(r"^compiling: the first step took \d+\.\d s$", capsys.readouterr().out, re.MULTILINE)) == 1


@pytest.mark.parametrize("precision", ["tf32", "fp32", "bf16"])
def test_tf32_is_for_those_who_ask(shapes: Path, tmp_path: Path, precision: str) -> None:
    """PyTorch's default is neither: convolutions in TF32, matrix products not. Nothing is cast in the forward pass."""
    flags: list[Any] = [torch.backends.cudnn, torch.backends.cuda.matmul]
    before = [flag.allow_tf32 for flag in flags]
    try:
        for flag in flags:
            flag.allow_tf32 = precision != "tf32"
        Run(settings(shapes, compute={"precision": precision}), tmp_path, CPU, tiny())
        assert [flag.allow_tf32 for flag in flags] == [precision == "tf32"] * 2
    finally:
        for flag, value in zip(flags, before, strict=True):
            flag.allow_tf32 = value
    with autocast(CPU.device, precision):
        assert torch.is_autocast_enabled("cpu") == (precision == "bf16")


def test_average_by_hand() -> None:
    """The decay of update t is 1 - t^-.75, at most .5: 0, 1 - 2^-.75 = .4054, then .5."""
    model = nn.BatchNorm1d(1)
    average = average_of(model, 0.5)
    assert model.running_mean is not None
    expected = None
    for update, value in enumerate([8.0, 4.0, 2.0], 1):
        with torch.no_grad():
            model.weight.fill_(value)
            model.running_mean.fill_(value)
        average.update(model, update)
        decay = min(0.5, 1 - update**-0.75)
        expected = value if expected is None else decay * expected + (1 - decay) * value
        assert average.module.weight.item() == pytest.approx(expected, rel=1e-6)
        assert average.module.running_mean.item() == value  # statistics are not averaged again
    assert expected == pytest.approx(0.5 * (0.4054 * 8 + 0.5946 * 4) + 0.5 * 2, rel=1e-4)


@pytest.fixture
def alone_in_gloo() -> Any:
    """A group of one process: sums over it are the process's own."""
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{free_port()}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_global_batch_norm_is_batch_norm(alone_in_gloo: None) -> None:
    """In one process: outputs, running statistics and all gradients; with timm's built-in activation too."""
    torch.manual_seed(0)
    for build in (nn.BatchNorm2d, BatchNormAct2d):
        plain, holder = build(3), nn.Sequential(build(3))
        holder[0].load_state_dict(plain.state_dict())
        names = list(holder.state_dict())
        synchronise(holder, Process(0, 2, torch.device("cpu")))
        assert isinstance(holder[0], GlobalBatchNorm) and list(holder.state_dict()) == names
        x = 5 + torch.randn(4, 3, 6, 5)
        ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
        for _ in range(2):
            out, expected = holder(ours), plain(theirs)
            assert torch.allclose(out, expected, atol=1e-6)
        weight = torch.randn_like(out)
        gradients = torch.autograd.grad((out * weight).sum(), (ours, holder[0].weight))
        wanted = torch.autograd.grad((expected * weight).sum(), (theirs, plain.weight))
        assert torch.allclose(gradients[0], wanted[0], atol=1e-6)
        assert torch.allclose(gradients[1], wanted[1], atol=1e-5)
        for name, buffer in plain.named_buffers():
            assert torch.allclose(holder[0].state_dict()[name], buffer, rtol=1e-6)
        holder.eval(), plain.eval()
        assert torch.allclose(holder(x), plain(x), atol=1e-5)


def test_global_batch_norm_of_half_types(alone_in_gloo: None) -> None:
    """Within one rounding of the float32 layer's results."""
    torch.manual_seed(0)
    plain, holder = nn.BatchNorm2d(3), nn.Sequential(nn.BatchNorm2d(3))
    synchronise(holder, Process(0, 2, torch.device("cpu")))
    x = (5 + torch.randn(4, 3, 6, 5)).bfloat16().contiguous(memory_format=torch.channels_last)
    ours, theirs = x.clone().requires_grad_(), x.float().requires_grad_()
    out, expected = holder(ours), plain(theirs)
    assert out.dtype == torch.bfloat16 and out.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(out.float(), expected, rtol=2**-8, atol=1e-6)
    weight = torch.randn(out.shape).bfloat16()
    (found,) = torch.autograd.grad((out * weight).sum(), ours)
    (wanted,) = torch.autograd.grad((expected * weight.float()).sum(), theirs)
    torch.testing.assert_close(found.float(), wanted, rtol=2**-8, atol=1e-5)
    assert plain.running_var is not None
    torch.testing.assert_close(holder[0].running_var, plain.running_var)


def test_frozen_batch_norm_stays_frozen(alone_in_gloo: None) -> None:
    holder = nn.Sequential(nn.BatchNorm2d(3))
    holder[0].requires_grad_(False).eval()
    synchronise(holder, Process(0, 2, torch.device("cpu")))
    assert not holder[0].training and not holder[0].weight.requires_grad
    holder(torch.randn(2, 3, 4, 4))
    assert holder[0].num_batches_tracked == 0
