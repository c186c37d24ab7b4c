"""All the runtimes of one run side by side."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

from upsnet.errors import InputError
from upsnet.runtimes.open import open_runtime
from upsnet.runtimes.options import RUNTIMES, RuntimeOptions, find_runtime
from upsnet.runtimes.predictor import Predictor


def runtimes_here(url: str | None) -> tuple[list[str], str | None]:
    """Every runtime that can be opened here, and why Triton is left out: no `url`, and no environment for a server.

    Then a line on stderr says so.
    """
    if url is None:
        from serving.environment import Environment

        try:
            Environment.find(None)
        except InputError as error:
            print(f"Triton is left out: {error}", file=sys.stderr)
            return [runtime for runtime in RUNTIMES if runtime != "triton"], str(error)
    return list(RUNTIMES), None


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
