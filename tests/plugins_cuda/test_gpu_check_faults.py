"""The GPU check where something is wrong around it: arguments, a full disk, nothing that could be done."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from plugins_cuda.gpu_check import __main__ as command
from plugins_cuda.gpu_check.process import Skip
from plugins_cuda.gpu_check.steps import Machine, Step
from tests.small_disk import small_disk


def step(name: str, detail: str | Exception) -> Step:
    def run(_: float) -> str:
        if isinstance(detail, Exception):
            raise detail
        return detail

    return Step(name, name, run, 60, 0)


@pytest.mark.parametrize("room", [100, 700])
def test_a_full_disk_ends_no_step(tmp_path: Path, capsys: pytest.CaptureFixture[str], room: int) -> None:
    """With room for nothing, and with room for the first summaries alone."""
    todo = [step("build", "built"), step("kernels", RuntimeError("a" * 600)), step("enqueue", "9 launches")]
    with small_disk(room):
        assert command.check(Machine(tmp_path, rehearsed=True), todo) == 1
    said = capsys.readouterr()
    assert said.err.count("gpu_check.json: cannot be written: File too large") == 1
    assert "enqueue: passed, 9 launches" in said.out, "the steps after it are done"
    table = said.out.partition("GPU check")[2]
    assert "9 launches" in table and "cannot be written" in table and "written to" not in table


def test_the_summary_is_written_again_when_there_is_room(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    in_its_way = tmp_path / "gpu_check.json"
    in_its_way.mkdir()

    def tidy(_: float) -> str:
        in_its_way.rmdir()
        return "there is room"

    todo = [step("build", "built"), Step("tidy", "", tidy, 60, 0)]
    assert command.check(Machine(tmp_path, rehearsed=True), todo) == 0
    assert [each["name"] for each in json.loads((tmp_path / "gpu_check.json").read_text())["steps"]] == [
        "build",
        "tidy",
    ]
    assert f"written to {tmp_path}" in capsys.readouterr().out


def test_a_check_of_nothing_is_no_success(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    todo = [step("memcheck", Skip("not found")), step("pytest", Skip("not installed"))]
    assert command.check(Machine(tmp_path, rehearsed=True), todo) == 2
    assert capsys.readouterr().err == "error: every step was skipped: nothing was checked\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--out", ""], "argument --out: the name of a folder is wanted"),
        (["--out", "{file}"], "argument --out: {file} cannot be a folder: File exists"),
        (["--out", "{file}/below"], "argument --out: {file}/below cannot be a folder: Not a directory"),
        *((["--minutes", text], f"argument --minutes: '{text}' is no number of minutes") for text in
          ("nan", "inf", "0", "-1", "ten")),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)  # fmt: skip
def test_arguments_that_cannot_be(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(SystemExit) as ended:
        command.main(["--rehearse", *(each.format(file=file) for each in arguments)])
    assert ended.value.code == 2
    assert message.format(file=file) in capsys.readouterr().err


@pytest.mark.parametrize(
    ("answer", "version"),
    [
        ("NVIDIA (R) Compute Sanitizer\nCopyright (c) 2020\nVersion 2025.3.0.0", "Version 2025.3.0.0"),
        ("nvcc: NVIDIA (R)\nCuda tools, release 13.0, V13.0.88\nBuild 1", "Cuda tools, release 13.0, V13.0.88"),
        ("580.65.06", "580.65.06"),
        ("", "no answer"),
    ],
)
def test_a_programs_version_is_found(answer: str, version: str) -> None:
    assert command._output("echo", answer) == version
