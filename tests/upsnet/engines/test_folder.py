"""Which engine a folder opens: `upsnet.load` and `upsnet engine explain` answer alike, whatever engine.json is."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.upsnet.engines.engine_folders import plan
from upsnet.command_line.command import make_app
from upsnet.command_line.explain import main
from upsnet.engines.explain import Explanation, explain
from upsnet.engines.folder import DamagedFolder, chosen_engine, engines_in
from upsnet.errors import InputError
from upsnet.files import PathLike
from upsnet.runtimes.open import choose, find_model
from upsnet.runtimes.options import RuntimeOptions

Break = Callable[[Path], object]
ONNX = b"\x08\x0a\x12\x07pytorch"


def replace_by(make: Break) -> Break:
    def replace(file: Path) -> None:
        file.unlink()
        make(file)

    return replace


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """With model.onnx and model.rtx.plan, of which the plan was chosen."""
    folder = tmp_path / "engine"
    folder.mkdir(mode=0o755)
    (folder / "model.onnx").write_bytes(ONNX)
    (folder / "model.rtx.plan").write_bytes(plan("tensorrt-rtx"))
    (folder / "engine.json").write_text('{"chosen": "tensorrt-rtx"}')
    return folder


# name: what is put into engine.json's place, words of the line
DAMAGED: dict[str, tuple[Break, str]] = {
    "a list for a name": (lambda f: f.write_text('{"chosen": ["x"]}'), "chosen: Input should be 'onnxruntime', "),
    "an object for a name": (lambda f: f.write_text('{"chosen": {}}'), "chosen: Input should be 'onnxruntime', "),
    "a number for a name": (lambda f: f.write_text('{"chosen": 1}'), "chosen: Input should be 'onnxruntime', "),
    "an unknown name": (lambda f: f.write_text('{"chosen": "caffe"}'), "chosen: Input should be 'onnxruntime', "),
    "no engine's runtime": (lambda f: f.write_text('{"chosen": "pytorch"}'), "chosen: Input should be 'onnxruntime', "),
    "of the future": (lambda f: f.write_text('{"version": 2}'), "version: Input should be 1"),
    "a word for a version": (lambda f: f.write_text('{"version": true}'), "version: Input should be 1"),
    "a list": (lambda f: f.write_text("[]"), "Input should be a valid dictionary"),
    "nothing": (lambda f: f.write_text(""), "not valid JSON"),
    "half of it": (lambda f: f.write_text('{"chosen": "tens'), "not valid JSON"),
    "no text": (lambda f: f.write_bytes(b"\xfe\xff\xd8\x00"), "not valid JSON"),
    "deep": (lambda f: f.write_text("[" * 200_000), "not valid JSON"),
    "large": (lambda f: os.truncate(f, 2**27), "134217728 bytes"),
    "a pipe": (replace_by(os.mkfifo), "a pipe, not a file"),
    "a folder": (replace_by(os.mkdir), "a folder, not a file"),
    "a link to nothing": (replace_by(lambda f: f.symlink_to("nothing")), "a link to nothing, which is not there"),
    "a link to itself": (replace_by(lambda f: f.symlink_to(f.name)), "Too many levels of symbolic links"),
}


@pytest.mark.parametrize("way", DAMAGED)
def test_an_engine_json_that_cannot_be_used_is_one_line(way: str, folder: Path) -> None:
    damage, words = DAMAGED[way]
    file = folder / "engine.json"
    damage(file)
    with pytest.raises(DamagedFolder) as error:
        chosen_engine(folder)
    line = str(error.value)
    assert line.startswith(f"{file}: ") and words in line and "\n" not in line and len(line) < 500
    assert line.endswith("; copy it again, or build the engine again with `make engine`")
    with pytest.raises(InputError) as error_of_load:
        find_model(folder)
    assert str(error_of_load.value) == line
    (said,) = explain(folder, load=False).errors
    assert said.startswith(f"{file}: says not which engine is opened: ") and words in said
    assert find_model(folder, "onnxruntime") == ("onnxruntime", folder / "model.onnx")  # then nobody asks it
    answer = CliRunner().invoke(make_app(main), [str(folder), "--json"])
    assert answer.exit_code == 2 and Explanation.model_validate_json(answer.stdout).errors == [said]


# name: what is put into the chosen engine's place, words of `upsnet.load`, words of `explain`
GONE: dict[str, tuple[Break, str, str]] = {
    "renamed": (
        lambda f: f.rename(f.with_name("old.plan")),
        "is missing",
        "no such file, and engine.json says that it",
    ),
    "a pipe": (
        replace_by(os.mkfifo),
        "no engine (a pipe, not a file)",
        "a pipe, not a file, and engine",
    ),
    "a folder": (replace_by(os.mkdir), "no engine (a folder, not a file)", "a folder, not a file, and"),
    "a link to itself": (replace_by(lambda f: f.symlink_to(f.name)), "Too many levels", "Too many levels"),
    "a link to nothing": (replace_by(lambda f: f.symlink_to("x")), "a link to x, which is", "a link to x, which is"),
}


@pytest.mark.parametrize("way", GONE)
def test_a_chosen_engine_that_is_not_there_is_what_explain_explains(way: str, folder: Path) -> None:
    replace, of_load, of_explain = GONE[way]
    replace(folder / "model.rtx.plan")
    with pytest.raises(InputError) as error:
        find_model(folder)
    line = str(error.value)
    assert line.startswith(f"{folder}: engine.json chose tensorrt-rtx, and its model.rtx.plan is ") and of_load in line
    assert line.endswith("with `make engine`, or take --runtime onnxruntime")
    found = explain(folder)
    assert found.file == str(folder / "model.rtx.plan") and found.others == ("model.onnx",)
    (said,) = found.errors
    assert of_explain in said and said.endswith("is opened here; copy it again, or `make engine` builds one")


def test_the_same_with_a_file_for_no_other_runtime(tmp_path: Path) -> None:
    (tmp_path / "engine.json").write_text('{"chosen": "tensorrt"}')
    with pytest.raises(InputError, match=r"chose tensorrt, and its model\.plan is missing; .* with `make engine`$"):
        find_model(tmp_path)
    assert explain(tmp_path).file == str(tmp_path / "model.plan") and explain(tmp_path).errors


PLANS = ("model.plan", "model.rtx.plan", "model.pt2")


@pytest.mark.parametrize("chosen", [None, "onnxruntime", "tensorrt", "tensorrt-rtx", "torch-tensorrt"])
@pytest.mark.parametrize(
    "names", [("model.onnx",), ("model.onnx", *PLANS), PLANS, PLANS[1:], ("last.safetensors", *PLANS)]
)
def test_load_opens_what_explain_explains(chosen: str | None, names: tuple[str, ...], tmp_path: Path) -> None:
    for name in names:
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "engine.json").write_text(json.dumps({"version": 1} | ({"chosen": chosen} if chosen else {})))
    explained = explain(tmp_path, load=False).file
    try:
        opened: PathLike = find_model(tmp_path)[1]
    except InputError as error:
        assert f"its {Path(explained).name} is missing" in str(error) and not os.path.exists(explained)
    else:
        assert str(opened) == explained and os.path.exists(explained)


def test_folders_that_do_not_say(tmp_path: Path) -> None:
    assert chosen_engine(tmp_path) is None and engines_in(tmp_path) == []
    (tmp_path / "engine.json").write_text('{"onnxruntime": {}, "unknown": 1}')  # of an older version
    (tmp_path / "model.pt2").write_bytes(b"x")
    assert engines_in(tmp_path) == ["torch-tensorrt"]
    (tmp_path / "model.onnx").write_bytes(ONNX)
    assert engines_in(tmp_path) == ["onnxruntime", "torch-tensorrt"]
    (tmp_path / "engine.json").write_text('{"chosen": "tensorrt"}')
    assert engines_in(tmp_path) == ["tensorrt", "onnxruntime", "torch-tensorrt"]


def test_a_run_whose_engines_folder_is_damaged(folder: Path) -> None:
    run = folder.parent
    (run / "model.onnx").write_bytes(ONNX)
    assert explain(run, load=False).file == str(folder / "model.rtx.plan")
    (folder / "engine.json").write_text("{")
    assert explain(run).file == str(folder / "engine.json")
    assert find_model(run) == ("onnxruntime", run / "model.onnx")  # a run opens its own model


def test_an_empty_engines_folder_of_a_run(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(ONNX)
    (tmp_path / "engine").mkdir()
    (line,) = explain(tmp_path).errors
    assert line.startswith(f"{tmp_path / 'engine'}: a folder without an engine")


def test_what_a_run_has_engines_for_is_all_named(folder: Path) -> None:
    run = folder.parent
    (run / "model.onnx").write_bytes(ONNX)
    (run / "last.safetensors").write_bytes(b"x")
    with pytest.raises(
        InputError, match="holds nothing for the runtime tensorrt, only for pytorch, onnxruntime and tensorrt-rtx; "
    ):
        find_model(run, "tensorrt")
    assert find_model(run, "tensorrt-rtx") == ("tensorrt-rtx", folder / "model.rtx.plan")


@pytest.mark.parametrize("option", ["engine", "model", "checkpoint"])
@pytest.mark.parametrize("named", [False, True])
def test_a_folder_where_a_file_is_wanted(option: str, named: bool, folder: Path) -> None:
    runtime = {"engine": "tensorrt-rtx", "model": "onnxruntime", "checkpoint": "pytorch"}[option] if named else None
    options = RuntimeOptions(**{"runtime": runtime, option: folder})  # type: ignore[arg-type]
    with pytest.raises(InputError, match=f"a folder, and --{option} takes a file; --run takes a run's or an engine's"):
        choose(options)
