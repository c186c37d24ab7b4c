"""The normalisations of FPN and heads: which layers there are, by which checkpoints know them, and that they train."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.training.tiny_network import SMALL
from training.batch_norm import GlobalBatchNorm, synchronise
from training.config import LossConfig
from training.data.batch import collate_train
from training.data.sample import Sample
from training.distributed import Process
from training.gpu_step_check import made_up_batch
from training.losses import TrainingLosses
from training.model.norm import make_norm
from training.model.upsnet import UPSNet
from training.model_config import ModelConfig, Norm

LISTS = ("fpn.lateral_norm.", "fpn.smooth_norm.", "semantic_head.norms.", "mask_head.norms.")


def network(norm: Norm) -> UPSNet:
    """A mask head has no normalisation of the batch."""
    torch.manual_seed(0)
    of_masks = "none" if norm == "batch" else norm
    parts = {"fpn": norm, "semantic_head": norm, "mask_head": of_masks}
    return UPSNet(
        ModelConfig.model_validate(SMALL | {part: {**SMALL[part], "norm": own} for part, own in parts.items()}), 3, 2
    )


def names(model: nn.Module) -> set[str]:
    return {name for name in model.state_dict() if name.startswith(LISTS)}


def test_without_there_are_no_new_weights() -> None:
    assert isinstance(make_norm("none", 16), nn.Identity)
    assert not names(network("none"))


@pytest.mark.parametrize(
    ("norm", "parts"),
    [
        ("group", ["weight", "bias"]),
        ("batch", ["weight", "bias", "running_mean", "running_var", "num_batches_tracked"]),
    ],
)
def test_what_is_new_are_the_normalisations_own(norm: Norm, parts: list[str]) -> None:
    """The convolutions keep the names and shapes that checkpoints of networks without know."""
    layers = [f"{each}{i}" for each in LISTS[:2] for i in range(4)] + ["semantic_head.norms.0"]
    layers += ["mask_head.norms.0"] if norm == "group" else []
    plain, found = network("none").state_dict(), network(norm).state_dict()
    assert (
        found.keys() - plain.keys() == names(network(norm)) == {f"{each}.{part}" for each in layers for part in parts}
    )
    assert {name: found[name].shape for name in plain} == {name: value.shape for name, value in plain.items()}


@pytest.mark.parametrize(("channels", "groups"), [(256, 32), (128, 32), (16, 16), (48, 16), (100, 4), (7, 1)])
def test_groups_divide_the_channels(channels: int, groups: int) -> None:
    """32 where they do, else the most that do of those that 32 is a multiple of."""
    norm = make_norm("group", channels)
    assert isinstance(norm, nn.GroupNorm) and norm.num_groups == groups and norm.num_channels == channels


@pytest.mark.parametrize("norm", ["group", "batch"])
@pytest.mark.parametrize("instances", [(2, 0), (0, 0)])
def test_every_parameter_takes_part(norm: Norm, instances: tuple[int, ...]) -> None:
    model = network(norm).train()
    values = TrainingLosses(model, LossConfig())(made_up_batch(lambda tensor: tensor, instances))
    sum(values.values()).backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert not without
    batches = {name: int(buffer) for name, buffer in model.named_buffers() if name in names(model) and not buffer.ndim}
    assert set(batches.values()) == (set() if norm == "group" else {1, 4}), "the subnet sees four levels"


def test_a_batch_of_one_small_image_trains() -> None:
    """Its coarsest features have one place, and a batch of one value has no variance."""
    alone = Sample(
        image=torch.randint(0, 256, (3, 20, 30), dtype=torch.uint8),
        semantic=torch.zeros(20, 30, dtype=torch.uint8),
        instances=torch.zeros(20, 30, dtype=torch.int16),
        boxes=torch.zeros(0, 4),
        labels=torch.zeros(0, dtype=torch.int64),
        image_id=1,
        size=(20, 30),
        scale=1.0,
        seed=0,
    )
    values = TrainingLosses(network("batch").train(), LossConfig())(collate_train([alone]))
    assert all(value.isfinite() for value in values.values())


@pytest.mark.parametrize("norm", ["group", "batch"])
def test_what_comes_out_of_the_pyramid_is_normalised(norm: Norm) -> None:
    """P2 to P5 of one image: mean 0 and deviation 1 of every channel, of 16 groups or of the batch."""
    model, batch = network(norm).train(), made_up_batch(lambda tensor: tensor, (0,))
    with torch.no_grad():
        for level in model.pyramid(batch.images, batch.sizes)[:2]:
            torch.testing.assert_close(level.mean((0, 2, 3)), torch.zeros(16), atol=1e-4, rtol=0)
            torch.testing.assert_close(level.var((0, 2, 3), correction=0), torch.ones(16), atol=0.02, rtol=0)


def test_that_of_the_batch_is_one_of_all_processes() -> None:
    model = network("batch")
    plain = {name for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)}
    keys = list(model.state_dict())
    synchronise(model, Process(0, 2, torch.device("cpu")))
    assert {name for name, module in model.named_modules() if isinstance(module, GlobalBatchNorm)} == plain
    assert {name for name in plain if f"{name}.".startswith(LISTS)} == {
        *(f"fpn.{each}_norm.{i}" for each in ("lateral", "smooth") for i in range(4)),
        "semantic_head.norms.0",
    }
    assert list(model.state_dict()) == keys


@pytest.mark.parametrize("norm", ["none", "group", "batch"])
def test_the_padding_of_a_batch_changes_no_image(norm: Norm) -> None:
    """In inference an image is what it is alone, up to what convolutions see of the padding at its border.
    PyTorch's GroupNorm, over all of it, is off by four fifths."""
    model = network(norm).eval()
    image = torch.randint(0, 256, (1, 192, 192, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    sizes = torch.tensor([[192, 192]], dtype=torch.int32)
    outputs = []
    with torch.inference_mode():
        for padding in (0, 384):
            images = F.pad(image, (0, 0, 0, padding))
            outputs.append(model.semantic_head(model.pyramid(images, sizes)[:4], sizes)[..., :48, :24])
    torch.testing.assert_close(*outputs, rtol=0, atol=0.06 * outputs[0].abs().max().item())
