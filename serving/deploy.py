"""`upsnet deploy`: a run's engine as the model repository that any Triton server reads."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from serving.repository import deploy_engine, repository_of
from upsnet.command_line.options import run_option


def main(
    run: Annotated[Path, run_option("The run: its engine/ is deployed.")],
    repository: Annotated[Path | None, typer.Option(help="Where to; default: triton_repo/ in the run.")] = None,
) -> None:
    """Make the run's Triton model repository, or renew it; a running server keeps what it has loaded."""
    target = deploy_engine(run / "engine", repository or repository_of(run))
    print(
        f"wrote {target}; `upsnet serve --repository {shlex.quote(str(target))}` serves it, or "
        "`tritonserver --model-repository` does"
    )
