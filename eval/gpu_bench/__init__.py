"""The networks on an NVIDIA GPU, in every way that PyTorch and ONNX Runtime have to run them (`make bench NAME=gpu`).

What is measured: a batch of uint8 photos of the network's size in the host's memory -> its panoptic map, table and
count in the host's memory. Weights are random. It needs PyTorch with torchvision, timm, pydantic, and nvcc for our
kernels; neither typer nor rich nor a network. docs/gpu.md says what to carry to a machine without one.
"""
