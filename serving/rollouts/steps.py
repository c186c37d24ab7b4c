"""The steps of a roll-out. Each is one rename: what Triton reads, the state and the history change with it at once.

Whatever is killed at whatever moment leaves the step before or the step after. What else it leaves (a folder without a
name in the record) the next step removes.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from serving.layout import (
    CANDIDATE,
    CONFIGS,
    MODELS,
    NOBODY,
    NOW,
    ROLLOUTS,
    SERVING,
    config_links,
    config_name,
    is_managed,
    latest_version,
    version_configs,
    versions,
)
from serving.repository import Parts, check_place, config_of, write_version
from serving.rollouts.record import RECORD, Event, Record, read_record
from upsnet.contract import MODEL
from upsnet.errors import InputError
from upsnet.files import sha256, staged_folder, writing

LOCK = "lock"
POLICY = re.compile(r"version_policy\s*\{.*\}")  # the one line of it in the templates
NO_CANDIDATE = """# There is no candidate; `upsnet deploy stage` puts one there. Triton loads no version 0.
name: "{model}"
backend: "python"
version_policy {{ specific {{ versions: [ 0 ] }} }}
"""
KEPT = 3  # versions that have served: the one that does, and those that a rollback may return to
STEPS_KEPT = 2  # folders of past steps; the record has the whole history


def stage(repository: Path, parts: Parts, keep: int = KEPT) -> Record:
    """Puts a new version beside the one in service, as the candidate; one that was staged before goes.

    keep: that many versions that have served stay; older ones are removed.
    InputError where the repository does not exist, another step is under way, or the disk is full.
    """
    check_place(repository)
    with _step(repository) as record:
        number = record.highest + 1
        with staged_folder(repository) as folder, writing(repository):
            write_version(folder, number, parts)
            configs = version_configs(folder, number)
            configs.mkdir()
            for model in MODELS:
                for name in CONFIGS:
                    (configs / config_name(model, name)).write_text(_pinned(config_of(model, name, parts), number))
        event = Event(action="stage", version=number, digests=parts.digests)
        served = record.served[-keep:]
        return _take(repository, record, event, served=served, candidate=number)


def promote(repository: Path, expected: Record, figures: dict[str, Any], seconds: float, forced: str = "") -> Record:
    """The candidate serves from now on. expected: what the gate judged by; InputError where that is no longer so."""
    with _step(repository) as record:
        _same(record, expected)
        version = _candidate(repository, record)
        reasons = [forced] if forced else []
        event = Event(action="promote", version=version, seconds=seconds, figures=figures, reasons=reasons)
        return _take(repository, record, event, served=(*record.served, version), candidate=None)


def refuse(
    repository: Path, expected: Record, reasons: Sequence[str], figures: dict[str, Any], seconds: float
) -> Record:
    """Writes down that the gate said no. The candidate stays staged."""
    with _step(repository) as record:
        _same(record, expected)
        version = _candidate(repository, record)
        event = Event(action="refuse", version=version, seconds=seconds, figures=figures, reasons=list(reasons))
        return _take(repository, record, event)


def rollback(repository: Path) -> Record:
    """The version that served before serves again. InputError where there is none."""
    with _step(repository) as record:
        if record.previous is None:
            raise InputError(f"{repository}: version {record.serving} has none before it to return to")
        event = Event(action="rollback", version=record.previous)
        return _take(repository, record, event, served=record.served[:-1])


def discard(repository: Path) -> Record:
    """The candidate goes, and its files."""
    with _step(repository) as record:
        return _take(
            repository, record, Event(action="discard", version=_candidate(repository, record)), candidate=None
        )


def _candidate(repository: Path, record: Record) -> int:
    if record.candidate is None:
        raise InputError(f"{repository} has no candidate; `upsnet deploy stage` puts one there")
    return record.candidate


def _same(record: Record, expected: Record) -> None:
    if record.step != expected.step:
        last = record.events[-1]
        raise InputError(
            f"meanwhile {last.who} made another step ({last.action} of version {last.version}); look at "
            "`upsnet deploy status` and begin again"
        )


@contextmanager
def _step(repository: Path) -> Iterator[Record]:
    """One at a time: makes the repository a managed one, removes what a killed step has left, and yields the record."""
    latest_version(repository)  # InputError where this is no repository
    rollouts = repository / MODEL / ROLLOUTS
    with writing(repository):
        rollouts.mkdir(exist_ok=True)
        with (rollouts / LOCK).open("a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise InputError(f"{repository}: another step is under way; wait for it, and begin again") from None
            _configure_nobody(rollouts)
            record = read_record(repository) if is_managed(repository) else _begin(repository)
            _link_configs(repository)
            _tidy(repository, record)
            yield record


def _begin(repository: Path) -> Record:
    """What is served until now becomes the first version that is known, configurations included."""
    place = latest_version(repository)
    number = int(place.name)
    if latest_version(repository, MODELS[1]).name != place.name:
        raise InputError(f"{repository}: its models are not of one version; deploy it again with `upsnet deploy --run`")
    shutil.rmtree(version_configs(repository, number), ignore_errors=True)  # of an attempt that was killed
    with staged_folder(place) as folder:
        (folder / "configs").mkdir()
        for model in MODELS:
            for name in CONFIGS:
                text = (repository / model / name).read_text(encoding="utf-8")
                (folder / "configs" / config_name(model, name)).write_text(_pinned(text, number), encoding="utf-8")
    files = [file for file in place.iterdir() if file.suffix in (".onnx", ".plan", ".so", ".json")]
    event = Event(action="begin", version=number, digests={file.name: sha256(file) for file in sorted(files)})
    return _take(repository, Record(served=(number,)), event)


def _pinned(config: str, number: int) -> str:
    """The configuration, of that version alone."""
    pinned, found = POLICY.subn(f"version_policy {{ specific {{ versions: [ {number} ] }} }}", config)
    if found != 1:
        raise InputError(
            "a configuration has no version_policy; deploy the repository again with `upsnet deploy --run`"
        )
    return pinned


def _take(repository: Path, record: Record, event: Event, **changes: Any) -> Record:
    """The next step: its folder, made whole and on the disk, then the one rename by which it holds."""
    after = record.model_copy(update={"step": record.step + 1, "events": (*record.events, event), **changes})
    rollouts = repository / MODEL / ROLLOUTS
    folder = rollouts / f"{after.step:06d}"
    with writing(rollouts):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        after.save(folder / RECORD)
        for role, version in ((SERVING, after.serving), (CANDIDATE, after.candidate)):
            configs = Path("..", NOBODY) if version is None else Path("../..", str(version), "configs")
            (folder / role).symlink_to(configs)
        for path in (folder / RECORD, folder, rollouts):
            _to_disk(path)
        fresh = rollouts / f".{NOW}"
        fresh.unlink(missing_ok=True)
        fresh.symlink_to(folder.name)
        os.replace(fresh, rollouts / NOW)
        _to_disk(rollouts)
    _tidy(repository, after)
    return after


def _to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _link_configs(repository: Path) -> None:
    """What Triton reads leads to what the step says; at the first step the same text stands at both ends."""
    for link, target in config_links(repository).items():
        if not link.is_symlink() or os.readlink(link) != str(target):
            with writing(link):
                fresh = link.with_name(f".{link.name}")
                fresh.unlink(missing_ok=True)
                fresh.symlink_to(target)
                os.replace(fresh, link)


def _configure_nobody(rollouts: Path) -> None:
    """Where Triton finds no configuration of the name it is given, it takes config.pbtxt: without a candidate it would
    serve as one what is in service. It starts with none of these."""
    if not (rollouts / NOBODY).is_dir():
        with staged_folder(rollouts) as folder:
            (folder / NOBODY).mkdir()
            for model in MODELS:
                for name in CONFIGS:
                    (folder / NOBODY / config_name(model, name)).write_text(NO_CANDIDATE.format(model=model))


def _tidy(repository: Path, record: Record) -> None:
    """Removes versions that the record does not know any more, and the folders of steps long past."""
    known = {*map(str, record.served), str(record.candidate)}
    old = [folder for model in MODELS for folder in versions(repository, model) if folder.name not in known]
    steps = sorted((repository / MODEL / ROLLOUTS).glob("[0-9]*"))
    now = f"{record.step:06d}"
    old += [each for each in steps if each.name > now] + [each for each in steps if each.name < now][:-STEPS_KEPT]
    with writing(repository):
        for folder in old:
            shutil.rmtree(folder)
        for link in (repository / MODEL / ROLLOUTS).glob("[0-9]*/*"):
            if link.is_symlink() and not link.exists():  # Triton would complain of it at every load
                link.unlink()
