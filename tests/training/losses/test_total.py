"""The whole loss of a batch: known properties, empty images, given targets, precision, nothing that waits."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.ops import roi_align

from plugins_cuda.roi_align_fpn.reference import OUTSIDE
from tests.training.losses.conftest import STUFF
from training.config import LossConfig
from training.conventions import NAMED, Conventions
from training.data.batch import Batch
from training.data.sample import IGNORE
from training.losses import TrainingLosses
from training.losses.targets import Targets
from training.losses.total import is_thing
from training.model.upsnet import UPSNet
from training.model_config import ModelConfig
from upsnet.errors import InputError

MakeBatch = Callable[..., Batch]
NAMES = ["rpn_cls", "rpn_box", "rcnn_cls", "rcnn_box", "mask", "semantic", "semantic_roi", "panoptic"]


def of_image(batch: Batch, image: int) -> Batch:
    return Batch._make(values[image : image + 1] for values in batch)


def gradients(module: nn.Module) -> list[Tensor]:
    """Of every parameter: none is without."""
    return [torch.as_tensor(p.grad) for p in module.parameters()]  # fails for None


def values_of(losses: dict[str, Tensor]) -> dict[str, float]:
    return {name: value.item() for name, value in losses.items()}


@pytest.mark.parametrize("instances", [[3, 2], [0, 2], [0, 0]])
def test_every_parameter_takes_part(losses: TrainingLosses, make_batch: MakeBatch, instances: list[int]) -> None:
    values = losses(make_batch(instances))
    assert list(values) == NAMES
    assert all(torch.isfinite(value) and value >= 0 for value in values.values())
    sum(values.values()).backward()
    without = [name for name, p in losses.named_parameters() if p.grad is None or not torch.isfinite(p.grad).all()]
    assert not without
    if instances == [0, 0]:
        assert values["mask"] == values["rcnn_box"] == values["rpn_box"] == values["semantic_roi"] == 0


@pytest.mark.parametrize("instances", [[3, 2], [0, 0]])
@pytest.mark.parametrize("things", [1, 3])
def test_things_alone(small: ModelConfig, make_batch: MakeBatch, instances: list[int], things: int) -> None:
    losses = TrainingLosses(UPSNet(small, 0, things), LossConfig(semantic=1, semantic_roi=0.2, panoptic=0.5))
    batch = make_batch(instances)
    labels = [own % things for own in batch.labels]
    semantic = torch.where(batch.instances > 0, 1 + (batch.semantic - STUFF) % things, 0)  # void is channel 0
    values = losses(batch._replace(labels=labels, semantic=semantic.byte()))
    assert list(values) == NAMES and all(map(torch.isfinite, values.values()))
    assert values["semantic"] > 0 and values["panoptic"] > 0, "the background is learned too"
    sum(values.values()).backward()
    gradients(losses)


@pytest.mark.parametrize("stuff", [1, 4])
def test_stuff_alone(small: ModelConfig, make_batch: MakeBatch, stuff: int) -> None:
    losses = TrainingLosses(UPSNet(small, stuff, 0), LossConfig(semantic=0.5, semantic_roi=0.2, panoptic=0.5))
    batch = make_batch([0, 0])
    values = losses(batch._replace(semantic=batch.semantic % stuff))
    assert list(values) == ["semantic"]
    assert (values["semantic"] > 0) == (stuff > 1)
    values["semantic"].backward()
    gradients(losses)
    with pytest.raises(InputError, match=r"loss\.semantic is 0"):
        TrainingLosses(losses.model, LossConfig(semantic=0))


def test_rows_that_are_not_used_have_no_pixel_and_change_nothing(
    losses: TrainingLosses, make_batch: MakeBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, batch = losses.model, make_batch([1, 2])
    with torch.no_grad():
        pyramid = model.pyramid(batch.images, batch.sizes)
        given = losses.targets(batch, model.rpn(pyramid))
    given.rois.labels[0, 3:] = IGNORE  # an image with three RoIs
    unused = [
        given.rois.labels == IGNORE,
        torch.cat([~is_thing(given.rois.labels[:, : given.masks.shape[1]]), ~given.panoptic.kept], dim=1),
    ]
    assert all(rows.any() and not rows.all() for rows in unused)

    def found() -> tuple[dict[str, float], list[Tensor]]:
        model.zero_grad()
        values = losses(batch, given)
        sum(values.values()).backward()
        return values_of(values), [gradient.clone() for gradient in gradients(model)]

    values, wanted = found()
    pool, outside = model.roi_features, list[Tensor]()

    def on_the_first_pixel(pyramid: list[Tensor], boxes: Tensor, output_size: int) -> Tensor:
        pooled = pool(pyramid, boxes, output_size).unflatten(0, boxes.shape[:2])
        outside.append((boxes == OUTSIDE).all(2))
        assert not pooled[outside[-1]].any()
        return pool(pyramid, boxes.where(~outside[-1].unsqueeze(2), 0.0), output_size)

    monkeypatch.setattr(model, "roi_features", on_the_first_pixel)
    again, piled = found()
    assert all(torch.equal(a, b) for a, b in zip(outside, unused, strict=True))
    assert again == pytest.approx(values, rel=1e-6)
    torch.testing.assert_close(piled, wanted, rtol=1e-5, atol=1e-7)


def test_an_image_of_void_alone(losses: TrainingLosses, make_batch: MakeBatch) -> None:
    batch = make_batch([0])
    values = losses(batch._replace(semantic=torch.full_like(batch.semantic, IGNORE)))
    assert values["semantic"] == 0 and values["panoptic"] == 0
    assert math.isfinite(sum(values.values()).item())


def test_instances_of_one_pixel(losses: TrainingLosses, make_batch: MakeBatch) -> None:
    batch = make_batch([0])
    numbers = torch.zeros_like(batch.instances)
    boxes = torch.tensor([[0.0, 0, 1, 1], [95, 63, 96, 64], [50, 30, 51, 31]])
    for i, (x, y) in enumerate(boxes[:, :2].int().tolist()):
        numbers[0, y, x] = i + 1
    values = losses(batch._replace(instances=numbers, boxes=[boxes], labels=[torch.tensor([0, 1, 2])]))
    total = sum(values.values())
    total.backward()
    assert torch.isfinite(total) and all(torch.isfinite(gradient).all() for gradient in gradients(losses))
    assert values["mask"] > 0, "a box of one pixel is its own foreground RoI"


def test_losses_fall_when_one_batch_is_learned(losses: TrainingLosses, make_batch: MakeBatch) -> None:
    batch = make_batch([3, 2])
    optimizer = torch.optim.AdamW(losses.parameters(), lr=3e-3)
    seen = []
    for step in range(8):
        values = losses(batch._replace(seeds=batch.seeds + step))
        optimizer.zero_grad()
        sum(values.values()).backward()
        optimizer.step()
        seen.append(sum(values.values()).item())
    assert min(seen[-3:]) < 0.75 * seen[0]


def test_a_batch_is_the_mean_of_its_images(losses: TrainingLosses, make_batch: MakeBatch) -> None:
    """Values and gradients; also for images with different numbers of instances and labelled pixels."""
    losses.eval()
    batch = make_batch([4, 0, 1])
    batch.semantic[1, :40] = IGNORE
    together = losses(batch)
    sum(together.values()).backward()
    before = [gradient.clone() for gradient in gradients(losses)]
    losses.zero_grad()
    alone = []
    for image in range(3):
        alone.append(losses(of_image(batch, image)))
        (sum(alone[-1].values()) / 3).backward()
    for name, value in together.items():
        mean = sum(values[name].item() for values in alone) / 3
        assert value.item() == pytest.approx(mean, rel=1e-5, abs=1e-7), name
    for (name, p), gradient in zip(losses.named_parameters(), before, strict=True):
        torch.testing.assert_close(gradient, p.grad, rtol=1e-3, atol=1e-5, msg=name)


def test_draws_come_from_the_seeds_alone(losses: TrainingLosses, make_batch: MakeBatch) -> None:
    batch = make_batch([4, 3])
    losses.eval()
    first = values_of(losses(batch))
    torch.manual_seed(12345)
    assert values_of(losses(batch)) == first
    other = values_of(losses(batch._replace(seeds=batch.seeds + 1)))
    assert other["semantic"] == first["semantic"]
    for name in ("rpn_cls", "rcnn_cls", "panoptic"):
        assert other[name] != first[name], name


@pytest.mark.parametrize("weight", ["semantic_roi", "panoptic"])
def test_a_branch_of_weight_zero_is_left_out(losses: TrainingLosses, make_batch: MakeBatch, weight: str) -> None:
    batch = make_batch([3, 2])
    losses.eval()
    everything = values_of(losses(batch))
    losses.weights = losses.weights.model_copy(update={weight: 0.0})
    found = losses(batch)
    assert list(found) == [name for name in NAMES if name != weight]
    assert values_of(found) == pytest.approx({name: everything[name] for name in found}, rel=1e-5)
    sum(found.values()).backward()
    assert gradients(losses)


class TestGiven:
    def drawn(self, losses: TrainingLosses, batch: Batch) -> Targets:
        with torch.no_grad():
            return losses.targets(batch, losses.model.rpn(losses.model.pyramid(batch.images, batch.sizes)))

    def test_drawn_targets_given_back(self, losses: TrainingLosses, make_batch: MakeBatch) -> None:
        batch = make_batch([3, 0])
        losses.eval()
        given = self.drawn(losses, batch)
        assert values_of(losses(batch, given)) == values_of(losses(batch))

    def test_they_are_what_counts(self, losses: TrainingLosses, make_batch: MakeBatch) -> None:
        batch = make_batch([3, 2])
        losses.eval()
        before, given = values_of(losses(batch)), self.drawn(losses, batch)
        changed = {
            "rpn_box": given._replace(rpn=given.rpn._replace(deltas=given.rpn.deltas + 1)),
            "rcnn_box": given._replace(rois=given.rois._replace(deltas=given.rois.deltas + 1)),
            "mask": given._replace(masks=1 - given.masks),
            "semantic_roi": given._replace(crops=(given.crops + 1) % STUFF_AND_THINGS),
            "panoptic": given._replace(panoptic=given.panoptic._replace(pixels=given.panoptic.pixels * 0)),
        }
        for name, targets in changed.items():
            after = values_of(losses(batch, targets))
            assert {n for n in NAMES if after[n] != before[n]} == {name}


STUFF_AND_THINGS = 7


def test_the_mask_rows_are_the_foreground(losses: TrainingLosses, make_batch: MakeBatch) -> None:
    """The mean over the foreground RoIs of an image alone, through the heads by hand."""
    batch, model = make_batch([5]), losses.eval().model
    with torch.no_grad():
        pyramid = model.pyramid(batch.images, batch.sizes)
        targets = losses.targets(batch, model.rpn(pyramid))
        rows = is_thing(targets.rois.labels[0])
        count = int(rows.sum())
        assert 5 <= count <= targets.masks.shape[1] and rows[:count].all()
        features = model.roi_features(pyramid, targets.rois.rois[:, :count], 14)
        logits = model.mask_head(features, targets.rois.labels[0, :count] - 1)
        expected = F.binary_cross_entropy_with_logits(logits, targets.masks[0, :count])
        assert losses(batch)["mask"].item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("conventions", NAMED.values(), ids=NAMED)
def test_semantic_roi_crops_features(losses: TrainingLosses, make_batch: MakeBatch, conventions: Conventions) -> None:
    """As the paper has it: crops of the features go through the score convolution; we crop the scores."""
    model, batch = losses.model, make_batch([4])
    model.conventions = conventions
    last = torch.tensor([0, 0, 1, 1]) * conventions.inclusive
    features = torch.randn(1, model.semantic_head.score.in_channels, 16, 24)
    with torch.no_grad():
        model.get_parameter("semantic_head.score.bias").normal_()
        rule = {"sampling_ratio": conventions.samples, "aligned": conventions.aligned}
        crops = roi_align(features, [batch.boxes[0] - last], 28, 0.25, **rule)
        labels = torch.randint(0, STUFF_AND_THINGS, (4, 28, 28), dtype=torch.uint8)
        expected = F.cross_entropy(model.semantic_head.score(crops), labels.long())
        found = losses.semantic_roi_loss(model.semantic_head.score(features), batch, labels)
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)


def slow_panoptic_loss(semantic: Tensor, masks: Tensor, batch: Batch, stuff: int) -> float:
    """Of one image with all its instances kept, pixel by pixel from the paper's definition."""
    height, width = semantic.shape[1:]
    boxes, labels = batch.boxes[0], batch.labels[0].tolist()
    total = 0.0
    for y in range(height):
        for x in range(width):
            logits, segments = semantic[:stuff, y, x].tolist(), []
            for i, label in enumerate(labels):
                x1, y1, x2, y2 = (v / 4 for v in (boxes[i] - torch.tensor([0, 0, 1, 1])).tolist())
                inside = int(x1) <= x <= round(x2) and int(y1) <= y <= round(y2)
                segments.append(semantic[stuff + label, y, x].item() if inside else 0.0)
                columns, rows = int(x2) - int(x1) + 1, int(y2) - int(y1) + 1
                mask = 0.0
                if 0 <= x - int(x1) < columns and 0 <= y - int(y1) < rows:
                    grid = F.interpolate(masks[i][None, None], (rows, columns), mode="bilinear")
                    mask = grid[0, 0, y - int(y1), x - int(x1)].item()
                logits.append(segments[-1] + mask)
            logits.append(semantic[stuff:, y, x].max().item() - max(segments))
            label = int(batch.semantic[0, 4 * y + 2, 4 * x + 2])
            number = int(batch.instances[0, 4 * y + 2, 4 * x + 2])
            if number:
                label = stuff + number - 1
            total += math.log(sum(math.exp(v) for v in logits)) - logits[label]
    return total / (height * width)


@pytest.mark.parametrize("conventions", NAMED.values(), ids=NAMED)
def test_panoptic_loss_against_a_loop(losses: TrainingLosses, make_batch: MakeBatch, conventions: Conventions) -> None:
    """With everything kept, in both conventions of the boxes: what is pasted is the same."""
    model, batch = losses.eval().model, make_batch([2])
    panoptic = model.config.panoptic.model_copy(update={"keep_fraction": 1.0})
    model.config, model.conventions = model.config.model_copy(update={"panoptic": panoptic}), conventions
    with torch.no_grad():
        pyramid = model.pyramid(batch.images, batch.sizes)
        semantic = model.semantic_head(pyramid[:4], batch.sizes)
        given = losses.targets(batch, model.rpn(pyramid))
        masks = losses.mask_logits(pyramid, given)[1]
        found = losses.panoptic_loss(semantic, masks, given).item()
    # Kept instances come in the order of their draws; here in the order of the batch.
    boxes = conventions.from_exclusive(batch.boxes[0])
    order = [int((given.panoptic.boxes[0] == own).all(1).nonzero()) for own in boxes]
    assert found == pytest.approx(slow_panoptic_loss(semantic[0], masks[0, order], batch, model.num_stuff), rel=1e-4)


@pytest.mark.parametrize("instances", [[3, 2], [0, 0]])
def test_upsnets_conventions_train(small: ModelConfig, make_batch: MakeBatch, instances: list[int]) -> None:
    torch.manual_seed(0)
    model = UPSNet(small.model_copy(update={"conventions": "upsnet"}), 4, 3)
    values = TrainingLosses(model, LossConfig())(make_batch(instances))
    sum(values.values()).backward()
    assert all(torch.isfinite(gradient).all() for gradient in gradients(model))


def test_under_autocast(small: ModelConfig, losses: TrainingLosses, make_batch: MakeBatch) -> None:
    """The network in bfloat16, the losses in float32: near the full precision, with the same draws."""
    plain = small.semantic_head.model_copy(update={"deformable": False})
    torch.manual_seed(0)
    model = UPSNet(small.model_copy(update={"semantic_head": plain}), 4, 3).eval()
    losses, batch = TrainingLosses(model, losses.weights), make_batch([3, 2])
    full = losses(batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = losses(batch)
    assert all(value.dtype == torch.float32 for value in low.values())
    sum(low.values()).backward()
    assert all(torch.isfinite(gradient).all() for gradient in gradients(model))
    for name in ("rpn_cls", "semantic", "semantic_roi", "panoptic", "mask"):
        assert low[name].item() == pytest.approx(full[name].item(), rel=0.05), name
    assert low["semantic"].item() != full["semantic"].item(), "the network did not run in bfloat16"


@pytest.mark.parametrize(("part", "value"), [("rpn.deltas", math.nan), ("rpn.logits", math.inf), ("fpn", 3e38)])
def test_numbers_that_run_away_end_in_a_loss_that_is_not_finite(
    losses: TrainingLosses, make_batch: MakeBatch, part: str, value: float
) -> None:
    """No index comes from one of them: the losses are there, and say it; so does a prediction's shape."""
    plain = losses.model.config.semantic_head.model_copy(update={"deformable": False})
    model = UPSNet(losses.model.config.model_copy(update={"semantic_head": plain}), 4, 3)
    with torch.no_grad():
        for parameter in model.get_submodule(part).parameters():
            parameter.fill_(value)
    batch = make_batch([3, 0])
    assert not math.isfinite(sum(loss.item() for loss in TrainingLosses(model, losses.weights)(batch).values()))
    with torch.inference_mode():
        panoptic, segments, counts = model.eval()(batch.images, batch.sizes, batch.scales)
    assert (panoptic.amax((1, 2)) <= counts).all() and (counts <= segments.shape[1]).all()


class ReadsNothing(TorchDispatchMode):
    """Fails where a shape or a branch of the host depends on the values of a tensor: it would wait for the device."""

    reading = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "_unique2", "unique_dim", "bincount")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        mask = name.startswith("index") and any(
            isinstance(index, Tensor) and index.dtype == torch.bool
            for index in (args[1] if isinstance(args[1], list | tuple) else [])
        )
        assert name not in self.reading and not mask, f"{name} reads the values of a tensor"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("instances", [[3, 0], [0, 0]])
def test_no_value_is_read_back(
    losses: TrainingLosses, make_batch: MakeBatch, instances: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def tolist(self: Tensor) -> None:  # on a CPU it reads the memory without asking PyTorch
        raise AssertionError("tolist reads the values of a tensor")

    batch = make_batch(instances)
    monkeypatch.setattr(Tensor, "tolist", tolist)
    with ReadsNothing():
        sum(losses(batch).values()).backward()
        for reads in (lambda: bool(batch.seeds[0] > 0), lambda: batch.seeds[batch.seeds > 0], batch.seeds.tolist):
            with pytest.raises(AssertionError, match="reads the values"):
                reads()
