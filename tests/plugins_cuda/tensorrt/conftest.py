"""The plugin libraries, called through plugin_harness.cpp, which stands for TensorRT."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

from plugins_cuda import library
from tests.plugins_cuda.tensorrt.harness import Harness
from tests.plugins_cuda.tensorrt.libraries import built
from tests.plugins_cuda.tensorrt.profile import Profile


@pytest.fixture(scope="session")
def plugin_files() -> tuple[Path, Path]:
    """The harness and a plugin library that needs no GPU."""
    return built("cpu")


@pytest.fixture(scope="session")
def session_harness(plugin_files: tuple[Path, Path]) -> Harness:
    return Harness(*plugin_files)


@pytest.fixture
def harness(session_harness: Harness) -> Harness:
    session_harness.messages()  # what other tests left
    return session_harness


@dataclass(frozen=True)
class Front:
    """A plugin library, and where the tensors lie that its enqueue takes."""

    device: torch.device
    harness: Harness

    def run(
        self,
        name: str,
        attributes: Mapping[str, object],
        inputs: list[Tensor],
        formats: Sequence[str] | None = None,
        profile: Profile | None = None,
    ) -> list[Tensor]:
        return self.harness.run(name, attributes, inputs, formats, profile)


@pytest.fixture(params=["emulated", pytest.param("cuda", marks=pytest.mark.gpu)])
def front(request: pytest.FixtureRequest) -> Iterator[Front]:
    """Both plugin libraries; inside the test, operators on CPU tensors run the emulated kernels too."""
    if request.param == "cuda":
        if not torch.cuda.is_available():
            pytest.skip("no NVIDIA GPU")
        yield Front(torch.device("cuda"), cuda_harness())
    else:
        with library.emulation():
            yield Front(torch.device("cpu"), request.getfixturevalue("session_harness"))


@functools.cache
def cuda_harness() -> Harness:
    return Harness(*built("cuda"))
