"""A trained network as the ablation looks at it: as it is, or without a part that belongs to inference."""

from __future__ import annotations

from pathlib import Path

from eval.ablation.parts import Prediction
from eval.ablation.without_unknown import predictor_without_unknown
from training.checkpoint import load_model
from training.device import open_device
from training.predictor import UPSNetPredictor, make_manifest
from upsnet.runtimes.predictor import Predictor


def open_predictor(weights: Path, device: str, prediction: Prediction) -> Predictor:
    """The network of a checkpoint on `device`."""
    model, config, categories, _ = load_model(weights)
    if prediction == "without pruning":
        panoptic = model.config.panoptic.model_copy(update={"mask_overlap": 1.0})
        model.config = model.config.model_copy(update={"panoptic": panoptic})
    target = open_device(device)
    make = predictor_without_unknown if prediction == "without unknown" else UPSNetPredictor
    return make(model.to(target), make_manifest(config, categories), target)
