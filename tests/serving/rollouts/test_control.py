"""Roll-outs in the container as it runs: serve.sh on the Triton of the wheel, with the operator's secret."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import pytest
import tritonclient.grpc as grpc
from PIL import Image

from serving.repository import check_parts, deploy
from serving.rollouts import steps
from serving.rollouts.control import check_alike, read_secret, take_up, taking_up
from serving.rollouts.record import Record, read_record
from tests.serving.conftest import Exported
from tests.serving.ops.callers import Callers
from tests.serving.ops.container import Container, container, retrained
from tests.serving.rollouts.test_commands import command
from tests.serving.test_configs import config
from upsnet.contract import MODEL, PHOTO_MODEL, PLUGINS
from upsnet.errors import InputError, ServerError

SECRET = "0123456789abcdef" * 4
triton = pytest.mark.triton


class Running(NamedTuple):
    container: Container
    repository: Path
    secret: Path

    def promote(self, candidate: Record) -> Record:
        with taking_up([self.container.grpc], self.secret, self.repository, candidate.candidate or 0):
            return steps.promote(self.repository, candidate, {}, 1.0)

    def rollback(self) -> Record:
        record = read_record(self.repository)
        with taking_up([self.container.grpc], self.secret, self.repository, record.previous or 0):
            return steps.rollback(self.repository)

    def versions(self) -> list[list[str]]:
        return versions_of(self.container)


def versions_of(container: Container) -> list[list[str]]:
    """Of each model."""
    with grpc.InferenceServerClient(container.grpc) as client:
        return [list(client.get_model_metadata(model).versions) for model in (MODEL, PHOTO_MODEL)]


@pytest.fixture(scope="module")
def running(
    exported: Exported, triton_environment: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("control")
    repository = deploy(exported.model, exported.manifest_path, folder / "repository")
    steps.stage(repository, retrained(exported, folder / "2", 2))
    secret = folder / "secret"
    secret.write_text(SECRET + "\n")
    secret.chmod(0o600)
    # The old photo model is slow to ask for the network, which must not have gone by then.
    model = repository / PHOTO_MODEL / "1/model.py"
    calls = "    def predict(self, batch: list[Opened]) -> list[PanopticResult]:\n"
    assert calls in model.read_text()
    model.write_text(model.read_text().replace(calls, f"{calls}        import time; time.sleep(0.1)\n"))
    with container(folder / "c", triton_environment, repository, {"CONTROL_SECRET_FILE": str(secret)}) as started:
        yield Running(started, repository, secret)


@triton
def test_promotion_and_rollback_under_load(running: Running) -> None:
    """No request fails, every caller passes to the other version once and for good, and an answer is of one version."""
    candidate = read_record(running.repository)
    with Callers(running.container.grpc) as callers:
        begun = time.monotonic()
        assert running.promote(candidate).served == (1, 2)
        promoted = time.monotonic()
        assert running.versions() == [["2"], ["2"]]
        callers.go_on()
        back = time.monotonic()
        assert running.rollback().served == (1,)
        returned = time.monotonic()
        assert running.versions() == [["1"], ["1"]]
        callers.go_on()
    answers = sum(map(len, callers.seen))
    print(f"promoted in {promoted - begun:.1f} s, back in {returned - back:.1f} s, {answers} answers")
    assert not callers.failed
    for seen in callers.seen:
        versions = [version for _, version, _ in seen]
        changes = [versions[0], *(b for a, b in pairwise(versions) if a != b)]
        assert changes == ["1", "2", "1"]
    figures = {(model, version): figure for seen in callers.seen for model, version, figure in seen}
    assert {answer for seen in callers.seen for answer in seen} == {(*key, figure) for key, figure in figures.items()}
    assert [figures[model, "2"] - figures[model, "1"] for model in (MODEL, PHOTO_MODEL)] == [2, 2]


@triton
def test_a_version_that_does_not_load(running: Running, exported: Exported, tmp_path: Path) -> None:
    record = steps.stage(running.repository, retrained(exported, tmp_path, 3))
    (running.repository / MODEL / f"{record.candidate}/model.onnx").write_bytes(b"no model")
    before = running.versions()
    with Callers(running.container.grpc) as callers:
        with pytest.raises(
            ServerError, match=f"version {record.candidate} is at UNAVAILABLE state: .*/model.onnx failed"
        ) as error:
            running.promote(record)
        assert "initialize" not in str(error.value)  # no traceback
        assert running.versions() == before
    assert not callers.failed and all(len({version for _, version, _ in seen}) == 1 for seen in callers.seen)
    assert read_record(running.repository) == record  # no step was made


@triton
def test_what_a_container_does_not_take_up(running: Running, exported: Exported, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    table = [
        category.model_copy(update={"name": f"another {category.name}"}) for category in exported.manifest.categories
    ]
    exported.manifest.model_copy(update={"categories": table}).save(other / "manifest.json")
    before, log = running.versions(), running.container.said.count("loading: upsnet")
    record = steps.stage(running.repository, check_parts(exported.model, other / "manifest.json"))
    with pytest.raises(InputError, match=r"the class tables of versions 1 and \d+ differ; a restart takes it up"):
        running.promote(record)
    guessed = tmp_path / "guessed"
    guessed.write_text("f" * 64)
    guessed.chmod(0o600)
    with pytest.raises(ServerError, match="does not let this secret change its models"):
        running._replace(secret=guessed).promote(steps.stage(running.repository, retrained(exported, tmp_path, 4)))
    assert running.versions() == before and running.container.said.count("loading: upsnet") == log


@triton
def test_the_commands(running: Running, exported: Exported, triton_environment: Path, tmp_path: Path) -> None:
    """The candidate in a container of its own, judged there and promoted; and what a container has missed."""
    before = steps.stage(running.repository, retrained(exported, tmp_path / "7", 7))
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(2):
        Image.new("RGB", (96, 64), (200 * number, 90, 90)).save(photos / f"{number}.png")
    arguments = ["--repository", running.repository, "--health", "127.0.0.1:9", "--server", running.container.grpc]
    arguments += ["--secret-file", running.secret]
    judged = ["--photos", photos, "--load-seconds", 0.1, "--concurrency", 1, "--max-latency-ratio", 1000]
    with container(tmp_path / "c", triton_environment, running.repository, {"ROLE": "candidate"}) as candidate:
        assert versions_of(candidate) == [[str(before.candidate)]] * 2
        swapped = command("promote", *arguments, *judged, "--candidate", running.container.grpc)
        assert swapped.exit_code == 2, swapped.output
        assert f"does not run version {before.candidate} of" in swapped.stderr and "restart it" in swapped.stderr
        promoted = command("promote", *arguments, *judged, "--candidate", candidate.grpc)
    assert promoted.exit_code == 0, promoted.output
    assert f"version {before.candidate} serves at {running.container.grpc} now" in promoted.stdout
    assert "127.0.0.1:9" not in promoted.stdout, "nobody misses a service where there are containers"
    after = read_record(running.repository)
    assert after.serving == before.candidate and not after.events[-1].figures["gate"]["private_servers"]
    assert running.versions() == [[str(after.serving)]] * 2
    # A step that the container was not told of, or whose command was killed.
    steps.rollback(running.repository)
    servers = [running.container.grpc], running.secret, running.repository
    with (
        pytest.raises(InputError, match=f"serves another model than version {before.serving} of"),
        taking_up(*servers, after.serving),
    ):
        raise AssertionError
    with Callers(running.container.grpc) as callers:
        back = command("rollback", "--to", before.serving, *arguments)
    assert back.exit_code == 0 and not callers.failed, back.output
    assert running.versions() == [[str(before.serving)]] * 2
    loads = running.container.said.count("loading: upsnet")
    take_up(*servers)  # again: nothing to do
    assert running.container.said.count("loading: upsnet") == loads


@triton
def test_plain_triton_without_a_candidate(exported: Exported, triton_environment: Path, tmp_path: Path) -> None:
    """Where there is no configuration of the name that it is given, it takes config.pbtxt."""
    repository = deploy(exported.model, exported.manifest_path, tmp_path / "repository")
    steps.stage(repository, retrained(exported, tmp_path / "2", 2))
    steps.discard(repository)
    for model in (MODEL, PHOTO_MODEL):
        (repository / model / "config.pbtxt").unlink()
        (repository / model / "config.pbtxt").symlink_to("configs/cpu.pbtxt")
    more = ["--model-config-name=candidate_cpu"]
    with container(tmp_path / "plain", triton_environment, repository, more=more) as running:
        assert running.process.wait(30) != 0 and "version 0 is specified for model 'upsnet'" in running.said


def test_what_needs_a_restart(exported: Exported, tmp_path: Path) -> None:
    repository = deploy(exported.model, exported.manifest_path, tmp_path / "repository")
    configs = dict.fromkeys((1, 2), config(MODEL, "config.pbtxt", repository))
    shutil.copytree(repository / PHOTO_MODEL / "1", repository / PHOTO_MODEL / "2")
    for version in configs:
        (repository / MODEL / str(version)).mkdir(exist_ok=True)
        (repository / MODEL / str(version) / PLUGINS).write_bytes(b"the same")
    check_alike(repository, True, configs)
    (repository / MODEL / "2" / PLUGINS).write_bytes(b"another")
    check_alike(repository, False, configs)  # ONNX Runtime loads its library in each version's own process
    with pytest.raises(InputError, match=f"the plugins .{PLUGINS}. of versions 1 and 2 differ"):
        check_alike(repository, True, configs)
    (repository / MODEL / "2/model.plan").touch()
    with pytest.raises(InputError, match="one of versions 1 and 2 has a TensorRT plan"):
        check_alike(repository, False, configs)
    (repository / MODEL / "2/model.plan").unlink()
    code = repository / PHOTO_MODEL / "1/model.py"
    code.write_text(code.read_text().replace("model_version", "version"))  # as it was before roll-outs
    with pytest.raises(
        InputError, match=r"the photo model of version 1 is an older program's.*; a restart takes it up"
    ):
        check_alike(repository, False, configs)


@pytest.mark.parametrize(
    ("text", "mode", "told"),
    [
        (SECRET, 0o640, "others can read the secret"),
        ("short", 0o600, "32 letters"),
        ("f" * 40 + ":" + "f" * 40, 0o600, "32 letters"),
        (None, 0o600, "cannot be read: No such file"),
    ],
)
def test_secrets_that_are_refused(text: str | None, mode: int, told: str, tmp_path: Path) -> None:
    file = tmp_path / "secret"
    if text is not None:
        file.write_text(text)
        file.chmod(mode)
    with pytest.raises(InputError, match=f"{file}.*{told}"):
        read_secret(file)


def test_server_and_secret_go_together(exported: Exported, tmp_path: Path) -> None:
    repository = deploy(exported.model, exported.manifest_path, tmp_path / "repository")
    record = steps.stage(repository, retrained(exported, tmp_path / "2", 2))
    with taking_up([], None, repository, 2):  # nothing to tell
        assert steps.promote(repository, record, {}, 1.0).serving == 2
    with pytest.raises(InputError, match="go together"), taking_up(["127.0.0.1:1"], None, repository, 1):
        raise AssertionError
