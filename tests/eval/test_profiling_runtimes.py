"""`upsnet engine profile` in PyTorch, and the roofs of GPUs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import upsnet.command_line.main
from eval.profiling.costs import count_macs, kind_of
from eval.profiling.gpus import PUBLISHED, find_gpu
from eval.profiling.in_pytorch import record_pytorch
from eval.profiling.least import least_on
from eval.profiling.report import Profile, rate
from eval.profiling.roofline import Roofline
from eval.profiling.summary import Work, summarize
from eval.profiling.trace import Tensor
from upsnet.geometry import NetworkBatch

ROOF = Roofline(gflops=100, int8_gops=400, gb_per_s=10)


def floats(*shape: int, type: str = "float") -> Tensor:
    return Tensor(type, shape)


class Network(nn.Module):
    """A convolution and a normalisation of the backbone, then a layer of the FPN's."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(inplace=True))
        self.fpn = nn.Linear(16, 8)

    def normalize(self, images: torch.Tensor) -> torch.Tensor:
        return images.permute(0, 3, 1, 2).float()

    score_proposals = select = mask_logits = fuse = nn.Module.forward

    def forward(self, images: torch.Tensor, sizes: torch.Tensor, scales: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (self.fpn(self.backbone(self.normalize(images)).mean((2, 3))),) * 3


def test_a_network_that_was_counted_by_hand() -> None:
    from training.predictor import ModelPredictor

    model: Any = Network().eval()
    predictor: Any = ModelPredictor(model, None, torch.device("cpu"))  # type: ignore[arg-type]
    batch = NetworkBatch(np.ones((2, 6, 8, 3), np.uint8), np.array([[6, 8]] * 2, np.int32), np.ones(2, np.float32))
    recording = record_pytorch(predictor, batch, runs=2)
    assert len(recording.runs) == 2 and recording.ms > 0
    for run in recording.runs:
        assert 0 < sum(each.ms for each in run.executions) <= run.ms
    variant = summarize(*recording, ROOF)
    modules = {row.name: row for row in variant.modules}
    assert modules["backbone"].macs == 2 * 48 * 16 * 27 and modules["FPN"].macs == 2 * 16 * 8
    operators = {row.name: row for row in variant.operators}
    assert operators["Conv"].nodes == 1 and operators["Gemm"].nodes == 1 and operators["batch_norm"].nodes == 1
    values = 2 * 48 * 16
    assert operators["relu_"].moved_bytes == 2 * 4 * values  # in place, and yet read and written
    assert operators["permute"].moved_bytes == 0  # a view
    assert operators["to"].moved_bytes == 2 * 48 * 3 * (1 + 4)  # of bytes to float32
    assert not model.backbone._forward_hooks and "normalize" not in vars(model)


def test_a_checkpoint_by_module(tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The modules of the ONNX file, and in each of them products; the GPU's table stands below."""
    out, picture = tmp_path / "profile.json", tmp_path / "profile.png"
    words = ["--model", str(tiny_run), "--runtime", "pytorch", "--runs", "1", "--threads", "1", "--gpu", "H200"]
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as stop:
        words += ["--size", "96x128", "--out", str(out), "--picture", str(picture)]
        patch.setattr(sys, "argv", ["upsnet", "engine", "profile", *words])
        upsnet.command_line.main.main()
    assert not stop.value.code
    report = Profile.load(out)
    (variant,) = report.variants
    assert (report.runtime, report.device, variant.kernels) == ("pytorch", "cpu", "PyTorch")
    names = ["backbone", "FPN", "semantic head", "RPN", "box head", "mask head", "panoptic head", "other"]
    assert [row.name for row in variant.modules] == names
    assert all(row.macs for row in variant.modules[:-2]) and not any(row.macs for row in variant.modules[-2:])
    assert variant.modules[-1].moved_bytes == 0  # copies of tensors that are there
    assert sum(row.macs for row in variant.modules) == variant.total.macs
    assert report.least is not None and report.least.total.macs == variant.total.macs
    assert "The least time on NVIDIA H200 SXM" in capsys.readouterr().out
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("h200", "h200"), ("NVIDIA H200", "h200"), ("NVIDIA H100 80GB HBM3", "h100"), ("NVIDIA A100-SXM4-80GB", "a100"),
        ("NVIDIA L4", "l4"), ("NVIDIA L40S", "l40s"), ("NVIDIA GeForce RTX 4090", "rtx4090"), ("Tesla T4", "t4"),
        ("RTX4090", "rtx4090"),
    ],
)  # fmt: skip
def test_a_gpu_by_its_names(name: str, key: str) -> None:
    assert find_gpu(name).source == f"{PUBLISHED[key][0]}, as published"


@pytest.mark.parametrize("name", ["NVIDIA L40", "H1000", "cpu", ""])
def test_no_gpu_is_taken_for_another(name: str) -> None:
    from upsnet.errors import InputError

    with pytest.raises(InputError, match="its limits are not known here; known are b200, h200"):
        find_gpu(name)


def test_the_published_limits_fit_each_other() -> None:
    """In teraflops and gigabytes: a lesser type is never slower."""
    for key in PUBLISHED:
        gpu = find_gpu(key)
        rates = [each for each in (gpu.gflops, gpu.tf32_gflops, gpu.half_gflops, gpu.fp8_gflops) if each]
        assert rates == sorted(rates) and gpu.int8_gops >= gpu.half_gflops
        assert 5e3 < gpu.gflops < 1e5 and 300 <= gpu.gb_per_s <= 8000


def test_the_least_time_by_hand() -> None:
    """A convolution at the peak, a pointwise node with it, and an addition that reads one tensor more."""
    gpu = Roofline(gflops=1, tf32_gflops=0, half_gflops=4, int8_gops=8, gb_per_s=1, source="made up")
    image, planes = floats(1, 3, 10, 10), floats(1, 8, 10, 10)
    works = [
        Work("backbone", "Conv", (image, floats(8, 3, 3, 3), floats(8)), (planes,), False),
        Work("backbone", "Relu", (planes,), (planes,), False),
        Work("FPN", "Add", (planes, planes), (planes,), False),
        Work("FPN", "Reshape", (planes, Tensor("int64", (2,))), (floats(8, 100),), False),
    ]
    least = least_on(gpu, works)
    conv, add = least.rows
    assert (conv.name, conv.macs, conv.values) == ("backbone", 800 * 27, 300 + 216 + 8 + 800)
    assert list(least.total.ms) == ["fp32", "fp16", "int8"]  # no TF32 and no fp8 there
    assert conv.ms["fp32"] == pytest.approx(2 * 800 * 27 / 1e6) and conv.ms["fp16"] == conv.ms["fp32"] / 4
    assert (add.name, add.macs, add.values) == ("FPN", 0, 800)
    assert add.ms == pytest.approx({"fp32": 3200e-6, "fp16": 1600e-6, "int8": 800e-6})
    assert least.total.ms["fp32"] == pytest.approx(conv.ms["fp32"] + add.ms["fp32"])


def test_a_part_of_a_tensor_is_read() -> None:
    big, part = floats(1000, 4), floats(2, 4)
    least = least_on(ROOF, [Work("RPN", "Gather", (big, Tensor("int64", (2,))), (part,), False)])
    assert 0 < least.total.values < 100


def test_what_a_product_multiplies() -> None:
    names = {"float": "fp32", "float16": "fp16", "bfloat16": "fp16", "int8": "int8", "uint8": "int8", "float8": "fp8"}
    assert {name: kind_of([floats(2, 2, type=name)]) for name in names} == names
    assert count_macs("Conv", [floats(1, 3, 5, 7, type="float8"), floats(4, 3, 3, 3)], [floats(1, 4, 5, 7)]) == 140 * 27


def test_rates_are_said_in_their_unit() -> None:
    assert [rate(115.2), rate(67e3), rate(862, "OP/s")] == ["115 GFLOP/s", "67 TFLOP/s", "862 GOP/s"]


def test_an_old_report_is_read(tmp_path: Path) -> None:
    """profile.json of the release before has neither runtime nor device nor a GPU."""
    row = {"name": "all nodes", "nodes": 1, "ms": 1, "best_ms": 1, "macs": 1, "moved_bytes": 1, "roof_ms": 1}
    variant = {"kernels": "library", "ms": 1, "profiled_ms": 1, "outside_ms": 0, "total": row, "modules": [row]}
    variant |= {"operators": [row], "shares": {}, "nodes": []}
    roof = {"gflops": 1, "int8_gops": 1, "gb_per_s": 1}
    old = {"version": 1, "machine": {}, "versions": {}, "model": "m", "shape": [1, 2, 2, 3], "threads": 1, "runs": 1}
    report = Profile.model_validate(old | {"roofline": roof, "variants": [variant]})
    assert (report.runtime, report.device, report.least) == ("onnxruntime", "cpu", None)
