from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from training import duration
from training.config import ScheduleConfig
from training.schedule import make_plan
from upsnet.command_line.command import make_app
from upsnet.errors import InputError


def test_arithmetic() -> None:
    """1.44 million images at 10 a second, and 46 million gradients of 4 bytes over 100 gigabits, by hand."""
    schedule = ScheduleConfig(images=1_440_000, images_per_gpu=1)
    one = duration.duration(make_plan(schedule, 1), 10, 46_000_000, 100)
    assert (one.compute, one.exchange, one.least, one.most) == (144_000, 0, 144_000, 144_000)
    many = duration.duration(make_plan(schedule, 16), 10, 46_000_000, 100)
    assert many.compute == pytest.approx(144_000 / 16)
    step = 2 * 15 / 16 * 4 * 46e6 * 8 / 100e9  # .0276 s
    assert many.exchange == pytest.approx(90_000 * step)
    assert many.least == many.compute and many.most == pytest.approx(many.compute + many.exchange)
    assert duration.duration(make_plan(schedule, 16), 10, 46_000_000, None).most == many.compute
    slow = duration.duration(make_plan(schedule, 16), 10, 46_000_000, 10)
    assert slow.least == slow.exchange == pytest.approx(10 * many.exchange)


def test_a_global_batch_that_stays_is_shared() -> None:
    schedule = ScheduleConfig(images=1600, images_per_step=16)
    found = duration.duration(make_plan(schedule, 8), 10, 1, None)
    assert found.plan.iterations == 100 and found.compute == pytest.approx(100 * 2 / 10)


def write(run: Path, rates: list[float], processes: int = 2) -> Path:
    lines = [{"step": step, "images_per_second": rate} for step, rate in enumerate(rates)] + [{"step": 9, "pq": 0.5}]
    (run / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    (run / "plan.json").write_text(json.dumps({"processes": processes}))
    return run


def test_the_rate_of_a_run(tmp_path: Path) -> None:
    assert duration.measured_rate(write(tmp_path, [2.0, 8.0, 9.0])) == 4  # the first steps are slow
    for rates, processes in (([], 1), ([0.0], 1), ([5.0], 0)):
        with pytest.raises(InputError, match=r"images a second|tell no rate"):
            duration.measured_rate(write(tmp_path, rates, processes))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--gpus", "100"], "schedule.images_per_step 8 cannot be shared equally by 100 processes"),
        (["--gigabits", "0"], "--gigabits 0: give a number, more than 0"),
        (["--images-per-second", "nan"], "--images-per-second nan: give a number, more than 0"),
    ],
)
def test_the_command(arguments: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Network:
        @staticmethod
        def parameters() -> list:
            return []

    monkeypatch.setattr(duration, "load_model", lambda path: [Network])
    write(tmp_path, [10.0], 1)
    config = "training/configs/shapes.yaml"
    shown = CliRunner().invoke(
        make_app(duration.main), ["--run", str(tmp_path), "--config", config, "--gpus", "1", "8"]
    )
    assert shown.exit_code == 0, shown.output
    assert "planned, not measured" in shown.output
    result = CliRunner().invoke(make_app(duration.main), ["--run", str(tmp_path), "--config", config, *arguments])
    assert result.exit_code == 2
    assert said in result.stderr and result.stderr.count("\n") == 1
