from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
import typer
from typer.testing import CliRunner

import upsnet
from eval.bench import PlainPyTorch, bench_photo, bench_table, compare
from eval.open_run import open_run
from plugins_cuda import library
from serving.private_server import set_threads
from upsnet.command_line.command import make_app, run
from upsnet.datasets.folder import PanopticFolder
from upsnet.errors import InputError
from upsnet.geometry import NetworkBatch
from upsnet.machine import machine_facts, package_versions
from upsnet.runtimes.open import open_runtime
from upsnet.runtimes.options import RuntimeOptions


@pytest.mark.parametrize(
    ("runtime", "files", "message"),
    [
        ("pytorch", {}, "pytorch needs a checkpoint"),
        ("pytorch", {"checkpoint": Path("absent.pt")}, r"absent\.pt: no such file"),
        ("onnxruntime", {}, "onnxruntime needs an ONNX model"),
        ("onnxruntime", {"model": Path("absent.onnx")}, r"absent\.onnx: no such file"),
        ("triton", {}, "triton needs the address"),
        ("caffe", {}, "unknown runtime 'caffe'; it is one of pytorch, onnxruntime, onnxruntime-tensorrt, "),
    ],
)
def test_missing_arguments_are_one_line(runtime: str, files: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        open_runtime(RuntimeOptions(runtime=runtime, **files))
    assert "\n" not in str(error.value)


def test_absent_run(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such run"), open_run(RuntimeOptions(tmp_path / "absent"), ["pytorch"]):
        pass


def test_a_server_takes_no_device(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    chosen = RuntimeOptions(tmp_path, url="127.0.0.1:1", device="cuda:1")
    with pytest.raises(InputError, match=r"^device cuda:1: the runtime triton has its own; leave it out$"):
        open_runtime(chosen)
    opened: list[tuple[str | None, str | None]] = []

    def record(options: RuntimeOptions) -> Any:
        opened.append((options.runtime, options.device))
        return Mock()

    monkeypatch.setattr("eval.open_run.open_runtime", record)
    with open_run(chosen, ["pytorch", "triton", "onnxruntime"]):
        pass
    assert opened == [("pytorch", "cuda:1"), ("triton", None), ("onnxruntime", "cuda:1")]


COMMANDS = {
    "predict": "--run RUN --out RUN/out RUN/data/val/000.png",
    "eval": "--run RUN --gt-json RUN/data/val.json --out RUN/out",
    "parity": "--run RUN --gt-json RUN/data/val.json --runtimes pytorch onnxruntime",
    "bench": "--run RUN --gt-json RUN/data/val.json --runtimes onnxruntime",
    "bench --photo": "RUN/data/val/000.png --model RUN/model.onnx",
}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_hands_its_device_on(
    command: str, gt_json: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    devices: list[str | None] = []

    def refuse(options: RuntimeOptions) -> Any:
        devices.append(options.device)
        raise InputError("reached")

    for module in ("upsnet.command_line.predict", "eval.evaluate", "eval.open_run", "eval.bench"):
        monkeypatch.setattr(f"{module}.open_runtime", refuse)
    words = f"{command} {COMMANDS[command]}".replace("RUN", str(tmp_path)).split()
    for device in ([], ["--device", "cuda:1"]):
        monkeypatch.setattr(sys, "argv", ["upsnet", *words, *device])
        with pytest.raises(SystemExit) as stop:
            upsnet.main()
        assert stop.value.code == 2
    assert devices == [None, "cuda:1"]


def test_threads_of_a_private_server(project_root: Path, tmp_path: Path) -> None:
    config = tmp_path / "cpu.pbtxt"
    original = (project_root / "triton_repo/upsnet/configs/cpu.pbtxt").read_text()
    config.write_text(original)
    set_threads(config, 3)
    assert '{ key: "threads" value: { string_value: "3" } }' in config.read_text()
    assert len(config.read_text()) == len(original)
    config.write_text("name: 'upsnet'\n")
    with pytest.raises(InputError, match="no parameter 'threads'"):
        set_threads(config, 3)


def test_no_framework_is_imported_before_it_is_needed(project_root: Path) -> None:
    code = (
        "import sys, eval.parity, upsnet.command_line.predict, eval.bench; "
        "print([m for m in ('torch', 'onnxruntime', 'tritonclient', 'training') if m in sys.modules])"
    )
    answer = subprocess.run([sys.executable, "-c", code], cwd=project_root, capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"


def test_list_options_take_several_values() -> None:
    seen: list[Any] = []

    def command(
        names: Annotated[list[Path], typer.Argument()],
        sizes: Annotated[list[int], typer.Option()] = [1],  # noqa: B006
        word: Annotated[str, typer.Option()] = "",
    ) -> None:
        seen.append(([str(name) for name in names], list(sizes), word))

    app = make_app(command)
    for arguments in (["a", "--sizes", "1", "4", "--word", "x"], ["--word", "x", "a", "--sizes=1", "--sizes", "4"]):
        assert CliRunner().invoke(app, arguments).exit_code == 0
    assert seen == [(["a"], [1, 4], "x")] * 2


def test_bad_input_is_code_2(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def command() -> None:
        raise InputError("x.jpg: no such file")

    monkeypatch.setattr(sys, "argv", ["script"])
    with pytest.raises(SystemExit) as stop:
        run(command)
    assert stop.value.code == 2
    assert capsys.readouterr().err == "error: x.jpg: no such file\n"


def test_bench_takes_turns_and_gives_ratios(gt_json: Path, fake: Callable[..., Any]) -> None:
    turns: list[str] = []

    class Recorded(fake):  # type: ignore[misc, valid-type]
        def predict(self, batch: NetworkBatch) -> Any:
            turns.append(self.name)
            return super().predict(batch)

    names = (PlainPyTorch.name, "onnxruntime", "triton")
    predictors = [Recorded(name) for name in names]
    predictors[1].device_name = "cuda:1"
    entries = compare(predictors, PanopticFolder(gt_json), [1, 7], rounds=2)  # 7: more than there are images
    assert turns[:9] == [name for name in names for _ in range(3)]
    assert len(turns) == 2 * 2 * 9
    for entry in entries:
        medians = entry.median_ms
        assert entry.onnxruntime_speedup == medians[PlainPyTorch.name] / medians["onnxruntime"]
        assert entry.triton_overhead == medians["triton"] / medians["onnxruntime"] - 1
        assert len(entry.times_ms["triton"]) == 4
    assert entries[1].shape == [7, 64, 64, 3]
    table = bench_table(entries, 2)
    assert table.row_count == 2
    assert [column.header for column in table.columns[2:4]] == ["ONNX Runtime\ncuda:1", "Triton\ncpu"]


def test_plain_pytorch_runs_the_definitions(fake: Callable[..., Any]) -> None:
    served = []

    class Asks(fake):  # type: ignore[misc, valid-type]
        def predict(self, batch: NetworkBatch) -> Any:
            served.append(library.compiled(torch.device("cpu")))

    plain, batch = PlainPyTorch(Asks("pytorch")), NetworkBatch(*[np.zeros(0)] * 3)
    plain.predict(batch)
    Asks("pytorch").predict(batch)
    assert served[0] is None and served[1] is not None


def test_bench_of_one_photo(gt_json: Path, fake: Callable[..., Any]) -> None:
    facts = bench_photo(gt_json.parent / "val" / "000.png", fake("onnxruntime"))
    assert (facts.device, facts.shape) == ("cpu", [1, 64, 64, 3]) and 0 < facts.best_ms <= facts.first_ms
    assert facts.peak_rss_mib > 10


def test_machine_facts() -> None:
    assert set(machine_facts()) - {"gpus"} == {"cpu", "cores", "system"} and int(machine_facts()["cores"]) >= 1
    assert package_versions()["numpy"] == np.__version__
