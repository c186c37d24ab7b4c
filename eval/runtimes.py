"""Opening the network in any of the runtimes, and all the runtimes of one run side by side."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from panoptic.errors import InputError
from panoptic.files import write_text
from panoptic.predictor import Predictor

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

    `manifest` describes the model a Triton server runs (default: the one in triton_repo). `threads`: CPU threads of
    pytorch and onnxruntime (default: theirs). `device`, `short_sides` and `flip` (test-time augmentation) are for
    pytorch. Raises InputError for an unknown runtime or one without what it needs.
    """
    match runtime:
        case "pytorch":
            checkpoint = _needed(checkpoint, "pytorch", "a checkpoint")
            from training.predictor import PyTorchPredictor

            return PyTorchPredictor(checkpoint, device, threads, short_sides, flip)
        case "onnxruntime":
            model = _needed(model, "onnxruntime", "an ONNX model")
            from export.predictor import OnnxRuntimePredictor

            return OnnxRuntimePredictor(model, threads=threads)
        case "triton":
            if url is None:
                raise InputError("the runtime triton needs the address of a running server (host:port of its gRPC)")
            from serving.client import TritonPredictor

            return TritonPredictor(url, model="upsnet", manifest=manifest)
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


@contextmanager
def open_run(
    run: Path,
    runtimes: Sequence[str],
    *,
    checkpoint: Path | None = None,
    url: str | None = None,
    threads: int | None = None,
) -> Iterator[list[Predictor]]:
    """The runtimes of a run's folder, in the order given, closed at the end.

    `checkpoint`: what its model.onnx was exported from (default: last.safetensors). Triton without a `url`: a real
    server is started on a private copy of the run's engine, with as many threads, and stopped at the end.
    """
    if not run.is_dir():
        raise InputError(f"{run}: no such run; `make demo` makes runs/demo, `make train` any other")
    model, manifest = run / "model.onnx", run / "model.manifest.json"
    with ExitStack() as stack:
        if "triton" in runtimes and url is None:
            engine = run / "engine"
            url = stack.enter_context(
                private_server(engine / "model.onnx", engine / "model.manifest.json", threads)
            )
        predictors = []
        for runtime in runtimes:
            predictor = open_predictor(
                runtime,
                checkpoint=checkpoint or run / CHECKPOINT,
                model=model,
                url=url,
                manifest=manifest,
                threads=threads,
            )
            stack.callback(predictor.close)
            predictors.append(predictor)
        yield predictors


@contextmanager
def private_server(model: Path, manifest: Path, threads: int | None = None) -> Iterator[str]:
    """A real Triton server for one model on free ports of this machine; yields its gRPC address."""
    from serving.repository import make_repository
    from serving.server import TritonServer

    with tempfile.TemporaryDirectory(prefix="upsnet-") as folder:
        repository = make_repository(Path(folder) / "repository", model, manifest)
        if threads is not None:
            set_threads(repository / "upsnet" / "configs" / "cpu.pbtxt", threads)
        with TritonServer(repository) as server:
            yield server.url


def set_threads(config: Path, threads: int) -> None:
    """Puts the number of ONNX Runtime's threads into a repository's cpu.pbtxt."""
    text, found = re.subn(r'(key: "threads" value: { string_value: )"\d+"', rf'\g<1>"{threads}"', config.read_text())
    if found != 1:
        raise InputError(f"{config}: has no parameter 'threads' to set")
    write_text(config, text)


def _needed(path: Path | None, runtime: str, what: str) -> Path:
    if path is None:
        raise InputError(f"the runtime {runtime} needs {what}")
    if not path.is_file():
        raise InputError(f"{path}: no such file; the runtime {runtime} needs {what}")
    return path
