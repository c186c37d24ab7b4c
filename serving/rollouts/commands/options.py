"""Options and words that the commands of `upsnet deploy` share. The parameter's name is the option's word."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from serving.rollouts.running import HEALTH

FAILED = 1  # exit status: a gate said no, a service did not follow

Repository = Annotated[
    Path, typer.Option(help="Triton's model repository, as runs/demo/triton_repo.", show_default=False)
]
Health = Annotated[str, typer.Option(help="host:port of /health of the service that serves the repository, if any.")]
Wait = Annotated[float, typer.Option(min=0, help="Seconds for that service to follow; 0: nobody waits.")]
Server = Annotated[
    list[str] | None,
    typer.Option(help="host:port of a container's gRPC: it takes the step up without a restart; several are possible."),
]
SecretFile = Annotated[Path | None, typer.Option(help="The secret by which these containers' models may be changed.")]
Json = Annotated[bool, typer.Option("--json", help="Print it as JSON.")]

DEFAULT_HEALTH = HEALTH
DEFAULT_WAIT = 120.0


def print_json(value: Any) -> None:
    print(json.dumps(value, indent=1))
