"""`upsnet load-test`: real photos against a server, by callers who wait (--concurrency) or at a rate (--rate).

upsnet load-test --run runs/demo --concurrency 1 4 16
upsnet load-test --url 127.0.0.1:8001 --rate 5 10 20 --seconds 60
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, NamedTuple

import grpc
import typer
from tqdm import tqdm

from serving.load_test.asking import Questions, Server, ask_alone
from serving.load_test.chart import draw
from serving.load_test.in_process import differing
from serving.load_test.loops import Length, closed_loop, open_loop
from serving.load_test.operators import Snapshot
from serving.load_test.questions import MODELS, Answer, Question, read_questions
from serving.load_test.report import LoadReport, Loop, Stage, make_stage, stage_title, table_of
from serving.repository import deploy
from serving.server import TritonServer
from upsnet.command_line.options import run_option
from upsnet.contract import PHOTO_MODEL, manifest_path
from upsnet.errors import InputError
from upsnet.machine import machine_facts, package_versions
from upsnet.runtimes.address import check_grpc, parse_address
from upsnet.runtimes.onnx_runtime import OnnxRuntimePredictor
from upsnet.runtimes.options import SERVER, TLS_SCHEME
from upsnet.runtimes.tls import Tls
from upsnet.tables import print_tables

PHOTOS = (Path("../shared/data/coco_sample/val2017"), Path("data/shapes/val"))  # the first that is there
METRICS_PORT = 8002


class Load(NamedTuple):
    """What a server is loaded with."""

    model: str
    photos: Path
    most_photos: int
    concurrency: list[int]
    rates: list[float]
    length: Length
    deadline: float
    connections: int
    seed: int
    tls: Tls | None
    truth: Path | None  # the ONNX file that is served, where it is here: it must say what the server says


async def load(url: str, metrics: str, wanted: Load) -> LoadReport:
    """Every stage, one after the other. InputError where the server does not answer before there is any load."""
    tls = None if wanted.tls is None else wanted.tls.credentials(grpc)
    async with Server(url, connections=wanted.connections, deadline=wanted.deadline, tls=tls) as server:
        manifest = await server.manifest(wanted.model)
        instances = await server.instances()
        questions = read_questions(wanted.photos, wanted.model, manifest.resize, wanted.most_photos)
        references = await ask_alone(server, questions)
        if wanted.truth is not None:
            _check(wanted.truth, questions, references)
        loads: list[tuple[Loop, float]] = [("closed", callers) for callers in wanted.concurrency]
        loads += [("open", rate) for rate in wanted.rates]
        stages = [await _stage(Questions(server, questions, references), metrics, wanted, *each) for each in loads]
    return LoadReport(
        machine=machine_facts(),
        versions=package_versions(),
        server=url,
        model=wanted.model,
        model_name=manifest.name,
        max_batch=manifest.max_batch,
        instances=instances,
        photos=len(questions),
        requests_bytes=[len(question.message) for question in questions],
        stages=stages,
    )


def _check(model: Path, questions: Sequence[Question], answers: Sequence[Answer]) -> None:
    """InputError where an answer is not that of this process."""
    predictor = OnnxRuntimePredictor(model)
    for question, answer in zip(questions, answers, strict=True):
        if wrong := differing(predictor, question.message, answer):
            raise InputError(f"{question.name}: the server's {' and '.join(wrong)} are not those of {model} in process")
    predictor.close()


async def _stage(questions: Questions, metrics: str, wanted: Load, loop: Loop, value: float) -> Stage:
    before = await asyncio.to_thread(Snapshot.of, metrics)
    start = time.perf_counter()
    with tqdm(desc=stage_title(loop, value), total=wanted.length.requests, unit=" requests", disable=None) as bar:
        if loop == "closed":
            samples = await closed_loop(questions.send, int(value), wanted.length, bar.update)
        else:
            samples = await open_loop(questions.send, wanted.length.arrivals(value, wanted.seed), bar.update)
    seconds = time.perf_counter() - start
    after = await asyncio.to_thread(Snapshot.of, metrics)
    batches = after.batches_since(before) if before and after else {}
    return make_stage(loop, value, seconds, samples, questions.said, batches, after.memory if after else {})


@contextmanager
def _server(url: str | None, metrics_url: str | None, run: Path | None, tls: Tls | None) -> Iterator[tuple[str, str]]:
    """Addresses of gRPC and of the metrics: of the server that is given, or of one for this run alone."""
    if run is None:
        url = parse_address(url or SERVER)
        check_grpc(url, tls=tls)
        yield url, metrics_url or f"{url.rpartition(':')[0]}:{METRICS_PORT}"
    elif url is not None:
        raise InputError("give --url, a server that runs, or --run, for which one is started; not both")
    else:
        with tempfile.TemporaryDirectory(prefix="upsnet-") as folder:
            model = run / "model.onnx"
            with TritonServer(deploy(model, manifest_path(model), Path(folder) / "repository")) as server:
                yield server.url, f"{server.host}:{server.ports['metrics']}"


def main(
    url: Annotated[str | None, typer.Option(help=f"host:port of a server's gRPC (default: {SERVER}).")] = None,
    run: Annotated[Path | None, run_option("Start a server for this run instead.")] = None,
    model: Annotated[str, typer.Option(help=f"One of {', '.join(MODELS)}: encoded photos, or tensors.")] = PHOTO_MODEL,
    photos: Annotated[Path | None, typer.Option(help="A folder of photos, or one photo.")] = None,
    most_photos: Annotated[int, typer.Option(min=1, help="Of the folder.")] = 32,
    concurrency: Annotated[list[int] | None, typer.Option(min=1, help="Closed loop: callers at once.")] = None,
    rate: Annotated[list[float] | None, typer.Option(help="Open loop: requests a second, Poisson arrivals.")] = None,
    seconds: Annotated[float, typer.Option(min=0.1, help="Of each value of --concurrency and --rate.")] = 10.0,
    requests: Annotated[int | None, typer.Option(min=1, help="This many of them instead.")] = None,
    deadline: Annotated[float, typer.Option(min=0.001, help="Seconds that a caller waits at most.")] = 60.0,
    connections: Annotated[int, typer.Option(min=1, help="That the requests are spread over.")] = 4,
    seed: Annotated[int, typer.Option(help="Of the arrivals.")] = 0,
    metrics_url: Annotated[
        str | None, typer.Option(help=f"host:port of the server's metrics (default: its host, {METRICS_PORT}).")
    ] = None,
    tls_ca: Annotated[Path | None, typer.Option(help="The authority of the server's certificate (PEM).")] = None,
    tls_cert: Annotated[Path | None, typer.Option(help="A certificate of our own (PEM).")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Its key (PEM).")] = None,
    out: Annotated[Path, typer.Option(help="Folder for load.json and load.png.")] = Path("load"),
) -> None:
    """Load a server with real photos. Status 1 where an answer was wrong, or an error none that load explains."""
    if model not in MODELS:
        raise InputError(f"--model {model}: it is one of {', '.join(MODELS)}")
    if any(not 0 < each < 1e6 for each in rate or []):  # nan neither
        raise InputError(f"--rate {' '.join(f'{each:g}' for each in rate or [])}: give requests a second, more than 0")
    place = photos or next((folder for folder in PHOTOS if folder.is_dir()), None)
    if place is None:
        raise InputError("there are no photos to send; give a folder with --photos")
    concurrency = concurrency or ([] if rate else [1, 2, 4, 8])
    secret = any((tls_ca, tls_cert, tls_key)) or (url or "").startswith(TLS_SCHEME)
    tls = Tls(tls_ca, tls_cert, tls_key) if secret else None
    length = Length(seconds, requests)
    wanted = Load(
        model,
        place,
        most_photos,
        concurrency,
        rate or [],
        length,
        deadline,
        connections,
        seed,
        tls,
        run and run / "model.onnx",
    )
    with _server(url, metrics_url, run, tls) as (address, metrics):
        report = asyncio.run(load(address, metrics, wanted))
    print_tables(table_of(report))
    for stage in report.stages:
        for each in stage.said:
            print(f"{stage.title}: {each.times} times {each.status}: {each.message}")
    report.save(out / "load.json")
    draw(report, out / "load.png")
    print(f"wrote {out}/load.json and load.png")
    if report.failed:
        raise typer.Exit(1)
