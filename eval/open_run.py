"""All the runtimes of one run side by side."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

from upsnet.device import parse_device
from upsnet.errors import InputError
from upsnet.runtimes.open import CURES, ENGINE_FOLDER, choose, open_runtime
from upsnet.runtimes.options import RUNTIMES, RuntimeOptions, find_runtime
from upsnet.runtimes.predictor import Predictor
from upsnet.tensorrt.cuda import problem_with_gpu


def runtimes_here(options: RuntimeOptions) -> tuple[list[str], dict[str, str]]:
    """Every runtime that a run (`options.run`) can be opened in here, and why each of the others is left out.

    A line on stderr says so of each: Triton without a `url` and an environment for a server; those of engines without
    the engine, the package or a GPU, and with a device that is none.
    """
    problems = {name: problem for name in RUNTIMES if (problem := _problem(name, options))}
    for name, problem in problems.items():
        print(f"{RUNTIMES[name].title} is left out: {problem}", file=sys.stderr)
    return [name for name in RUNTIMES if name not in problems], problems


def _problem(name: str, options: RuntimeOptions) -> str | None:
    """Why a runtime cannot be had here; None where it has to be tried."""
    runtime = RUNTIMES[name]
    if name == "triton" and options.url is None:
        from serving.environment import Environment

        try:
            Environment.find(None)
        except InputError as error:
            return str(error)
    if not runtime.gpu:
        return None
    try:
        choose(options._replace(runtime=name))
    except InputError:
        return f"{options.run} has no {ENGINE_FOLDER}/{runtime.file}; {CURES[name]}"
    if options.device is not None and parse_device(options.device).kind == "cpu":
        return f"device {options.device}"
    if not any(importlib.util.find_spec(each) for each in runtime.packages):
        return f"the package {runtime.packages[0]} is not installed"
    if name == "onnxruntime-tensorrt":
        from upsnet.runtimes.onnx_tensorrt import problem_with_tensorrt

        problem = problem_with_tensorrt()
        return problem and f"no TensorRT provider: {problem}"
    return problem_with_gpu()


@contextmanager
def open_run(options: RuntimeOptions, runtimes: Sequence[str]) -> Iterator[list[Predictor]]:
    """The runtimes of a run's folder (`options.run`), in the order given, closed at the end.

    A device is for those that take one: among them Triton keeps its own.
    Triton without a `url`: a real server is started on a private copy of the run's engine, with as many threads, and
    stopped at the end.
    """
    run = Path(options.run or "")
    if not run.is_dir():
        raise InputError(f"{run}: no such run; `make demo` makes runs/demo, `make train` any other")
    options = options._replace(manifest=run / "model.manifest.json")
    with ExitStack() as stack:
        if "triton" in runtimes and options.url is None:
            from serving.private_server import private_server

            engine = run / "engine"
            server = private_server(engine / "model.onnx", engine / "model.manifest.json", options.threads)
            options = options._replace(url=stack.enter_context(server))
        yield [stack.enter_context(closing(open_runtime(each))) for each in _one_by_one(options, runtimes)]


def _one_by_one(options: RuntimeOptions, runtimes: Sequence[str]) -> Iterator[RuntimeOptions]:
    for runtime in runtimes:
        device = options.device if "device" in find_runtime(runtime).takes else None
        yield options._replace(runtime=runtime, device=device)
