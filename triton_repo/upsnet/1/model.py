"""UPSNet for Triton's Python backend: tensors in, tensors out, by the model.onnx beside this file in ONNX Runtime.

The compiled kernels of its operators lie beside it where `upsnet engine` found a compiler; nothing is compiled here.
Triton has checked names, types and ranks before it calls `execute`; what it cannot check is checked in `problem_with`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

try:
    import onnxruntime as ort

    from upsnet.contract import CUDA_LIBRARY, INPUTS, LIBRARY, OUTPUTS
    from upsnet.errors import InputError
    from upsnet.kernels.choice import OFF, check, wanted_kernels
    from upsnet.runtimes.onnx_runtime import CPU, CUDA, session_options
    from upsnet.runtimes.weights import start_session
    from upsnet.stub import Counters, check_tensors
except ImportError as error:
    raise ImportError(
        f"the model upsnet needs the packages onnxruntime and upsnet-trt in the server's Python: {error}"
    ) from None

DIVISOR = 32
FAILED = "inference failed; the server's log has the reason"
ALLOCATORS = {CUDA: "gpu:0;cpu:0", CPU: "cpu:0"}  # in the words of ONNX Runtime's run options

Tensors = list[np.ndarray]  # images uint8 B x H x W x 3, sizes int32 B x 2, scales float32 B


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        check_tensors(pb_utils)
        parameters = {key: each["string_value"] for key, each in json.loads(args["model_config"])["parameters"].items()}
        self.max_pixels = int(parameters["max_pixels"])
        self.threads = int(parameters["threads"]) or len(os.sched_getaffinity(0))
        self.session = self.open(Path(__file__).with_name("model.onnx"), parameters["device"])
        self.largest = 0  # pixels of the largest batch whose memory is kept
        self.shrinking = ort.RunOptions()
        provider = self.session.get_providers()[0]
        self.shrinking.add_run_config_entry("memory.enable_memory_arena_shrinkage", ALLOCATORS[provider])
        self.counters = Counters(pb_utils, "upsnet")
        place = "the GPU" if provider == CUDA else f"the CPU with {self.threads} threads"
        ran = f"{place}, ONNX Runtime {ort.__version__}, kernels: {self.kernels}"
        pb_utils.Logger.log_info(f"upsnet: runs on {ran}")

    def open(self, model: Path, device: str) -> ort.InferenceSession:
        """On the device "cuda" or "cpu"; "auto" is the GPU where ONNX Runtime has one and it works."""
        if not model.is_file():
            raise pb_utils.TritonModelException("there is no model.onnx beside model.py")
        if device != "cpu" and CUDA in ort.get_available_providers():
            cuda = (CUDA, {"use_tf32": "0"})  # as every other runtime computes float32
            session = self.start(model, [cuda, CPU], CUDA_LIBRARY)
            if session.get_providers()[0] == CUDA:  # else CUDA did not start, and ONNX Runtime took the CPU
                return session
        if device == "cuda":
            raise pb_utils.TritonModelException("device is cuda, but ONNX Runtime finds no GPU that works")
        return self.start(model, [CPU], LIBRARY)

    def start(self, model: Path, providers: list[Any], library: str) -> ort.InferenceSession:
        """With the compiled kernels of the library beside the model; where there is none, or it is another version's or
        does not load here, the functions inside the model serve."""
        place, self.kernels = model.with_name(library), f"function bodies (no {library} was deployed)"
        try:
            wanted = wanted_kernels()
        except InputError as error:
            raise pb_utils.TritonModelException(str(error)) from None
        if wanted == "off":
            self.kernels = f"function bodies ({OFF})"
        elif place.is_file():
            try:
                check(place)
                session = start_session(model, self.options(place), providers=providers)
                self.kernels = library
                return session
            except Exception as error:  # ONNX Runtime's errors share no narrower class
                pb_utils.Logger.log_warn(f"upsnet: {library} cannot be used: {error}")
                self.kernels = f"function bodies ({library} cannot be used, see above)"
        return start_session(model, self.options(), providers=providers)

    def options(self, library: Path | None = None) -> ort.SessionOptions:
        options = session_options(self.threads, library)
        # A thread that waits for work would otherwise take a core from the other instance.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        return options

    def execute(self, requests: list[Any]) -> list[Any]:
        """One response of its own for each request, in order: Triton crashes where two share one.

        Requests of one image size run as one batch, as far as max_pixels allows.
        """
        responses: list[Any] = [None] * len(requests)
        good: dict[int, Tensors] = {}
        for index, request in enumerate(requests):
            if request.is_cancelled():
                responses[index] = refusal("the caller has gone", pb_utils.TritonError.CANCELLED)
                continue
            tensors = [pb_utils.get_input_tensor_by_name(request, name).as_numpy() for name in INPUTS]
            if problem := problem_with(self.max_pixels, *tensors):
                responses[index] = refusal(problem, pb_utils.TritonError.INVALID_ARG)
            else:
                good[index] = tensors
        for indices in batches(good, self.max_pixels):
            answers = self.run([good[index] for index in indices])
            for index, answer in zip(indices, answers, strict=True):
                responses[index] = answer
        return responses

    def run(self, requests: list[Tensors]) -> list[Any]:
        """Where the batch fails, each request runs alone, so that good neighbours of a bad one are answered."""
        try:
            return list(self.run_batch(requests))
        except Exception as error:  # ONNX Runtime's errors share no narrower class; the reason goes to the server's log
            pb_utils.Logger.log_error(f"upsnet: inference of {len(requests)} requests failed: {error}")
        if len(requests) == 1:
            return [refusal(FAILED, pb_utils.TritonError.INTERNAL)]
        return [answer for request in requests for answer in self.run([request])]

    def run_batch(self, requests: list[Tensors]) -> Iterator[Any]:
        # A request that is alone goes in as the view of shared memory that it is: no copy.
        batch = (
            requests[0] if len(requests) == 1 else [np.concatenate(arrays) for arrays in zip(*requests, strict=True)]
        )
        with self.counters.stage("network"):
            outputs = self.session.run(OUTPUTS, dict(zip(INPUTS, batch, strict=True)), self.run_options(batch[0]))
        self.counters.batch(len(batch[0]))
        ends = np.cumsum([len(images) for images, *_ in requests])[:-1]
        for arrays in zip(*(np.split(output, ends) for output in outputs), strict=True):
            tensors = [pb_utils.Tensor(name, array) for name, array in zip(OUTPUTS, arrays, strict=True)]
            yield pb_utils.InferenceResponse(tensors)

    def run_options(self, images: np.ndarray) -> ort.RunOptions | None:
        """A large batch's memory goes back to the system with the first batch of an eighth of its pixels or less.

        To give it back at once would cost every large batch about a tenth of its time.
        """
        pixels = images.size // 3
        shrink = 8 * pixels <= self.largest
        self.largest = pixels if shrink else max(self.largest, pixels)
        return self.shrinking if shrink else None


def batches(requests: dict[int, Tensors], max_pixels: int) -> Iterable[list[int]]:
    """The indices of requests that run together: of one image size, with at most max_pixels in all."""
    found: list[list[int]] = []
    room: dict[tuple[int, ...], int] = {}  # image size -> pixels that its last batch still takes
    last: dict[tuple[int, ...], list[int]] = {}
    for index, (images, *_) in requests.items():
        pixels, shape = images.size // 3, images.shape[1:]
        if room.get(shape, 0) < pixels:
            last[shape], room[shape] = [], max_pixels
            found.append(last[shape])
        last[shape].append(index)
        room[shape] -= pixels
    return found


def problem_with(max_pixels: int, images: np.ndarray, sizes: np.ndarray, scales: np.ndarray) -> str:
    """What is wrong with a request, in one line that a client may read; empty if nothing is.

    images uint8 B x H x W x 3, sizes int32 B x 2, scales float32 B.
    """
    count, height, width = images.shape[:3]
    if count == 0 or sizes.shape != (count, 2) or scales.shape != (count,):
        return f"images, sizes and scales must agree: {count} images, sizes {sizes.shape}, scales {scales.shape}"
    if height == 0 or width == 0 or height % DIVISOR or width % DIVISOR:
        return f"images are {height} x {width}: height and width must be non-zero multiples of {DIVISOR}"
    if count * height * width > max_pixels:
        return f"images are {count} x {height} x {width}: more than {max_pixels} pixels"
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
