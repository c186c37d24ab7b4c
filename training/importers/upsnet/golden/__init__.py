"""Compares an imported network with its original: every array and every training loss of one image (docs/golden.md)."""
