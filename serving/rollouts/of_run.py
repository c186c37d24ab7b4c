"""A run's engine and a repository that is rolled out step by step: it is there already, or has to be staged."""

from __future__ import annotations

import shlex
from pathlib import Path

from serving.layout import is_managed
from serving.repository import deploy_parts, engine_parts
from serving.rollouts.record import read_record
from upsnet.errors import InputError

# What a run's engine is not: what is measured later goes into a plan's manifest; code and configurations are ours.
CHANGING = (".plan.json", ".py", ".pbtxt")


def deploy_run(engine: Path, repository: Path) -> Path:
    """Deploys what `make engine` built in the folder `engine`, where the repository has no roll-outs. Where it has
    some, the version in service must be of that engine, and nothing is written. Returns the repository.

    Raises like `deploy_engine`; InputError, with the cure, where another model serves.
    """
    parts = engine_parts(engine)
    if not is_managed(repository):
        return deploy_parts(parts, repository)
    record = read_record(repository)
    if _model(parts.digests) == _model(record.arrival(record.serving).digests):
        return repository
    place = f"--repository {shlex.quote(str(repository))}"
    if record.candidate is not None and _model(parts.digests) == _model(record.arrival(record.candidate).digests):
        cure = f"it is staged there as version {record.candidate}: `upsnet deploy promote {place}`"
    else:
        cure = f"`upsnet deploy stage {shlex.quote(str(engine))} {place}` puts this one beside it"
    raise InputError(
        f"{repository} serves version {record.serving}, which is not the model of {engine}; {cure}; "
        f"`upsnet serve {place}` serves what is there"
    )


def _model(digests: dict[str, str]) -> dict[str, str]:
    return {name: digest for name, digest in digests.items() if not name.endswith(CHANGING)}
