"""The loader: the same batches from workers, and one line for whatever goes wrong in them, with no worker left."""

from __future__ import annotations

import multiprocessing
import os
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

import training.data.loader
from tests.folders import local
from tests.training.data.open_shapes import open_shapes, sampler
from training.data.coco_panoptic import PanopticDataset
from training.data.loader import fit_workers, make_loader, reading
from training.data.transforms import Augment
from upsnet.errors import InputError

FORK = multiprocessing.get_context("fork")


def test_loader_with_workers_gives_the_same_batches(shapes_folder: Path) -> None:
    dataset = open_shapes(shapes_folder, Augment(flip=0.5, color=0.2, scale=(0.7, 1.4)), divisor=16)
    state = torch.get_rng_state()
    alone = list(make_loader(dataset, sampler(len(dataset), 4, 3)))
    assert not make_loader(dataset, sampler(len(dataset), 4, 3)).pin_memory
    assert make_loader(dataset, sampler(len(dataset), 4, 3), pinned=True).pin_memory
    helped = list(make_loader(dataset, sampler(len(dataset), 4, 3, first_step=1), workers=2))
    assert torch.equal(torch.get_rng_state(), state)
    assert len(alone) == 3 and len(helped) == 2
    for one, two in zip(alone[1:], helped, strict=True):
        assert torch.equal(one.images, two.images) and torch.equal(one.semantic, two.semantic)
        assert one.image_ids == two.image_ids
        assert all(torch.equal(a, b) for a, b in zip(one.boxes, two.boxes, strict=True))
        assert one.images.shape[1] % 16 == one.images.shape[2] % 16 == 0


class Peculiar(Exception):
    """It cannot be made from a message alone, nor pickled."""

    def __init__(self, first: object, *, second: object) -> None:
        super().__init__("odd\nand more", lambda: (first, second))

    def __str__(self) -> str:
        return str(self.args[0])


def ends(how: Callable[[], Any]) -> Callable[[], Any]:
    """Of a worker alone: the tests go on."""
    main = os.getpid()
    return lambda: os.getpid() == main or how()


def raises(error: BaseException) -> Callable[[], Any]:
    def fault() -> None:
        raise error

    return fault


def error_of(loader: DataLoader) -> str:
    """What is said of the fault that this loader meets: one line. No worker is left: Python would wait for it at the
    end, for ever."""
    with pytest.raises(InputError) as caught:  # noqa: SIM117
        with reading(loader) as batches:
            for _ in batches:
                pass
    assert "\n" not in str(caught.value)
    assert not multiprocessing.active_children()
    return str(caught.value)


def with_fault(dataset: PanopticDataset, fault: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> str:
    """The data set's second image meets it; returns the words that name this image."""
    read, faulty = dataset.folder.read, dataset.records[1]

    def read_or_fail(record: Any, least: Any) -> Any:
        if record.image_id == faulty.image_id:
            fault()
        return read(record, least)

    monkeypatch.setattr(dataset.folder, "read", read_or_fail)
    return f"{faulty.photo}: image {faulty.image_id}: "


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_a_faulty_image_is_one_line(shapes_folder: Path, tmp_path: Path, workers: int) -> None:
    shutil.copytree(shapes_folder, tmp_path / "shapes")
    dataset = open_shapes(tmp_path / "shapes")
    photo = local(dataset.records[0].photo)
    photo.write_text("not a photo")
    said = error_of(make_loader(dataset, sampler(len(dataset), 1, len(dataset)), workers))
    assert said.startswith(f"{dataset.folder.split.json_file}: image 1: {photo}: not a readable image: ")


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(
    ("error", "said"),
    [
        (InputError("as it is: here"), r"^as it is: here$"),
        (MemoryError(), r"^PLACE: no memory is left to read it; lower data\.workers, or give more"),
        (Peculiar(1, second=2), r"^PLACE: Peculiar: odd \(at test_loader\.py:\d+\)$"),
        (KeyError("x"), r"^PLACE: KeyError: 'x' \(at test_loader\.py:\d+\)$"),
        (StopIteration(), r"^PLACE: StopIteration \(at test_loader\.py:\d+\)$"),
    ],
)
def test_whatever_reading_an_image_raises_names_it(
    shapes_folder: Path, workers: int, error: Exception, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = open_shapes(shapes_folder)
    where = with_fault(dataset, raises(error), monkeypatch)
    found = error_of(make_loader(dataset, sampler(len(dataset), 2, 9), workers))
    assert re.search(said.replace("PLACE: ", re.escape(where)), found), found


@pytest.mark.parametrize(
    ("end", "how"),
    [
        (lambda: os.kill(os.getpid(), signal.SIGKILL), "killed by signal: Killed"),
        (lambda: os.kill(os.getpid(), signal.SIGSEGV), "killed by signal: Segmentation fault"),
        (lambda: os.kill(os.getpid(), signal.SIGBUS), "killed by signal: Bus error"),
        (lambda: os._exit(3), "exited unexpectedly with exit code 3"),
    ],
)
def test_a_worker_that_dies_names_the_image_and_the_cure(
    shapes_folder: Path, end: Callable[[], Any], how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = open_shapes(shapes_folder)
    where = with_fault(dataset, ends(end), monkeypatch)
    said = error_of(make_loader(dataset, sampler(len(dataset), 1, 99), workers=2))
    assert said.startswith(f"{where}the loader's worker that read it ") and how in said
    assert "; lower data.workers, or give more memory, /dev/shm (a container: --shm-size=8g) or open files" in said


def test_a_worker_that_dies_while_the_loop_is_elsewhere(shapes_folder: Path) -> None:
    """PyTorch raises its error wherever this process is."""
    dataset = open_shapes(shapes_folder)
    with pytest.raises(InputError, match=r"worker .*is killed by signal: Killed; lower data\.workers"):  # noqa: SIM117
        with reading(make_loader(dataset, sampler(len(dataset), 1, 99), workers=1)) as batches:
            next(batches)
            for worker in multiprocessing.active_children():
                worker.kill()
            signal.sigtimedwait([], 20)  # ended by the worker's SIGCHLD
    assert not multiprocessing.active_children()


def test_a_batch_that_cannot_be_sent_is_not_waited_for(shapes_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where /dev/shm is full: Python drops the batch in a thread of the worker."""

    class Unsendable:
        def __reduce__(self) -> Any:
            raise RuntimeError("unable to allocate shared memory(shm)")

    def collate(samples: object, divisor: int) -> Any:
        return Unsendable()

    monkeypatch.setattr(training.data.loader, "collate_train", collate)
    dataset = open_shapes(shapes_folder)
    said = error_of(make_loader(dataset, sampler(len(dataset), 1, 99), workers=1))
    why = "RuntimeError: unable to allocate shared memory(shm)"
    assert said.startswith(f"data.workers: the loader's worker that could not send its batch ({why}) exited unexpected")


def test_workers_that_cannot_be_started(shapes_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = open_shapes(shapes_folder)
    loader = make_loader(dataset, sampler(len(dataset), 1, 99), workers=2)
    started = FORK.Process.start

    def start(process: Any) -> None:
        if multiprocessing.active_children():
            raise OSError(12, "Cannot allocate memory")
        started(process)

    monkeypatch.setattr(FORK.Process, "start", start)
    assert error_of(loader).startswith("data.workers: 2 cannot be started ([Errno 12] Cannot allocate memory); lower")


def test_a_batch_that_does_not_arrive(shapes_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where this process has too many files open."""
    main = os.getpid()

    class Unreadable:
        def __reduce__(self) -> Any:
            return open_here, (main,)

    monkeypatch.setattr(training.data.loader, "collate_train", lambda samples, divisor: Unreadable())
    dataset = open_shapes(shapes_folder)
    said = error_of(make_loader(dataset, sampler(len(dataset), 1, 99), workers=1))
    assert said.startswith("data.workers: a batch did not arrive (OSError: [Errno 24] Too many open files); lower")


def open_here(main: int) -> None:
    assert os.getpid() == main
    raise OSError(24, "Too many open files")


def test_other_errors_of_the_loop_stay_what_they_are(shapes_folder: Path) -> None:
    dataset = open_shapes(shapes_folder)
    for error in (RuntimeError("CUDA"), OSError("disk"), KeyboardInterrupt()):
        with pytest.raises(type(error)) as caught:  # noqa: SIM117
            with reading(make_loader(dataset, sampler(len(dataset), 1, 99), workers=1)) as batches:
                next(batches)
                raise error
        assert caught.value is error and not multiprocessing.active_children()


def test_a_worker_that_does_not_end_is_killed(shapes_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that waits for a file system that is gone, say."""
    dataset = open_shapes(shapes_folder)
    with_fault(dataset, ends(signal.pause), monkeypatch)
    monkeypatch.setattr("torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL", 0.1)
    with reading(make_loader(dataset, sampler(len(dataset), 1, 99), workers=2)) as batches:
        next(batches)
    assert not multiprocessing.active_children()


def test_no_more_workers_than_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training.data.loader, "usable_cores", lambda: 8)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert [fit_workers(wanted) for wanted in (0, 1, 8, 9)] == [0, 1, 8, 8]
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    assert [fit_workers(wanted) for wanted in (0, 1, 8, 9)] == [0, 1, 2, 2]
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "16")
    assert [fit_workers(wanted) for wanted in (0, 1, 8)] == [0, 1, 1]


def test_memory_is_pinned_for_a_gpu_alone(shapes_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    dataset = open_shapes(shapes_folder)
    order = sampler(len(dataset), 1, 1)
    assert not make_loader(dataset, order).pin_memory
    assert make_loader(dataset, order, pinned=True).pin_memory
