"""Python imports this by itself: in a test's own process, TensorRT and CUDA are the fakes."""

import os

if os.environ.get("UPSNET_FAKE_TENSORRT"):
    from tests.upsnet.tensorrt.fake_tensorrt import install_for_process

    install_for_process()
