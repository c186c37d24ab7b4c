"""Opening the network in any of the runtimes. Neither PyTorch nor the server is known here: only how to ask."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from upsnet.errors import InputError
from upsnet.runtimes.predictor import Predictor

SERVER = "127.0.0.1:8001"
CHECKPOINT = "last.safetensors"  # what `make onnx` exports
RUNTIMES = ("pytorch", "onnxruntime", "triton")


def open_predictor(
    runtime: str,
    *,
    checkpoint: Path | None = None,
    model: Path | None = None,
    url: str | None = None,
    manifest: Path | None = None,
    threads: int | None = None,
    device: str = "cpu",
    short_sides: Sequence[int] = (),
    flip: bool = False,
) -> Predictor:
    """pytorch needs `checkpoint`, onnxruntime `model` (an exported ONNX file), triton `url` (host:port of gRPC).

    `manifest` describes the model a Triton server runs (default: what the server says of it). `threads`: CPU threads of
    pytorch and onnxruntime (default: theirs). `device`, `short_sides` and `flip` (test-time augmentation) are for
    pytorch. Raises InputError for an unknown runtime or one without what it needs.
    """
    match runtime:
        case "pytorch":
            checkpoint = _needed(checkpoint, "pytorch", "a checkpoint")
            return _pytorch_predictor()(checkpoint, device, threads, short_sides, flip)
        case "onnxruntime":
            model = _needed(model, "onnxruntime", "an ONNX model")
            from upsnet.runtimes.onnx_runtime import OnnxRuntimePredictor

            return OnnxRuntimePredictor(model, threads=threads)
        case "triton":
            if url is None:
                raise InputError("the runtime triton needs the address of a running server (host:port of its gRPC)")
            from upsnet.runtimes.triton import TritonPredictor

            return TritonPredictor(url, manifest=manifest)
    raise InputError(f"unknown runtime '{runtime}'; it is one of {', '.join(RUNTIMES)}")


def open_chosen(
    runtime: str,
    run: Path,
    *,
    checkpoint: Path | None = None,
    model: Path | None = None,
    url: str | None = None,
    manifest: Path | None = None,
    threads: int | None = None,
    device: str = "cpu",
    short_sides: Sequence[int] = (),
    flip: bool = False,
) -> Predictor:
    """What a command line names: the run's own files unless others are given, and the server of `make serve`."""
    return open_predictor(
        runtime,
        checkpoint=checkpoint or run / CHECKPOINT,
        model=model or run / "model.onnx",
        url=url or SERVER,
        manifest=manifest,
        threads=threads,
        device=device,
        short_sides=short_sides,
        flip=flip,
    )


def _needed(path: Path | None, runtime: str, what: str) -> Path:
    if path is None:
        raise InputError(f"the runtime {runtime} needs {what}")
    if not path.is_file():
        raise InputError(f"{path}: no such file; the runtime {runtime} needs {what}")
    return path


def _pytorch_predictor() -> Any:
    """training.predictor.PyTorchPredictor, which no wheel holds: this package runs without PyTorch."""
    try:
        return importlib.import_module("training.predictor").PyTorchPredictor
    except ModuleNotFoundError as error:
        raise InputError(
            f"the runtime pytorch needs {error.name}, from the project's checkout (`make setup` there); without it "
            "export the checkpoint and use the ONNX file"
        ) from None
