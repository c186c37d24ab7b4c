"""All the runtimes of one run side by side."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from upsnet.errors import InputError
from upsnet.runtimes.open import CHECKPOINT, RUNTIMES, open_predictor
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
            from serving.private_server import private_server

            engine = run / "engine"
            url = stack.enter_context(private_server(engine / "model.onnx", engine / "model.manifest.json", threads))
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
