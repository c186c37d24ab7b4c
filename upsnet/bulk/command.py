"""`upsnet predict --photos-from`: one way through for this machine and for a cluster, but for who does the blocks."""

from __future__ import annotations

import logging
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import NamedTuple, Protocol, get_args

from upsnet import storage
from upsnet.bulk.block import BlockWorker, Outcome
from upsnet.bulk.parquet import pyarrow
from upsnet.bulk.photo_list import Entry, PhotoList
from upsnet.bulk.pipeline import check_fit, is_of_photo
from upsnet.bulk.plan import (
    BLOCK_SIZE,
    MOST_BLOCK,
    Format,
    ModelFacts,
    Plan,
    Shard,
    facts_of,
    is_there,
    make_plan,
    pending,
    read_plan,
    settle,
)
from upsnet.bulk.report import FAILED, finish
from upsnet.datasets.progress import progress_bar
from upsnet.errors import InputError, ServerError
from upsnet.files import ending_on_sigterm
from upsnet.photos import read_photo
from upsnet.runtimes.open import open_runtime
from upsnet.runtimes.options import RuntimeOptions
from upsnet.runtimes.predictor import Predictor

FIRST = 20  # photos of a list of which one at least must be readable, before anything is written
DEAD_AFTER = 3600  # seconds without a byte more: a file that was begun by a process that was killed

logger = logging.getLogger("upsnet")


class BulkOptions(NamedTuple):
    """What the command is told. None: as OUT was begun, else the default."""

    photos_from: str
    out: str
    shard: str | None = None
    format: str | None = None
    block: int | None = None


class Work(NamedTuple):
    """Blocks, by their numbers."""

    numbers: Sequence[int]  # those to do
    begun: frozenset[int] = frozenset()  # half-written: a process that is at them, or one that died, maybe of a photo


class Runner(Protocol):
    """Who does the blocks."""

    def describe(self, first: Sequence[Entry]) -> ModelFacts:
        """Opens the model where it will run. first: photos that are looked at, of a list that is begun; else none."""
        ...

    def run(
        self, photos: PhotoList, work: Work, plan: Plan, out: str, told: Callable[[int], object]
    ) -> Iterator[Outcome]:
        """Does blocks, in any order. told: is called with how many photos were done; or never."""
        ...

    def close(self) -> None: ...


class Here:
    """This process does them, one after the other."""

    def __init__(self, source: RuntimeOptions, readers: int | None = None, predictor: Predictor | None = None) -> None:
        self._source, self._readers, self._predictor = source, readers, predictor

    def describe(self, first: Sequence[Entry]) -> ModelFacts:
        check_readable(first)
        self._predictor = self._predictor or open_runtime(self._source)
        return facts_of(self._source, self._predictor)

    def run(
        self, photos: PhotoList, work: Work, plan: Plan, out: str, told: Callable[[int], object]
    ) -> Iterator[Outcome]:
        worker = BlockWorker(self._source, plan, out, self._readers, self._predictor)
        for number in work.numbers:
            if is_there(plan, out, number):
                continue
            if number in work.begun:
                logger.warning(
                    "%s: block %d was begun and not ended: its photos are tried in another process", out, number
                )
            yield worker.run(photos.block(number), number in work.begun, told=lambda row: told(1))

    def close(self) -> None:
        if self._predictor is not None:
            self._predictor.close()


def check_readable(first: Sequence[Entry]) -> None:
    """InputError where not one of some photos can be read: the list is wrong rather than they, or where they lie."""
    reason: InputError | None = None
    for entry in first:
        try:
            check_fit(entry)
            read_photo(entry.place, entry.photo)
            return
        except ServerError:
            raise
        except InputError as error:
            if not is_of_photo(error):
                raise
            reason = reason or error
    if reason is not None:
        start = "" if storage.is_url(first[0].photo) else f" (looked for at {first[0].place})"
        raise InputError(f"none of the first {len(first)} photos of the list can be read: {reason}{start}")


def predict_listed(options: BulkOptions, runner: Runner) -> bool:
    """Does what is missing of OUT, or of one shard of it. Whether photos were left out.

    Raises InputError for a list, an output or a model that cannot be, and where a server failed or a disk is full;
    then what is done stays, and the same command goes on.
    """
    with closing(runner):
        return _predict_listed(options, runner)


def _predict_listed(options: BulkOptions, runner: Runner) -> bool:
    plan, photos, shard = _prepare(options, runner)
    out = options.out
    settle(plan, out)
    numbers = pending(plan, out, shard)
    work = Work(numbers, _sweep(out))
    total, there = sum(map(plan.photos_in, numbers)), plan.blocks - len(pending(plan, out))
    if there:
        print(f"{out}: {there} of {plan.blocks} blocks are there", file=sys.stderr)
    began, done, left_out = time.monotonic(), 0, 0
    with ending_on_sigterm(), progress_bar(total=total, title="predicting", unit="photo", shown=total > 0) as bar:
        try:
            for outcome in runner.run(photos, work, plan, out, bar.update):
                done += outcome.photos
                left_out += outcome.left_out
                bar.update(done - bar.n)
                bar.set_postfix(left_out=left_out, refresh=False)
        except BaseException:
            bar.close()
            with suppress(InputError):  # the bucket may be what failed
                there = plan.blocks - len(pending(plan, out))
            print(f"{out}: {there} of {plan.blocks} blocks are there; the same command goes on", file=sys.stderr)
            raise
    seconds = time.monotonic() - began
    if done:
        print(f"{out}: {done} photos in {seconds:.1f} s, {done / seconds:.1f} photos/s, {left_out} left out")
    if missing := len(pending(plan, out)):
        print(f"{out}: {missing} of {plan.blocks} blocks are not there yet (other shards'); the last one's run reports")
        return left_out > 0
    report = finish(plan, out, photos.base)
    failed = f", left out {report.left_out}: {storage.join(out, FAILED)}" if report.left_out else ""
    print(
        f"{out}: all {report.blocks} blocks are there: predicted {report.predicted} of {report.photos} photos{failed}"
    )
    return report.left_out > 0


def _prepare(options: BulkOptions, runner: Runner) -> tuple[Plan, PhotoList, Shard]:
    before = read_plan(options.out)
    shard = Shard.parse(options.shard) if options.shard else Shard()
    usual = before.block_size if before else BLOCK_SIZE
    block_size = usual if options.block is None else options.block
    if not 1 <= block_size <= MOST_BLOCK:
        raise InputError(f"--block {block_size}: give 1 to {MOST_BLOCK} photos")
    format = options.format or (before.format if before else "tar")
    if format not in get_args(Format):
        raise InputError(f"--format {format}: it is one of {', '.join(get_args(Format))}")
    if format == "parquet":
        pyarrow()
    photos = PhotoList.scan(options.photos_from, block_size)
    model = runner.describe([] if before else photos.block(0).entries()[:FIRST])
    return make_plan(photos, model, format), photos, shard


def _sweep(out: str) -> frozenset[int]:
    """The blocks whose files are half-written, on a disk. Removes those of processes that are dead by now."""
    begun = set()
    for path in [] if storage.is_url(out) else Path(out).glob(".predictions-*"):
        if found := re.match(r"\.predictions-([0-9]+)\.", path.name):
            begun.add(int(found[1]))
        with suppress(FileNotFoundError):  # another process was faster
            if time.time() - path.stat().st_mtime > DEAD_AFTER:
                path.unlink()
    return frozenset(begun)
