"""`upsnet deploy history`: every step that was made, by whom, and why."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from rich.markup import escape

from serving.rollouts.commands.options import Json, Repository, print_json
from serving.rollouts.record import Event, read_record
from upsnet.command_line.command import run as run_command
from upsnet.figures import points, share
from upsnet.tables import make_table, print_tables


def main(repository: Repository, json: Json = False) -> None:
    """Say what happened to the repository's versions: each step with its time, who made it, and the gate's figures."""
    record = read_record(repository)
    if json:
        print_json([event.model_dump(mode="json") for event in record.events])
        return
    table = make_table(str(repository), "when", "what", "version", "by", "took", "why", left=6)
    for event in record.events:
        took = "" if event.seconds is None else f"{event.seconds:.0f} s"
        table.add_row(when(event.time), event.action, str(event.version), escape(event.who), took, escape(why(event)))
    print_tables(table)


def when(time: str) -> str:
    """A recorded time, to the second."""
    return datetime.fromisoformat(time).strftime("%Y-%m-%d %H:%M:%S UTC")


def why(event: Event) -> str:
    """What an event tells beside its name: where it came from, its reasons, the figures that decided."""
    gate: dict[str, Any] = event.figures.get("gate") or {}
    parts = list(event.reasons)
    if event.source:
        parts.append(f"from {event.source}")
    whole = (gate.get("pq") or {}).get("All")
    if whole is not None:
        parts.append(f"PQ {points(whole['reference'], 2)} -> {points(whole['candidate'], 2)}")
    if gate.get("identical") is not None:
        parts.append(f"{share(gate['identical'])} identical")
    return "; ".join(parts)


if __name__ == "__main__":
    run_command(main)
