"""TensorRT and TensorRT-RTX from Python: whatever calls one of them, calls it through here."""
