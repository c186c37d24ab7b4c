"""The place of before 0.2 (docs/moved.md)."""

from upsnet.metrics.average_precision import AveragePrecision

__all__ = ["AveragePrecision"]
