"""One block: its photos predicted, and written as one file that is there or not.

Whoever does a block writes the same file: a worker that dies leaves nothing, two that do the same block leave it once.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator
from typing import IO, NamedTuple

from upsnet import storage
from upsnet.bulk import parquet, tar
from upsnet.bulk.photo_list import Block
from upsnet.bulk.pipeline import Unfit, rows
from upsnet.bulk.plan import ModelFacts, Plan, facts_of, manifest_of
from upsnet.bulk.row import Row, Writer
from upsnet.bulk.trial import trial
from upsnet.datasets.parallel import usable_cores
from upsnet.errors import InputError, ServerError
from upsnet.runtimes.open import open_runtime
from upsnet.runtimes.options import RuntimeOptions
from upsnet.runtimes.predictor import Predictor

WRITERS: dict[str, Callable[[IO[bytes], Plan, int], Writer]] = {"tar": tar.TarWriter, "parquet": parquet.ParquetWriter}
MOST_THREADS = 8  # that read and encode, where nobody says how many
WAITS = (1, 2, 5, 10, 20, 40)  # seconds, after a server failed

logger = logging.getLogger("upsnet")


class Outcome(NamedTuple):
    """Of one block."""

    number: int
    photos: int
    left_out: int
    seconds: float


class BlockWorker:
    """Holds the model and does blocks, one after the other. Use it as a context manager, or call `close`.

    threads: that read, decode and encode, and where `source` doesn't say, those of the network (default: as many as
    there are cores, at most 8). predictor: the model, where it is open already. Raises InputError where the model is
    not the plan's.
    """

    def __init__(
        self,
        source: RuntimeOptions,
        plan: Plan,
        out: str,
        threads: int | None = None,
        predictor: Predictor | None = None,
    ) -> None:
        self._source, self._plan, self._out = source, plan, out
        self._threads = threads or min(MOST_THREADS, usable_cores())
        if predictor is None:
            given = source if threads is None or source.threads is not None else source._replace(threads=threads)
            predictor = open_runtime(given)
        self._predictor = predictor
        self._manifest = manifest_of(predictor)
        try:
            self._check(facts_of(source, predictor))
        except BaseException:
            self.close()
            raise

    def run(self, block: Block, careful: bool = False, told: Callable[[Row], object] | None = None) -> Outcome:
        """Predicts its photos, and writes its file.

        careful: each photo is read in another process before, and one that kills it is left out, too. told: is called
        after each photo.
        A photo that cannot be read is left out, with the reason. Raises ServerError where a server failed again and
        again, WriteError (both are InputErrors) where the file cannot be written; then there is no file.
        """
        began, left_out = time.monotonic(), 0
        killers = trial(block.entries()) if careful else {}
        place = storage.join(self._out, self._plan.file_name(block.number))
        with storage.writing_file(place) as path, open(path, "wb") as stream:
            writer = WRITERS[self._plan.format](stream, self._plan, block.number)
            for row in self._rows(block, lambda entry: killers.get(entry.place, "")):
                writer.add(row)
                left_out += bool(row.error)
                if told is not None:
                    told(row)
            if manifest_of(self._predictor) != self._manifest:  # a server's, when another version came into service
                self._check(facts_of(self._source, self._predictor))
            writer.end()
            stream.flush()
            os.fsync(stream.fileno())  # or a power cut may leave the name without the bytes
        return Outcome(block.number, block.photos, left_out, time.monotonic() - began)

    def _rows(self, block: Block, unfit: Unfit) -> Iterator[Row]:
        """A server that fails is asked again after a while, for the photos that are missing."""
        entries, waits = block.entries(), iter(WAITS)
        while entries:
            done = 0
            try:
                for row in rows(self._predictor, entries, self._threads, unfit):
                    done += 1
                    yield row
                return
            except ServerError as error:
                entries = entries[done:]
                waits = iter(WAITS) if done else waits
                wait = next(waits, None)
                if wait is None:
                    raise
                logger.warning("%s; block %d goes on in %d s", error, block.number, wait)
                time.sleep(wait)

    def _check(self, facts: ModelFacts) -> None:
        if facts.digest != self._plan.model_digest:
            raise InputError(
                f"{self._out}: was begun with the model {self._plan.model} {self._plan.model_digest[:12]}, and what "
                f"runs now is {facts.name} {facts.digest[:12]}; give that model (of a server: --version N), or another "
                "--out"
            )

    def close(self) -> None:
        """Free the model. A second call does nothing."""
        self._predictor.close()

    def __enter__(self) -> BlockWorker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
