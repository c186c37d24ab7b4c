"""What PyTorch computes on: upsnet/device.py's words as its devices, and a device in words again."""

from __future__ import annotations

import warnings

import torch

from upsnet.device import parse_device, warn_of_unused_gpu
from upsnet.errors import InputError, first_line


def open_device(name: str, warn: bool = True) -> torch.device:
    """The device of that name, a GPU with its index. InputError for one that PyTorch does not know or cannot reach.

    warn: say so where "auto" finds a GPU that PyTorch cannot use.
    """
    wanted = parse_device(name)
    if wanted.kind == "cpu":
        return torch.device("cpu")
    if problem := problem_with_cuda():
        if wanted.kind == "cuda":
            raise InputError(f"device {name!r}: PyTorch has no GPU here ({problem}); use --device cpu")
        if warn and torch.version.cuda:  # a PyTorch for CPUs was chosen
            warn_of_unused_gpu("PyTorch", problem)
        return torch.device("cpu")
    if wanted.number >= (count := torch.cuda.device_count()):
        raise InputError(f"device {name!r}: PyTorch sees {count}, counted from cuda:0; use one of these, or cpu")
    return torch.device("cuda", wanted.number)


def describe_device(device: torch.device) -> str:
    """For people: "cuda:0 (NVIDIA H200)", "cpu"."""
    return f"{device} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else str(device)


def problem_with_cuda() -> str | None:
    """Why PyTorch cannot use a GPU, in its own words; None where it can."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the words that the exception has, too
        if torch.cuda.is_available():
            return None
        try:
            torch.cuda.init()
        except (RuntimeError, AssertionError) as error:  # AssertionError: a PyTorch for CPUs
            return first_line(error).partition(" Please ")[0].rstrip(".")
    return "it sees none"
