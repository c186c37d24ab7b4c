"""A network and its exported file, by function bodies in ONNX Runtime."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import torch

from tests.agreement import assert_same_segments
from training.model.upsnet import UPSNet
from upsnet.runtimes.predictor import RawPrediction


def assert_onnx_runtime_agrees(
    network: UPSNet, proto: onnx.ModelProto, *, identical: float = 0.999, score: float = 1e-4
) -> None:
    """On a batch of two sizes, in which things are found; the limits are `assert_same_segments`'."""
    images = torch.randint(0, 256, (2, 96, 128, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    inputs = {
        "images": images.numpy(),
        "sizes": np.array([[96, 128], [80, 97]], np.int32),
        "scales": np.ones(2, np.float32),
    }
    with torch.inference_mode():
        wanted = network(*map(torch.from_numpy, inputs.values()))
    assert (wanted[1][..., 0] >= network.num_stuff).any(), "things are found"
    session = onnxruntime.InferenceSession(proto.SerializeToString())
    found = RawPrediction(*session.run(None, inputs))
    expected = RawPrediction(*(each.numpy() for each in wanted))
    assert_same_segments(found, expected, identical=identical, score=score)
