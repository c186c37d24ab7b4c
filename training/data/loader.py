"""The loader: batches that worker processes make ahead of the loop, and one line for whatever goes wrong in them."""

from __future__ import annotations

import mmap
import multiprocessing
import os
import re
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import wait
from multiprocessing.queues import Queue
from typing import NoReturn, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info
from torch.utils.data.dataloader import _BaseDataLoaderIter

from training.data.batch import Batch, StepSampler, collate_train
from training.data.coco_panoptic import PanopticDataset
from training.signals import ignore_stop_signals
from upsnet.datasets.parallel import usable_cores
from upsnet.errors import InputError, first_line, reworded

T = TypeVar("T")

NOTE = 8192  # bytes of a worker's note: a path has at most 4096
CURE = "lower data.workers, or give more memory, /dev/shm (a container: --shm-size=8g) or open files (ulimit -n)"


def fit_workers(wanted: int) -> int:
    """At most as many loader workers as this process has cores, which torchrun's processes on a machine share alike;
    at least one where any is wanted. Their number changes no batch."""
    cores = usable_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return min(wanted, max(1, cores))


class Notes:
    """What each worker is doing, in memory that it shares with the process that forked it: a note outlives a worker."""

    def __init__(self, workers: int) -> None:
        self._memory, self._workers = mmap.mmap(-1, NOTE * max(1, workers)), workers

    def write(self, text: str) -> None:
        """In a worker; nothing in the process itself, which a fault is raised in."""
        if info := get_worker_info():
            note = f"{os.getpid()} {text}".encode(errors="backslashreplace")[:NOTE].ljust(NOTE, b"\0")
            self._memory[NOTE * info.id : NOTE * (info.id + 1)] = note

    def read(self, pids: Sequence[int]) -> list[str]:
        """The notes of these worker processes, but for empty ones."""
        notes = [self._memory[NOTE * row : NOTE * (row + 1)].rstrip(b"\0").decode() for row in range(self._workers)]
        parted = [note.partition(" ") for note in notes]
        return [text for pid, _, text in parted if text and int(pid) in pids]


class Batches(Dataset[Batch]):
    """The data set by lists of keys. What goes wrong is the answer: an exception of a worker would reach the loop with
    its traceback in its message, or not at all."""

    def __init__(self, dataset: PanopticDataset, workers: int) -> None:
        self.dataset, self.notes = dataset, Notes(workers)

    def __getitems__(self, keys: Sequence[tuple[int, int]]) -> Batch | InputError:
        where = "a batch"
        try:
            samples = []
            for draw, index in keys:
                record = self.dataset.records[index]
                where = f"{record.photo}: image {record.image_id}"
                if donor := self.dataset.donor(draw, index):
                    where += f", or {donor.photo}: image {donor.image_id}, whose things are pasted on it"
                self.notes.write(f"{where}: the loader's worker that read it")
                samples.append(self.dataset[draw, index])
            return collate_train(samples, self.dataset.rule.divisor)
        except InputError as error:
            return reworded(error, str(error))
        except MemoryError:
            return InputError(f"{where}: no memory is left to read it; {CURE}")
        except Exception as error:  # what is in a photo decides what its decoder may raise
            last = traceback.extract_tb(error.__traceback__)[-1]
            return InputError(f"{where}: {described(error)} (at {os.path.basename(last.filename)}:{last.lineno})")
        finally:
            self.notes.write("")

    def start_worker(self, worker: int) -> None:
        """In a worker, before its first batch. A batch that cannot be sent ends the worker: Python would print a
        traceback and drop the batch, and the loop would wait for it for ever."""

        def end(error: Exception, batch: object) -> NoReturn:
            self.notes.write(f"data.workers: the loader's worker that could not send its batch ({described(error)})")
            os._exit(1)

        ignore_stop_signals(worker)
        Queue._on_queue_feeder_error = staticmethod(end)  # type: ignore[attr-defined]


def make_loader(dataset: PanopticDataset, sampler: StepSampler, workers: int = 0, pinned: bool = False) -> DataLoader:
    """A loader of Batch, one for each forward pass, over `sampler`, to be read through `reading`. The global random
    state of torch stays as it is. pinned: the batches lie in memory from which copies to a GPU need no waiting.

    Images of one forward pass are padded to the largest of them, so several processes may pad to different sizes.
    """
    batches = Batches(dataset, workers)
    return DataLoader(
        batches,
        batch_sampler=sampler,
        collate_fn=_as_it_is,
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        pin_memory=pinned,
        worker_init_fn=batches.start_worker,
        multiprocessing_context="fork" if workers else None,  # they share the data set's records and the notes
        generator=torch.Generator().manual_seed(sampler.seed),
    )


@contextmanager
def reading(loader: DataLoader) -> Iterator[Iterator[Batch]]:
    """The loader's batches. InputError, in one line, for a faulty image and for workers that die or cannot be had.

    The workers end with it. Python would wait for them for ever where an error's traceback still holds the loader: they
    ignore the SIGTERM by which it ends them.
    """
    others = set(multiprocessing.active_children())
    try:
        batches = _started(loader)
        try:
            yield _checked(batches)
        finally:
            if loader.num_workers:
                batches._shutdown_workers()  # type: ignore[attr-defined]
    except RuntimeError as error:  # PyTorch's handler of SIGCHLD raises it wherever this process is
        if not str(error).startswith("DataLoader worker"):
            raise
        raise InputError(_of_death(error, loader.dataset.notes)) from None  # type: ignore[attr-defined]
    finally:
        for worker in set(multiprocessing.active_children()) - others:
            worker.kill()
            worker.join()


def _started(loader: DataLoader) -> Iterator[Batch | InputError]:
    try:
        return iter(loader)
    except OSError as error:
        for frame, _ in traceback.walk_tb(error.__traceback__):
            if isinstance(half_made := frame.f_locals.get("self"), _BaseDataLoaderIter):
                half_made._shutdown = True  # type: ignore[attr-defined]  # or its end fails, with a traceback
        raise InputError(f"data.workers: {loader.num_workers} cannot be started ({error}); {CURE}") from None


def _checked(batches: Iterator[Batch | InputError]) -> Iterator[Batch]:
    while True:
        try:
            batch = next(batches)
        except StopIteration:
            return
        except (OSError, EOFError) as error:  # between the processes
            if wait([worker.sentinel for worker in getattr(batches, "_workers", [])], timeout=1):
                time.sleep(1)  # a worker's end is the reason: PyTorch's handler of SIGCHLD raises its error meanwhile
            raise InputError(f"data.workers: a batch did not arrive ({described(error)}); {CURE}") from None
        if isinstance(batch, InputError):
            raise batch
        yield batch


def _of_death(error: RuntimeError, notes: Notes) -> str:
    """PyTorch's words: `DataLoader worker (pid 7) is killed by signal: Killed. `, `... (pid(s) 7, 9) exited ...`."""
    words = first_line(error.__cause__ or error)  # the cause knows the signal
    _, pids, how = re.split(r"\(pid(?:\(s\))? ([\d, ]+)\) ", words, maxsplit=1)
    who = "; ".join(notes.read([int(pid) for pid in pids.split(",")])) or "data.workers: a loader's worker"
    return f"{who} {how.partition('. ')[0].strip(' .')}; {CURE}"


def described(error: BaseException) -> str:
    """An exception's type, and the first line of its message where it has one."""
    return f"{type(error).__name__}: {first_line(error)}" if str(error).strip() else type(error).__name__


def _as_it_is(batch: T) -> T:
    return batch
