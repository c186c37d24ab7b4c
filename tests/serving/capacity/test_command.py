from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from serving.capacity import command, planning
from serving.capacity.calibration import Calibration, Fit, calibrate
from serving.capacity.planning import forecast
from serving.capacity.replica import Replica, log_normal, variation_of
from serving.capacity.report import CapacityReport
from serving.capacity.simulation import Simulated, closed_loop, most, open_loop
from serving.load_test.report import LoadReport, Loop, Stage
from upsnet.command_line.command import make_app
from upsnet.errors import InputError

REPLICA = Replica(
    takers=2,
    instances=2,
    max_batch=4,
    prepare_seconds=0.006,
    batch_seconds=0.02,
    photo_seconds=0.006,
    variation=variation_of(log_normal(1, 1.3)),
)


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(make_app(command.main), [*map(str, arguments)])


def stage(loop: Loop, value: float, found: Simulated, **more: object) -> Stage:
    latencies = np.sort(1e3 * found.latencies).tolist()
    return Stage(
        loop=loop,
        value=value,
        seconds=found.seconds,
        statuses={"OK": len(latencies)},
        throughput=len(latencies) / found.seconds,
        latency_ms=found.latency_ms,
        latencies_ms=latencies,
        said=[],
        batches={},
        memory_bytes={},
    ).model_copy(update=more)


def load_test(replica: Replica = REPLICA, model: str = "upsnet_photo") -> LoadReport:
    """What `upsnet load-test` would have measured."""
    stages = [stage("closed", callers, closed_loop(replica, callers, 2000, seed=5)) for callers in (1, 2, 4, 8, 16)]
    stages.append(stage("open", 40, open_loop(replica, 40, 400, seed=6)))
    return LoadReport(
        machine={},
        versions={},
        server="127.0.0.1:8001",
        model=model,
        model_name="simulated",
        max_batch=replica.max_batch,
        instances={"upsnet": replica.instances, "upsnet_photo": replica.takers or 2},
        photos=1,
        requests_bytes=[1],
        stages=stages,
    )


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("load") / "load.json"
    load_test().save(path)
    return path


@pytest.mark.parametrize(
    "replica",
    [
        REPLICA,
        REPLICA.model_copy(update={"takers": None}),
        REPLICA.model_copy(update={"takers": 4, "instances": 1, "max_batch": 3, "batch_seconds": 0.05}),
        REPLICA.model_copy(update={"takers": None, "instances": 1, "max_batch": 1, "prepare_seconds": 0.02}),
    ],
)
def test_a_load_test_tells_the_replica(replica: Replica) -> None:
    """Of a replica that is known: the one that is found behaves like it under a load that it has not seen."""
    found = calibrate(load_test(replica, "upsnet" if replica.takers is None else "upsnet_photo"))
    assert (found.replica.takers, found.replica.instances) == (replica.takers, replica.instances)
    assert found.replica.alone_seconds == pytest.approx(replica.alone_seconds, rel=0.02)
    for fit in found.fits:
        assert fit.repeated == pytest.approx(fit.measured, rel=0.08)
    rate = 0.6 * most(replica)
    wanted, planned = (open_loop(each, rate, 40_000) for each in (replica, found.replica))
    for name, value in wanted.latency_ms.items():
        assert planned.latency_ms[name] == pytest.approx(value, rel=0.15)


def test_the_plan(measured: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "REQUESTS", 8000)
    monkeypatch.setattr(planning, "REQUESTS_ANSWER", 30_000)
    result = run("--report", measured, "--rate", "30", "3000", "--p99", "150", "--p95", "400", "--out", tmp_path)
    assert result.exit_code == 0, result.output
    report = CapacityReport.load(tmp_path / "capacity.json")
    assert np.asarray(Image.open(tmp_path / "capacity.png")).std() > 0
    assert [check.rate for check in report.checks] == [40]
    for name, (least, greatest) in report.checks[0].between_ms.items():
        assert 0.8 * least <= report.checks[0].measured_ms[name] <= 1.25 * greatest
    assert len(report.answers) == 4
    for spread, balanced in (report.answers[:2], report.answers[2:]):
        assert (spread.routing, balanced.routing) == ("by chance", "least requests")
        assert balanced.replicas <= spread.replicas
        for answer in (spread, balanced):
            assert answer.latency_ms["p99"] <= 150
            assert answer.utilisation == pytest.approx(answer.rate / answer.replicas / report.most)
            assert answer.utilisation <= 0.85
    assert report.answers[0].replicas == 1
    many = report.answers[2]
    assert many.replicas == pytest.approx(100 * report.answers[0].rate / report.of_one, rel=0.15)
    fewer = forecast(report.replica, report.most, 3000, math.floor(0.9 * many.replicas), "by chance", 30_000)
    assert not fewer.within(report.limits_ms)
    assert "measure with more" in result.output  # sixteen callers are eight for each taker
    assert "planned: p95 at most 400 ms, p99 at most 150 ms" in result.output


def test_a_limit_that_is_far_away_leaves_the_utilisation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "REQUESTS", 2000)
    monkeypatch.setattr(planning, "REQUESTS_ANSWER", 2000)
    arguments = ("--alone-ms", "20", "20", "--rate", "100", "--p99", "60000", "--max-utilisation", "0.5")
    assert run(*arguments, "--out", tmp_path).exit_code == 0
    report = CapacityReport.load(tmp_path / "capacity.json")
    assert report.most == pytest.approx(50, rel=0.01)
    assert [answer.replicas for answer in report.answers] == [4, 4]


def test_thousands_of_replicas_are_as_a_hundred() -> None:
    few, many = (forecast(REPLICA, 1.0, 60 * count, count, "least requests", 50_000) for count in (100, 8000))
    assert many.latency_ms == pytest.approx(few.latency_ms, rel=0.05)
    assert many.utilisation == pytest.approx(few.utilisation)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "give --rate, and --p95 or --p99"),
        (["--rate", "5"], "give --rate, and --p95 or --p99"),
        (["--rate", "5", "--p99", "100"], "give --report, a load test of one replica, or else --alone-ms"),
        (["--rate", "0", "--p99", "100", "--alone-ms", "5", "9"], "--rate 0: give numbers, more than 0"),
        (["--rate", "5", "--p99", "nan", "--alone-ms", "5", "9"], "--p99 nan: give numbers, more than 0"),
        (["--rate", "5", "--p99", "9", "--alone-ms", "9", "5"], "--alone-ms 9 5: give the p50 and the p99"),
        (["--rate", "5", "--p99", "9", "--alone-ms", "9", "12"], "no number of replicas keeps p99 9 ms"),
        (["--rate", "5", "--p99", "9", "--alone-ms", "2", "2", "--max-utilisation", "1"], "--max-utilisation 1: give"),
        (["--rate", "999999", "--p99", "9999", "--alone-ms", "1000", "1000"], "more than 10000 replicas"),
        (
            ["--rate", "5", "--p99", "90", "--alone-ms", "9", "9", "--max-batch", "4", "--batch-ms", "90"],
            "--batch-ms 90: a batch of 4 takes between 9 ms, the mean of a request alone, and 36 ms",
        ),
        (["--rate", "5", "--p99", "9", "--report", "no.json"], "no.json"),
    ],
)
def test_what_cannot_be_planned_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], said: str
) -> None:
    monkeypatch.setattr(planning, "REQUESTS", 2000)
    result = run(*arguments, "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert said in result.stderr and result.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"instances": {}}, "does not tell how many instances serve"),
        ({"max_batch": None}, "does not tell how many instances serve"),
        ({"stages": slice(1, None)}, "measure with --concurrency 1 2 4 8 16 32"),
        ({"stages": slice(2)}, "measure with --concurrency 1 2 4 8 16 32"),
        ({"statuses": {"OK": 9}}, "is damaged at 2 callers"),
        ({"statuses": {"OK": 9, "INTERNAL": 1}}, "has wrong answers or errors"),
        ({"statuses": {"OK": 9, "RESOURCE_EXHAUSTED": 1}}, "has refused requests at 2 callers"),
    ],
)
def test_a_load_test_that_does_not_do(measured: Path, change: dict, said: str) -> None:
    report = LoadReport.load(measured)
    match change:
        case {"stages": part}:
            change = {"stages": report.stages[part]}
        case {"statuses": statuses}:
            wrong = report.stages[1].model_copy(update={"statuses": statuses})
            change = {"stages": [report.stages[0], wrong, *report.stages[2:]]}
    with pytest.raises(InputError, match=said):
        calibrate(report.model_copy(update=change))


@pytest.mark.parametrize(("last", "full"), [(3, False), (6, True)])
def test_were_there_enough_callers(last: int, full: bool) -> None:
    answers = (40.0, 41.0, 60.0, 79.0, 99.0, 100.0)
    fits = [Fit(2**number, measured, measured) for number, measured in enumerate(answers[:last])]
    assert Calibration(REPLICA, fits).full is full
