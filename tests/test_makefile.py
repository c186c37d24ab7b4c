"""make's own decisions: which Python it takes, what it refuses. The interpreters are stand-ins, and install nothing."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

TOOLS = ("mkdir", "touch", "cat", "chmod", "seq", "grep", "sed", "expand")
# Answers make's and find_python.sh's questions; as `-m venv [--clear] FOLDER` it makes an environment of stand-ins.
INTERPRETER = """#!/bin/bash
case "$1 $2" in
    --version*) echo "Python {version}" ;;
    "-m venv") for folder; do :; done; mkdir -p "$folder/bin"; touch "$folder/pyvenv.cfg"
        for name in python pip; do cat "$0" > "$folder/bin/$name"; chmod +x "$folder/bin/$name"; done ;;
    "-m serving.environment") echo "the server's environment was asked for: $*" ;;
    -c*ensurepip*) {answer} ;;
esac
"""
SOUND = "exit 0"
WITHOUT_VENV = "echo 'it makes no environments (Debian has that in python3-venv)' >&2; exit 1"
SHIM = """#!/bin/bash
echo "pyenv: $0: command not found
The command exists in these Python versions" >&2
exit 127
"""


class Machine:
    """A machine with nothing on its PATH but what make needs and the interpreters that are put there."""

    def __init__(self, root: Path, folder: Path) -> None:
        self.root, self.path, self.venv = root, folder / "path", folder / "venv"
        self.path.mkdir()
        for tool in TOOLS:
            (self.path / tool).symlink_to(shutil.which(tool) or tool)

    def put(self, name: str, script: str) -> None:
        (self.path / name).write_text(script)
        (self.path / name).chmod(0o755)

    def python(self, version: str, answer: str = SOUND, name: str | None = None) -> None:
        self.put(name or f"python{version}", INTERPRETER.format(version=version, answer=answer))

    def make(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        make = shutil.which("make")
        assert make is not None
        command = [make, "-C", str(self.root), "--no-print-directory", *arguments, f"VENV={self.venv}"]
        variables = {"PATH": str(self.path), "HOME": os.environ.get("HOME", "/")}
        return subprocess.run(command, env=variables, capture_output=True, text=True, check=False)


@pytest.fixture
def machine(project_root: Path, tmp_path: Path) -> Machine:
    return Machine(project_root, tmp_path)


def test_newest_usable_python_is_taken(machine: Machine) -> None:
    machine.put("python3.14", SHIM)
    machine.python("3.13", WITHOUT_VENV)
    machine.python("3.12")
    machine.python("3.11")
    done = machine.make("setup")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == f"{machine.venv}: Python 3.12, {machine.path}/python3.12"
    assert f"serving.environment --optional {machine.venv}-triton" in done.stdout
    assert (machine.venv / ".ready").exists() and "command not found" not in done.stderr


def test_python3_alone_is_enough(machine: Machine) -> None:
    machine.python("3.14", name="python3")
    assert machine.make("setup").stdout.startswith(f"{machine.venv}: Python 3.14, {machine.path}/python3\n")


def test_environment_that_is_there_is_kept(machine: Machine) -> None:
    machine.python("3.11")
    machine.make("setup")
    machine.python("3.13")
    (machine.venv / ".ready").unlink()
    done = machine.make("setup")
    assert done.returncode == 0 and "Python 3.13" not in done.stdout
    (machine.venv / "bin/python").unlink()  # its interpreter went
    assert "Python 3.13" in machine.make("setup", "-B").stdout


def test_without_python_one_line_names_the_cure(machine: Machine) -> None:
    machine.python("3.11", WITHOUT_VENV, name="python3")
    done = machine.make("setup")
    error, stop = done.stderr.splitlines()
    assert error.startswith("error: none of Python 3.14 3.13 3.12 3.11 is here and makes environments")
    assert "`uv python install 3.13`" in error and "python3-venv" in error
    assert stop.startswith("make: ***") and done.returncode == 2 and not machine.venv.exists()
    listed = machine.make("help")
    assert listed.returncode == 0 and "\nsetup " in listed.stdout and not listed.stderr


def test_named_python(machine: Machine) -> None:
    machine.python("3.13")
    machine.python("3.11")
    machine.python("3.10", "echo 'it is Python 3.10' >&2; exit 1")
    for name, reason in (("python3.10", "it is Python 3.10"), ("python3.12", "not found")):
        done = machine.make("setup", f"PYTHON={name}")
        assert done.stderr.splitlines()[0] == f"error: PYTHON={name}: {reason}; supported are 3.14 3.13 3.12 3.11"
    assert f"Python 3.11, {machine.path}/python3.11\n" in machine.make("setup", "PYTHON=python3.11").stdout


def test_server_without_an_interpreter_ends_before_anything_is_trained(machine: Machine) -> None:
    machine.python("3.13")
    machine.make("setup")
    asked = machine.make("serve", "-n").stdout.splitlines()[0]
    assert asked.endswith(f"-m serving.environment  {machine.venv}-triton")  # not --optional


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "GPUS=0"], "error: GPUS=0: give the number of processes"),
        (["train", "GPUS=abc"], "error: GPUS=abc: give"),
        (["train", "GPUS=1.5"], "error: GPUS=1.5: give"),
        (["train", "GPUS=-1"], "error: GPUS=-1: give"),
        (["demo", "GPUS=1 2"], "error: GPUS=1 2: give"),
        (["train", "GPUS="], "error: GPUS=: give"),
        (["train", "GPUS=%"], "error: GPUS=%: give"),
        (["train", "CONFIG=absent.yaml"], "error: CONFIG=absent.yaml: no such file; some are in training/configs/"),
        (["demo", "RUN=my run"], "error: RUN=my run: give one path, without spaces"),
        (["eval", "RUN="], "error: RUN=: give one path"),
        (["serve", "RUN=runs/absent"], "error: RUN=runs/absent: no such run: it has no last.safetensors; `make train`"),
        (["bench", "NAME=abc"], "error: NAME=abc: no such bench; there are runtimes serving canary ops kernels pq"),
        (["overfit", "COCO=/nowhere"], "error: COCO=/nowhere: it has no annotations/panoptic_val2017.json; name"),
    ],
)
def test_wrong_variables_are_one_line(machine: Machine, arguments: list[str], message: str) -> None:
    done = machine.make(*arguments)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and message in done.stderr
    assert not machine.venv.exists()


def test_a_run_that_is_named_is_used_as_it_is(machine: Machine, tmp_path: Path) -> None:
    """Trained without make, imported, or copied: it has a checkpoint, and is not trained again."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "last.safetensors").touch()
    planned = machine.make("engine", f"RUN={tmp_path / 'run'}", "-n").stdout
    assert "upsnet export" in planned and "upsnet engine" in planned and "upsnet train" not in planned
    assert "upsnet train" in machine.make("demo", f"RUN={tmp_path / 'run'}", "-n").stdout


@pytest.mark.parametrize("processes", ["1", "4", "gpu"])
def test_train_starts_that_many_processes(machine: Machine, processes: str) -> None:
    assert f"upsnet train --processes {processes} --config" in machine.make("train", f"GPUS={processes}", "-n").stdout


def test_demo_says_what_to_do_next(machine: Machine) -> None:
    said = machine.make("demo", "-n", "RUN=runs/mine").stdout.splitlines()[-5:]
    assert "Open runs/mine/report.html" in said[0] and f"make view RUN=runs/mine VENV={machine.venv}'" in said[1]
    assert "predict photo.jpg --run runs/mine" in said[2]
    assert f"make serve RUN=runs/mine VENV={machine.venv}'" in said[3] and "synthetic shapes only" in said[4]


def test_view_begins_with_the_photos_that_are_there(machine: Machine, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "last.safetensors").touch()
    run = f"RUN={tmp_path / 'run'}"
    photos = {place: machine.make("view", run, f"PHOTOS={place}", "-n").stdout for place in (tmp_path, tmp_path / "x")}
    assert f"upsnet viewer --run {tmp_path / 'run'} --photos {tmp_path}" in photos[tmp_path]
    assert f"upsnet viewer --run {tmp_path / 'run'}" in photos[tmp_path / "x"]
    assert "--photos" not in photos[tmp_path / "x"]


CONFIG = "training/configs/shapes_best.yaml"
# cmake: configures, or leaves the library in the folder that it is told of, where there is an nvcc.
CMAKE = """#!/bin/bash
echo "cmake $*"
[ "$1" = --build ] || { mkdir -p "$4"; exit; }
[ ! -e {nvcc} ] || [ {nvcc} -ot $2/libupsnet_plugins.so ] || touch $2/libupsnet_plugins.so
"""
UPSNET = """#!/bin/bash
echo "upsnet $*"
mkdir -p {engine}; touch {engine}/engine.json
"""
PYTHON = """#!/bin/bash
[ ! -e {tensorrt} ] || echo here
"""


@pytest.fixture
def engine(project_root: Path, machine: Machine, tmp_path: Path) -> Callable[..., tuple[bool, bool]]:
    """make engine in a project of its own, from a model that is there: whether the plugins and the engine were made.
    Beside it, `nvcc` and `tensorrt` stand for those of the machine."""
    machine.root = tmp_path / "project"
    run = tmp_path / "run"
    for path in (run / "last.safetensors", run / "model.onnx", machine.root / "plugins_cuda/nms/launch.cu"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    for name in ("plugins_cuda/CMakeLists.txt", "plugins_cuda/schema.py", "plugins_cuda/generate.py", CONFIG):
        (machine.root / name).parent.mkdir(parents=True, exist_ok=True)
        (machine.root / name).touch()
    shutil.copy(project_root / "Makefile", machine.root)
    machine.put("cmake", CMAKE.replace("{nvcc}", str(tmp_path / "nvcc")))
    (machine.venv / "bin").mkdir(parents=True)
    tools = {"upsnet": UPSNET.format(engine=run / "engine"), "python": PYTHON.format(tensorrt=tmp_path / "tensorrt")}
    for name, script in tools.items():
        (machine.venv / "bin" / name).write_text(script)
        (machine.venv / "bin" / name).chmod(0o755)

    def make(**variables: object) -> tuple[bool, bool]:
        given = [f"{name}={value}" for name, value in variables.items()]
        done = machine.make("engine", f"RUN={run}", *given)
        assert done.returncode == 0 and not done.stderr, done.stdout + done.stderr
        return "--target everything" in done.stdout, "upsnet engine" in done.stdout

    return make


def later(path: Path) -> None:
    """Newer than all that is there."""
    path.touch()
    time.sleep(0.02)


def test_without_tensorrt_nobody_asks_for_the_plugins(engine: Callable[..., tuple[bool, bool]]) -> None:
    assert [engine(), engine()] == [(False, True), (False, False)]


def test_the_engine_follows_its_plugins_and_they_their_sources(
    engine: Callable[..., tuple[bool, bool]], machine: Machine, tmp_path: Path
) -> None:
    assert engine() == (False, True)
    later(tmp_path / "nvcc")
    (tmp_path / "tensorrt").touch()
    assert [engine(), engine()] == [(True, True), (False, False)]
    later(tmp_path / "nvcc")  # what the stand-in compiles follows from it
    later(machine.root / "plugins_cuda/nms/launch.cu")
    assert [engine(), engine()] == [(True, True), (False, False)]
    later(machine.root / "plugins_cuda/nms/launch.cu")  # to which cmake says that the library does not rest on it
    assert [engine(), engine()] == [(True, False), (False, False)]


def test_the_engine_follows_the_sources_of_onnx_runtimes_kernels(
    engine: Callable[..., tuple[bool, bool]], machine: Machine
) -> None:
    assert engine() == (False, True)
    later(machine.root / "plugins_cuda/nms/launch.cu")
    assert engine() == (False, False)
    later(machine.root / "plugins_cuda/generate.py")
    assert [engine(), engine()] == [(False, True), (False, False)]


def test_plugins_that_came_later_give_a_new_engine(
    engine: Callable[..., tuple[bool, bool]], machine: Machine, tmp_path: Path
) -> None:
    """TensorRT without nvcc; then nvcc, and `make plugins`, as the engine's report says."""
    (tmp_path / "tensorrt").touch()
    assert [engine(), engine()] == [(True, True), (False, False)]
    later(tmp_path / "nvcc")
    assert engine() == (False, False)
    assert machine.make("plugins").returncode == 0
    assert engine()[1]
    assert engine() == (False, False)


def test_plugins_that_are_there_are_kept_up_to_date_without_tensorrt(
    engine: Callable[..., tuple[bool, bool]], machine: Machine, tmp_path: Path
) -> None:
    """As TensorRT-RTX takes them; nobody needs nvcc for it."""
    assert engine() == (False, True)
    later(tmp_path / "nvcc")
    machine.make("plugins")
    assert engine()[1]
    assert engine() == (False, False)
    (tmp_path / "nvcc").unlink()
    later(machine.root / "plugins_cuda/nms/launch.cu")
    assert [engine(), engine()] == [(True, False), (False, False)]


def test_plugins_that_are_named_are_not_made(engine: Callable[..., tuple[bool, bool]], tmp_path: Path) -> None:
    (tmp_path / "tensorrt").touch()
    named = tmp_path / "mine.so"
    later(named)
    assert [engine(UPSNET_PLUGINS=named), engine(UPSNET_PLUGINS=named)] == [(False, True), (False, False)]
    later(named)
    assert engine(UPSNET_PLUGINS=named) == (False, True)


def test_an_engine_that_is_asked_for_by_a_word_is_built_anew(
    engine: Callable[..., tuple[bool, bool]], machine: Machine, tmp_path: Path
) -> None:
    assert [engine(), engine()] == [(False, True), (False, False)]
    assert [engine(BACKEND="onnxruntime"), engine(ARGS="--batch 1 1 8")] == [(False, True), (False, True)]
    run = f"RUN={tmp_path / 'run'}"
    said = machine.make("engine", run, "-n", "BACKEND=tensorrt", "ARGS=--batch 1 1 8").stdout
    assert f"--out {tmp_path}/run/engine --backend tensorrt --batch 1 1 8\n" in said
    later(tmp_path / "run/model.onnx")
    of_another = ("BACKEND=tensorrt", "ARGS=--of-another-program")
    said = machine.make("eval", f"{tmp_path}/run/engine/engine.json", run, "-n", *of_another).stdout
    assert f"--out {tmp_path}/run/engine\n" in said, "that which another target needs is the machine's own"


def test_tensorrt_is_asked_for_where_an_engine_is_made_alone(machine: Machine, tmp_path: Path) -> None:
    (tmp_path / "last.safetensors").touch()
    (machine.venv / "bin").mkdir(parents=True)
    (machine.venv / "bin/python").write_text(f"#!/bin/bash\necho $* >> {tmp_path}/asked\n")
    (machine.venv / "bin/python").chmod(0o755)
    for goals in (["help"], ["train", "-n"], ["engine", "-n", f"RUN={tmp_path}"]):
        assert machine.make(*goals).returncode == 0
    log = tmp_path / "asked"  # nobody is asked where there is a library of plugins
    asked = log.read_text().splitlines() if log.exists() else []
    assert [line for line in asked if 'find_spec("tensorrt")' in line] == asked and len(asked) <= 1


def test_the_plugins_sources_are_all_known(machine: Machine) -> None:
    """What building.py takes for sources, and the plugins' own, below plugins_cuda/."""
    machine.put("python3", "#!/bin/bash\n")
    known = set(machine.make("-pn", "help").stdout.partition("LIBRARY_SOURCES := ")[2].partition("\n")[0].split())
    folder = machine.root / "plugins_cuda"
    kinds = [*(f"*{kind}" for kind in (".h", ".cuh", ".cu", ".cpp")), "CMakeLists.txt", "schema.py", "generate.py"]
    assert known == {str(path.relative_to(machine.root)) for kind in kinds for path in folder.rglob(kind)}


@pytest.mark.parametrize("has_pytorch", [True, False])
def test_gpu_check_says_that_a_python_has_no_pytorch(machine: Machine, has_pytorch: bool) -> None:
    answer = f"exit {0 if has_pytorch else 1}"
    machine.put("python3.7", f'#!/bin/bash\ncase "$1" in -c) {answer} ;; *) echo "checked: $*" ;; esac\n')
    done = machine.make("gpu-check", "PYTHON=python3.7")
    assert ("checked: -m plugins_cuda.gpu_check" in done.stdout) == has_pytorch
    assert done.returncode == (0 if has_pytorch else 2)
    first = (
        "" if has_pytorch else "error: python3.7 has no PyTorch with torchvision; make gpu-check PYTHON=one that has"
    )
    assert done.stderr.partition("\n")[0] == first
