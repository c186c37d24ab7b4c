"""A real Triton server for one model, for as long as a comparison or a test lasts."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from serving.repository import deploy
from serving.server import TritonServer
from upsnet.errors import InputError
from upsnet.files import write_text


@contextmanager
def private_server(model: Path, manifest: Path, threads: int | None = None) -> Iterator[str]:
    """A real Triton server for one model on free ports of this machine; yields its gRPC address."""
    with tempfile.TemporaryDirectory(prefix="upsnet-") as folder:
        repository = deploy(model, manifest, Path(folder) / "repository")
        if threads is not None:
            set_threads(repository / "upsnet" / "configs" / "cpu.pbtxt", threads)
        with TritonServer(repository) as server:
            yield server.url


def set_threads(config: Path, threads: int) -> None:
    """Puts the number of ONNX Runtime's threads into a repository's cpu.pbtxt."""
    text, found = re.subn(r'(key: "threads" value: { string_value: )"\d+"', rf'\g<1>"{threads}"', config.read_text())
    if found != 1:
        raise InputError(f"{config}: has no parameter 'threads' to set")
    write_text(config, text)
