"""Options that several commands have. The parameter's name is the option's word."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from upsnet.files import PathLike
from upsnet.runs import existing_run
from upsnet.runtimes.options import RUNTIMES, SERVER


def run_option(help: str, kind: Callable[[PathLike], object] = Path) -> Any:  # as typer's own functions have it
    """A run's folder, or its name in runs/; `kind` makes the parameter of it."""
    return typer.Option(help=help, parser=lambda text: kind(existing_run(text)), metavar="RUN")


Run = Annotated[Path, run_option("The run: its model, and its validation set.")]
RuntimeName = Annotated[str | None, typer.Option(help=f"One of {', '.join(RUNTIMES)}.")]
RuntimeNames = Annotated[
    list[str] | None, typer.Option(help=f"One or more of {' '.join(RUNTIMES)} (default: those that are here).")
]
Checkpoint = Annotated[Path | None, typer.Option(help="pytorch: this file instead of the run's last.safetensors.")]
OnnxModel = Annotated[Path | None, typer.Option(help="onnxruntime: this file instead of the run's model.onnx.")]
EngineFile = Annotated[
    Path | None,
    typer.Option(help="tensorrt, tensorrt-rtx, torch-tensorrt: this file instead of the one in the run's engine/."),
]
Url = Annotated[
    str | None,
    typer.Option(help=f"triton: host:port of a server's gRPC (default: {SERVER}; parity and bench start a server)."),
]
ServedManifest = Annotated[
    Path | None, typer.Option(help="triton: the served model's manifest (default: what the server says).")
]
ServedVersion = Annotated[
    int | None,
    typer.Option("--version", min=1, help="triton: this version of the served model (default: the one in service)."),
]
TlsCa = Annotated[
    Path | None, typer.Option(help="triton: the authority of the server's certificate (PEM), for TLS; see grpcs://.")
]
TlsCert = Annotated[Path | None, typer.Option(help="triton: a certificate of the client (PEM), for mutual TLS.")]
TlsKey = Annotated[Path | None, typer.Option(help="triton: its key (PEM).")]
Device = Annotated[
    str | None,
    typer.Option(help="auto (the default), cpu, cuda or cuda:N; TensorRT takes a GPU alone. A server has its own."),
]
Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads of pytorch and onnxruntime.")]

GtJson = Annotated[
    str | None,
    typer.Option(
        help="COCO panoptic JSON of a data set, or the index of one in shards, NAME.shards.json, which may be a URL "
        "(default: the run's validation set)."
    ),
]
GtFolder = Annotated[Path | None, typer.Option(help="Its truth PNGs (default: panoptic_<name> beside it).")]
Images = Annotated[
    Path | None, typer.Option(help="Its photos (default: <name> beside it; official COCO: beside its folder).")
]
BatchSizes = Annotated[list[int], typer.Option(min=1, help="Images in one call of the network.")]
