"""`upsnet deploy status`: which version serves, which may follow, and what a running service makes of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.markup import escape

from serving.layout import is_managed, latest_version
from serving.rollouts.commands.history import when
from serving.rollouts.commands.options import DEFAULT_HEALTH, Health, Json, Repository, print_json
from serving.rollouts.record import Record, read_record
from serving.rollouts.running import Running
from serving.rollouts.waiting import check_health, service_of
from upsnet.command_line.command import run as run_command
from upsnet.files import sha256
from upsnet.tables import make_table, print_tables

SHOWN = 12  # digits of a hash


def main(repository: Repository, health: Health = DEFAULT_HEALTH, json: Json = False) -> None:
    """Say which version serves and which may follow. Writes nothing."""
    check_health(health)
    latest_version(repository)  # InputError where it is no repository
    record = read_record(repository) if is_managed(repository) else None
    service = service_of(health, record) if record is not None else None
    if json:
        print_json(told(repository, record, service))
    else:
        show(repository, record, service, health)


def told(repository: Path, record: Record | None, service: Running | None) -> dict[str, Any]:
    """The same for programs."""
    if record is None:
        number, digest = _only(repository)
        versions = [{"version": number, "role": "serving", "model_sha256": digest}]
        return {"rollouts": None, "serving": number, "candidate": None, "versions": versions, "service": None}
    return {
        "rollouts": record.id,
        "step": record.step,
        "serving": record.serving,
        "candidate": record.candidate,
        "versions": [
            {
                "version": version,
                "role": role_of(record, version),
                "model_sha256": record.arrival(version).digests.get("model.onnx"),
                "since": record.arrival(version).time,
                "who": record.arrival(version).who,
                "source": record.arrival(version).source,
            }
            for version in sorted(record.kept)
        ],
        "last": record.events[-1].model_dump(mode="json"),
        "service": service.model_dump(mode="json") if service is not None else None,
    }


def role_of(record: Record, version: int) -> str:
    """A version's part in the repository, in a word."""
    if version == record.serving:
        return "serving"
    if version == record.candidate:
        return "candidate"
    return "withdrawn" if version in record.withdrawn else "served before"


def show(repository: Path, record: Record | None, service: Running | None, health: str) -> None:
    if record is None:
        number, digest = _only(repository)
        print(f"version {number} serves (model {digest[:SHOWN]}); there are no roll-outs yet")
        print("`upsnet deploy stage ENGINE` puts another version beside it")
        return
    table = make_table(str(repository), "version", "is", "model", "came", "by", "service", left=6)
    for version in sorted(record.kept, reverse=True):
        came = record.arrival(version)
        table.add_row(
            str(version),
            role_of(record, version),
            came.digests.get("model.onnx", "")[:SHOWN],
            when(came.time),
            escape(came.who),
            escape(_runs(service, version)),
        )
    print_tables(table)
    refused = [event for event in record.events if event.action == "refuse" and event.version == record.candidate]
    if refused:
        print(f"version {record.candidate} was refused {when(refused[-1].time)}: {'; '.join(refused[-1].reasons)}")
    if service is None:
        print(f"no service of this repository answers at {health}")
    elif service.serving != record.serving:
        print(f"the service at {health} serves version {service.serving}, and not yet version {record.serving}")


def _only(repository: Path) -> tuple[int, str]:
    """The version that serves where there are no roll-outs, and its model's SHA-256."""
    place = latest_version(repository)
    return int(place.name), sha256(place / "model.onnx")


def _runs(service: Running | None, version: int) -> str:
    """What the service says of a version."""
    if service is None:
        return ""
    if version in service.failed:
        return f"failed: {service.failed[version]}"
    found = service.versions.get(version)
    return "" if found is None else "; ".join((f"{found.role}, {found.state}", *found.reasons))


if __name__ == "__main__":
    run_command(main)
