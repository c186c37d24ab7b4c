"""The gate of `upsnet deploy promote`: the live candidate against the version in service, or another runtime."""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack, ExitStack, closing
from pathlib import Path
from typing import Any

import grpc
from pydantic import BaseModel, ConfigDict, Field

from serving.load_test.asking import Server
from serving.rollouts.latency import Latency, Side, compare_latency, read_some
from serving.rollouts.photo_model import PhotoAnswers, judge_photo_model
from serving.rollouts.record import Record, check_same, read_record
from serving.rollouts.running import HEALTH, Containers, Service, open_service, restarted, say, wait_for, watched
from upsnet.datasets.folder import PanopticFolder
from upsnet.errors import InputError, ServerError
from upsnet.figures import points, share, title
from upsnet.parity.deadline import InTime
from upsnet.parity.gate import AGREE, GateLimits, Verdict, judge, unlike
from upsnet.parity.photos import LabelledPhotos, Photos, PlainPhotos
from upsnet.runtimes.open import open_runtime
from upsnet.runtimes.options import RuntimeOptions, find_runtime
from upsnet.runtimes.predictor import Predictor
from upsnet.runtimes.tls import Tls
from upsnet.runtimes.triton import TritonPredictor

LOADED = 16  # photos that make the load, at most
ENOUGH = 40  # answers, for a p95 that is not one slow answer
TOGETHER = 4  # photos in one request, at most
KEPT = 5  # classes and photos, in the history


class GateOptions(BaseModel):
    """What the gate judges by. One of gt_json and photos; else the validation set of `run`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    gt_json: str | Path | None = None
    gt_folder: Path | None = None
    images: Path | None = None
    photos: Path | None = None  # a folder without truth
    limit: int | None = Field(None, ge=1)  # only the first photos
    run: Path | None = None
    against: str | None = None  # a runtime in which `run` is the reference; None: the version in service
    limits: GateLimits = GateLimits()
    max_latency_ratio: float = Field(1.5, gt=0)  # of the candidate's p50 and p95 to those of the version in service
    concurrency: int = Field(4, ge=1)  # callers at once
    seconds: float = Field(10.0, ge=0)  # of load on each version; 0: none, and latency is not judged


class GateResult(BaseModel):
    """The gate's answer."""

    passed: bool
    reasons: list[str]  # why not, one line each
    verdict: Verdict | None = None  # None where no photo was compared
    latency: Latency | None = None  # None where it was not come to
    seconds: float  # that the gate took
    private: bool  # on servers of its own, as no service runs

    @property
    def figures(self) -> dict[str, Any]:
        """For the history: short."""
        found: dict[str, Any] = {"private_servers": self.private}
        if (verdict := self.verdict) is not None:
            found |= {
                "compared": verdict.compared,
                "images": verdict.images,
                "limits": verdict.limits.model_dump(exclude_none=True),
                "pq": {group: pq.model_dump() for group, pq in verdict.pq.items()},
                "identical": verdict.identical,
                "classes": {each.name: each.difference for each in verdict.classes[:KEPT]},
                "photos": {each.name: each.identical for each in verdict.photos[:KEPT]},
            }
        if self.latency is not None:
            found["latency"] = self.latency.model_dump(exclude={"reference": {"said"}, "candidate": {"said"}})
            found["latency"]["ratio"] = self.latency.ratios
        return found

    @property
    def lines(self) -> list[str]:
        """For the terminal: what was compared, and the figures."""
        lines = []
        if (verdict := self.verdict) is None or verdict.images == 0:
            lines.append("no photo was compared, or not all of them could be")
        else:
            lines.append(f"compared: {verdict.compared}")
            for group, pq in verdict.pq.items():
                name = "PQ" if group == "All" else f"PQ, {group.lower()}"
                lines.append(
                    f"{name}: {points(pq.candidate, digits=2)}, of the reference {points(pq.reference, digits=2)}"
                )
            if verdict.identical is not None:
                decides = "" if verdict.needed_identical is not None else " (told, not asked for)"
                lines.append(f"identical pixels: {share(verdict.identical)}{decides}")
        if (latency := self.latency) is not None:
            sides = (latency.candidate, latency.reference)
            p50, p95 = (" against ".join(_ms(getattr(side, name)) for side in sides) for name in ("p50_ms", "p95_ms"))
            lines.append(f"latency with {latency.concurrency} callers: p50 {p50}, p95 {p95} of the version in service")
        return lines


def hold_gate(
    repository: Path,
    record: Record,
    options: GateOptions,
    *,
    health: str = HEALTH,
    tls: Tls | None = None,
    containers: Containers | None = None,
) -> GateResult:
    """May the record's candidate serve? Nothing is written, and no lock is held.

    Asks the service at `health` (tls: as its gRPC wants it) where it follows this repository and runs the candidate,
    else a private one that lives as long as the gate; or these containers. Progress bars on stderr. InputError where
    nothing can be judged: no photos, no candidate, a version in service that does not answer, a container with another
    model.
    """
    start = time.monotonic()
    if record.candidate is None:
        raise InputError(f"{repository} has no candidate; `upsnet deploy stage` puts one there")
    if options.against is not None:
        find_runtime(options.against)
        if options.run is None:
            raise InputError(f"--against {options.against} needs --run, the run that it opens")
    photos = open_photos(options)
    verdict, latency = None, None
    with open_service(repository, record, health, tls, containers) as service:
        before, reasons = wait_for(service, record.candidate, lambda: check_same(read_record(repository), record))
        if before is not None:
            with watched(service, record.candidate) as said:
                with ExitStack() as stack:
                    verdict, reasons = _judge(stack, service, record, options, photos)
                if not reasons:
                    latency, reasons = asyncio.run(_under_load(service, record, options, photos))
            reasons += restarted(service, record.candidate, before, said)
    return GateResult(
        passed=not reasons,
        reasons=reasons,
        verdict=verdict,
        latency=latency,
        seconds=round(time.monotonic() - start, 3),
        private=service.private,
    )


def open_photos(options: GateOptions) -> Photos:
    """InputError where they are none, or not clearly named."""
    if options.photos is not None:
        if options.gt_json is not None:
            raise InputError("give --photos, a folder without truth, or --gt-json, a data set; not both")
        return PlainPhotos(options.photos, options.limit)
    if options.gt_json is None and options.run is None:
        raise InputError(
            "nothing to judge by: give a data set (--gt-json), photos (--photos FOLDER; `upsnet serve --record` keeps "
            "some of its callers'), or --run, whose validation set is taken"
        )
    from upsnet.datasets.validation_set import open_dataset

    dataset: PanopticFolder = open_dataset(options.gt_json, options.gt_folder, options.images, options.run)
    return LabelledPhotos(dataset, None if options.limit is None else dataset.records[: options.limit])


def _judge(
    stack: ExitStack, service: Service, record: Record, options: GateOptions, photos: Photos
) -> tuple[Verdict | None, list[str]]:
    """PQ and pixels, by the network's tensors."""
    version, limits, named = record.candidate, options.limits, f"version {record.serving}"
    assert version is not None
    serving = stack.enter_context(closing(_open(service, record.serving, limits.seconds)))
    reference: Predictor = serving
    try:
        candidate = stack.enter_context(closing(_open(service, version, limits.seconds)))
    except ServerError as error:
        return None, [f"version {version}: {error}"]
    if options.against is not None:
        if reasons := unlike(candidate.manifest, serving.manifest, limits, named):  # whose clients it would get
            return None, reasons
        reference = stack.enter_context(closing(open_runtime(RuntimeOptions(options.run, options.against))))
        named = f"{title(options.against)} of {options.run}"
        if limits.min_identical is None:  # it is to be the same network
            limits = limits.model_copy(update={"min_identical": AGREE})
    verdict = judge(candidate, reference, photos, limits, reference_title=named)
    for warning in verdict.warnings:
        say(f"warning: {warning}")
    return verdict, verdict.reasons


def _open(service: Service, version: int, seconds: float) -> TritonPredictor:
    """Without a second try: an answer that fails is one that fails. The deadline of the gate ends before its own."""
    return TritonPredictor(service.urls[version], timeout=seconds + 5, tls=service.tls, retries=0, version=version)


async def _under_load(
    service: Service, record: Record, options: GateOptions, photos: Photos
) -> tuple[Latency | None, list[str]]:
    """The photo models: photos alone and together, held against the network of the same version; then under load."""
    assert record.candidate is not None
    version, limits = record.candidate, options.limits
    some = read_some(photos, LOADED)
    secret = None if service.tls is None else service.tls.credentials(grpc)
    async with AsyncExitStack() as stack:
        servers = {
            each: await stack.enter_async_context(
                Server(url, connections=options.concurrency, deadline=limits.seconds, tls=secret)
            )
            for each, url in service.urls.items()
        }
        reference = Side(servers[record.serving], record.serving, some)
        await reference.ask_alone(may_refuse=True)
        some = [(name, content) for name, content in some if name in reference.names]
        if not some:
            say(f"no photo of {photos.title} is one that version {record.serving} takes as a photo")
            return None, []
        candidate = Side(servers[version], version, some)
        most = await asyncio.to_thread(_most_together, service, record, limits.seconds)
        groups = [range(start, min(start + most, len(some))) for start in range(0, len(some), most)]
        taken = await reference.ask_together([each for each in groups if len(each) > 1], may_refuse=True)
        try:
            answers = PhotoAnswers(
                await candidate.ask_alone(), await candidate.ask_everything(), await candidate.ask_together(list(taken))
            )
        except ServerError as error:
            return None, [f"as photos, {error}"]
        if reasons := await asyncio.to_thread(_photo_model, service, version, limits.seconds, some, answers):
            return None, reasons
        if not options.seconds:
            return None, []
        latency = await compare_latency(reference, candidate, options.concurrency, options.seconds)
    return latency, _too_slow(latency, version, record.serving, options.max_latency_ratio)


def _most_together(service: Service, record: Record, seconds: float) -> int:
    """Photos in a request that both versions take."""
    most = TOGETHER
    for version in (record.serving, record.candidate):
        assert version is not None
        with closing(_open(service, version, seconds)) as opened:
            most = min(most, opened.manifest.max_batch)
    return most


def _photo_model(
    service: Service, version: int, seconds: float, photos: list[tuple[str, bytes]], answers: PhotoAnswers
) -> list[str]:
    with closing(_open(service, version, seconds)) as opened, closing(InTime(opened, seconds, "x")) as network:
        return judge_photo_model(network, photos, answers)


def _too_slow(latency: Latency, version: int, serving: int, allowed: float) -> list[str]:
    reasons = []
    load = f"with {latency.concurrency} callers"
    if latency.candidate.failed:
        words = "; ".join(latency.candidate.said)
        asked = latency.candidate.failed + latency.candidate.answers
        reasons.append(f"{load} version {version} failed at {latency.candidate.failed} of {asked} requests: {words}")
    if latency.reference.failed:
        raise ServerError(f"{load} version {serving}, which serves, fails itself: {'; '.join(latency.reference.said)}")
    if latency.candidate.identical < min(AGREE, latency.reference.identical):
        reasons.append(
            f"{load} {share(latency.candidate.identical)} of the pixels are what they are alone, needed "
            f"{100 * AGREE:g} %: least of {latency.candidate.worst}"
        )
    few = min(latency.candidate.answers, latency.reference.answers) < ENOUGH
    for name, ratio in latency.ratios.items():
        if ratio is not None and not ratio <= allowed and not (few and name == "p95"):
            mine, others = (_ms(getattr(side, f"{name}_ms")) for side in (latency.candidate, latency.reference))
            times = f"{ratio:.2f} times, allowed {allowed:g}"
            reasons.append(f"{load} it is slower: {name} {mine}, of version {serving} {others}: {times}")
    return reasons


def _ms(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f} ms"
