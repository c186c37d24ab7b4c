"""The network in PyTorch behind the project's one `Predictor` interface (panoptic/predictor.py)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from pydantic import ValidationError
from torch import nn

from panoptic.categories import Categories
from panoptic.errors import InputError, one_line
from panoptic.manifest import Manifest
from panoptic.predictor import RawPrediction
from training.checkpoint import load_model, versions
from training.config import Config


def make_manifest(config: Config, categories: Categories) -> Manifest:
    """What the users of a model must know about it. InputError when its segments do not fit an 8-bit map."""
    try:
        return Manifest(
            name=config.name,
            categories=list(categories),
            resize=config.data.resize,
            max_detections=config.model.panoptic.max_detections,
            versions=versions(),
        )
    except ValidationError as error:
        raise InputError(f"configuration {config.name}: {one_line(error)}") from None


class ModelPredictor:
    """A network in memory. It is put into eval mode for each prediction and left as it was."""

    name = "pytorch"

    def __init__(self, model: nn.Module, manifest: Manifest, device: torch.device) -> None:
        self.model = model
        self.manifest = manifest
        self.device = device

    def predict(self, images: np.ndarray, sizes: np.ndarray, scales: np.ndarray) -> RawPrediction:
        """images uint8 B x H x W x 3, sizes int32 B x 2, scales float32 B; fp32 throughout (no TF32)."""
        inputs = [torch.from_numpy(array).to(self.device) for array in (images, sizes, scales)]
        was_training = self.model.training
        self.model.eval()
        try:
            with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
                outputs = self.model(*inputs)
        finally:
            self.model.train(was_training)
        return RawPrediction(*(output.cpu().numpy() for output in outputs))

    def close(self) -> None:
        """Nothing is held beyond the model itself."""


class PyTorchPredictor(ModelPredictor):
    """A checkpoint on `device` ("cpu", "cuda" or "cuda:1"). `threads`: PyTorch's CPU threads, a process-wide setting.

    InputError: the checkpoint cannot be read (see training.checkpoint.load), or the device is not there.
    """

    def __init__(self, checkpoint: Path, device: str = "cpu", threads: int | None = None) -> None:
        if threads is not None:
            torch.set_num_threads(threads)
        target = open_device(device)
        model, config, categories, _ = load_model(checkpoint)
        super().__init__(model.to(target), make_manifest(config, categories), target)


def open_device(name: str) -> torch.device:
    """ "auto" is the GPU where there is one. InputError for a device that PyTorch does not know or cannot reach."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(f"device {name!r}: use auto, cpu, cuda or cuda:N") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InputError(f"device {name!r}: PyTorch sees {torch.cuda.device_count()} CUDA devices; use --device cpu")
    return device
