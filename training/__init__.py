"""The model, the losses, the loop."""

import os

# PyTorch reads it once, when it is loaded. Where another machine is gone, its C++ prints a wall of addresses otherwise.
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
