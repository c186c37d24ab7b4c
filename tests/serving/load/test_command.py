from __future__ import annotations

from pathlib import Path

import grpc
import numpy as np
import pytest
import trustme
from PIL import Image
from tritonclient.grpc.service_pb2 import ModelInferRequest
from typer.testing import CliRunner, Result

from serving.load_test import command
from serving.load_test.report import LoadReport
from tests.serving.load.fake_server import Infer, echo, fake_metrics, fake_server
from upsnet.command_line.command import make_app

NOWHERE = "127.0.0.1:9"  # the port of discard: nobody has it
MEMORY = {"server": 100, "upsnet": 20}
RED, BLUE = (255, 0, 0), (0, 0, 255)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for index, colour in enumerate((RED, BLUE)):
        Image.new("RGB", (40, 30), colour).save(folder / f"{index}.png")
    return folder


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(make_app(command.main), [*map(str, arguments)])


def loaded(folder: Path, photos: Path, infer: Infer, *more: str) -> tuple[Result, LoadReport]:
    with fake_server(infer) as url:
        result = run("--url", url, "--metrics-url", NOWHERE, "--photos", photos, "--out", folder, *more)
    return result, LoadReport.load(folder / "load.json")


def test_both_loops(tmp_path: Path, photos: Path) -> None:
    loads = ("--concurrency", "1", "3", "--rate", "200", "--requests", "20")
    result, report = loaded(tmp_path, photos, echo, *loads)
    assert result.exit_code == 0, result.output
    assert [(stage.loop, stage.value, stage.answers) for stage in report.stages] == [
        ("closed", 1, 20),
        ("closed", 3, 20),
        ("open", 200, 20),
    ]
    for stage in report.stages:
        assert stage.latency_ms["p50"] <= stage.latency_ms["p99"] <= stage.latency_ms["max"]
        assert stage.throughput == pytest.approx(20 / stage.seconds)
    assert np.asarray(Image.open(tmp_path / "load.png")).std() > 0
    assert "3 callers" in result.output


def test_an_answer_that_differs_is_wrong_and_ends_in_status_1(tmp_path: Path, photos: Path) -> None:
    def infer(number: int, request: ModelInferRequest, context: grpc.ServicerContext) -> dict[str, bytes]:
        answer = echo(number, request, context)
        return answer | {"labels": b"another's"} if number == 7 else answer

    result, report = loaded(tmp_path, photos, infer, "--concurrency", "2", "--requests", "10")
    assert result.exit_code == 1
    assert report.stages[0].statuses == {"OK": 9, "WRONG": 1}
    assert (report.stages[0].said[0].status, report.stages[0].said[0].times) == ("WRONG", 1)
    assert report.stages[0].said[0].message in ("0.png", "1.png")


@pytest.mark.parametrize(
    ("code", "status"),
    [("RESOURCE_EXHAUSTED", 0), ("DEADLINE_EXCEEDED", 0), ("INTERNAL", 1), ("UNAVAILABLE", 1), ("INVALID_ARGUMENT", 1)],
)
def test_a_refusal_under_load_is_right_and_an_error_is_not(
    tmp_path: Path, photos: Path, code: str, status: int
) -> None:
    def infer(number: int, request: ModelInferRequest, context: grpc.ServicerContext) -> dict[str, bytes]:
        if number >= 2 and number % 2:
            context.abort(grpc.StatusCode[code], "why it is so")
        return echo(number, request, context)

    result, report = loaded(tmp_path, photos, infer, "--concurrency", "1", "--requests", "10")
    assert result.exit_code == status
    assert report.stages[0].statuses == {"OK": 5, code: 5}
    assert f"5 times {code}: why it is so" in result.output
    assert (report.stages[0].refusals, report.stages[0].errors) == ((5, 0) if status == 0 else (0, 5))


def test_a_stage_without_an_answer_is_reported(tmp_path: Path, photos: Path) -> None:
    def infer(number: int, request: ModelInferRequest, context: grpc.ServicerContext) -> dict[str, bytes]:
        if number >= 2:
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "busy")
        return echo(number, request, context)

    result, report = loaded(tmp_path, photos, infer, "--concurrency", "1", "--requests", "3")
    assert result.exit_code == 0, result.output
    assert report.stages[0].latency_ms == {}


def test_batches_and_memory_are_those_of_the_stage(tmp_path: Path, photos: Path) -> None:
    def batches(two: int, four: int) -> str:
        name = "upsnet_executed_batches_total"
        lines = [f'{name}{{model="upsnet",size="{size}"}} {times}' for size, times in ((2, two), (4, four))]
        memory = [f'upsnet_resident_memory_bytes{{process="{key}"}} {size}' for key, size in MEMORY.items()]
        return "\n".join([f"# TYPE {name} counter", *lines, *memory, "process_resident_memory_bytes 7.0", ""])

    with fake_server() as url, fake_metrics([batches(5, 1), batches(8, 2)]) as metrics:
        places = ("--metrics-url", metrics, "--photos", photos, "--out", tmp_path)
        assert run("--url", url, *places, "--concurrency", "1", "--requests", "2").exit_code == 0
    stage = LoadReport.load(tmp_path / "load.json").stages[0]
    assert stage.batches == {"upsnet": {"2": 3, "4": 1}}
    assert stage.mean_batch == "2.50"
    assert stage.memory_bytes == {**MEMORY, "service": 7}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--model", "other"], "--model other: it is one of upsnet_photo, upsnet"),
        (["--rate", "0"], "--rate 0: give requests a second"),
        (["--rate", "nan"], "--rate nan: give requests a second"),
        (["--url", NOWHERE], f"no Triton server answers at {NOWHERE}"),
        (["--url", NOWHERE, "--run", "runs/x"], "not both"),
    ],
)
def test_what_cannot_be_done_is_one_line(tmp_path: Path, photos: Path, arguments: list[str], said: str) -> None:
    result = run(*arguments, "--photos", photos, "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert said in result.stderr and result.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_server_with_tls(tmp_path: Path, photos: Path) -> None:
    authority = trustme.CA()
    ca = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(ca)
    own = authority.issue_cert("127.0.0.1")
    pair = own.private_key_pem.bytes(), own.cert_chain_pems[0].bytes()
    with fake_server(tls=grpc.ssl_server_credentials([pair])) as url:
        places = ("--metrics-url", NOWHERE, "--photos", photos, "--out", tmp_path, "--requests", "2")
        result = run("--url", url, "--tls-ca", ca, *places, "--concurrency", "1")
        assert result.exit_code == 0, result.output
        result = run("--url", url, *places)
    assert result.exit_code == 2
    assert "TLS" in result.stderr and result.stderr.count("\n") == 1


def test_a_server_without_the_model_is_one_line(tmp_path: Path, photos: Path) -> None:
    with fake_server() as url:
        result = run("--url", url, "--model", "upsnet", "--photos", photos, "--out", tmp_path)
    assert result.exit_code == 2
    assert "does not describe upsnet: there is no model upsnet" in result.stderr


def test_a_photo_that_is_refused_alone_is_named(tmp_path: Path, photos: Path) -> None:
    def infer(number: int, request: ModelInferRequest, context: grpc.ServicerContext) -> dict[str, bytes]:
        if number:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "not a readable image")
        return echo(number, request, context)

    with fake_server(infer) as url:
        result = run("--url", url, "--photos", photos, "--out", tmp_path)
    assert result.exit_code == 2
    assert "refuses 1.png: not a readable image" in result.stderr
