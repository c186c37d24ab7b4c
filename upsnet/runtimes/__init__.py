"""What runs a network: ONNX Runtime, a Triton server, and by name PyTorch, behind one interface (predictor.py).

`upsnet.load` is the door for applications; open.py decides what opens what.
"""
