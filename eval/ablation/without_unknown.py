"""What the unknown class of UPSNet's panoptic head is worth: a trained network's predictions without it."""

from __future__ import annotations

import copy
from functools import partial

import torch

from plugins_cuda.panoptic_fusion import reference
from training.model.upsnet import UPSNet
from training.predictor import UPSNetPredictor
from upsnet.errors import InputError
from upsnet.manifest import Manifest


def predictor_without_unknown(model: UPSNet, manifest: Manifest, device: torch.device) -> UPSNetPredictor:
    """A predictor in which every pixel that the panoptic head would give to `unknown` goes to the best of stuff and
    instances: the head's definition in PyTorch, the channel left out of its argmax. `model`, on `device`, stays as it
    is and shares its weights.

    InputError: a network of the heuristic merge, which has no such channel.
    """
    if model.heuristic:
        raise InputError("model.panoptic.merge: heuristic knows no unknown class; there is nothing to leave out")
    other = copy.copy(model)
    fuse = partial(other.fuse, operator=partial(reference.fuse, unknown=False))
    other.fuse = fuse  # type: ignore[method-assign]
    return UPSNetPredictor(other, manifest, device)
