"""An output folder that gets all of its new files or none."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from panoptic.errors import InputError


@contextmanager
def staged_folder(out: Path) -> Iterator[Path]:
    """Yields an empty folder; on success its files move into `out` (made if absent, other files there stay).

    The folder lies in `out`, or in its nearest parent that exists, hence on the same file system: each file arrives by
    one rename, files in `out` itself after those in its subfolders. On an error nothing reaches `out`.
    Raises InputError when `out` is a file or cannot be written to.
    """
    nearest = out.absolute()
    while not nearest.exists():
        nearest = nearest.parent
    if not nearest.is_dir():
        raise InputError(f"{out}: {nearest} is a file, not a folder")
    try:
        stage = Path(tempfile.mkdtemp(prefix=".partial-", dir=nearest))
    except OSError as error:
        raise InputError(f"{out}: cannot be written: {error.strerror}") from error
    try:
        yield stage
        files = sorted((path for path in stage.rglob("*") if path.is_file()), key=lambda path: -len(path.parts))
        for file in files:
            target = out / file.relative_to(stage)
            try:
                target.parent.mkdir(parents=True, exist_ok=True)
                os.replace(file, target)
            except OSError as error:
                raise InputError(f"{target}: cannot be written: {error.strerror}") from error
    finally:
        shutil.rmtree(stage)
