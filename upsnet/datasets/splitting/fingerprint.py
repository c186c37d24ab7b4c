"""A photo as 255 bits that survive another size, compression and brightness: a perceptual hash.

The signs of the 16 x 16 lowest frequencies (a DCT, without the mean) of the photo at 32 x 32 grey pixels, as in pHash
(Zauner, Implementation and Benchmarking of Perceptual Image Hash Functions, 2010). Integers only: every machine has the
same bits.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from upsnet.files import sha256
from upsnet.photos import TURNS, load_pixels, read_photo, reading_photo

SIDE, LOW = 32, 16  # pixels of the small picture, and frequencies of each direction
DRAFT = 4 * SIDE  # a JPEG is decoded at the smallest of its own sizes that is no smaller than this
LEAST_CONTRAST = 2.0  # grey levels, standard deviation: below, the bits are noise
_PHASES = np.pi / SIDE * np.arange(LOW)[:, None] * (np.arange(SIDE)[None] + 0.5)
COSINES = np.rint(4096 * np.cos(_PHASES)).astype(np.int64)  # LOW x SIDE


class Fingerprint(NamedTuple):
    digest: bytes  # of the file
    bits: np.ndarray  # bool LOW x LOW, frequencies down x across; [0, 0], the mean, is False
    is_flat: bool  # too little contrast: the bits mean nothing


def fingerprint(photo: Path) -> Fingerprint:
    """Raises InputError where the photo cannot be read."""
    small = _small(photo)
    waves = COSINES @ small @ COSINES.T
    waves[0, 0] = 0
    return Fingerprint(bytes.fromhex(sha256(photo)), waves > 0, bool(small.std() < LEAST_CONTRAST))


def mirrored(bits: np.ndarray) -> np.ndarray:
    """The bits of the photos as a mirror shows them: odd frequencies across change their sign. bool ... x LOW x LOW."""
    other = bits ^ (np.arange(LOW) % 2 == 1)
    other[..., 0, 0] = False
    return other


def _small(photo: Path) -> np.ndarray:
    """int64 SIDE x SIDE, grey, upright."""
    with reading_photo(str(photo)), Image.open(photo) as image:
        if image.format == "JPEG" and image.mode in ("RGB", "L"):
            image.draft("L", (DRAFT, DRAFT))
            turn = TURNS.get(load_pixels(image))
            grey = image.convert("L")
            grey = grey if turn is None else grey.transpose(turn)
        else:
            grey = Image.fromarray(read_photo(photo)).convert("L")
    return np.asarray(grey.resize((SIDE, SIDE), Image.Resampling.BOX), np.int64)
