"""Before the first step: every image of a run's data sets as the doctor sees it, once in the life of a run."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

from tqdm import tqdm

from training.distributed import Process, gather
from upsnet.datasets.doctor.image import ImageTask, check_images
from upsnet.datasets.findings import Tally
from upsnet.datasets.folder import PanopticFolder
from upsnet.datasets.parallel import chunked, map_parallel, usable_cores
from upsnet.errors import InputError
from upsnet.files import read_json, write_json

CHECKED = "data_check.json"  # in the run's folder: the data sets whose images were looked at
CHUNK = 32  # images that a worker takes at once
ALONE = 512  # images that a process checks sooner than it starts workers


def check_images_once(folders: Sequence[PanopticFolder], out: Path, process: Process, images: bool) -> None:
    """Look at every image of the data sets, unless the run did or `images` is off; the processes share the work.

    Prints the warnings, of the JSONs too, one line a kind. InputError, on all processes, for the first error.
    """
    if process.first:
        _warn(line for folder in folders for line in folder.warnings)
    states = [_state(folder) for folder in folders]
    if all(gather(not images or _known(out, states), process)):
        return
    for folder in folders:
        errors, parts = zip(*gather(_check(folder, process), process), strict=True)
        found = min((error for error in errors if error), default=None)
        if found:
            raise InputError(f"{folder.split.json_file}: {found[1]}")
        if process.first:
            tally = Tally()
            for part in parts:
                tally.add(part)
            _warn(tally.lines(folder.split.json_file))
    if process.first:
        write_json(out / CHECKED, states)


def _state(folder: PanopticFolder) -> dict[str, str]:
    """What a data set was when its images were looked at."""
    return {**folder.split.model_dump(mode="json", exclude={"cache", "cache_gb"}), "sha256": folder.files.digest()}


def _known(out: Path, states: list[dict[str, str]]) -> bool:
    try:
        return read_json(out / CHECKED) == states
    except InputError:  # there is none, or no whole one: the images are looked at again
        return False


def _warn(lines: Iterable[str]) -> None:
    for line in lines:
        print(f"warning: {line}", file=sys.stderr)


def _check(folder: PanopticFolder, process: Process) -> tuple[tuple[int, str] | None, Tally]:
    """This process's share: the place and the text of its first error, and its warnings."""
    share = range(process.rank, len(folder.records), process.world)
    cores = usable_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    workers = max(1, cores) if len(share) > ALONE else 1
    tasks: Iterator[ImageTask] = (folder.records[place].task() for place in share)
    tally, place = Tally(), 0
    with tqdm(desc=f"checking {folder.split.name}", total=len(share), unit="image", disable=None) as bar:
        for part, error in map_parallel(partial(check_images, stop=True), chunked(tasks, CHUNK), workers):
            place += part.images
            bar.update(part.images)
            if error:
                return (share[place - 1], error), tally
            tally.add(part)
    return None, tally
