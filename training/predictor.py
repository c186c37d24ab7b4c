"""The network in PyTorch behind the project's one `Predictor` interface (upsnet/runtimes/predictor.py)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from plugins_cuda import library
from training.checkpoint import load_model, versions
from training.config import Config
from training.device import describe_device, open_device
from training.inference import View, infer
from training.model.upsnet import UPSNet
from upsnet.categories import Categories
from upsnet.errors import InputError, one_line
from upsnet.geometry import NetworkBatch, NetworkImage, ResizeRule, collate, to_network
from upsnet.manifest import Manifest
from upsnet.runtimes.predictor import Details, Instances, RawPrediction


def make_manifest(config: Config, categories: Categories) -> Manifest:
    """What the users of a model must know about it. InputError when its segments do not fit an 8-bit map."""
    try:
        return Manifest(
            name=config.name,
            categories=list(categories),
            resize=config.data.resize,
            max_detections=config.model.panoptic.max_detections if categories.num_things else 1,  # a row of padding
            versions=versions(),
        )
    except ValidationError as error:
        raise InputError(f"configuration {config.name}: {one_line(error)}") from None


class ModelPredictor:
    """A module that takes and gives what the exported graph does (docs/export.md).

    It is put into eval mode for each prediction and left as it was; fp32 throughout (no TF32).
    """

    name = "pytorch"

    def __init__(self, model: nn.Module, manifest: Manifest, device: torch.device) -> None:
        self.model, self.manifest, self.device = model, manifest, device

    @property
    def device_name(self) -> str:
        return describe_device(self.device)

    @property
    def kernels(self) -> str:
        compiled = library.compiled(self.device)
        return compiled.path.name if compiled else "the definitions in PyTorch"

    def predict(self, batch: NetworkBatch) -> RawPrediction:
        with self._evaluating():
            outputs = self.model(*self._tensors(batch))
            return RawPrediction(*(output.cpu().numpy() for output in outputs))

    def close(self) -> None:
        """Nothing is held beyond the model itself."""

    def _tensors(self, batch: NetworkBatch) -> list[Tensor]:
        return [torch.from_numpy(array).to(self.device) for array in batch]

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        was_training = self.model.training
        self.model.eval()
        try:
            with torch.inference_mode(), true_float32():
                yield
        finally:
            self.model.train(was_training)


class UPSNetPredictor(ModelPredictor):
    """UPSNet, which also gives what AP and mIoU need, with test-time augmentation where it is asked for.

    Augmentation, of predict_detailed alone: `short_sides` are the sizes that photos are shown at (none: the manifest's;
    the longest side is limited in proportion), `flip` shows each of them mirrored too. Answers are at the manifest's
    size always.
    """

    model: UPSNet

    def __init__(
        self,
        model: UPSNet,
        manifest: Manifest,
        device: torch.device,
        short_sides: Sequence[int] = (),
        flip: bool = False,
    ) -> None:
        super().__init__(model, manifest, device)
        self.rules = [_at_short_side(manifest.resize, side) for side in dict.fromkeys(short_sides)]
        self.flip = flip
        self.augments = flip or self.rules not in ([], [manifest.resize])

    def predict_detailed(self, photos: Sequence[np.ndarray]) -> Details:
        """uint8 H x W x 3 photos of any sizes, as one batch, with all the views of test-time augmentation."""
        nets = [to_network(photo, self.manifest.resize) for photo in photos]
        base, scales = self._view(nets)
        with self._evaluating():
            outputs = infer(self.model, self.views(photos, nets), base, scales)
            arrays = [tensor.cpu().numpy() for tensor in (*outputs[:4], *outputs.instances, outputs.masks)]
        panoptic, segments, segment_count, semantic, boxes, scores, labels, counts, masks = arrays
        first_thing = self.manifest.categories_table.num_stuff
        instances = Instances(boxes, scores, labels + first_thing, counts, masks)
        return Details(nets, RawPrediction(panoptic, segments, segment_count), semantic, instances)

    def views(self, photos: Sequence[np.ndarray], nets: Sequence[NetworkImage]) -> list[View]:
        """What the network is shown of the photos, whose `nets` are at the manifest's size."""
        views = []
        for rule in self.rules or [self.manifest.resize]:
            seen = nets if rule == self.manifest.resize else [to_network(photo, rule) for photo in photos]
            for flipped in (False, True)[: 1 + self.flip]:
                views.append(self._view([mirrored(net) for net in seen] if flipped else seen, flipped)[0])
        return views

    def _view(self, nets: Sequence[NetworkImage], flipped: bool = False) -> tuple[View, Tensor]:
        """The images as one batch on the device, and their scales."""
        batch = collate(nets)
        images, sizes, scales = self._tensors(batch)
        return View(images, sizes, batch.sizes.tolist(), flipped), scales


class PyTorchPredictor(UPSNetPredictor):
    """A checkpoint on `device` (see upsnet/device.py). `threads`: PyTorch's CPU threads, a process-wide setting.

    InputError: the checkpoint cannot be read (see training.checkpoint.load), or the device is not there.
    """

    def __init__(
        self,
        checkpoint: Path,
        device: str = "cpu",
        threads: int | None = None,
        short_sides: Sequence[int] = (),
        flip: bool = False,
    ) -> None:
        if threads is not None:
            torch.set_num_threads(threads)
        target = open_device(device)
        model, config, categories, _ = load_model(checkpoint)
        super().__init__(model.to(target), make_manifest(config, categories), target, short_sides, flip)


@contextmanager
def true_float32() -> Iterator[None]:
    """Neither convolutions nor matrix products are rounded to TF32 inside, whatever the training was set to."""
    products = torch.backends.cuda.matmul
    before, products.allow_tf32 = products.allow_tf32, False
    try:
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            yield
    finally:
        products.allow_tf32 = before


def predictor_of(model: nn.Module, manifest: Manifest, device: torch.device) -> ModelPredictor:
    """One that gives details where the network does."""
    if isinstance(model, UPSNet):
        return UPSNetPredictor(model, manifest, device)
    return ModelPredictor(model, manifest, device)


def mirrored(net: NetworkImage) -> NetworkImage:
    """The image flipped left to right inside its padding."""
    height, width = net.size
    image = np.zeros_like(net.image)
    image[:height, :width] = net.image[:height, :width][:, ::-1]
    return net._replace(image=image)


def _at_short_side(rule: ResizeRule, short_side: int) -> ResizeRule:
    """The rule for another short side, the longest side in proportion, so that all views have the photo's shape."""
    if short_side < 1:
        raise InputError(f"a short side of {short_side} pixels: give at least 1")
    longest = round(rule.max_side * short_side / rule.short_side)
    return rule.model_copy(update={"short_side": short_side, "max_side": max(longest, short_side)})
