"""The GPU check without a GPU: its kernel suite on every front, that the suite notices mistakes, and its steps."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import plugins_cuda
from plugins_cuda import kernel_suite
from plugins_cuda.benchmark.inputs import MIDDLE, QUICK, pyramid
from plugins_cuda.gpu_check import __main__ as command
from plugins_cuda.gpu_check import process, steps
from plugins_cuda.gpu_check.process import Skip, run_logged
from plugins_cuda.gpu_check.steps import Machine, Step
from plugins_cuda.roi_align_fpn.reference import assign_levels
from tests.plugins_cuda.conftest import COMPILED, Front, front_fixture
from upsnet.kernels import tools

CPU = torch.device("cpu")
front = front_fixture(COMPILED)


# --- the suite -------------------------------------------------------------------------------------------------------


def test_kernel_suite_passes_on_every_front(front: Front) -> None:
    assert kernel_suite.failures(front.device) == {}


def test_kernel_suite_passes_at_the_middle_size() -> None:
    assert kernel_suite.failures(CPU, ["middle"]) == {}


def test_middle_size_has_boxes_on_all_levels_and_more_candidates_than_a_round() -> None:
    rois = torch.cat([pyramid(MIDDLE, seed=1)[1][0], torch.tensor(kernel_suite.HOSTILE_ROIS)])
    assert assign_levels(rois).unique().tolist() == [0, 1, 2, 3]
    assert MIDDLE.boxes * MIDDLE.things == 5000


@pytest.mark.usefixtures("fake_cuda")
def test_kernel_suite_runs_as_on_a_gpu(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(kernel_suite, "FULL", QUICK)
    assert kernel_suite.main(["--device", "cuda", "--size", "small", "full"]) == 0
    out = capsys.readouterr().out
    assert out.count(" in a CUDA graph: ok") == 5 and out.count(", full: ok") == 29 and out.endswith("all passed\n")


@pytest.mark.usefixtures("fake_cuda")
def test_a_graph_that_would_wait_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    right = plugins_cuda.nms
    monkeypatch.setattr(
        plugins_cuda, "nms", lambda boxes, *rest, **more: (float(boxes.sum()), right(boxes, *rest, **more))[1]
    )
    failed = kernel_suite.failures(torch.device("cuda"))
    assert list(failed) == ["nms in a CUDA graph"]
    assert "not permitted when stream is capturing" in failed["nms in a CUDA graph"]


def first_check(room: str) -> Callable[[], None]:
    return next(check.run for check in kernel_suite.checks(CPU) if check.name.startswith(f"{room} "))


@pytest.mark.parametrize("room", ["roi_align_fpn", "deform_conv", "nms", "panoptic_fusion"])
def test_kernel_suite_notices_a_wrong_operator(monkeypatch: pytest.MonkeyPatch, room: str) -> None:
    right = getattr(plugins_cuda, room)

    def wrong(*arguments: object, **options: object) -> object:
        result = right(*arguments, **options)
        if isinstance(result, torch.Tensor):
            return result * 1.0001
        changed = result[0].clone()
        changed.flatten()[0] += 1
        return (changed, *result[1:])

    check = first_check(room)
    check()
    monkeypatch.setattr(plugins_cuda, room, wrong)
    with pytest.raises(AssertionError, match=r"error .* allowed|differ"):
        check()


# --- the command -----------------------------------------------------------------------------------------------------


def test_no_gpu_is_one_line_and_status_2(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert command.main([]) == 2
    captured = capsys.readouterr()
    assert (captured.out, captured.err.count("\n")) == ("", 1)
    assert captured.err.startswith("error: no NVIDIA GPU")


@pytest.mark.parametrize("text", ["build,kernel", "memchek", ","])
def test_an_unknown_step_is_refused_with_the_list(capsys: pytest.CaptureFixture[str], text: str) -> None:
    with pytest.raises(SystemExit) as ended:
        command.main(["--steps", text])
    assert ended.value.code == 2
    assert (
        "no such step; there are build, kernels, enqueue, onnxruntime, benchmark, profile, training, pytest, memcheck, "
        in (capsys.readouterr().err)
    )


def test_rehearsal_of_all_steps_in_an_image_that_has_only_pytorch(project_root: Path, tmp_path: Path) -> None:
    """Python finds nothing but PyTorch, torchvision, and what these two require."""
    bare = """
import sys
from importlib.machinery import PathFinder

torch_and_its_own = set('''torch torchgen torchvision numpy PIL functorch filelock typing_extensions setuptools sympy
    mpmath networkx jinja2 markupsafe fsspec triton nvidia cuda'''.split())

class Bare(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        found = super().find_spec(name, path, target)
        place = str(found and (found.origin or list(found.submodule_search_locations)))
        return None if "site-packages" in place and name.split(".")[0].lstrip("_") not in torch_and_its_own else found

sys.meta_path[sys.meta_path.index(PathFinder)] = Bare
"""
    (tmp_path / "sitecustomize.py").write_text(bare)
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{project_root}"}
    arguments = ["-m", "plugins_cuda.gpu_check", "--rehearse", "--out", str(tmp_path / "out")]
    arguments += ["--steps", "build,kernels,onnxruntime,benchmark,pytest,memcheck"]
    done = subprocess.run(
        [sys.executable, *arguments], cwd=project_root, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    summary = json.loads((tmp_path / "out" / "gpu_check.json").read_text())
    statuses = {step["name"]: (step["status"], step["detail"]) for step in summary["steps"]}
    skipped = [name for name, (status, _) in statuses.items() if status == "skipped"]
    assert skipped == ["onnxruntime", "pytest", "memcheck"]
    assert {status for name, (status, _) in statuses.items() if name not in skipped} == {"passed"}
    assert "not installed: onnx, onnxruntime; `pip install onnx onnxruntime-gpu`" in statuses["onnxruntime"][1]
    assert statuses["kernels"][1] == "all passed"
    assert statuses["benchmark"][1].startswith("25 cases, ")
    assert "hypothesis, onnx, onnxruntime, onnxscript, pydantic, typer" in statuses["pytest"][1]
    assert len(json.loads((tmp_path / "out" / "benchmark.json").read_text())["rows"]) == 25


# --- running steps ---------------------------------------------------------------------------------------------------


def step(name: str, run: Callable[[float], str], least: float = 0.0) -> Step:
    return Step(name, name, run, 60, least)


def test_a_failed_step_hides_no_other(tmp_path: Path) -> None:
    def fail(_: float) -> str:
        raise RuntimeError("exit status 3")

    def skip(_: float) -> str:
        raise Skip("compute-sanitizer is not on PATH")

    def written(_: float) -> str:
        seen.extend((each["name"], each["status"]) for each in summary()["steps"])
        return "written"

    def summary() -> dict[str, list[dict[str, str]]]:
        return json.loads((tmp_path / "gpu_check.json").read_text())

    seen: list[tuple[str, str]] = []
    todo = [step("build", fail), step("memcheck", skip), step("late", written, least=700), step("benchmark", written)]
    assert command.check(Machine(tmp_path, rehearsed=True), todo, minutes=10) == 1
    assert [(each["name"], each["status"]) for each in summary()["steps"]] == [
        ("build", "failed"),
        ("memcheck", "skipped"),
        ("late", "skipped"),
        ("benchmark", "passed"),
    ]
    details = [each["detail"] for each in summary()["steps"]]
    assert (details[0], details[1], details[3]) == ("exit status 3", "compute-sanitizer is not on PATH", "written")
    assert details[2].startswith("less than 700 s are left; --minutes")
    assert seen[-1] == ("benchmark", "running"), "a step that is cut short has left the others' results"
    assert len(seen) == 4
    assert command.check(Machine(tmp_path, rehearsed=True), todo[3:]) == 0


SLEEPER = "import subprocess, sys; print('first', flush=True); subprocess.run(['sleep', '600'])"


def processes(text: str) -> list[str]:
    """Those with this text in their command line, of this test's own."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            arguments = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if text.encode() in arguments:
            found.append(path.parent.name)
    return found


def all_gone(text: str) -> bool:
    """Soon: the system takes a moment to end what was killed."""
    deadline = time.monotonic() + 20
    while processes(text) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not processes(text)


@pytest.fixture
def quick_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "GRACE_S", 0.2)


@pytest.mark.usefixtures("quick_end")
@pytest.mark.parametrize("heeds", [True, False])
def test_a_step_that_takes_too_long_ends_with_its_children(tmp_path: Path, heeds: bool) -> None:
    deaf = "" if heeds else "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN); "
    seconds = f"6{os.getpid()}"
    code = deaf + SLEEPER.replace("600", seconds)
    ended = run_logged([sys.executable, "-c", code], tmp_path / "log", time.monotonic() + 1.5)
    assert (ended.status, ended.lines) == (None, ["first"])
    assert ended.fault().endswith(f"s, at: first (see {tmp_path / 'log'})")
    assert all_gone(seconds)


@pytest.mark.usefixtures("quick_end")
def test_what_a_command_leaves_behind_is_ended(tmp_path: Path) -> None:
    seconds = f"7{os.getpid()}"
    code = f"import subprocess; subprocess.Popen(['sleep', '{seconds}']); print('done')"
    ended = run_logged([sys.executable, "-c", code], tmp_path / "log", time.monotonic() + 60)
    assert (ended.status, ended.last) == (0, "done")
    assert all_gone(seconds)


@pytest.mark.usefixtures("quick_end")
@pytest.mark.parametrize("number", process.SIGNALS)
def test_an_interruption_while_a_command_begins_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    seconds = f"9{os.getpid()}"
    begin = subprocess.Popen

    def interrupted(*given: Any, **options: Any) -> subprocess.Popen[bytes]:
        begun = begin(*given, **options)
        signal.raise_signal(number)
        return begun

    monkeypatch.setattr(subprocess, "Popen", interrupted)
    with pytest.raises(process.Interrupted, match=number.name), process.interruptible():
        run_logged(["sleep", seconds], tmp_path / "log", time.monotonic() + 60)
    assert all_gone(seconds)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_check_keeps_what_it_has(project_root: Path, tmp_path: Path, number: signal.Signals) -> None:
    seconds = f"8{os.getpid()}"
    code = f"""
import sys, time
from pathlib import Path
from plugins_cuda.gpu_check.__main__ import check
from plugins_cuda.gpu_check.process import must_pass
from plugins_cuda.gpu_check.steps import Machine, Step
out = Path(sys.argv[1])
sleep = lambda deadline: must_pass(["sleep", "{seconds}"], out / "hang.log", deadline)
steps = [Step("build", "", lambda _: "built", 9, 0), Step("hang", "", sleep, 90, 0), Step("after", "", sleep, 90, 0)]
sys.exit(check(Machine(out, rehearsed=True), steps))
"""
    running = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], cwd=project_root, stdout=subprocess.PIPE)
    deadline = time.monotonic() + 100
    while not processes(seconds) and time.monotonic() < deadline:
        time.sleep(0.1)
    running.send_signal(number)
    out, _ = running.communicate(timeout=60)
    assert running.returncode == 128 + number
    found = json.loads((tmp_path / "gpu_check.json").read_text())["steps"]
    assert [(each["name"], each["status"]) for each in found] == [("build", "passed"), ("hang", "failed")]
    assert found[1]["detail"] == f"ended by {number.name}"
    assert b"GPU check" in out and all_gone(seconds)


def test_a_package_that_is_missing_skips_a_step_and_a_module_of_ours_does_not(tmp_path: Path) -> None:
    def run(module: str) -> str:
        return process.must_pass([sys.executable, "-c", f"import {module}"], tmp_path / "log", time.monotonic() + 60)

    with pytest.raises(Skip, match=r"^no_such_package is not installed"):
        run("no_such_package.part")
    with pytest.raises(RuntimeError, match=r"exit status 1: ModuleNotFoundError.*training.no_such_module"):
        run("training.no_such_module")


# --- single steps ----------------------------------------------------------------------------------------------------


def program(folder: Path, name: str, text: str) -> Path:
    """An executable shell script."""
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


@pytest.mark.parametrize("rehearsed", [False, True])
def test_enqueue_configures_builds_and_runs_the_program(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, rehearsed: bool
) -> None:
    target = "upsnet_enqueue_check" + ("_emulated" if rehearsed else "")
    made = tmp_path / "build/gpu_check" / target
    text = f"""echo "CUDACXX=$CUDACXX $@" >> {tmp_path}/calls
if [ "$1" = --build ]; then
    mkdir -p {made}; printf '#!/bin/sh\\necho "5 launches"\\nexit 0\\n' > {made}/$4; chmod +x {made}/$4
fi"""
    monkeypatch.setattr(steps, "find_tool", {"cmake": str(program(tmp_path, "cmake", text))}.get)
    monkeypatch.setattr(steps, "ROOT", tmp_path)
    monkeypatch.setattr(steps.library, "gpu_architecture", lambda _: "90")
    monkeypatch.setenv("CUDACXX", "/a/nvcc -ccbin g++-12")
    assert steps.enqueue(Machine(tmp_path, rehearsed), time.monotonic() + 60) == "5 launches"
    configure, build = (tmp_path / "calls").read_text().splitlines()
    assert ("-DCMAKE_CUDA_COMPILER=" in configure, "-DCMAKE_CUDA_COMPILER=NOTFOUND" in configure) == (rehearsed,) * 2
    assert f"-DCMAKE_CUDA_ARCHITECTURES={'' if rehearsed else '90'} " in configure
    assert f"CUDACXX=/a/nvcc -ccbin g++-12 --build {made} --target {target} --parallel" in build


def test_enqueue_without_nvcc(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(steps, "find_tool", {"cmake": "cmake"}.get)
    monkeypatch.delenv("CUDACXX", raising=False)
    with pytest.raises(Skip, match=r"^nvcc was not found"):
        steps.enqueue(Machine(tmp_path), time.monotonic() + 60)


@pytest.mark.parametrize(
    ("output", "status", "expected"),
    [
        ("training step: 6 cases ok, on NVIDIA H200", 0, "training step: 6 cases ok, on NVIDIA H200"),
        ("training step: skipped, without timm; pip install timm", 0, Skip("without timm; pip install timm")),
        (
            "training step: FAILED in 1 of 6 cases (fp32), on a GPU",
            1,
            RuntimeError("exit status 1: training step: FAI"),
        ),
    ],
)
def test_training_step(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, output: str, status: int, expected: str | Exception
) -> None:
    python = program(tmp_path, "python", f'echo "$@" > {tmp_path}/call; echo first; echo "{output}"; exit {status}')
    monkeypatch.setattr(steps.sys, "executable", str(python))
    if isinstance(expected, str):
        assert steps.training(Machine(tmp_path), time.monotonic() + 60) == expected
    else:
        with pytest.raises(type(expected)) as caught:
            steps.training(Machine(tmp_path), time.monotonic() + 60)
        assert str(caught.value).startswith(str(expected))
    assert (tmp_path / "call").read_text() == "-m training.gpu_step_check --device cuda\n"


def test_tools_are_found_off_the_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    there = program(tmp_path / "bin", "a-tool-of-cuda", "exit 0")
    assert tools.find_tool(there.name) is None
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    assert tools.find_tool(there.name) == str(there)
