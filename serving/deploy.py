"""`upsnet deploy`: a run's engine as the model repository that any Triton server reads."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from serving.layout import is_managed
from serving.repository import repository_of
from serving.rollouts.of_run import deploy_run
from upsnet.command_line.options import run_option


def main(
    run: Annotated[Path, run_option("The run: its engine/ is deployed.")],
    repository: Annotated[Path | None, typer.Option(help="Where to; default: triton_repo/ in the run.")] = None,
) -> None:
    """Make the run's Triton model repository, or renew it; a running server keeps what it has loaded."""
    target = repository or repository_of(run)
    there = is_managed(target)
    deploy_run(run / "engine", target)
    what = "that model serves already in" if there else "wrote"
    print(
        f"{what} {target}; `upsnet serve --repository {shlex.quote(str(target))}` serves it, or "
        "`tritonserver --model-repository` does"
    )
