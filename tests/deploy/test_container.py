"""The container cannot be built here: its files are read, and serve.sh is run before a stand-in of tritonserver."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from inspect import signature
from pathlib import Path

import pytest

from serving import bulletins
from tests.deploy.manifests import CONTAINER, DEPLOY, KUBERNETES, ROOT, documents

TAG = re.compile(r"(?:tritonserver|upsnet-trt):(\d\d\.\d\d)")


def test_the_pinned_release_has_every_mend() -> None:
    pages = [*DEPLOY.rglob("*"), *(ROOT / "docs").glob("*.md"), ROOT / "README.md"]
    pinned = {tag for page in pages if page.is_file() for tag in TAG.findall(page.read_text())}
    assert len(pinned) == 1  # one release, everywhere
    assert bulletins.release(*pinned) >= bulletins.release(bulletins.needed())


def test_bulletins() -> None:
    table = bulletins.BULLETINS
    assert bulletins.release(bulletins.needed()) >= (26, 7)  # of September 2026: it never becomes less
    assert bulletins.needed() in [bulletin.mended for bulletin in table]
    assert [bulletin.published for bulletin in table] == sorted(bulletin.published for bulletin in table)
    assert all(bulletin.cves and bulletin.what for bulletin in table)
    cves = [cve for bulletin in table for cve in bulletin.cves]
    assert len(cves) == len(set(cves)) and all(re.fullmatch(r"CVE-\d{4}-\d{4,}", cve) for cve in cves)
    assert bulletins.release(bulletins.EMBEDDED.split()[0]) < bulletins.release(bulletins.needed())
    notice = bulletins.embedded_notice()
    assert "24.10" in notice and bulletins.needed() in notice and "\n" not in notice
    assert bulletins.release("26.10-py3") > bulletins.release("26.9")
    with pytest.raises(ValueError):
        bulletins.release("latest")


def test_containerfile() -> None:
    text = (CONTAINER / "Containerfile").read_text()
    assert re.search(r"^FROM nvcr.io/nvidia/tritonserver:\d\d\.\d\d-py3$", text, re.MULTILINE)
    assert re.search(r"^USER [1-9]\d*$", text, re.MULTILINE)
    ignored = (CONTAINER / "Containerfile.dockerignore").read_text().splitlines()
    let_in = {line.removeprefix("!") for line in ignored if line.startswith("!")}
    assert ignored[1] == "*" and left_out_of_the_image() == ["__pycache__", "*.so"]
    copied = copied_into_the_image()
    assert copied and {source for source in copied if not source.startswith("deploy/")} == let_in - {"deploy/container"}
    for source in copied:
        assert (ROOT / source).exists() and (source in let_in or "deploy/container" in let_in), source


def copied_into_the_image() -> list[str]:
    """Files and folders of the checkout, in the order of the COPY lines."""
    lines = re.findall(r"^COPY (?:--\S+ )*(.*)$", (CONTAINER / "Containerfile").read_text(), re.MULTILINE)
    return [source for line in lines for source in line.split()[:-1]]


def left_out_of_the_image() -> list[str]:
    """Patterns of names in these folders that the builder does not see."""
    return re.findall(r"^\*\*/(.*)$", (CONTAINER / "Containerfile.dockerignore").read_text(), re.MULTILINE)


def test_compose() -> None:
    (document,) = documents(CONTAINER / "compose.yaml")
    services = document["services"]
    for service in services.values():
        assert all(port.startswith("127.0.0.1:") for port in service["ports"])
        assert all(volume.endswith(":ro") for volume in service["volumes"])
        assert service["read_only"] and service["mem_limit"] and service["cap_drop"] == ["ALL"]
        build = service["build"]
        assert (CONTAINER / build["context"] / build["dockerfile"]).resolve() == CONTAINER / "Containerfile"
    ports = [port.rpartition(":")[0] for service in services.values() for port in service["ports"]]
    assert len(ports) == len(set(ports))
    candidate = services["candidate"]
    assert candidate["profiles"] == ["candidate"]  # not by itself
    assert candidate["environment"] == {"ROLE": "candidate"} and "ROLE" in (CONTAINER / "serve.sh").read_text()


def test_compose_leaves_the_viewers_port_alone() -> None:
    viewer = pytest.importorskip("upsnet.viewer.command", reason="needs the extra viewer")
    page = f"127.0.0.1:{signature(viewer.main).parameters['port'].default}"
    (document,) = documents(CONTAINER / "compose.yaml")
    ports = [port.rpartition(":")[0] for service in document["services"].values() for port in service["ports"]]
    assert ports and page not in ports


def test_compose_with_a_secret() -> None:
    (document,) = documents(CONTAINER / "compose.control.yaml")
    assert document["services"].keys() == {"upsnet"}  # the candidate needs none
    (service,) = document["services"].values()
    (name,) = service["secrets"]
    assert service["environment"] == {"CONTROL_SECRET_FILE": f"/run/secrets/{name}"}
    assert list(document["secrets"]) == [name]


class FakeTriton:
    """serve.sh in front of a tritonserver that tells its flags."""

    def __init__(self, folder: Path) -> None:
        self.repository = folder / "a repository"
        fake = folder / "bin/tritonserver"
        fake.parent.mkdir()
        fake.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
        fake.chmod(0o755)
        self.path = f"{fake.parent}:{os.environ['PATH']}"
        self.give_shared_memory(1 << 20)

    def add(self, *versions: int) -> FakeTriton:
        for version in versions:
            (self.repository / f"upsnet/{version}/configs").mkdir(parents=True)
        (self.repository / "upsnet/configs").mkdir(exist_ok=True)
        return self

    def give_shared_memory(self, kilobytes: int) -> None:
        """/dev/shm, as `df -Pk` tells it."""
        table = f"Filesystem 1024-blocks Used Available Capacity Mounted on\ntmpfs {kilobytes} 4 9 1% /dev/shm"
        stand_in = Path(self.path.partition(":")[0]) / "df"
        stand_in.write_text(f'#!/bin/sh\n[ "$*" = "-Pk /dev/shm" ] && echo "{table}"\n')
        stand_in.chmod(0o755)

    def manage(self, **roles: int) -> None:
        """By the links of a step, as serving/rollouts/steps.py makes them."""
        step = self.repository / "upsnet/rollouts/000012"
        step.mkdir(parents=True)
        (step.parent / "now").symlink_to(step.name)
        for role, version in roles.items():
            (step / role).symlink_to(f"../../{version}/configs")
        if "candidate" not in roles:
            (step / "candidate").mkdir()

    def ask(self, **variables: str) -> subprocess.CompletedProcess[str]:
        environment = {"PATH": self.path, "MODELS": str(self.repository), **variables}
        command = [str(CONTAINER / "serve.sh"), "--grpc-use-ssl=true"]
        return subprocess.run(command, env=environment, capture_output=True, text=True)

    def flags(self, **variables: str) -> list[str]:
        asked = self.ask(**variables)
        assert asked.returncode == 0, asked.stderr
        return asked.stdout.splitlines()


@pytest.fixture
def fake(tmp_path: Path) -> FakeTriton:
    return FakeTriton(tmp_path)


def closed_by(flags: list[str]) -> dict[str, set[str]]:
    """The calls that want a secret, by "flag:header=secret"."""
    found = {}
    for flag in flags:
        if flag.startswith(("--http-restricted-api=", "--grpc-restricted-protocol=")):
            name, _, value = flag.partition("=")
            calls, _, secret = value.partition(":")
            found[f"{name}:{secret}"] = set(calls.split(","))
    return found


@pytest.mark.parametrize("plan", [True, False])
def test_how_the_container_starts_triton(plan: bool, fake: FakeTriton) -> None:
    model = fake.add(9, 10).repository / "upsnet/10"
    if plan:
        (model / "model.plan").touch()
    flags = fake.flags()
    assert f"--model-repository={fake.repository}" in flags and "--model-control-mode=none" in flags
    assert (f"--backend-config=tensorrt,plugins={model}/libupsnet_plugins.so" in flags) == plan
    assert ("--model-config-name=cpu" in flags) != plan and flags[-1] == "--grpc-use-ssl=true"
    closed = closed_by(flags)
    assert len(closed) == 2
    for secret, calls in closed.items():
        assert calls == {"model-repository", "shared-memory", "statistics", "trace", "logging"}
        assert re.fullmatch("[a-z-]+:upsnet-secret=[0-9a-f]{64}", secret)
    assert not closed.keys() & closed_by(fake.flags()).keys()  # another secret each time


@pytest.mark.parametrize("plan", [True, False])
def test_the_version_that_is_served_is_the_steps(plan: bool, fake: FakeTriton) -> None:
    """And not the highest: after a rollback, and while there is a candidate."""
    fake.add(3, 4, 10).manage(serving=4, candidate=10)
    if plan:
        for version in (3, 4, 10):
            (fake.repository / f"upsnet/{version}/model.plan").touch()
    for role, version in (("serving", 4), ("candidate", 10)):
        flags = fake.flags(ROLE=role)
        names = [flag.partition("=")[2] for flag in flags if flag.startswith("--model-config-name=")]
        plugins = f"--backend-config=tensorrt,plugins={fake.repository}/upsnet/{version}/libupsnet_plugins.so"
        assert (plugins in flags) == plan
        prefix = "candidate" if role == "candidate" else ""
        assert names == ([prefix] if prefix else []) if plan else names == [f"{prefix}_cpu".strip("_")]


def test_a_role_that_nobody_has(fake: FakeTriton) -> None:
    def refused(role: str) -> str:
        asked = fake.ask(ROLE=role)
        assert asked.returncode == 1 and not asked.stdout and asked.stderr.count("\n") == 1
        return asked.stderr

    fake.add(3, 4)
    assert "no version to serve as candidate" in refused("candidate")
    fake.manage(serving=4)
    assert "no version to serve as candidate" in refused("candidate")
    assert "ROLE is 'both'" in refused("both")
    shutil.rmtree(fake.repository)
    wanted = "is no model repository, or an empty mount; `upsnet deploy --run RUN` makes one"
    assert wanted in refused("serving")
    fake.repository.mkdir()
    assert wanted in refused("serving")


def test_links_that_are_lost(fake: FakeTriton, tmp_path: Path) -> None:
    """As in a bucket: the number in service is lost with them, and the highest may be a candidate's."""
    fake.add(3, 4, 10).manage(serving=4, candidate=10)
    copy = tmp_path / "copy"
    shutil.copytree(fake.repository, copy)
    fake.repository = copy
    for role in ("serving", "candidate"):
        asked = fake.ask(ROLE=role)
        assert asked.returncode == 1 and not asked.stdout and asked.stderr.count("\n") == 1
        assert f"{copy} has lost its links" in asked.stderr


def test_a_copy_by_tar_serves_the_same(fake: FakeTriton, tmp_path: Path) -> None:
    """As deploy/kubernetes/models.yaml says it; into a folder, as kubectl's pod has one."""
    fake.add(3, 4, 10).manage(serving=4, candidate=10)
    (copy := tmp_path / "copy").mkdir()
    (fake.repository / "upsnet/4/model.plan").touch()
    for text in (KUBERNETES / "models.yaml", ROOT / "docs/kubernetes.md"):
        assert "tar -C runs/x/triton_repo -c $(ls -A runs/x/triton_repo) | kubectl" in text.read_text()
    packed = subprocess.run(
        ["bash", "-c", 'tar -C "$0" -c $(ls -A "$0")', fake.repository], capture_output=True, check=True
    )
    listed = subprocess.run(["tar", "-t"], input=packed.stdout, capture_output=True, check=True).stdout.split()
    assert b"upsnet/4/model.plan" in listed and b"./" not in listed  # the volume's root is root's: tar would fail there
    subprocess.run(["tar", "-x", "-C", copy], input=packed.stdout, check=True)
    fake.repository = copy
    assert f"--backend-config=tensorrt,plugins={copy}/upsnet/4/libupsnet_plugins.so" in fake.flags()


@pytest.mark.parametrize(("kilobytes", "told"), [(65536, "64 MiB"), (524287, "511 MiB"), (524288, "")])
def test_shared_memory_that_is_too_small(kilobytes: int, told: str, fake: FakeTriton) -> None:
    """65536 is what a container has where nobody says otherwise."""
    fake.add(1).give_shared_memory(kilobytes)
    asked = fake.ask()
    assert asked.returncode == bool(told) and asked.stderr.count("\n") == bool(told)
    assert f"/dev/shm has {told}" in asked.stderr if told else asked.stdout


def test_the_plans_operators_are_given_as_kserve_starts_it(fake: FakeTriton) -> None:
    """The runtime's `args` and `env`, and what an InferenceService adds to the `args`."""
    (fake.add(1).repository / "upsnet/1/model.plan").touch()
    (runtime,) = (each for each in documents(KUBERNETES / "kserve.yaml") if each["kind"] == "ServingRuntime")
    (container,) = runtime["spec"]["containers"]
    assert [Path(word).name for word in container["args"]] == ["serve.sh"]
    assert [(each["name"], each["value"]) for each in container["env"]] == [("MODELS", "/mnt/models")]
    plugins = f"--backend-config=tensorrt,plugins={fake.repository}/upsnet/1/libupsnet_plugins.so"
    assert (
        plugins in fake.flags()
        and plugins.replace(str(fake.repository), "/mnt/models") in (KUBERNETES / "kserve.yaml").read_text()
    )


def test_the_operators_secret(fake: FakeTriton, tmp_path: Path) -> None:
    """It opens the model repository's calls alone, and models are then loaded by name."""
    fake.add(1)
    file = tmp_path / "control secret"
    file.write_text("a1_-" * 8 + "\n")
    file.chmod(0o440)  # as Kubernetes gives it to the pod's group
    flags = fake.flags(CONTROL_SECRET_FILE=str(file))
    assert flags.count("--model-control-mode=explicit") == 1 and "--model-control-mode=none" not in flags
    assert {"--load-model=upsnet", "--load-model=upsnet_photo"} <= set(flags)
    closed = closed_by(flags)
    ours = {f"{flag}:upsnet-control={'a1_-' * 8}" for flag in ("--http-restricted-api", "--grpc-restricted-protocol")}
    assert [closed.pop(each) for each in sorted(ours)] == [{"model-repository"}] * 2
    assert len(closed) == 2
    for secret, calls in closed.items():
        assert re.fullmatch("[a-z-]+:upsnet-secret=[0-9a-f]{64}", secret)
        assert calls == {"shared-memory", "statistics", "trace", "logging"}


@pytest.mark.parametrize(
    ("text", "mode", "told"),
    [
        ("a" * 32, 0o644, "can be read by everybody"),
        ("a" * 31, 0o600, "fewer than 32"),
        ("a" * 40 + ":b=c", 0o600, "letters, digits"),
        ("", 0o600, "fewer than 32"),
    ],
)
def test_secrets_that_the_container_refuses(text: str, mode: int, told: str, fake: FakeTriton, tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_text(text)
    file.chmod(mode)
    asked = fake.add(1).ask(CONTROL_SECRET_FILE=str(file))
    assert asked.returncode == 1 and not asked.stdout and told in asked.stderr
    assert len(text) < 9 or text not in asked.stderr


def test_a_secret_that_is_missing(fake: FakeTriton) -> None:
    asked = fake.add(1).ask(CONTROL_SECRET_FILE="/nowhere")
    assert asked.returncode == 1 and not asked.stdout and "/nowhere" in asked.stderr


def test_a_repository_without_a_model(fake: FakeTriton) -> None:
    assert fake.ask().returncode != 0


@pytest.mark.parametrize("url", ["nonsense", "http://127.0.0.1:abc", "http://", "http://127.0.0.1:1"])
def test_the_probe_says_in_one_line_that_nothing_answers(url: str) -> None:
    probe = subprocess.run([CONTAINER / "probe.py", url, url, "/nowhere/x"], capture_output=True, text=True)
    assert (probe.returncode, probe.stderr) == (1, "")
    assert probe.stdout.startswith("no answer: ") and probe.stdout.count("\n") == 1


def test_the_image_reads_what_is_copied_into_it() -> None:
    """serve.sh and probe.py can be executed, and probe.py needs nothing but Python."""
    for name in ("serve.sh", "probe.py"):
        assert (CONTAINER / name).stat().st_mode & 0o111
    assert (CONTAINER / "probe.py").read_text().startswith("#!/usr/bin/env python3\n")
