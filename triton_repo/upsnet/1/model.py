"""UPSNet for Triton's Python backend: runs the model.onnx beside this file under ONNX Runtime on the CPU.

Triton has checked names, types and ranks before it calls `execute`; what it cannot check is checked in `problem_with`.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import triton_python_backend_utils as pb_utils

INPUTS = ("images", "sizes", "scales")
OUTPUTS = ("panoptic", "segments", "segment_count")
DIVISOR = 32


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        if np.lib.NumpyVersion(np.__version__) >= "2.0.0":
            # This backend's tensors come back empty, without any error, under numpy 2.
            raise pb_utils.TritonModelException(f"Triton's Python backend needs numpy < 2, and finds {np.__version__}")
        parameters = json.loads(args["model_config"])["parameters"]
        self.max_pixels = int(parameters["max_pixels"]["string_value"])
        options = ort.SessionOptions()
        options.intra_op_num_threads = int(parameters["threads"]["string_value"]) or len(os.sched_getaffinity(0))
        options.log_severity_level = 3
        model = Path(__file__).with_name("model.onnx")
        if not model.is_file():
            raise pb_utils.TritonModelException("there is no model.onnx beside model.py")
        self.session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])

    def execute(self, requests: list[Any]) -> list[Any]:
        """One response for each request, in order. Requests of one image size run as one batch."""
        responses: list[Any] = [None] * len(requests)
        groups: dict[tuple[int, ...], list[tuple[int, list[np.ndarray]]]] = {}
        for index, request in enumerate(requests):
            inputs = [pb_utils.get_input_tensor_by_name(request, name).as_numpy() for name in INPUTS]
            problem = problem_with(*inputs, max_pixels=self.max_pixels)
            if problem:
                responses[index] = refusal(problem, pb_utils.TritonError.INVALID_ARG)
            else:
                groups.setdefault(inputs[0].shape[1:], []).append((index, inputs))
        for group in groups.values():
            indices = [index for index, _ in group]
            for index, response in zip(indices, self.run([inputs for _, inputs in group]), strict=True):
                responses[index] = response
        return responses

    def run(self, requests: list[list[np.ndarray]]) -> list[Any]:
        # A request that is alone goes in as the view of shared memory that it is: no copy.
        batch = (
            requests[0] if len(requests) == 1 else [np.concatenate(arrays) for arrays in zip(*requests, strict=True)]
        )
        try:
            outputs = self.session.run(OUTPUTS, dict(zip(INPUTS, batch, strict=True)))
        except Exception as error:  # ONNX Runtime's errors share no narrower class; the reason goes to the server's log
            pb_utils.Logger.log_error(f"upsnet: inference failed: {error}")
            return [refusal("inference failed; the server's log has the reason", pb_utils.TritonError.INTERNAL)] * len(
                requests
            )
        ends = np.cumsum([len(images) for images, *_ in requests])[:-1]
        parts = zip(*(np.split(output, ends) for output in outputs), strict=True)
        return [
            pb_utils.InferenceResponse(
                [pb_utils.Tensor(name, part) for name, part in zip(OUTPUTS, arrays, strict=True)]
            )
            for arrays in parts
        ]


def problem_with(images: np.ndarray, sizes: np.ndarray, scales: np.ndarray, max_pixels: int) -> str:
    """What is wrong with a request, in one line that a client may read; empty if nothing is.

    images uint8 B x H x W x 3, sizes int32 B x 2, scales float32 B.
    """
    count, height, width = images.shape[:3]
    if count == 0 or sizes.shape != (count, 2) or scales.shape != (count,):
        return f"images, sizes and scales must agree: {count} images, sizes {sizes.shape}, scales {scales.shape}"
    if height == 0 or width == 0 or height % DIVISOR or width % DIVISOR:
        return f"images are {height} x {width}: height and width must be non-zero multiples of {DIVISOR}"
    if height * width > max_pixels:
        return f"images are {height} x {width}: more than {max_pixels} pixels"
    wrong = (sizes < 1).any(axis=1) | (sizes > (height, width)).any(axis=1)
    if wrong.any():
        h, w = sizes[wrong.argmax()].tolist()
        return f"sizes[{wrong.argmax()}] is {h} x {w}: not inside the image of {height} x {width}"
    wrong = ~(np.isfinite(scales) & (scales > 0))
    if wrong.any():
        return f"scales[{wrong.argmax()}] is {scales[wrong.argmax()]}: not a positive number"
    return ""


def refusal(message: str, code: Any) -> Any:
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(message, code))
