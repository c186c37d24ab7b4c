"""Files of arrays, which `upsnet golden` reads and writes, and what both families' arrays have in common."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from upsnet.errors import InputError
from upsnet.files import atomic_path

Arrays = dict[str, np.ndarray]
NEAR_TIE = 2e-3


def read_arrays(path: Path) -> Arrays:
    """The arrays of an .npz; the one of a .npy is net_input. InputError: no such file, or no plain arrays."""
    try:
        with path.open("rb") as stream:
            loaded = np.load(stream, allow_pickle=False)
            return dict(loaded) if isinstance(loaded, np.lib.npyio.NpzFile) else {"net_input": loaded}
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{path}: not a .npy or .npz of plain arrays ({error})") from None


def write_arrays(out: Path, arrays: Arrays) -> None:
    with atomic_path(out.with_suffix(".npz")) as temporary:
        np.savez_compressed(temporary, allow_pickle=False, **arrays)


def bits(flags: Tensor) -> Tensor:
    """np.packbits of flags, all in one row."""
    return torch.from_numpy(np.packbits(flags.numpy()))


def near_tie(logits: Tensor) -> Tensor:
    """`bits` of where the two highest of logits [C, H, W] are closer than NEAR_TIE."""
    first, second = logits.topk(2, dim=0).values
    return bits(first - second < NEAR_TIE)
