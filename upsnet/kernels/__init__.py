"""The operators' compiled libraries: making them (building.py), and ONNX Runtime's choice of one (choice.py).

Their sources are the checkout's plugins_cuda/, of which a wheel carries the C++ and CUDA files. No PyTorch.
"""
