"""A program of torch-tensorrt behind the project's one `Predictor` interface. It needs no code of the network's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

import plugins_cuda  # noqa: F401 (registers torch.ops.upsnet, which the program names)
from plugins_cuda import library
from upsnet.device import parse_device
from upsnet.engines.check import check_engine
from upsnet.errors import InputError, first_line
from upsnet.geometry import NetworkBatch
from upsnet.runtimes.predictor import RawPrediction

LEAST_TILES = (
    3  # a side, in units of the resize rule's divisor: PyTorch traces P6 of fewer, one cell, as another network
)
OTHER = "--runtime pytorch or onnxruntime runs here"


class TorchTensorRTPredictor:
    """Runs what `export.torch_tensorrt.build` made, on the GPU that it was built for.

    InputError: there is no GPU, no torch-tensorrt, or the engine is not what its manifest says.
    """

    name = "torch-tensorrt"

    def __init__(self, engine: Path, device: str = "cuda") -> None:
        self.engine_path = engine = Path(engine)
        wanted = parse_device(device)
        if wanted.kind == "cpu" or not torch.cuda.is_available():
            found = "device cpu was asked for" if wanted.kind == "cpu" else "PyTorch sees none"
            raise InputError(f"{engine}: a program of torch-tensorrt runs on an NVIDIA GPU alone ({found}); {OTHER}")
        self.device = torch.device("cuda", wanted.number)
        self.manifest = check_engine(engine, wanted.number).served
        try:
            with torch.cuda.device(self.device):
                self._program: Any = load(engine)
        except ImportError as error:
            raise InputError(f"{engine}: torch-tensorrt is not installed ({first_line(error)}); {OTHER}") from None
        except Exception as error:  # of PyTorch's, torch-tensorrt's and TensorRT's loading
            raise InputError(f"{engine}: torch-tensorrt cannot load it ({first_line(error)})") from None

    @property
    def device_name(self) -> str:
        return f"{self.device} ({torch.cuda.get_device_name(self.device)})"

    @property
    def kernels(self) -> str:
        compiled = library.compiled(self.device)
        return compiled.path.name if compiled else "the definitions in PyTorch"

    def predict(self, batch: NetworkBatch) -> RawPrediction:
        height, width = batch.images.shape[1:3]
        padded = batch._replace(images=at_least(batch.images, LEAST_TILES * self.manifest.resize.divisor))
        with torch.inference_mode(), torch.cuda.device(self.device):
            inputs = [torch.from_numpy(array).to(self.device) for array in padded]
            panoptic, segments, count = (output.cpu().numpy() for output in self._program(*inputs))
        return RawPrediction(panoptic[:, :height, :width], segments, count)

    def close(self) -> None:
        del self._program


def load(engine: Path) -> Any:
    """The program as a module."""
    import torch_tensorrt

    return torch_tensorrt.load(str(engine)).module()


def at_least(images: np.ndarray, side: int) -> np.ndarray:
    """Images B x H x W x 3 padded with zeros, below and at the right, to that height and width where they have less."""
    missing = [(0, max(0, side - own)) for own in images.shape[1:3]]
    return np.pad(images, [(0, 0), *missing, (0, 0)]) if any(after for _, after in missing) else images
