"""The steps of a roll-out: what each leaves, killed before every system call that changes something too."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from serving.layout import config_links
from serving.repository import Parts, deploy
from serving.rollouts import steps
from serving.rollouts.record import Record, read_record
from tests.serving.conftest import Exported
from tests.serving.rollouts.conftest import check_truth, entries
from upsnet.contract import MODEL, PHOTO_MODEL
from upsnet.errors import InputError

CHANGES = {"os.mkdir", "os.rename", "os.symlink", "os.remove", "os.rmdir", "os.link", "os.truncate", "os.chmod"}
CANDIDATE, TWO, THREE = "candidate", "two", "three"  # how far a repository is


def make(repository: Path, parts: Parts, state: str) -> Path:
    if state:
        steps.stage(repository, parts)
    if state in (TWO, THREE):
        steps.promote(repository, read_record(repository), {}, 1.0)
    if state == THREE:
        steps.stage(repository, parts)
    return repository


def killed_before(number: int, step: Callable[[], object]) -> bool:
    """Whether the step, in a process of its own, came to its `number`th change of the files, where it is killed."""
    child = os.fork()
    if child == 0:
        seen = 0

        def hook(event: str, arguments: tuple[object, ...]) -> None:
            nonlocal seen
            writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
            if event in CHANGES or writes:
                seen += 1
                if seen == number:
                    os.kill(os.getpid(), signal.SIGKILL)

        try:
            sys.addaudithook(hook)
            step()
            os._exit(0)
        finally:
            os._exit(1)
    status = os.waitpid(child, 0)[1]
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status)


STEPS: dict[str, tuple[str, Callable[[Path, Parts], Record]]] = {
    "the first stage": ("", lambda repository, parts: steps.stage(repository, parts)),
    "another stage": (THREE, lambda repository, parts: steps.stage(repository, parts, keep=1)),
    "promote": (THREE, lambda repository, _: steps.promote(repository, read_record(repository), {"pq": 0.5}, 1.0)),
    "refuse": (CANDIDATE, lambda repository, _: steps.refuse(repository, read_record(repository), ["no"], {}, 1.0)),
    "rollback": (TWO, lambda repository, _: steps.rollback(repository)),
    "discard": (THREE, lambda repository, _: steps.discard(repository)),
}


@pytest.fixture(autouse=True)
def no_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """fsync is for a machine that loses its power, which no test can take away; it takes its time."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


@pytest.mark.parametrize("name", STEPS)
def test_killed_before_any_system_call(name: str, repository: Path, parts: Parts, tmp_path: Path) -> None:
    state, step = STEPS[name]
    # What a killed stage has left the next one takes away; the rest goes with whichever step comes.
    next_one = steps.stage if "stage" in name else lambda place, _: steps.rollback(place, read_record(place).serving)
    make(repository, parts, state)
    before = check_truth(repository)
    clean = shutil.copytree(repository, tmp_path / "clean", symlinks=True)
    step(clean, parts)
    after = check_truth(clean)
    assert after is not None
    number, found = 0, []
    while True:
        number += 1
        place = shutil.copytree(repository, tmp_path / "killed" / str(number), symlinks=True)
        killed = killed_before(number, lambda place=place: step(place, parts))  # type: ignore[misc]
        record = check_truth(place)
        done = record is not None and (before is None or record.id == before.id) and record.step == after.step
        if done:
            assert record is not None and (record.served, record.candidate) == (after.served, after.candidate)
        elif before is not None:
            assert record == before
        else:
            assert record is None or (record.step, record.served, record.candidate) == (1, (1,), None)
        found.append(done)
        # Whatever was left, the next commands go their way, and then nothing of it is there.
        if done:
            next_one(place, parts)
        else:
            step(place, parts)
            assert entries(place) == entries(clean)
        last = check_truth(place)
        assert last is not None and last.serving == after.serving
        if done:
            assert entries(place) == entries_after(clean, lambda place: next_one(place, parts), tmp_path / "wanted")
        shutil.rmtree(place)
        if not killed:
            break
    assert found == sorted(found) and found[-1], "before the step, then after it, and never back"
    assert number > 5


def entries_after(clean: Path, step: Callable[[Path], object], place: Path) -> set[str]:
    """The names in a repository, of which nothing was killed, after one more step."""
    if not place.exists():
        step(shutil.copytree(clean, place, symlinks=True))
    return entries(place)


def test_a_roll_out_from_begin_to_end(repository: Path, parts: Parts) -> None:
    text = (repository / MODEL / "config.pbtxt").read_text()
    first = steps.stage(repository, parts, source="engine")
    assert (first.served, first.candidate, [event.action for event in first.events]) == ((1,), 2, ["begin", "stage"])
    assert first.events[1].digests.items() >= parts.digests.items() and first.events[1].source == "engine"
    pinned = (repository / MODEL / "config.pbtxt").read_text()
    assert pinned == text.replace("latest { num_versions: 1 }", "specific { versions: [ 1 ] }")
    assert (repository / MODEL / "configs/candidate.pbtxt").read_text() != pinned, "another model, another manifest"
    refused = steps.refuse(repository, first, ["PQ fell"], {"pq": 0.1}, 2.0)
    assert refused.candidate == 2 and refused.events[-1].reasons == ["PQ fell"]
    served = steps.promote(repository, refused, {"pq": 0.5}, 2.0)
    assert (served.served, served.candidate, served.previous) == ((1, 2), None, 1)
    assert served.events[-1].figures == {"pq": 0.5} and served.id == first.id
    back = steps.rollback(repository)
    assert (back.served, back.withdrawn, back.events[-1].version) == ((1,), (2,), 1)
    assert (repository / MODEL / "config.pbtxt").read_text() == pinned
    again = steps.rollback(repository, to=2)
    assert (again.served, again.withdrawn) == ((1, 2), ())
    assert steps.rollback(repository, to=2) == again, "it serves already: nothing to do, nothing in the history"
    third = steps.stage(repository, parts)
    assert third.candidate == 3
    gone = steps.discard(repository)
    assert gone.candidate is None and gone.highest == 3
    for model in (MODEL, PHOTO_MODEL):
        assert not (repository / model / "3").exists()
    assert steps.stage(repository, parts).candidate == 4, "a number is never used again"
    assert check_truth(repository) == read_record(repository)


def test_old_versions_are_pruned_and_withdrawn_ones_go_with_the_next_stage(repository: Path, parts: Parts) -> None:
    for _ in range(3):
        steps.stage(repository, parts)
        steps.promote(repository, read_record(repository), {}, 1.0)
    record = steps.stage(repository, parts, keep=2)
    assert record.served == (3, 4) and record.kept == {3, 4, 5}
    assert {int(each.name) for each in (repository / MODEL).glob("[0-9]*")} == {3, 4, 5}
    steps.promote(repository, record, {}, 1.0)
    steps.rollback(repository, to=3)
    assert read_record(repository).withdrawn == (5, 4)
    with pytest.raises(InputError, match=r"version 2 cannot serve again; versions that can: 5, 4"):
        steps.rollback(repository, to=2)
    with pytest.raises(InputError, match="version 3 has none before it to return to"):
        steps.rollback(repository)
    assert steps.stage(repository, parts).kept == {3, 6}
    with pytest.raises(InputError, match="--keep 0: the version in service stays"):
        steps.stage(repository, parts, keep=0)


def test_versions_that_somebody_else_put_there_stay(repository: Path, parts: Parts) -> None:
    """Before the first stage the highest number serves; what else lies there is not ours to remove."""
    for model in (MODEL, PHOTO_MODEL):
        for number in (7, 3):
            shutil.copytree(repository / model / "1", repository / model / str(number))
    assert steps.stage(repository, parts).candidate == 8
    assert {int(each.name) for each in (repository / MODEL).glob("[0-9]*")} == {1, 3, 7, 8}


def test_repositories_of_older_programs(repository: Path, parts: Parts) -> None:
    """The photo model did not name the version of the network that it asks, and was version 1 for ever."""
    code = (repository / PHOTO_MODEL / "1/model.py").read_text()
    older = code.replace("model_version=self.version,", "")
    for model in (MODEL, PHOTO_MODEL):
        (repository / model / "1/model.py").write_text(older)
    steps.stage(repository, parts)
    for model in (MODEL, PHOTO_MODEL):
        assert (repository / model / "1/model.py").read_text() == older, "what serves stays as it is"
    assert (repository / PHOTO_MODEL / "2/model.py").read_text() == code
    check_truth(repository)


def test_repositories_that_no_step_can_begin_from(
    exported: Exported, repository: Path, parts: Parts, tmp_path: Path
) -> None:
    (repository / MODEL / "1").rename(repository / MODEL / "3")
    config = repository / MODEL / "configs/cpu.pbtxt"
    before = entries(repository)
    cure = "deploy (it|the repository) again with `upsnet deploy --run`"
    with pytest.raises(InputError, match=f"its models are not of one version; {cure}"):
        steps.stage(repository, parts)
    (repository / PHOTO_MODEL / "1").rename(repository / PHOTO_MODEL / "3")
    text = config.read_text()
    config.write_text(text.replace("version_policy", "# version_policy").replace("{ latest", "latest"))
    with pytest.raises(InputError, match=f"upsnet_cpu.pbtxt has no version_policy; {cure}"):
        steps.stage(repository, parts)
    shutil.rmtree(repository / PHOTO_MODEL)
    with pytest.raises(InputError, match="it has no upsnet_photo/1; make one with `upsnet deploy`"):
        steps.stage(repository, parts)
    assert not (
        entries(repository) - before - {f"{MODEL}/rollouts", f"{MODEL}/rollouts/lock", f"{MODEL}/rollouts/staging"}
    )
    deploy(exported.model, exported.manifest_path, repository)
    assert steps.stage(repository, parts).served == (3,)
    check_truth(repository)


@pytest.mark.parametrize("step", ["promote", "refuse", "rollback", "discard"])
def test_a_repository_without_roll_outs_is_not_touched(step: str, repository: Path) -> None:
    before = entries(repository)
    expected = Record(served=(1,))
    call: dict[str, Callable[[], object]] = {
        "promote": lambda: steps.promote(repository, expected, {}, 1.0),
        "refuse": lambda: steps.refuse(repository, expected, [], {}, 1.0),
        "rollback": lambda: steps.rollback(repository),
        "discard": lambda: steps.discard(repository),
    }
    with pytest.raises(InputError, match=r"has one version and no roll-outs yet; `upsnet deploy stage` adds another"):
        call[step]()
    assert entries(repository) == before


def test_what_moved_meanwhile_is_not_promoted(repository: Path, parts: Parts) -> None:
    expected = steps.stage(repository, parts)
    steps.stage(repository, parts)
    for step in (
        lambda: steps.promote(repository, expected, {}, 1.0),
        lambda: steps.refuse(repository, expected, ["no"], {}, 1.0),
    ):
        with pytest.raises(InputError, match=r"meanwhile .*@.* made another step \(stage, version 3\)"):
            step()
    assert read_record(repository).served == (1,)


def test_a_link_to_the_repository_will_do(repository: Path, parts: Parts, tmp_path: Path) -> None:
    link = tmp_path / "elsewhere" / "link"
    link.parent.mkdir()
    link.symlink_to(Path("..") / repository.name)
    record = steps.stage(link, parts)
    steps.promote(link, record, {}, 1.0)
    assert check_truth(repository) == check_truth(link)
    assert all(not target.is_absolute() for target in config_links(repository).values())
    moved = repository.rename(tmp_path / "moved")
    assert steps.rollback(moved).serving == 1 and check_truth(moved)


def test_models_in_two_places_are_refused(repository: Path, parts: Parts, tmp_path: Path) -> None:
    (repository / PHOTO_MODEL).rename(tmp_path / "photo")
    (repository / PHOTO_MODEL).symlink_to(tmp_path / "photo")
    with pytest.raises(InputError, match=r"upsnet_photo is a link, and roll-outs need both models in one folder"):
        steps.stage(repository, parts)


def test_files_that_changed_are_named(repository: Path, parts: Parts) -> None:
    record = steps.stage(repository, parts)
    steps.check_files(repository, record, 2)
    for name in (
        *("upsnet/2/model.onnx", "upsnet/2/manifest.json", "upsnet/2/model.py", "upsnet/2/configs/upsnet_cpu.pbtxt"),
        *("upsnet/2/configs/upsnet_photo.pbtxt", "upsnet_photo/2/model.py", "upsnet_photo/2/numpy.py"),
    ):
        file = repository / name
        before = file.read_bytes() if file.exists() else None
        damages: list[bytes | None] = [b"another", None] if before is not None else [b"another"]
        for damage in damages:
            file.unlink(missing_ok=True)
            if damage is not None:
                file.write_bytes(damage)
            with pytest.raises(InputError, match=rf"/{name} is not the file that was staged; stage the engine again"):
                steps.check_files(repository, record, 2)
        file.unlink(missing_ok=True)
        if before is not None:
            file.write_bytes(before)
    steps.check_files(repository, record, 2)
    steps.promote(repository, record, {}, 1.0)
    for model in (MODEL, PHOTO_MODEL):
        shutil.rmtree(repository / model / "1")
    with pytest.raises(InputError, match="the files of version 1 are gone; nothing has changed"):
        steps.rollback(repository)
    assert read_record(repository).serving == 2
