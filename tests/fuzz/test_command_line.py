"""Every command, with nonsense for each of its options: one line, exit status 2 and no traceback."""

from __future__ import annotations

import importlib
import io
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

from tests.fuzz.mutations import RANDOM, refused
from upsnet.command_line.command import make_app
from upsnet.command_line.main import COMMANDS, main
from upsnet.errors import InputError

LONG_WORK = {
    "ablation": "eval.ablation.trainings.Trainings.run",
    "bench-pq": "eval.bench_pq.make_pair",
    "viewer": "upsnet.viewer.command.make_server",
}
FEWER = 7  # of the values; no divisor of their number
FEW_IMAGES = {"shapes": ["--train", "1", "--val", "1"]}
VALUES = [
    "",
    " ",
    "x",
    "-1",
    "0",
    "nan",
    "inf",
    "1e400",
    "9" * 5000,
    "n" * 5000,
    "no/such",
    "no.json",
    "no.safetensors",
]
NAMES = ["a\0b", "a\nb", "\udcff.json", "é中", "http://127.0.0.1:1", "grpc://127.0.0.1:1", "folder/", "~"]
FILES = {
    "empty.json": b"",
    "list.json": b"[]",
    "numbers.json": b'{"images": 1, "annotations": 2, "categories": 3}',
    "bytes.json": bytes(range(256)),
    "text.yaml": b"a: [b",
    "few.yaml": b"name: x",
    "cut.safetensors": b"\xff\0\0\0\0\0\0\0{",
    "no.onnx": b"\x08\x0a\x12\xff\xff\xff\xff\x0f",
    "photo.png": b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR",
    "folder.json/x": b"x",
    "folder/model.onnx": b"no",
    "folder/last.safetensors": b"no",
    "folder/config.yaml": b"no",
    "folder/engine/model.onnx": b"no",
}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to start in, with files that are not what they are called."""
    for name, content in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def calls(command: object) -> Iterator[list[str]]:
    """Each value for each option, the others as they must be."""
    values = [*VALUES, *NAMES, *FILES, "folder", "folder.json"]
    params = [each for each in command.params if each.name != "help"]  # type: ignore[attr-defined]
    needed = {each.name: "no/such" for each in params if each.required}
    for param in params:
        for value in values:
            given = needed | {param.name: value}
            words = []
            for each in params:
                if each.name in given:
                    option = [] if each.param_type_name == "argument" else [each.opts[0]]
                    words += option if getattr(each, "is_flag", False) else [*option, given[each.name]]
            yield words


@pytest.mark.parametrize("name", COMMANDS)
def test_nonsense_is_refused(
    name: str, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise InputError("this would take long")

    assert isinstance(sys.stderr, io.TextIOWrapper)
    sys.stderr.reconfigure(errors="backslashreplace")  # as the interpreter makes it
    if name in LONG_WORK:
        monkeypatch.setattr(LONG_WORK[name], refuse)
    app = make_app(importlib.import_module(COMMANDS[name].module).main)
    for words in list(calls(typer.main.get_command(app)))[:: 1 if RANDOM else FEWER]:
        monkeypatch.setattr(sys, "argv", ["upsnet", *name.split(), *FEW_IMAGES.get(name, []), *words])
        print(sys.argv)  # pytest shows the last, if it fails
        with refused(), pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code in (0, 1, 2)
        _, error = capsys.readouterr()
        assert "Traceback" not in error
        lines = error.removeprefix("\n").splitlines()
        if lines and lines[0].startswith("error: "):
            assert len(lines) == 1 or all(line.startswith("error: ") for line in lines), error
