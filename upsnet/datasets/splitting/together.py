"""Which images go to one side: by the photos' names, by equal files, by looks."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from upsnet.datasets.splitting.duplicates import fingerprints, join_alike, join_equal, join_same_files
from upsnet.errors import InputError

FOLDER = "folder"  # --keep-together: photos in one folder

Duplicates = Literal["near", "same", "off"]


class Together(NamedTuple):
    """What belongs together. Groups are int N: of each image the first one of its group."""

    groups: np.ndarray
    by_name: np.ndarray
    not_by_looks: np.ndarray  # by names and equal files
    flat: list[str]  # photos without contrast
    unmatched: list[str]  # photos that the pattern does not match

    def cure(self, sides: int) -> str:
        """What to do where these are fewer groups than sides."""
        if len(np.unique(self.by_name)) < sides:
            return "give another --keep-together, or none"
        if len(np.unique(self.not_by_looks)) < sides:
            return "their files are equal, which --duplicates off does not mind"
        return "where they do not show one picture, give --duplicates same"


def find_together(
    photos: Sequence[str], folder: Path, keep_together: str | None, duplicates: Duplicates, workers: int, progress: bool
) -> Together:
    """photos: names in the folder. keep_together: "folder", or a regular expression on the names.

    Raises InputError for a pattern that makes no sense, and for photos that cannot be read (unless `duplicates` is
    "off").
    """
    groups, flat, unmatched = np.arange(len(photos)), [], []
    if keep_together is not None:
        keys = _keys(photos, keep_together)
        unmatched = [photo for photo, key in zip(photos, keys, strict=True) if key is None]
        join_equal(groups, keys)
    by_name = not_by_looks = groups.copy()
    if duplicates != "off":
        prints = fingerprints([folder / name for name in photos], workers, progress)
        join_same_files(groups, prints)
        not_by_looks = groups.copy()
        if duplicates == "near":
            join_alike(groups, prints)
            flat = [name for name, each in zip(photos, prints, strict=True) if each.is_flat]
    return Together(groups, by_name, not_by_looks, flat, unmatched)


def _keys(photos: Sequence[str], pattern: str) -> Sequence[object]:
    """What photos that belong together have in common; None: nothing."""
    if pattern == FOLDER:
        return [photo.rpartition("/")[0] for photo in photos]
    try:
        find = re.compile(pattern).search
    except re.error as error:
        raise InputError(f"--keep-together {pattern!r}: not a regular expression: {error}") from error
    keys = [_common(find(photo)) for photo in photos]
    if all(key is None for key in keys):
        raise InputError(f"--keep-together {pattern!r}: matches no photo's name; the first is {photos[0]!r}")
    return keys


def _common(found: re.Match[str] | None) -> tuple[str, ...] | None:
    parts = (found.groups() or (found.group(),)) if found else ()
    return parts if any(parts) else None
