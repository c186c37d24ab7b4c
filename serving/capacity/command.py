"""`upsnet capacity`: how many replicas (GPUs) a load needs, planned from a load test of one.

upsnet load-test --run runs/x --concurrency 1 2 4 8 16 32 --rate 5 10
upsnet capacity --report load/load.json --rate 100 1000 --p99 250
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from tqdm import tqdm

from serving.capacity.calibration import Calibration, calibrate
from serving.capacity.chart import draw
from serving.capacity.planning import SHARES, Limits, bearable, curve_of, plan
from serving.capacity.replica import Replica, log_normal, variation_of
from serving.capacity.report import CapacityReport, check, tables_of
from serving.capacity.simulation import most
from serving.load_test.report import MOST_BATCH, LoadReport, Stage
from upsnet.errors import InputError
from upsnet.tables import print_tables

MOST_REPLICAS = 10_000


def main(
    report: Annotated[Path | None, typer.Option(help="load.json of `upsnet load-test` on one replica.")] = None,
    rate: Annotated[list[float] | None, typer.Option(help="Requests a second that are to be answered.")] = None,
    p95: Annotated[float | None, typer.Option(help="Milliseconds that 95 % of the answers take at most.")] = None,
    p99: Annotated[float | None, typer.Option(help="Milliseconds that 99 % of the answers take at most.")] = None,
    max_utilisation: Annotated[
        float, typer.Option(help="Of what a replica can answer: a share to stay below, whatever the latency.")
    ] = 0.85,
    alone_ms: Annotated[
        tuple[float, float] | None, typer.Option(help="Instead of a load test: p50 and p99 of a request alone.")
    ] = None,
    max_batch: Annotated[int, typer.Option(min=1, max=MOST_BATCH, help="With --alone-ms: the largest batch.")] = 1,
    batch_ms: Annotated[
        float | None, typer.Option(help="With --alone-ms: of a batch that is full (default: no gain by batches).")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for capacity.json and capacity.png.")] = Path("capacity"),
) -> None:
    """How many replicas a load needs: planned from the load test of one, or from the times of a request."""
    rates = rate or []
    for name, values in (("--rate", rates), ("--p95", [p95]), ("--p99", [p99])):
        if any(value is not None and not 0 < value < 1e6 for value in values):  # nan neither
            raise InputError(f"{name} {' '.join(f'{value:g}' for value in values)}: give numbers, more than 0")
    if not 0 < max_utilisation <= SHARES[-1]:
        raise InputError(f"--max-utilisation {max_utilisation:g}: give a share, more than 0 and at most {SHARES[-1]:g}")
    limits = {name: limit for name, limit in (("p95", p95), ("p99", p99)) if limit is not None}
    if not rates or not limits:
        raise InputError("give --rate, and --p95 or --p99: requests a second, and milliseconds that they may take")
    if report is not None and alone_ms is None:
        measured = LoadReport.load(report)
        found, stages = calibrate(measured), measured.stages
    elif alone_ms is not None and report is None:
        found, stages = Calibration(_of_times(*alone_ms, max_batch=max_batch, batch_ms=batch_ms), []), []
    else:
        raise InputError("give --report, a load test of one replica, or else --alone-ms, the times of a request")
    planned = _planned(found, stages, rates, limits, max_utilisation, "options" if report is None else str(report))
    print_tables(*tables_of(planned))
    if found.fits and not found.full:
        print("the throughput still grew with the last callers: measure with more, a replica may bear more than this")
    planned.save(out / "capacity.json")
    draw(planned, out / "capacity.png")
    print(f"wrote {out}/capacity.json and capacity.png")


def _planned(
    found: Calibration,
    stages: Sequence[Stage],
    rates: Sequence[float],
    limits: Limits,
    max_utilisation: float,
    source: str,
) -> CapacityReport:
    replica, full = found.replica, most(found.replica)
    if max(rates) > MOST_REPLICAS * full * max_utilisation:
        raise InputError(f"--rate {max(rates):g}: more than {MOST_REPLICAS} replicas would be needed")
    opened = [stage for stage in stages if stage.loop == "open" and stage.answers and not stage.refusals]
    checks, answers = [], []
    with tqdm(desc="simulated", total=len(opened) + len(SHARES) + len(rates), unit=" loads", disable=None) as bar:
        for stage in opened:
            checks.append(check(replica, full, stage))
            bar.update()
        curve = curve_of(replica, full, bar.update)
        of_one = bearable(replica, full, curve, limits, max_utilisation)
        for rate in rates:
            answers += plan(replica, full, rate, of_one, limits, max_utilisation)
            bar.update()
    return CapacityReport(
        source=source,
        replica=replica,
        most=full,
        fits=found.fits,
        checks=checks,
        limits_ms=dict(limits),
        max_utilisation=max_utilisation,
        of_one=of_one,
        curve=curve,
        answers=answers,
    )


def _of_times(p50: float, p99: float, max_batch: int, batch_ms: float | None) -> Replica:
    if not 1e-3 <= p50 <= p99 < 1e6:
        raise InputError(f"--alone-ms {p50:g} {p99:g}: give the p50 and the p99 of a request, in milliseconds")
    times = log_normal(p50, p99) / 1e3
    alone = float(times.mean())
    full = max_batch * alone if batch_ms is None else batch_ms / 1e3
    if not alone <= full <= max_batch * alone:
        raise InputError(
            f"--batch-ms {batch_ms:g}: a batch of {max_batch} takes between {1e3 * alone:g} ms, the mean of a request "
            f"alone, and {1e3 * max_batch * alone:g} ms"
        )
    photo = (full - alone) / (max_batch - 1) if max_batch > 1 else alone
    return Replica(max_batch=max_batch, batch_seconds=alone - photo, photo_seconds=photo, variation=variation_of(times))
