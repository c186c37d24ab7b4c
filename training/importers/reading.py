"""Files of other people's weights -> tensors by name. Its first bytes say what one is; nothing is executed."""

from __future__ import annotations

import pickle
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.serialization import MAGIC_NUMBER

from training.importers.family import Weights
from training.importers.pickles import Array, read_pickle
from training.wrong_file import other_bytes
from upsnet.errors import InputError, first_line

# What torch.load raises for a file that is not a whole archive of tensors.
UNREADABLE = (
    *(OSError, RuntimeError, EOFError, AttributeError, LookupError, TypeError, ValueError, ArithmeticError),
    *(AssertionError, MemoryError, struct.error, NotImplementedError),
)
PREFIX = "module."  # of a network that DataParallel wrapped
ZIP, PICKLE = b"PK\3\4", b"\x80"  # the latter since protocol 2
OLD_TORCH = pickle.dumps(MAGIC_NUMBER, protocol=2)  # a file of torch.save before 1.6 begins with this


def read_weights(path: Path) -> Weights:
    """The network's tensors in a file of torch.save (a state_dict, or a training checkpoint that holds one as `model`),
    or in a pickle of numpy arrays as detectron2's model zoo has it; without DataParallel's prefix.

    InputError: no such file, none of these, truncated or corrupt, or with anything but tensors among the weights.
    """
    content = _content(Path(path))
    if not isinstance(content, Mapping):
        raise InputError(f"{path}: not a plain state_dict; save the network's state_dict() alone")
    weights = content["model"] if isinstance(content.get("model"), Mapping) else content
    tensors = {str(key): _tensor(key, value, path) for key, value in weights.items()}
    if tensors and all(key.startswith(PREFIX) for key in tensors):
        tensors = {key.removeprefix(PREFIX): value for key, value in tensors.items()}
    return tensors


def _content(path: Path) -> Any:  # whatever the file holds
    try:
        with path.open("rb") as stream:
            start = stream.read(64)
    except FileNotFoundError:
        raise InputError(f"{path}: no such checkpoint") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    if start.startswith((ZIP, OLD_TORCH)):
        return _torch_content(path, start.startswith(ZIP))
    if not start.startswith(PICKLE) and (other := other_bytes(start)):
        raise InputError(f"{path}: not a file of weights, but {other}")
    content = read_pickle(path)
    if isinstance(content, dict) and not ("model" in content and "__author__" in content):
        raise InputError(
            f'{path}: a pickle without "model" and "__author__", as Caffe2 and Detectron 1 wrote them: names and order '
            "of classes are others there; give a file of detectron2's own, as its model zoo has them"
        )
    return content


def _torch_content(path: Path, is_zip: bool) -> Any:
    try:
        # With mmap what is not used, as an optimizer's state, is never read.
        return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{path}: not a file of weights that torch.load reads with weights_only=True ({_reason(error)}); save the "
            "network alone, where you trust the file: torch.save({'model': torch.load(FILE, weights_only=False)"
            "['model']}, NEW)"
        ) from None
    except UNREADABLE as error:
        raise InputError(f"{path}: truncated or corrupt, or not a file of weights ({first_line(error)})") from None


def _reason(error: Exception) -> str:
    """What of the file torch.load does not take; it says how to make it do so at length."""
    lines = [line.strip() for line in str(error).splitlines() if "Unsupported" in line or "WeightsUnpickler" in line]
    return lines[0].partition(". Please")[0] if lines else first_line(error)[:200]


def _tensor(key: object, value: object, path: Path) -> Tensor:
    """An entry of the weights as a tensor in memory."""
    if isinstance(value, Array):
        return torch.from_numpy(value.values)
    if isinstance(value, Tensor):
        if value.layout == torch.strided and value.device.type == "cpu" and not value.is_quantized:
            return value
        what = f"a tensor of {value.layout} on {value.device}"
    else:
        what = f"a {type(value).__name__}"
    raise InputError(
        f"{path}: not a plain state_dict: {str(key)[:100]!r} is {what}; save the network's state_dict() alone"
    )
