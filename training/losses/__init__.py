"""The losses of UPSNet: random draws, assignment, targets, terms, and the module that puts them together."""

from training.losses.total import TrainingLosses

__all__ = ["TrainingLosses"]
