"""`upsnet deploy stage`, `promote`, `rollback`, `status`, `history`, `discard`: words, exit codes, the wait."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

import serving.deploy
from serving.lock import STAGING, locked
from serving.repository import Parts, deploy
from serving.rollouts import steps
from serving.rollouts.canary import CanaryLimits, CanaryVerdict
from serving.rollouts.commands import discard, history, promote, rollback, stage, status
from serving.rollouts.gate import GateOptions, GateResult
from serving.rollouts.of_run import deploy_run
from serving.rollouts.record import Record, read_record
from tests.serving.conftest import Exported
from tests.serving.rollouts.candidates import make_template
from tests.serving.rollouts.conftest import check_truth, entries
from tests.small_disk import small_disk
from upsnet.command_line.command import make_app
from upsnet.contract import MODEL, PHOTO_MODEL
from upsnet.errors import InputError, ServerError
from upsnet.parity.gate import GateLimits

MAINS: dict[str, Callable[..., None]] = {
    "stage": stage.main,
    "promote": promote.main,
    "rollback": rollback.main,
    "status": status.main,
    "history": history.main,
    "discard": discard.main,
}
NOBODY = "127.0.0.1:9"  # the port of discard, where nothing listens
UNJUDGED = ("--without-gate", "a test")


def command(name: str, *arguments: object) -> Result:
    return CliRunner(env={"COLUMNS": "200"}).invoke(make_app(MAINS[name]), [str(each) for each in arguments])


@pytest.fixture
def run(repository: Path) -> Callable[..., Result]:
    """A command on the repository, without a service."""

    def call(name: str, *arguments: object) -> Result:
        health = () if name in ("history", "discard") or "--health" in arguments else ("--health", NOBODY)
        return command(name, *arguments, "--repository", repository, *health)

    return call


def test_the_way_of_a_version(run: Callable[..., Result], repository: Path, engine: Path) -> None:
    shown = run("status")
    assert shown.exit_code == 0 and "version 1 serves (model " in shown.stdout and "no roll-outs yet" in shown.stdout
    staged = run("stage", engine)
    assert staged.exit_code == 0, staged.output
    assert f"staged {engine} as version 2; version 1 serves\n" in staged.stdout
    assert f"no service of this repository answers at {NOBODY}" in staged.stdout
    promoted = run("promote", *UNJUDGED)
    assert promoted.exit_code == 0, promoted.output
    assert "version 2 is promoted; version 1 is what a rollback returns to\n" in promoted.stdout
    back = run("rollback")
    assert (back.exit_code, back.stdout.splitlines()[0]) == (0, "back from version 2 to version 1")
    again = run("rollback", "--to", 1)
    assert (again.exit_code, again.stdout.splitlines()[0]) == (0, "version 1 serves already; nothing has changed")
    none = run("rollback")
    assert (none.exit_code, none.stderr) == (
        2,
        f"error: {repository}: version 1 has none before it to return to\n",
    )
    run("rollback", "--to", 2)
    assert f"staged {engine} as version 3; version 2 serves, which has the same files\n" in run("stage", engine).stdout
    run("rollback")
    gone = run("discard")
    assert (gone.exit_code, gone.stdout) == (0, "version 3 is gone; version 1 serves\n")
    for name in ("promote", "discard"):
        refused = run(name)
        assert refused.exit_code == 2
        assert refused.stderr == f"error: {repository} has no candidate; `upsnet deploy stage` puts one there\n"
    told = json.loads(run("history", "--json").stdout)
    assert [event["action"] for event in told] == [
        *("begin", "stage", "promote", "rollback", "rollback", "stage", "rollback", "discard")
    ]
    assert told[2]["reasons"] == ["a test"] and told[1]["source"] == str(engine)
    table = run("history").stdout
    assert table.count("UTC") == 8 and "a test" in table and f"from {engine}" in table


def test_code_is_of_a_version_as_well(
    run: Callable[..., Result], repository: Path, engine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("stage", engine)
    run("promote", *UNJUDGED)
    monkeypatch.setattr("serving.repository.TEMPLATE", make_template(tmp_path / "template", "# another program's"))
    staged = run("stage", engine)
    assert "staged" in staged.stdout and "the same files" not in staged.stdout
    first, second = (read_record(repository).arrival(version).digests for version in (2, 3))
    assert {name for name in first if first[name] != second[name] and not name.endswith(".pbtxt")} == {"model.py"}
    (repository / PHOTO_MODEL / "3/model.py").write_text("raise ImportError")
    for gate in (UNJUDGED, ()):
        other = run("promote", *gate)
        assert other.exit_code == 2 and "upsnet_photo/3/model.py is not the file that was staged" in other.stderr
    assert read_record(repository).served == (1, 2)
    assert deploy_run(engine, repository) == repository, "the model that serves is the engine's, whatever the code"


def test_files_that_change_while_they_are_judged_are_not_promoted(
    run: Callable[..., Result], repository: Path, engine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("stage", engine)

    def gate(*_: Any, **__: Any) -> GateResult:
        (repository / MODEL / "2/model.py").write_text("raise ImportError")
        return GateResult(passed=True, reasons=[], seconds=1.0, private=True)

    monkeypatch.setattr(promote, "hold_gate", gate)
    other = run("promote", "--photos", engine)
    assert other.exit_code == 2 and "upsnet/2/model.py is not the file that was staged" in other.stderr
    assert read_record(repository).served == (1,)


def test_a_gate_that_another_step_ended_says_so(
    run: Callable[..., Result], repository: Path, engine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A version that goes while it is asked is no fault of the version that serves."""
    run("stage", engine)
    run("promote", *UNJUDGED)
    run("stage", engine)

    def gone(*_: Any, **__: Any) -> GateResult:
        raise ServerError("there is no version 2; there is 1 and 3")

    monkeypatch.setattr(promote, "hold_gate", gone)
    own = run("promote", "--photos", engine)
    assert (own.exit_code, own.stderr) == (2, "error: there is no version 2; there is 1 and 3\n")

    def back(*_: Any, **__: Any) -> GateResult:
        run("rollback")
        return gone()

    monkeypatch.setattr(promote, "hold_gate", back)
    moved = run("promote", "--photos", engine)
    assert moved.exit_code == 2 and "error: meanwhile " in moved.stderr
    assert "made another step (rollback, version 1)" in moved.stderr


def test_a_rollback_to_damaged_files_warns(run: Callable[..., Result], repository: Path, engine: Path) -> None:
    run("stage", engine)
    run("promote", *UNJUDGED)
    assert run("rollback").stderr == ""
    (repository / MODEL / "2/model.onnx").write_bytes(b"damaged")
    back = run("rollback", "--to", 2)
    assert back.exit_code == 0 and read_record(repository).serving == 2, "it may be the only way"
    assert back.stderr.startswith(f"warning: {repository / MODEL / '2/model.onnx'} is not the file that was staged")


def test_status_for_programs(run: Callable[..., Result], engine: Path, parts: Parts) -> None:
    bare = json.loads(run("status", "--json").stdout)
    assert (bare["serving"], bare["candidate"], bare["rollouts"], bare["service"]) == (1, None, None, None)
    run("stage", engine)
    told = json.loads(run("status", "--json").stdout)
    assert [(each["version"], each["role"]) for each in told["versions"]] == [(1, "serving"), (2, "candidate")]
    assert told["versions"][1]["model_sha256"] == parts.digests["model.onnx"]
    assert told["last"]["action"] == "stage" and told["step"] == 2
    run("promote", *UNJUDGED)
    run("rollback")
    roles = [each["role"] for each in json.loads(run("status", "--json").stdout)["versions"]]
    assert roles == ["serving", "withdrawn"]


@pytest.mark.parametrize("name", ["promote", "rollback", "history", "discard"])
def test_what_is_no_repository_of_roll_outs(name: str, run: Callable[..., Result], tmp_path: Path) -> None:
    early = run(name)
    assert early.exit_code == 2 and "no roll-outs yet; `upsnet deploy stage` adds another" in early.stderr
    nothing = command(name, "--repository", tmp_path / "nowhere")
    assert nothing.exit_code == 2 and nothing.stderr.count("\n") == 1
    assert "nowhere is no model repository: it has no upsnet/1; make one with `upsnet deploy`" in nothing.stderr


def test_an_engine_that_is_none_changes_nothing(run: Callable[..., Result], repository: Path, tmp_path: Path) -> None:
    before = entries(repository)
    for engine, words in ((tmp_path, f"there is no model {tmp_path}/model.onnx"), (Path("nosuchrun"), "there is no")):
        refused = run("stage", engine)
        assert refused.exit_code == 2 and words in refused.stderr and refused.stderr.count("\n") == 1
    assert entries(repository) == before


@pytest.mark.parametrize("health", ["8002", "host:", "host:0", "host:99999", "http://host:8002/"])
def test_health_is_an_address(health: str, run: Callable[..., Result]) -> None:
    refused = run("rollback", "--health", health)
    assert refused.exit_code == 2 and f"--health {health}: give host:port" in refused.stderr


# --- the gate's answer


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> GatePlay:
    found = GatePlay()
    monkeypatch.setattr(promote, "hold_gate", found.hold)
    monkeypatch.setattr(promote, "run_canary", found.mirror)
    monkeypatch.setattr(promote, "check_service", lambda record, health: None)  # that it answers
    return found


class GatePlay:
    """Says what a test wants, and what it was asked."""

    def __init__(self) -> None:
        self.reasons: list[str] = []
        self.canary_reasons: list[str] = []
        self.asked: list[Any] = []
        self.meanwhile: Callable[[], object] = lambda: None

    def hold(self, repository: Path, record: Record, options: GateOptions, **more: Any) -> GateResult:
        self.asked.append(options)
        self.meanwhile()
        return GateResult(passed=not self.reasons, reasons=self.reasons, seconds=1.5, private=True)

    def mirror(
        self, repository: Path, record: Record, health: str, share: float, limits: CanaryLimits
    ) -> CanaryVerdict:
        self.asked.append((share, limits))
        return CanaryVerdict(self.canary_reasons, {"photos": 50}, ["canary: 50 photos"])


def test_a_gate_that_says_no(run: Callable[..., Result], repository: Path, parts: Parts, gate: GatePlay) -> None:
    steps.stage(repository, parts)
    gate.reasons = ["PQ fell by 20 points", "slower"]
    refused = run("promote", "--photos", repository, "--canary", "10%")
    assert refused.exit_code == 1, refused.output
    assert refused.stderr == (
        "refused: PQ fell by 20 points\nrefused: slower\nversion 2 stays the candidate; version 1 serves\n"
    )
    assert len(gate.asked) == 1, "no canary for what the gate refused"
    last = read_record(repository).events[-1]
    assert (last.action, last.reasons, last.figures) == ("refuse", gate.reasons, {"gate": {"private_servers": True}})
    assert "version 2 was refused " in (shown := run("status").stdout) and "PQ fell by 20 points; slower" in shown
    gate.reasons, gate.canary_reasons = [], ["canary: version 2 failed at 1 of 9 requests"]
    refused = run("promote", "--photos", repository, "--canary", "10%", "--canary-photos", 9, "--min-identical", 0.9)
    assert refused.exit_code == 1 and "refused: canary: version 2 failed at 1 of 9" in refused.stderr
    assert gate.asked[-1][0] == 0.1 and gate.asked[-1][1].photos == 9 and gate.asked[-1][1].min_identical == 0.9
    assert read_record(repository).events[-1].figures["canary"] == {"photos": 50}
    assert read_record(repository).serving == 1 and check_truth(repository)


def test_a_gate_that_says_yes(run: Callable[..., Result], repository: Path, parts: Parts, gate: GatePlay) -> None:
    steps.stage(repository, parts)
    options = ("--max-pq-drop", 0.01, "--min-pq", 0.3, "--other-size", "--deadline", 5, "--limit", 7)
    load = ("--max-latency-ratio", 2, "--concurrency", 3, "--load-seconds", 0)
    promoted = run("promote", "--photos", repository, *options, *load, "--canary", "0.5")
    assert promoted.exit_code == 0, promoted.output
    asked = gate.asked[0]
    limits = GateLimits(max_pq_drop=0.01, min_pq=0.3, other_size=True, seconds=5)
    assert asked == GateOptions(
        photos=repository, limit=7, limits=limits, max_latency_ratio=2, concurrency=3, seconds=0
    )
    last = read_record(repository).events[-1]
    assert last.action == "promote" and set(last.figures) == {"gate", "canary"} and last.seconds is not None


def test_what_happens_while_the_gate_is_at_work(
    run: Callable[..., Result], repository: Path, parts: Parts, gate: GatePlay
) -> None:
    """A rollback goes through, and what was judged is not promoted."""
    for _ in range(2):
        steps.stage(repository, parts)
        steps.promote(repository, read_record(repository), {}, 1.0)
    steps.stage(repository, parts)
    gate.meanwhile = lambda: steps.rollback(repository)
    late = run("promote", "--photos", repository)
    assert late.exit_code == 2 and "made another step (rollback, version 2)" in late.stderr
    record = read_record(repository)
    assert (record.serving, record.candidate, record.events[-1].action) == (2, 4, "rollback")
    (repository / MODEL / "4/model.onnx").write_bytes(b"another")
    damaged = run("promote", "--photos", repository)
    assert damaged.exit_code == 2 and "4/model.onnx is not the file that was staged" in damaged.stderr
    assert len(gate.asked) == 1


def test_the_run_that_a_repository_lies_in_is_judged_by(
    exported: Exported, parts: Parts, gate: GatePlay, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    repository = deploy(exported.model, exported.manifest_path, run / "triton_repo")
    steps.stage(repository, parts)
    arguments = ("--repository", repository, "--health", NOBODY)
    gate.reasons = ["no"]
    command("promote", *arguments)
    (run / "config.yaml").touch()
    command("promote", *arguments)
    command("promote", *arguments, "--photos", tmp_path)
    assert [options.run for options in gate.asked] == [None, run, None]


# --- the disk, and who may write on it


def test_a_full_disk_leaves_what_was(run: Callable[..., Result], repository: Path, engine: Path) -> None:
    run("stage", engine)
    before = entries(repository)
    with small_disk(100):
        refused = run("stage", engine)
    assert refused.exit_code == 2, refused.output
    place = repository / MODEL / "rollouts/incoming/upsnet/model.onnx"
    words = "cannot be written: File too large; the versions that are there stay as they were"
    assert refused.stderr == f"error: {place}: {words}\n"
    with small_disk(300):  # the record does not fit
        assert run("rollback", "--to", 1).exit_code == 0, "nothing to do"
        refused = run("discard")
    assert refused.exit_code == 2 and "cannot be written: File too large" in refused.stderr
    assert entries(repository) == before
    check_truth(repository)
    assert read_record(repository).candidate == 2


@pytest.mark.parametrize("name", ["stage", "promote", "rollback", "discard"])
def test_a_repository_that_cannot_be_written(
    name: str, run: Callable[..., Result], repository: Path, engine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As root nothing is read-only, so the system's word is played."""
    run("stage", engine)
    if name == "rollback":
        run("promote", *UNJUDGED)
    before = entries(repository)
    real = os.open

    def closed(path: Any, flags: int, *more: Any, **options: Any) -> int:
        if flags & (os.O_WRONLY | os.O_RDWR) and str(repository) in str(path):
            raise PermissionError(13, "Permission denied", path)
        return real(path, flags, *more, **options)

    monkeypatch.setattr(os, "open", closed)
    refused = run(name, *([engine] if name == "stage" else UNJUDGED if name == "promote" else []))
    assert (refused.exit_code, refused.stderr.count("\n")) == (2, 1)
    assert f"{repository}: cannot be written: Permission denied" in refused.stderr
    for word in ("status", "history"):
        assert run(word).exit_code == 0, "reading goes on"
    assert entries(repository) == before


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stage_that_is_ended_leaves_nothing(
    number: signal.Signals,
    status: int,
    run: Callable[..., Result],
    repository: Path,
    engine: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run("stage", engine)
    before = entries(repository)
    copy = shutil.copyfile

    def end(source: Path, target: Path) -> None:
        copy(source, target)
        os.kill(os.getpid(), number)

    monkeypatch.setattr(shutil, "copyfile", end)
    assert run("stage", engine).exit_code == status
    assert entries(repository) == before


# --- two commands at once


def test_a_step_waits_for_another_and_not_for_the_copying_of_a_model(repository: Path, parts: Parts) -> None:
    steps.stage(repository, parts)
    steps.promote(repository, read_record(repository), {}, 1.0)
    with locked(repository, STAGING):
        with pytest.raises(InputError, match="a model is being staged there; wait for it, and begin again"):
            steps.stage(repository, parts)
        assert steps.rollback(repository).serving == 1, "a rollback does not wait for it"
    with locked(repository):
        thread = threading.Thread(target=steps.rollback, args=(repository, 2))
        thread.start()
        time.sleep(0.1)
        assert read_record(repository).serving == 1
    thread.join()
    assert read_record(repository).serving == 2
    with (
        locked(repository),
        pytest.raises(InputError, match="another command is changing it; wait for it"),
        locked(repository, wait=0.05),
    ):
        pass


def test_many_commands_at_once(repository: Path, parts: Parts) -> None:
    """Each does its step or refuses, and the history has each that was done."""
    steps.stage(repository, parts)
    steps.promote(repository, read_record(repository), {}, 1.0)
    code = (
        "import sys; from pathlib import Path; from serving.rollouts.steps import rollback; "
        "[rollback(Path(sys.argv[1]), to) for to in (1, 2) * 5]"
    )
    children = [subprocess.Popen([sys.executable, "-c", code, str(repository)]) for _ in range(3)]
    while any(child.poll() is None for child in children):
        seen = read_record(repository)
        assert seen.serving in (1, 2) and seen.step == len(seen.events)
    assert [child.returncode for child in children] == [0, 0, 0]
    record = check_truth(repository)
    assert record is not None
    assert record.step == len(record.events) and 2 < record.step <= 33
    changes = [event.version for event in record.events if event.action == "rollback"]
    assert all(one != other for one, other in itertools.pairwise(changes)), "1, 2, 1, 2, ..."


# --- runs


def test_a_run_whose_model_serves_is_deployed_already(
    exported: Exported, repository: Path, parts: Parts, engine: Path
) -> None:
    first = exported.model.parent
    assert deploy_run(first, repository) == repository
    steps.stage(repository, parts)
    before = entries(repository)
    assert deploy_run(first, repository) == repository
    with pytest.raises(
        InputError,
        match=r"serves version 1, which is not the model of .*; it is staged there as version 2: `upsnet dep",
    ):
        deploy_run(engine, repository)
    steps.promote(repository, read_record(repository), {}, 1.0)
    assert deploy_run(engine, repository) == repository
    with pytest.raises(InputError, match=r"serves version 2, .*`upsnet deploy stage .* puts this one beside it"):
        deploy_run(first, repository)
    with pytest.raises(InputError, match=r"is served step by step: .* `upsnet deploy stage`"):
        deploy(exported.model, exported.manifest_path, repository)
    assert {each for each in entries(repository) ^ before if "rollouts/0" not in each} == set()


def test_deploy_says_whether_it_wrote(engine: Path, repository: Path, parts: Parts, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    shutil.copytree(engine, run / "engine")
    app = make_app(serving.deploy.main)
    arguments = ["--run", str(run), "--repository", str(repository)]
    assert CliRunner().invoke(app, arguments).stdout.startswith(f"wrote {repository}; ")
    steps.stage(repository, parts)
    assert CliRunner().invoke(app, arguments).stdout.startswith(f"that model serves already in {repository}; ")


# --- the service


class FakeService:
    """A service's /health/versions: what it tells is changed by tests."""

    def __init__(self) -> None:
        self.answer: dict[str, Any] | None = None
        self.asked = 0
        told = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                told.asked += 1
                found = told.answer if self.path == "/health/versions" else None
                body = json.dumps(found).encode()
                self.send_response(404 if found is None else 200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self._server = HTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def tell(self, repository: Path, serving: int, failed: dict[str, str] | None = None, **states: str) -> None:
        versions: dict[str, dict[str, Any]] = {
            name.removeprefix("v"): {
                "role": "serving" if name == f"v{serving}" else "candidate",
                "state": state,
                "reasons": [],
                "restarts": 0,
            }
            for name, state in states.items()
        }
        self.answer = {
            "rollouts": read_record(repository).id,
            "serving": serving,
            "ports": {},
            "versions": versions,
            "failed": failed or {},
            "canary": None,
        }

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def service() -> Iterator[FakeService]:
    found = FakeService()
    yield found
    found.close()


def test_a_service_is_waited_for(
    run: Callable[..., Result], repository: Path, engine: Path, parts: Parts, service: FakeService
) -> None:
    steps.stage(repository, parts)
    service.tell(repository, 1, v1="ready", v2="starting")
    threading.Timer(0.5, lambda: service.tell(repository, 2, v1="ready", v2="ready")).start()
    promoted = run("promote", *UNJUDGED, "--health", service.address)
    assert promoted.exit_code == 0 and promoted.stdout.endswith(f"version 2 serves at {service.address} now\n")
    assert service.asked > 1
    service.tell(repository, 2, v2="ready", v3="ready")
    staged = run("stage", engine, "--health", service.address)
    assert staged.exit_code == 0 and f"the service at {service.address} runs it" in staged.stdout
    shown = run("status", "--health", service.address).stdout
    assert "candidate, ready" in shown and "no service" not in shown


def test_a_service_that_does_not_follow(
    run: Callable[..., Result], repository: Path, parts: Parts, service: FakeService
) -> None:
    steps.stage(repository, parts)
    service.tell(repository, 1, {"2": "its log says: no memory"}, v1="ready")
    promoted = run("promote", *UNJUDGED, "--health", service.address)
    assert promoted.exit_code == 1
    assert promoted.stderr == (
        f"version 2 does not run at {service.address}: its log says: no memory; version 1 goes on serving there\n"
    )
    shown = run("status", "--health", service.address).stdout
    assert "failed: its log says: no memory" in shown
    assert f"the service at {service.address} serves version 1, and not yet version 2" in shown
    service.tell(repository, 2, v2="ready", v1="starting")
    late = run("rollback", "--health", service.address, "--wait", "0.3")
    assert late.exit_code == 1
    assert f"{service.address} still serves version 2, and does not run version 1 after 0.3 s" in late.stderr
    alone = run("rollback", "--to", 2, "--health", service.address, "--wait", "0")
    assert alone.exit_code == 0 and "is not waited for" in alone.stdout


def test_the_service_of_another_repository_is_none(
    run: Callable[..., Result], repository: Path, parts: Parts, service: FakeService
) -> None:
    steps.stage(repository, parts)
    service.tell(repository, 1, v1="ready")
    assert service.answer is not None
    service.answer["rollouts"] = "another"
    promoted = run("promote", *UNJUDGED, "--health", service.address)
    assert promoted.exit_code == 0 and f"no service of this repository answers at {service.address}" in promoted.stdout
    for wrong in (None, {"no": "versions"}, ["a list"]):
        service.answer = wrong  # type: ignore[assignment]
        assert run("status", "--health", service.address).exit_code == 0
