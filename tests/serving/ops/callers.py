"""Callers of a Triton server who ask without a pause, and never ask twice."""
