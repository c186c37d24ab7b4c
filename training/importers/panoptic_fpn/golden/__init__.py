"""Compares an imported Panoptic FPN with detectron2's: every array of one photo (docs/golden.md)."""
