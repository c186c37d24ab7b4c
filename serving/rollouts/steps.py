"""The steps of a roll-out. Each is one rename: what Triton reads, the state and the history change with it at once.

Whatever is killed at whatever moment leaves the step before or the step after. What else it leaves (a folder without a
name in the record) the next step removes.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from serving.layout import (
    CANDIDATE,
    CONFIGS,
    CONFIGS_FOLDER,
    INCOMING,
    MODELS,
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
from serving.lock import STAGING, locked
from serving.repository import (
    Parts,
    check_place,
    config_of,
    remove_rubbish,
    write_version,
    write_warm_up,
)
from serving.rollouts.record import RECORD, Event, Record, check_same, read_record
from upsnet.contract import MODEL, PHOTO_MODEL
from upsnet.errors import InputError
from upsnet.files import WriteError, ending_on_sigterm, sha256, writing, writing_only

POLICY = re.compile(r"version_policy\s*\{.*\}")  # the one line of it in the templates
NOBODY = """# There is no candidate; `upsnet deploy stage` puts one there. Triton loads no version 0.
name: "{model}"
backend: "python"
version_policy {{ specific {{ versions: [ 0 ] }} }}
"""
KEPT = 3  # versions that have served and stay: the one that does, and those that a rollback may return to
STEPS_KEPT = 2  # folders of past steps; the record has the whole history
DESCRIBED = (".onnx", ".plan", ".so", ".json", ".py", ".pbtxt")  # files of a version whose hashes are recorded


def stage(repository: Path, parts: Parts, source: str = "", keep: int = KEPT) -> Record:
    """Puts a new version beside the one in service, as the candidate; one that was staged before goes.

    source: where it comes from, for the history. keep: that many versions that have served stay; older ones are
    removed. Other steps go on while the files are copied.
    InputError where the repository does not exist, another model is being staged, or the disk is full.
    """
    if keep < 1:
        raise InputError(f"--keep {keep}: the version in service stays; give 1 or more")
    _check(repository)
    try:
        with ending_on_sigterm(), locked(repository, STAGING, wait=0):
            return _stage(repository, parts, source, keep)
    except WriteError as error:
        raise InputError(f"{error}; the versions that are there stay as they were") from error


def _stage(repository: Path, parts: Parts, source: str, keep: int) -> Record:
    incoming = repository / MODEL / ROLLOUTS / INCOMING
    try:
        with writing(repository), writing_only(incoming, incoming):
            shutil.rmtree(incoming, ignore_errors=True)  # of one that was killed
            incoming.mkdir()
            write_version(parts, {model: incoming / model for model in MODELS})
            digests = digests_of({model: incoming / model for model in MODELS})
            if any(digests.get(name) != digest for name, digest in parts.digests.items()):
                raise InputError(f"{parts.model_onnx.parent} changed while it was copied; stage it again")
            _all_to_disk(incoming)
            with _step(repository, begins=True) as record:
                number = record.highest + 1
                configs = incoming / MODEL / CONFIGS_FOLDER
                _write_configs(configs, _pinned(_configs_of(parts), number))
                digests |= digests_of({f"{MODEL}/{CONFIGS_FOLDER}": configs})
                write_warm_up(repository)
                for model in MODELS:
                    os.rename(incoming / model, repository / model / str(number))
                    _to_disk(repository / model)
                event = Event(action="stage", version=number, digests=digests, source=source)
                return _take(repository, record, event, served=record.served[-keep:], candidate=number, withdrawn=())
    finally:
        shutil.rmtree(incoming, ignore_errors=True)


def promote(repository: Path, expected: Record, figures: dict[str, Any], seconds: float, forced: str = "") -> Record:
    """The candidate serves from now on. expected: what the gate judged by; InputError where that is no longer so."""
    with _step(repository, expected) as record:
        version = candidate_of(repository, record)
        reasons = [forced] if forced else []
        event = Event(action="promote", version=version, seconds=seconds, figures=figures, reasons=reasons)
        return _take(repository, record, event, served=(*record.served, version), candidate=None)


def refuse(
    repository: Path, expected: Record, reasons: Sequence[str], figures: dict[str, Any], seconds: float
) -> Record:
    """Writes down that the gate said no. The candidate stays staged."""
    with _step(repository, expected) as record:
        version = candidate_of(repository, record)
        event = Event(action="refuse", version=version, seconds=seconds, figures=figures, reasons=list(reasons))
        return _take(repository, record, event)


def rollback(repository: Path, to: int | None = None, expected: Record | None = None) -> Record:
    """The version that served before serves again; or `to`, one that has served and whose files are there, also one
    that a rollback has withdrawn. Where that one serves already, nothing happens.

    expected: InputError where another step was made since. InputError where there is no such version.
    """
    with _step(repository, expected) as record:
        version = rollback_target(repository, record, to)
        if version == record.serving:
            return record
        if version in record.served:
            after = record.served.index(version) + 1
            served, gone = record.served[:after], record.served[after:]
            withdrawn = (*record.withdrawn, *reversed(gone))
        else:
            served = (*record.served, version)
            withdrawn = tuple(each for each in record.withdrawn if each != version)
        event = Event(action="rollback", version=version)
        return _take(repository, record, event, served=served, withdrawn=withdrawn)


def rollback_target(repository: Path, record: Record, to: int | None) -> int:
    """The version that serves after a rollback. InputError where there is none."""
    if to is None:
        if record.previous is None:
            raise InputError(f"{repository}: version {record.serving} has none before it to return to")
        return record.previous
    if to not in (*record.served, *record.withdrawn):
        there = ", ".join(str(each) for each in (*record.served[:-1], *record.withdrawn)) or "none"
        raise InputError(f"{repository}: version {to} cannot serve again; versions that can: {there}")
    return to


def discard(repository: Path) -> Record:
    """The candidate goes, and its files."""
    with _step(repository) as record:
        event = Event(action="discard", version=candidate_of(repository, record))
        return _take(repository, record, event, candidate=None)


def candidate_of(repository: Path, record: Record) -> int:
    """InputError where there is none."""
    if record.candidate is None:
        raise InputError(f"{repository} has no candidate; `upsnet deploy stage` puts one there")
    return record.candidate


def digests_of(folders: Mapping[str, Path]) -> dict[str, str]:
    """SHA-256 of the files that make a version what it is: model, code, configurations.

    folders: by the names that go before the files'; those of MODEL have none, as `model.onnx`.
    """
    return {
        f"{name}/{file.name}".removeprefix(f"{MODEL}/"): sha256(file)
        for name, folder in folders.items()
        for file in sorted(folder.iterdir())
        if file.suffix in DESCRIBED
    }


def version_digests(repository: Path, version: int) -> dict[str, str]:
    """Those of a version as its files are now."""
    folders = {model: repository / model / str(version) for model in MODELS}
    return digests_of(folders | {f"{MODEL}/{CONFIGS_FOLDER}": version_configs(repository, version)})


def same_files(one: Mapping[str, str], other: Mapping[str, str]) -> bool:
    """Whether two versions have the same digests, but for their configurations, which have the version's number."""
    texts = ({name: digest for name, digest in each.items() if not name.endswith(".pbtxt")} for each in (one, other))
    return next(texts) == next(texts)


def check_files(repository: Path, record: Record, version: int) -> None:
    """InputError where a version's files are not those that came with it."""
    came = record.arrival(version).digests
    try:
        there = version_digests(repository, version)
    except OSError as error:
        raise InputError(f"{error.filename}: cannot be read: {error.strerror}; stage the engine again") from error
    for name in sorted(came.keys() | there.keys()):
        if came.get(name) != there.get(name):
            photo = name.startswith(f"{PHOTO_MODEL}/")
            file = Path(PHOTO_MODEL, str(version), name.split("/")[1]) if photo else Path(MODEL, str(version), name)
            raise InputError(f"{repository / file} is not the file that was staged; stage the engine again")


def _check(repository: Path) -> None:
    check_place(repository)
    latest_version(repository)  # InputError where this is no repository
    for model in MODELS:
        if (repository / model).is_symlink():
            raise InputError(
                f"{repository / model} is a link, and roll-outs need both models in one folder; make another "
                "repository with `upsnet deploy --run`"
            )


@contextmanager
def _step(repository: Path, expected: Record | None = None, begins: bool = False) -> Iterator[Record]:
    """One at a time. Takes away what a killed step has left, and yields the record, which must be the expected one.

    begins: makes the repository a managed one where it is none.
    """
    _check(repository)
    if not begins:
        read_record(repository)  # InputError where it is none; nothing is written then
    with locked(repository):
        record = read_record(repository) if is_managed(repository) else _begin(repository)
        if expected is not None:
            check_same(record, expected)
        _link_configs(repository)
        _tidy(repository, record)
        try:
            yield record
        except BaseException:
            _tidy(repository, read_record(repository))
            raise


def _begin(repository: Path) -> Record:
    """What is served until now becomes the first version that is known, configurations included."""
    place = latest_version(repository)
    number = int(place.name)
    if latest_version(repository, MODELS[1]).name != place.name:
        raise InputError(f"{repository}: its models are not of one version; deploy it again with `upsnet deploy --run`")
    configs = version_configs(repository, number)
    texts = {
        config_name(model, name): (repository / model / name).read_text(encoding="utf-8")
        for model in MODELS
        for name in CONFIGS
    }
    texts = _pinned(texts, number)
    with writing(repository):
        shutil.rmtree(configs, ignore_errors=True)  # of an attempt that was killed
        _write_configs(configs, texts)
        for model in MODELS:
            _all_to_disk(repository / model / str(number))
    event = Event(action="begin", version=number, digests=version_digests(repository, number))
    return _take(repository, Record(served=(number,)), event)


def _configs_of(parts: Parts) -> dict[str, str]:
    return {config_name(model, name): config_of(model, name, parts) for model in MODELS for name in CONFIGS}


def _pinned(texts: Mapping[str, str], number: int) -> dict[str, str]:
    """The configurations, each of that version alone."""
    found = {}
    for name, text in texts.items():
        found[name], times = POLICY.subn(f"version_policy {{ specific {{ versions: [ {number} ] }} }}", text)
        if times != 1:
            raise InputError(f"{name} has no version_policy; deploy the repository again with `upsnet deploy --run`")
    return found


def _write_configs(folder: Path, texts: Mapping[str, str]) -> None:
    """Into a new folder."""
    folder.mkdir()
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    _all_to_disk(folder)


def _write_configs_of_nobody(folder: Path) -> None:
    """Where Triton finds no configuration of the name that it is given, it takes config.pbtxt: it would serve as the
    candidate what is in service. With these it ends."""
    folder.mkdir()
    for model in MODELS:
        for name in CONFIGS:
            (folder / config_name(model, name)).write_text(NOBODY.format(model=model), encoding="utf-8")


def _take(repository: Path, record: Record, event: Event, **changes: Any) -> Record:
    """The next step: its folder, made whole and on the disk, then the one rename by which it holds."""
    after = record.model_copy(update={"step": record.step + 1, "events": (*record.events, event), **changes})
    rollouts = repository / MODEL / ROLLOUTS
    folder = rollouts / f"{after.step:06d}"
    roles = {SERVING: after.serving, CANDIDATE: after.candidate}
    for version in roles.values():
        if version is not None and not version_configs(repository, version).is_dir():
            raise InputError(f"{repository}: the files of version {version} are gone; nothing has changed")
    with writing(repository):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        after.save(folder / RECORD)
        for role, version in roles.items():
            if version is not None:
                (folder / role).symlink_to(Path("../..", str(version), "configs"))
            else:
                _write_configs_of_nobody(folder / role)
        _all_to_disk(folder)
        _to_disk(rollouts)
        _replace_link(rollouts / NOW, Path(folder.name))
    _link_configs(repository)
    _tidy(repository, after)
    return after


def _link_configs(repository: Path) -> None:
    """What Triton reads leads to what the step says; at the first step the same text stands at both ends."""
    with writing(repository):
        for link, target in config_links(repository).items():
            if not link.is_symlink() or os.readlink(link) != str(target):
                _replace_link(link, target)


def _replace_link(link: Path, target: Path) -> None:
    """Atomically, whatever is there; on the disk when this returns."""
    fresh = link.with_name(f".{link.name}")
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(target)
    os.replace(fresh, link)
    _to_disk(link.parent)


def _all_to_disk(folder: Path) -> None:
    for above, _, files in os.walk(folder):
        for name in files:
            if not os.path.islink(os.path.join(above, name)):
                _to_disk(Path(above, name))
        _to_disk(Path(above))


def _to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _tidy(repository: Path, record: Record) -> None:
    """Removes versions that have gone, what a killed stage has left, and the folders of steps long past.

    What cannot be removed stays: it is in nobody's way, and a rollback must not wait for it.
    """
    gone = {*record.known, record.highest + 1} - record.kept
    old = [folder for model in MODELS for folder in versions(repository, model) if int(folder.name) in gone]
    steps = sorted((repository / MODEL / ROLLOUTS).glob("[0-9]*"))
    now = f"{record.step:06d}"
    old += [each for each in steps if each.name > now] + [each for each in steps if each.name < now][:-STEPS_KEPT]
    for folder in old:
        shutil.rmtree(folder, ignore_errors=True)
    for link in (repository / MODEL / ROLLOUTS).glob("[0-9]*/*"):
        if link.is_symlink() and not link.exists():  # of a version that has gone; Triton complains at each load
            with suppress(OSError):
                link.unlink()
    remove_rubbish(repository)
