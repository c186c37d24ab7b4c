"""Everything that runs on a GPU, run on fake CUDA tensors: nothing waits for the device, nothing mixes devices."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from plugins_cuda.deform_conv import reference as deform_conv
from plugins_cuda.deform_conv.backward import reference as deform_conv_backward
from plugins_cuda.deform_conv.columns import reference as deform_conv_columns
from plugins_cuda.roi_align_fpn import reference as roi_align_fpn
from plugins_cuda.roi_align_fpn.backward import reference as roi_align_fpn_backward
from tests.plugins_cuda.inputs import level_by_level
from tests.training.fake_gpu import CUDA, Waits, Watch, fake_gpu, pinned
from training.batch_norm import GlobalBatchNorm, synchronise
from training.data.batch import Batch
from training.distributed import Process
from training.gpu_step_check import CASES, SMALL, STUFF, THINGS, configuration, inference, made_up_batch, make_stepper
from training.inference import View, infer
from training.model.upsnet import UPSNet
from training.model_config import ModelConfig
from training.step import Stepper, to_host


@pytest.fixture(scope="module", autouse=True)
def gpu() -> Iterator[None]:
    with fake_gpu():
        yield


def on_gpu(batch: Batch) -> Batch:
    with Watch():
        return batch.to(CUDA)


def built(case: str) -> Stepper:
    with CUDA:
        return make_stepper(configuration(case), CUDA)


def small(stuff: int = STUFF, things: int = THINGS, **other: object) -> UPSNet:
    with CUDA:
        return UPSNet(ModelConfig.model_validate(SMALL | other), stuff, things)


@pytest.mark.parametrize("case", CASES)
def test_a_step_and_inference(case: str) -> None:
    """From the pinned batch to the new weights and the numbers on their way to the host; one image has no instance."""
    stepper, batch = built(case), made_up_batch(pinned)
    with Watch() as watch:
        stepper.step([batch, batch], 0, ())
        inference(stepper, batch.to(CUDA))
    pending = stepper._pending[0]
    assert pending.arrived is not None and pending.values.device.type == "cpu"
    trained = [parameter for parameter in stepper.model.parameters() if parameter.requires_grad]
    assert all(parameter.grad is not None and parameter.grad.device == CUDA for parameter in trained)
    counts = watch.calls
    assert counts["upsnet::panoptic_fusion"] == 1 and counts["upsnet::nms"] >= 4
    assert counts["_fused_adamw_"] + counts["_fused_sgd_"] and counts["upsnet::roi_align_fpn_backward"]


@pytest.mark.parametrize("kind", [(STUFF, 0), (0, THINGS)], ids=["stuff alone", "things alone"])
@pytest.mark.parametrize("boxes", [(0, 0), (3,)], ids=str)
def test_a_step_without_boxes_and_of_one_kind(
    boxes: tuple[int, ...], kind: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.gpu_step_check.STUFF", kind[0])
    monkeypatch.setattr("training.gpu_step_check.THINGS", kind[1])
    stepper, batch = built("fp32"), made_up_batch(pinned, boxes)
    with Watch():
        stepper.step([batch], 0, ())
        inference(stepper, batch.to(CUDA))


@pytest.mark.parametrize("conventions", ["ours", "upsnet"])
def test_views_of_test_time_augmentation(conventions: str) -> None:
    model = small(conventions=conventions).eval()
    batch = on_gpu(made_up_batch(pinned))
    base = View(batch.images, batch.sizes, [[64, 90]] * 2)
    with Watch(), torch.inference_mode():
        infer(model, [base, base._replace(flipped=True)], base, batch.scales)


def test_normalisation_over_several_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dist, "all_reduce", lambda tensor: None)
    with CUDA:
        layer = nn.Sequential(nn.BatchNorm2d(3))
    synchronise(layer, Process(0, 2, CUDA))
    assert isinstance(layer[0], GlobalBatchNorm)
    for dtype in (torch.float32, torch.bfloat16):
        x = torch.zeros(2, 3, 4, 4, device=CUDA, dtype=dtype, requires_grad=True)
        with Watch():
            y = layer(x)
            y.float().sum().backward()
        assert y.dtype == dtype and x.grad is not None and x.grad.dtype == dtype


@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels last"])
def test_features_have_the_memory_format_of_the_weights(last: bool) -> None:
    form = torch.channels_last if last else torch.contiguous_format
    model, batch = small().to(memory_format=form), on_gpu(made_up_batch(pinned))  # type: ignore[call-overload]
    with Watch():
        read = model.normalize(batch.images, batch.sizes)
        pyramid = model.pyramid(batch.images, batch.sizes)
    assert read.is_contiguous(memory_format=form) and not read.is_contiguous(memory_format=other(form))
    assert all(level.is_contiguous(memory_format=form) for level in pyramid[:4])


def other(form: torch.memory_format) -> torch.memory_format:
    return torch.contiguous_format if form == torch.channels_last else torch.channels_last


@pytest.mark.skipif(torch.cuda.device_count() == 1, reason="there is one GPU, and PyTorch refuses to speak of another")
def test_numbers_come_by_the_stream_of_their_own_device() -> None:
    """The current device is cuda:0, as in a process that has set none."""
    values = torch.zeros(5, device="cuda:1")
    with Watch():
        host, event = to_host(values)
    assert event is not None and event.stream.device == torch.device("cuda:1")  # type: ignore[attr-defined]
    assert host.device.type == "cpu"


def test_definitions_wait_for_nothing() -> None:
    """Of a gradient a GPU runs them too: what is around its kernels, or all where it has none."""
    with CUDA:
        pyramid, rois = [torch.zeros(2, 4, 64 >> level, 96 >> level) for level in range(4)], torch.zeros(2, 5, 4)
        pooled = torch.zeros(2, 5, 4, 7, 7)
        x, offset, mask = (torch.zeros(2, *size) for size in ((4, 8, 9), (36, 8, 9), (18, 8, 9)))
        weight = torch.zeros(6, 2, 3, 3)
        output, columns = torch.zeros(2, 6, 8, 9), torch.zeros(2, 8, 9, 9, 4)
    steps = ([1, 1], [1, 1], [1, 1])
    with Watch():
        roi_align_fpn.roi_align_fpn(pyramid, rois, 7)
        roi_align_fpn_backward.roi_align_fpn_backward(pyramid, rois, 7, 2, True, False, False, pooled)
        deform_conv.deform_conv(x, offset, weight, None, 1, 1, 1, mask)
        deform_conv_backward.deform_conv_backward(x, offset, weight, mask, output, *steps)
        deform_conv_columns.deform_conv_columns(x, offset, mask, columns, [3, 3], *steps, True)


def test_a_definition_by_indices_would_wait() -> None:
    """The negative control: what reference.py was before it summed the levels."""
    with CUDA:
        pyramid, rois = [torch.zeros(2, 4, 64 >> level, 96 >> level) for level in range(4)], torch.zeros(2, 5, 4)
    with Watch(), pytest.raises(Waits, match=r"tests/plugins_cuda/inputs\.py:\d+: nonzero waits"):
        level_by_level(pyramid, rois, 7)


def test_an_unpinned_batch_would_wait() -> None:
    with Watch(), pytest.raises(Waits, match=r"training/data/batch\.py:\d+: a copy .* unpinned memory"):
        made_up_batch(partial(Tensor.clone)).to(CUDA)
