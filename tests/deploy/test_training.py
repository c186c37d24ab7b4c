"""The jobs that train on several machines: Slurm's script by a play srun, Kubeflow's manifests against the command."""

from __future__ import annotations

import inspect
import os
import re
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.deploy.manifests import CONTAINER, DEPLOY, KUBERNETES, ROOT, documents
from tests.training.child_processes import free_port
from tests.training.machines import Run, assert_same_weights, running
from training.checkpoint import load
from training.config import load_config
from training.launch import SAVING, machines
from training.train import main
from upsnet.datasets.shapes import write_shapes

SCRIPT = DEPLOY / "slurm/train.sbatch"
SRUN = """#!/bin/bash
# As many tasks as there are nodes, at once; the highest exit status, as Slurm's own.
while [[ $1 == --* ]]; do echo "$1" >> "$FOLDER/srun"; shift; done
for ((task = 0; task < SLURM_JOB_NUM_NODES; task++)); do
    SLURM_PROCID=$task "$@" 2>> "$FOLDER/stderr" & tasks+=($!)
done
printf '%s\\n' "${tasks[@]}" > "$FOLDER/tasks"
highest=0
for task in "${tasks[@]}"; do wait "$task"; status=$?; ((status > highest)) && highest=$status; done
exit "$highest"
"""
SCONTROL = """#!/bin/bash
if [[ $1 == show ]]; then printf '127.0.0.1\\nnode2\\n'; else echo "$@" >> "$FOLDER/scontrol"; fi
"""
UPSNET = """#!/bin/bash
printf '%s\\n' "$*" >> "$FOLDER/upsnet"
exit "$STATUS"
"""


@pytest.fixture
def slurm(tmp_path: Path) -> dict[str, str]:
    """The environment of a job of two nodes, in which Slurm's commands are played."""
    bin = tmp_path / "bin"
    bin.mkdir()
    for name, text in {"srun": SRUN, "scontrol": SCONTROL, "upsnet": UPSNET}.items():
        (bin / name).write_text(text)
        (bin / name).chmod(0o755)
    job = {"SLURM_JOB_ID": "4711", "SLURM_JOB_NODELIST": "node[1-2]", "SLURM_JOB_NUM_NODES": "2"}
    more = {"SLURM_CPUS_PER_TASK": "8", "FOLDER": str(tmp_path), "UPSNET": str(bin / "upsnet"), "STATUS": "0"}
    return os.environ | job | more | {"PATH": f"{bin}:{os.environ['PATH']}"}


def submit(environment: dict[str, str], *words: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["bash", SCRIPT, *words], env=environment, cwd=cwd, capture_output=True, text=True)


def test_every_node_gets_the_same_command(slurm: dict[str, str], tmp_path: Path) -> None:
    ended = submit(slurm, "--config=a b.yaml", "--set", "schedule.lr=0.1")
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")
    meeting = "--nodes 2 --rendezvous 127.0.0.1:24711 --max-restarts 3"
    line = f"train --processes gpu {meeting} --config=a b.yaml --set schedule.lr=0.1"
    assert (tmp_path / "upsnet").read_text().splitlines() == [line, line]
    assert (tmp_path / "srun").read_text() == "--kill-on-bad-exit=0\n"


@pytest.mark.parametrize(
    ("status", "restarts", "again"),
    [(0, 0, False), (2, 0, False), (1, 0, False), (129, 0, True), (143, 19, True), (137, 20, False)],
)
def test_what_slurm_starts_again(
    slurm: dict[str, str], tmp_path: Path, status: int, restarts: int, again: bool
) -> None:
    """Never bad input, and not for ever."""
    ended = submit(slurm | {"STATUS": str(status), "SLURM_RESTART_COUNT": str(restarts)})
    assert ended.returncode == status
    assert (tmp_path / "scontrol").exists() == again
    if again:
        assert (tmp_path / "scontrol").read_text() == "requeue 4711\n"
        assert f"({restarts} of 20 times so far)" in ended.stdout


@pytest.mark.large
def test_a_job_at_the_end_of_its_time_goes_on_as_if_nothing_had_been(slurm: dict[str, str], tmp_path: Path) -> None:
    write_shapes(tmp_path / "shapes", {"train": 6, "val": 3}, sizes=[(64, 96)], progress=False)
    with running(Run(tmp_path, "unbroken", iterations=20), 2) as unbroken:
        assert unbroken.statuses() == [0, 0]
    run = Run(tmp_path, "run", iterations=20)
    (tmp_path / "bin/upsnet").write_text(f'#!/bin/bash\nexec "{sys.executable}" -m upsnet "$@"\n')
    slurm |= {"PROCESSES": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    port = next(port for port in iter(free_port, None) if 20_000 <= port < 40_000)
    slurm["SLURM_JOB_ID"] = str(port - 20_000)
    command = ["bash", str(SCRIPT), "--config=run.yaml", "--out=runs/run", "--device=cpu"]
    run.machines = [subprocess.Popen(command, cwd=tmp_path, env=slurm, start_new_session=True)]
    try:
        run.until(run.at(3))
        for task in (tmp_path / "tasks").read_text().split():
            os.kill(int(task), signal.SIGTERM)
        assert run.statuses() == [128 + signal.SIGTERM]
    finally:
        with suppress(ProcessLookupError):
            os.killpg(run.machines[0].pid, signal.SIGKILL)
    assert (tmp_path / "scontrol").read_text() == f"requeue {port - 20_000}\n"
    assert 3 <= load(run.out / "last.safetensors").step < 20
    assert subprocess.run(command, cwd=tmp_path, env=slurm | {"SLURM_RESTART_COUNT": "1"}).returncode == 0
    assert_same_weights(run, unbroken)


def test_the_script_asks_slurm_for_what_the_run_needs() -> None:
    """A launcher a node, a signal that comes earlier than the launcher's patience ends, a log that is not cut."""
    assert subprocess.run(["bash", "-n", SCRIPT], capture_output=True).stderr == b""
    asked = dict(re.findall(r"^#SBATCH --([a-z-]+)=?(.*)$", SCRIPT.read_text(), re.MULTILINE))
    assert (asked["ntasks-per-node"], asked["open-mode"], asked["requeue"]) == ("1", "append", "")
    name, seconds = asked["signal"].split("@")  # without B: the launchers get it, not the script, which starts it again
    assert name == "TERM" and int(seconds) > SAVING + 30
    first = SCRIPT.read_text().splitlines()[0]
    assert first == "#!/bin/bash" and SCRIPT.stat().st_mode & 0o111 == 0  # sbatch reads it


def job(name: str) -> dict[str, Any]:
    (document,) = documents(KUBERNETES / f"train-{name}.yaml")
    return document


def pods() -> dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, str]]]:
    """Of each job: the pod, its container as it is started, and the operator's variables (as their sources have it)."""
    torch = job("pytorchjob")["spec"]
    pod = torch["pytorchReplicaSpecs"]["Worker"]["template"]["spec"]
    policy = torch["elasticPolicy"]
    given = {"PET_NNODES": f"{policy['minReplicas']}:{policy['maxReplicas']}"}
    given |= {"PET_RDZV_ENDPOINT": "upsnet-train-worker-0:23456", "PET_MAX_RESTARTS": str(policy["maxRestarts"])}
    train = job("trainjob")["spec"]
    (patched,) = train["runtimePatches"][0]["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    other = patched["template"]["spec"]["template"]["spec"]
    trainer = train["trainer"]
    container = other["containers"][0] | {key: trainer[key] for key in ("image", "command", "args")}
    container["resources"] = trainer["resourcesPerNode"]
    addresses = {"PET_MASTER_ADDR": "upsnet-train-node-0-0.upsnet-train", "PET_MASTER_PORT": "29500"}
    return {
        "pytorchjob": (pod, pod["containers"][0], given),
        "trainjob": (other, container, addresses | {"PET_NNODES": str(trainer["numNodes"])}),
    }


@pytest.mark.parametrize("name", ["pytorchjob", "trainjob"])
def test_the_jobs_command_is_one_that_train_takes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    _, container, variables = pods()[name]
    assert container["command"] == ["upsnet", "train"]
    words = [re.sub(r"\$\((\w+)\)", lambda match: variables[match[1]], word) for word in container["args"]]
    given = dict(word.removeprefix("--").split("=", 1) for word in words)
    known = {name.strip("_").replace("_", "-") for name in inspect.signature(main).parameters}
    assert given.keys() <= known and given["processes"] == "gpu" and int(given["max-restarts"]) > 0
    settings = load_config(Path(given["config"]), (given["set"],) if "set" in given else ())
    gpus = container["resources"]["limits"]["nvidia.com/gpu"]
    where = machines(given["nodes"], given["rendezvous"], gpus, settings.schedule)  # each number of pods can share
    assert where.most == 2 and where.meeting_point == given["rendezvous"]


@pytest.mark.parametrize("name", ["pytorchjob", "trainjob"])
def test_what_a_pod_of_a_job_is(name: str) -> None:
    pod, container, _ = pods()[name]
    assert pod["terminationGracePeriodSeconds"] > SAVING  # SIGTERM writes a checkpoint
    assert pod["securityContext"]["runAsNonRoot"] and pod["securityContext"]["runAsUser"] == 1000
    assert container["securityContext"]["readOnlyRootFilesystem"]
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    mounts = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
    assert volumes[mounts["/dev/shm"]["name"]]["emptyDir"] == {"medium": "Memory", "sizeLimit": "32Gi"}
    assert set(mounts) == {"/dev/shm", "/tmp", "/opt/upsnet/data", "/opt/upsnet/runs"}
    assert {mount["name"] for mount in mounts.values()} == set(volumes)
    image = (CONTAINER / "Containerfile.train").read_text()
    assert (
        "WORKDIR /opt/upsnet\n" in image
        and "USER 1000\n" in image
        and f"--tag {container['image'].split(':')[0]} " in image
    )
    ignored = (CONTAINER / "Containerfile.train.dockerignore").read_text()
    let_in = set(re.findall(r"^!(.*)$", ignored, re.MULTILINE))
    assert (
        "\n*\n" in ignored
        and set(re.findall(r"[\w.]+", " ".join(re.findall(r"^COPY (.*) \S+$", image, re.M)))) == let_in
    )
    copied = set(re.findall(r"^COPY (\w+) \1$", image, re.MULTILINE))
    assert copied == {"upsnet", "plugins_cuda", "training"}  # what training may import


def test_both_jobs_pods_can_be_told_by_their_label() -> None:
    """By a NetworkPolicy, as docs/clusters.md says; and they avoid each other's nodes."""
    patched = job("trainjob")["spec"]["runtimePatches"][0]["trainingRuntimeSpec"]["template"]["spec"]
    templates = [job("pytorchjob")["spec"]["pytorchReplicaSpecs"]["Worker"]["template"]]
    templates += [each["template"]["spec"]["template"] for each in patched["replicatedJobs"]]
    for template in templates:
        labels = template["metadata"]["labels"]
        (avoid,) = template["spec"]["affinity"]["podAntiAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"]
        assert labels == avoid["podAffinityTerm"]["labelSelector"]["matchLabels"] == {"app": "upsnet-train"}
        assert "`app: upsnet-train`" in (ROOT / "docs/clusters.md").read_text()


def test_the_image_has_all_that_train_needs(tmp_path: Path) -> None:
    """What is copied into it, and nothing else."""
    image = (CONTAINER / "Containerfile.train").read_text()
    for words in re.findall(r"^COPY (.*)$", image, re.MULTILINE):
        *names, target = words.split()
        for name in names:
            place = tmp_path / (name if target == "./" else target)
            if (ROOT / name).is_dir():
                shutil.copytree(ROOT / name, place, ignore=shutil.ignore_patterns("__pycache__", "*.so", "build"))
            else:
                shutil.copy(ROOT / name, place)
    command = [sys.executable, "-m", "upsnet", "train", "--config", "training/configs/shapes.yaml", "--data", "none"]
    environment = os.environ | {"PYTHONPATH": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"}
    ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert ended.returncode == 2, ended.stderr
    assert ended.stderr.startswith("error: none/train.json: no such file (data.train.json_file); ")


def test_bad_input_ends_the_job_and_all_else_starts_a_pod_again() -> None:
    """Kubeflow's ExitCode: from 128 on it is tried again."""
    assert job("pytorchjob")["spec"]["pytorchReplicaSpecs"]["Worker"]["restartPolicy"] == "ExitCode"
