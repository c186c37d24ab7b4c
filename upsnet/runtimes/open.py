"""Opening the network in any of the runtimes. Neither PyTorch nor the server is known here: only how to ask."""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from upsnet.errors import InputError, first_line
from upsnet.files import PathLike
from upsnet.runtimes.predictor import Predictor
from upsnet.workshop import import_workshop

SERVER = "127.0.0.1:8001"
CHECKPOINT = "last.safetensors"  # what `make onnx` exports
RUNTIMES = ("pytorch", "onnxruntime", "triton")
FILES = {"onnxruntime": "model.onnx", "pytorch": CHECKPOINT}  # in a folder, the first that is there
OPTIONS = {"pytorch": ("threads", "device"), "onnxruntime": ("threads",), "triton": ("manifest",)}
SCHEME = "grpc://"
MOST_THREADS = 256  # more only wait for each other
MOST_PORT = 65535
MODELS = "a run's or an engine's folder, an .onnx file, a checkpoint (.safetensors) or grpc://host:port"


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
    """pytorch needs `checkpoint`, onnxruntime `model` (an exported ONNX file), triton `url` ([grpc://]host:port).

    `manifest` describes the model a Triton server runs (default: what the server says of it). `threads`: CPU threads of
    pytorch and onnxruntime (default: theirs). `device`, `short_sides` and `flip` (test-time augmentation) are for
    pytorch. Raises InputError for an unknown runtime or one without what it needs.
    """
    if threads is not None and not (isinstance(threads, int) and 1 <= threads <= MOST_THREADS):
        raise InputError(f"threads {threads!r}: give a number from 1 to {MOST_THREADS}")
    match runtime:
        case "pytorch":
            checkpoint = _needed(checkpoint, "pytorch", "a checkpoint")
            return _pytorch_predictor()(checkpoint, device, threads, short_sides, flip)
        case "onnxruntime":
            model = _needed(model, "onnxruntime", "an ONNX model")
            return _onnx_predictor()(model, threads)
        case "triton":
            if url is None:
                raise InputError("the runtime triton needs the address of a running server (host:port of its gRPC)")
            from upsnet.runtimes.triton import TritonPredictor

            return TritonPredictor(url.removeprefix(SCHEME).rstrip("/"), manifest=manifest)
    raise InputError(f"unknown runtime '{runtime}'; it is one of {', '.join(RUNTIMES)}")


def open_source(
    source: PathLike,
    *,
    runtime: str | None = None,
    threads: int | None = None,
    device: str | None = None,
    manifest: PathLike | None = None,
) -> Predictor:
    """What `upsnet.load` is given; see there. An option that the runtime does not have is an InputError."""
    runtime, place = find_model(source, runtime)
    for option, value in (("threads", threads), ("device", device), ("manifest", manifest)):
        if value is not None and option not in OPTIONS[runtime]:
            raise InputError(f"{source}: {option} is no option of the runtime {runtime}: {', '.join(OPTIONS[runtime])}")
    described = None if manifest is None else Path(manifest)
    return _open_at(runtime, place, threads=threads, device=device or "cpu", manifest=described)


def open_chosen(
    runtime: str | None,
    run: PathLike,
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
    """What a command line names: the place given for the runtime, else the run's own file, else `make serve`'s server.

    Without a runtime, the place given tells it, and else the run (see `find_model`).
    """
    places = {"pytorch": checkpoint, "onnxruntime": model, "triton": url}
    given = [name for name, place in places.items() if place is not None]
    if runtime is None and len(given) > 1:
        raise InputError(f"there are places for {' and '.join(given)}; say which with --runtime")
    runtime = runtime or (given[0] if given else None)
    place = places.get(runtime or "")
    if place is None and runtime == "triton" and SCHEME not in os.fspath(run):
        place = SERVER
    if place is None or runtime is None:
        runtime, place = find_model(run, runtime)
    return _open_at(
        runtime, place, manifest=manifest, threads=threads, device=device, short_sides=short_sides, flip=flip
    )


def find_model(source: PathLike, runtime: str | None = None) -> tuple[str, Path | str]:
    """The runtime that a source is for, and where its model is: a file, or a server's host:port.

    source: a run's or an engine's folder, an .onnx file, a .safetensors checkpoint or grpc://host:port. runtime: the
    one that is wanted. Raises InputError for what is none of these, and when the two do not go together.
    """
    if runtime not in (None, *RUNTIMES):
        raise InputError(f"unknown runtime '{runtime}'; it is one of {', '.join(RUNTIMES)}")
    if not isinstance(source, str | os.PathLike) or not os.fspath(source):
        raise InputError(f"{source!r} is no model; a model is {MODELS}")
    text, path = os.fspath(source), Path(source)
    if "://" in text:
        found: dict[str, Path | str] = {"triton": _address(text)}
    elif os.path.isdir(path):
        found = {name: path / file for name, file in FILES.items() if (path / file).is_file()}
        if not found:
            raise InputError(f"{source}: neither a run nor an engine: it has no {' and no '.join(FILES.values())}")
    elif not os.path.isfile(path):
        raise InputError(f"{source}: no such file or folder; a model is {MODELS}")
    else:
        found = {name: path for name, file in FILES.items() if Path(file).suffix == path.suffix}
        if not found:
            hint = "; `upsnet import` reads the original UPSNet's checkpoints" if path.suffix in (".pth", ".pt") else ""
            raise InputError(f"{source}: no model by its name; a model is {MODELS}{hint}")
    if runtime is not None and runtime not in found:
        cure = "; `make onnx` exports it" if path.is_dir() and runtime == "onnxruntime" else ""
        raise InputError(f"{source}: holds nothing for the runtime {runtime}, only for {' and '.join(found)}{cure}")
    return (runtime, found[runtime]) if runtime else next(iter(found.items()))


def _address(url: str) -> str:
    """grpc://host:port -> host:port"""
    address = url.removeprefix(SCHEME).rstrip("/")
    if not re.fullmatch(r"[^/]+:\d{1,5}", address) or int(address.rpartition(":")[2]) > MOST_PORT:
        raise InputError(f"{url}: a server is grpc://host:port, with the port of its gRPC (`make serve`: 8001)")
    return address


def _open_at(runtime: str, place: Path | str, **options: Any) -> Predictor:
    argument = {"pytorch": "checkpoint", "onnxruntime": "model", "triton": "url"}[runtime]
    return open_predictor(runtime, **options | {argument: place})


def _needed(path: Path | None, runtime: str, what: str) -> Path:
    if path is None:
        raise InputError(f"the runtime {runtime} needs {what}")
    if not path.is_file():
        raise InputError(f"{path}: no such file; the runtime {runtime} needs {what}")
    return path


def _onnx_predictor() -> Any:
    try:
        return importlib.import_module("upsnet.runtimes.onnx_runtime").OnnxRuntimePredictor
    except ImportError as error:
        raise InputError(
            f"the runtime onnxruntime is not installed ({first_line(error)}): pip install 'upsnet-trt[onnxruntime]'"
        ) from None


def _pytorch_predictor() -> Any:
    """training.predictor.PyTorchPredictor, which no wheel holds: this package runs without PyTorch."""
    what = "a checkpoint, in the runtime pytorch,"
    try:
        return import_workshop("training.predictor", what).PyTorchPredictor
    except ModuleNotFoundError as error:
        raise InputError(f"{what} needs the package {error.name}: pip install 'upsnet-trt[train]'") from None
