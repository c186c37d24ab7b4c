"""Photos of a list in, rows out, in order: threads read and decode ahead, the network computes, threads encode.

What is in memory at a time is bounded by the batch and the threads, not by the list.
"""

from __future__ import annotations

import errno
import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from itertools import islice
from typing import NamedTuple, TypeGuard, TypeVar

import numpy as np

from upsnet import storage
from upsnet.bulk.photo_list import Entry
from upsnet.bulk.row import Row
from upsnet.categories import Categories
from upsnet.client.client import CONCURRENCY
from upsnet.errors import InputError, ServerError, first_line
from upsnet.geometry import NetworkImage, ResizeRule, collate, to_network
from upsnet.model import PhotoPredictor
from upsnet.named_photos import NamedPhoto
from upsnet.photos import read_photo
from upsnet.prediction import PanopticPrediction
from upsnet.result import decode
from upsnet.runtimes.predictor import Predictor
from upsnet.sources import is_video

# What the system says where this machine, or a disk behind a network, is the fault: another photo would not help.
OF_THE_MACHINE = (
    errno.ESTALE,
    errno.ENOTCONN,
    errno.EHOSTDOWN,
    errno.ETIMEDOUT,
    errno.EMFILE,
    errno.ENFILE,
    errno.ENOMEM,
)
WINDOW = 4  # batches within which photos of one shape are looked for

Result = TypeVar("Result")
Unfit = Callable[[Entry], str]  # why a photo is left out before it is read; "" where it is not


class Ready(NamedTuple):
    """A photo that was read, or the reason why it is left out."""

    entry: Entry
    net: NetworkImage | None
    error: str = ""


def rows(predictor: Predictor, entries: Sequence[Entry], threads: int, unfit: Unfit | None = None) -> Iterator[Row]:
    """One for each entry. Raises ServerError where a server or the way to it fails; some rows before it may lack."""
    with ThreadPoolExecutor(threads, thread_name_prefix="upsnet-bulk") as pool:
        try:
            if isinstance(predictor, PhotoPredictor):
                at_once = max(CONCURRENCY, threads)
                yield from in_order(_of_server(predictor, entries, pool, at_once, unfit), at_once)
            else:
                batch = 1 if predictor.device_name == "cpu" else predictor.manifest.max_batch
                yield from in_order(_of_network(predictor, entries, pool, batch, threads, unfit), threads + batch)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _of_network(
    predictor: Predictor,
    entries: Iterable[Entry],
    pool: ThreadPoolExecutor,
    batch: int,
    threads: int,
    unfit: Unfit | None,
) -> Iterator[Future[Row]]:
    rule, categories = predictor.manifest.resize, predictor.manifest.categories_table
    window = batch * WINDOW if batch > 1 else 1
    with closing(
        in_order((pool.submit(_read, entry, rule, unfit) for entry in entries), threads + 2 * window)
    ) as photos:
        while ready := list(islice(photos, window)):
            answers = _predict(predictor, [each.net for each in ready if each.net is not None], batch)
            for each in ready:
                answer = next(answers) if each.net is not None else None
                yield pool.submit(_row, each, answer, categories)


def _read(entry: Entry, rule: ResizeRule, unfit: Unfit | None) -> Ready:
    try:
        check_fit(entry, unfit)
        return Ready(entry, to_network(read_photo(entry.place, entry.photo), rule))
    except InputError as error:
        if not is_of_photo(error):
            raise _away(error) from None
        return Ready(entry, None, str(error))


def _predict(
    predictor: Predictor, nets: Sequence[NetworkImage], batch: int
) -> Iterator[tuple[np.ndarray, np.ndarray, int]]:
    """panoptic, segments and count of each. Those of one shape together: the padding is that of each photo alone."""
    answers: list[tuple[np.ndarray, np.ndarray, int]] = [None] * len(nets)  # type: ignore[list-item]
    shapes = [net.image.shape for net in nets]
    for shape in dict.fromkeys(shapes):
        places = [place for place, other in enumerate(shapes) if other == shape]
        for start in range(0, len(places), batch):
            some = places[start : start + batch]
            raw = predictor.predict(collate([nets[place] for place in some]))
            for place, panoptic, segments, count in zip(some, *raw, strict=True):
                answers[place] = panoptic, segments, int(count)
    return iter(answers)


def _row(ready: Ready, answer: tuple[np.ndarray, np.ndarray, int] | None, categories: Categories) -> Row:
    if answer is None or ready.net is None:
        return Row.left_out(ready.entry, ready.error)
    return Row.predicted(ready.entry, decode(*answer, ready.net), categories)


def _of_server(
    predictor: PhotoPredictor, entries: Sequence[Entry], pool: ThreadPoolExecutor, at_once: int, unfit: Unfit | None
) -> Iterator[Future[Row]]:
    photos = (_named(entry, unfit) for entry in entries)
    with closing(predictor.attempts(photos, at_once)) as attempts:
        for entry, attempt in zip(entries, attempts, strict=True):
            error = attempt.exception()
            if is_of_photo(error):
                yield _done(Row.left_out(entry, str(error)))
            elif isinstance(error, InputError):
                raise _away(error) from None
            else:
                yield pool.submit(_row_of, entry, attempt.result())


def _named(entry: Entry, unfit: Unfit | None) -> NamedPhoto:
    try:
        check_fit(entry, unfit)
    except InputError as error:
        return NamedPhoto(error, entry.photo, entry.name)
    return NamedPhoto(entry.place, entry.photo, entry.name)


def _row_of(entry: Entry, prediction: PanopticPrediction) -> Row:
    return Row.predicted(entry, prediction.result, prediction.categories)


def _done(row: Row) -> Future[Row]:
    future: Future[Row] = Future()
    future.set_result(row)
    return future


def check_fit(entry: Entry, unfit: Unfit | None = None) -> None:
    """InputError for what is not even read; ServerError where the disk is away."""
    if is_video(entry.place):
        raise InputError(f"{entry.photo}: a video, and a list names photos; `upsnet predict` takes videos by name")
    if unfit is not None and (reason := unfit(entry)):
        raise InputError(reason)
    try:
        if not storage.is_url(entry.place):
            os.stat(entry.place)
    except (OSError, ValueError) as error:
        if getattr(error, "errno", None) in OF_THE_MACHINE:
            raise ServerError(f"{entry.photo}: cannot be read: {first_line(error)}") from error


def is_of_photo(error: BaseException | None) -> TypeGuard[InputError]:
    """Rather than of a server, a bucket or a disk that is away, for which the next photo would fail, too."""
    cause = error.__cause__ if error else None
    of_machine = isinstance(cause, OSError) and cause.errno in OF_THE_MACHINE
    return isinstance(error, InputError) and not isinstance(error, ServerError) and not of_machine


def _away(error: InputError) -> ServerError:
    """The same as an error that is waited out."""
    return error if isinstance(error, ServerError) else ServerError(str(error))


def in_order(futures: Iterable[Future[Result]], most: int) -> Generator[Result]:
    """The results, while `most` that come after are under way."""
    waiting: deque[Future[Result]] = deque()
    for future in futures:
        waiting.append(future)
        if len(waiting) > most:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()
