"""`upsnet deploy rollback`: the version that served before serves again."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from serving.rollouts import steps
from serving.rollouts.commands.options import (
    DEFAULT_HEALTH,
    DEFAULT_WAIT,
    FAILED,
    Health,
    Repository,
    SecretFile,
    Server,
    Wait,
)
from serving.rollouts.control import take_up, taking_up
from serving.rollouts.record import read_record
from serving.rollouts.waiting import check_health, report_taken_up, wait_until_serving
from upsnet.command_line.command import run as run_command
from upsnet.command_line.options import TlsCa, TlsCert, TlsKey
from upsnet.errors import InputError
from upsnet.runtimes.tls import Tls


def main(
    repository: Repository,
    to: Annotated[
        int | None, typer.Option(help="This version, that has served; default: the one before.", show_default=False)
    ] = None,
    server: Server = None,
    secret_file: SecretFile = None,
    tls_ca: TlsCa = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    health: Health = DEFAULT_HEALTH,
    wait: Wait = DEFAULT_WAIT,
) -> None:
    """Let the version that served before serve again, or the one of --to, without asking a gate.

    With --to it can be said twice: where that version serves already, nothing happens. Exit status 1: a service runs on
    the repository, and does not follow.
    """
    check_health(health)
    before = read_record(repository)
    version = steps.rollback_target(repository, before, to)
    servers = server or ()
    tls = Tls.of_files(tls_ca, tls_cert, tls_key)
    if version == before.serving:
        record = before
        print(f"version {version} serves already; nothing has changed")
        take_up(servers, secret_file, repository, tls)
    else:
        with taking_up(servers, secret_file, repository, version, tls):
            record = steps.rollback(repository, version, expected=before)
        print(f"back from version {before.serving} to version {record.serving}")
    try:
        steps.check_files(repository, record, record.serving)
    except InputError as error:
        print(f"warning: {error}; a server that starts on version {record.serving} may fail", file=sys.stderr)
    if not report_taken_up(servers, wait_until_serving(health, record, wait), record.serving):
        raise typer.Exit(FAILED)


if __name__ == "__main__":
    run_command(main)
