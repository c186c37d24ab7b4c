"""What the commands for downloaded data sets share: unpacking, and the lines that a configuration needs."""

from __future__ import annotations

import os
import shutil
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tqdm import tqdm

from upsnet.datasets.split import Split
from upsnet.errors import InputError, first_line
from upsnet.files import atomic_path, writing_only

BLOCK = 1 << 20


def unzip_folder(archive: Path, target: Path) -> None:
    """The files directly in the archive's folder `target.name` -> the folder `target`, which appears complete.

    Other members (macOS adds __MACOSX) stay where they are. Raises InputError for a damaged archive, one without such
    files, and where nothing can be written. What an interrupted call left behind is removed.
    """
    building = target.with_name(f".{target.name}.unpacking")
    with _reading(archive) as zipped:
        members = [m for m in zipped.infolist() if _place(m.filename) == target.name and not m.is_dir()]
        if not members:
            raise InputError(f"{archive}: holds no folder {target.name}; it is not the official file")
        shutil.rmtree(building, ignore_errors=True)
        try:
            with writing_only(target, building):
                building.mkdir(parents=True)
                for member in tqdm(members, desc=f"unpacking {target.name}", unit="file"):
                    _copy(zipped, member, building / Path(member.filename).name)
                os.rename(building, target)
        finally:
            shutil.rmtree(building, ignore_errors=True)


def unzip_file(archive: Path, member: str, target: Path) -> None:
    """One member -> the file `target`, which appears complete. Raises InputError as unzip_folder."""
    with _reading(archive) as zipped, atomic_path(target) as temporary:
        _copy(zipped, zipped.getinfo(member), temporary)


def names_in(archive: Path) -> set[str]:
    with _reading(archive) as zipped:
        return set(zipped.namelist())


def _place(name: str) -> str:
    """The folder of a file that lies in a folder at the top, else ''."""
    parts = name.split("/")
    return parts[0] if len(parts) == 2 and ".." not in parts else ""


def _copy(zipped: zipfile.ZipFile, member: zipfile.ZipInfo, target: Path) -> None:
    with zipped.open(member) as source, open(target, "wb") as stream:
        shutil.copyfileobj(source, stream, BLOCK)  # reading to the end checks the CRC


@contextmanager
def _reading(archive: Path) -> Iterator[zipfile.ZipFile]:
    try:
        with zipfile.ZipFile(archive) as zipped:
            yield zipped
    except (zipfile.BadZipFile, zlib.error, EOFError, KeyError, NotImplementedError, RuntimeError) as error:
        raise InputError(f"{archive}: damaged or cut: {first_line(error)}; download it again") from error
    except OSError as error:
        raise InputError(f"{archive}: cannot be unpacked: {first_line(error)}") from error


def config_lines(splits: Mapping[str, Split]) -> str:
    """{"train": ..., "val": ...} -> the `data` section's lines of a configuration."""
    rows = ["data:"]
    for name, split in splits.items():
        rows.append(f"  {name}:")
        rows += [f"    {key}: {path}" for key, path in split]
    return "\n".join(rows)
