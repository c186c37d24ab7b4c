"""TensorRT and TensorRT-RTX: what starts their builder, which is a process of its own (tensorrt_builder.py)."""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from tqdm import tqdm

from export.backends.backend import Job
from export.backends.tensorrt_builder import Progress, Request
from export.outcome import Outcome
from export.profiles import optimization_profile
from upsnet.contract import PLUGINS, is_for_tensorrt, manifest_path, tensorrt_path
from upsnet.driver import gpu_problem
from upsnet.engines import manifest as engines
from upsnet.errors import InputError
from upsnet.files import sha256, writing
from upsnet.manifest import Manifest
from upsnet.tensorrt.api import BUILDER_OPTIONS, EXTRAS, Name, installed

TIMEOUT = 3600  # seconds
WITHOUT_PLUGINS = "its plugins are not built (`make plugins`, then `upsnet engine` again)"


class TensorRT:
    """One of the two packages."""

    def __init__(self, package: Name) -> None:
        self.name: Name = package
        self.options = BUILDER_OPTIONS[package] | {"profiles"}

    def available(self) -> str | None:
        """TensorRT times kernels on the GPU; TensorRT-RTX builds without one, for GPUs elsewhere."""
        if installed(self.name) is None:
            title = {"tensorrt": "the package tensorrt", "tensorrt-rtx": "TensorRT-RTX"}[self.name]
            return f"{title} is not installed (pip install '.[{EXTRAS[self.name]}]')"
        if self.name == "tensorrt" and (problem := gpu_problem()):
            return f"tensorrt is installed, but {problem}"
        return None

    def source(self, job: Job) -> Path | str:
        """Of an export in two files, the one beside it. InputError where that is of another export, or not the file
        that its manifest describes."""
        if not job.manifest.twins or is_for_tensorrt(job.model):
            return job.model
        other = tensorrt_path(job.model)
        for part in (other, manifest_path(other)):
            if not part.is_file():
                return f"{job.manifest.precision} plans are built from {other.name}, and there is no {part.name}"
        found = Manifest.load(manifest_path(other))
        own, its = (each.model_copy(update={"onnx_sha256": ""}) for each in (job.manifest, found))
        if own != its:
            raise InputError(f"{other}: not of the same export as {job.model}; export it again")
        if found.onnx_sha256 != sha256(other):
            raise InputError(f"{other}: not the file that {manifest_path(other).name} describes; export it again")
        return other

    def build(self, job: Job, source: Path) -> Outcome:
        if self.name == "tensorrt-rtx" and job.options.refit and (problem := gpu_problem()):
            return Outcome(
                status="refused", stage="options", errors=[f"TensorRT-RTX needs a GPU for --refit: {problem}"]
            )
        request = Request(
            package=self.name,
            model=source,
            manifest=job.manifest,
            plan=job.folder / engines.ENGINES[self.name],
            plugins=job.plugins,
            profiles=job.options.profiles or (optimization_profile(job.manifest.resize, job.manifest.max_batch),),
            options=job.options,
        )
        with contextlib.ExitStack() as stack:
            environment = stack.enter_context(rtx_environment()) if self.name == "tensorrt-rtx" else {}
            outcome = run_builder(request, environment)
        if outcome.status == "refused" and job.plugins is None:
            return outcome.model_copy(update={"reason": WITHOUT_PLUGINS})
        if outcome.status == "built" and job.plugins is not None:
            with writing(job.folder / PLUGINS):
                shutil.copyfile(job.plugins, job.folder / PLUGINS)
        return outcome


@contextlib.contextmanager
def rtx_environment() -> Iterator[dict[str, str]]:
    """What a process needs in its environment to parse with TensorRT-RTX's wheel: that holds libtensorrt_rtx.so.1
    alone, and where a plugin is met, the parser opens libtensorrt_rtx.so, or aborts."""
    spec = importlib.util.find_spec("tensorrt_rtx_libs")
    folders = list(spec.submodule_search_locations or []) if spec else []
    library = next((path for folder in folders for path in Path(folder).rglob("libtensorrt_rtx.so.1")), None)
    with tempfile.TemporaryDirectory() as links:
        if library is not None:
            (Path(links) / "libtensorrt_rtx.so").symlink_to(library)
        yield {"LD_LIBRARY_PATH": os.pathsep.join(filter(None, [links, os.environ.get("LD_LIBRARY_PATH", "")]))}


def run_builder(request: Request, environment: dict[str, str]) -> Outcome:
    """The builder's process, with its progress as a bar on this one's terminal. It ends with this one's interrupt."""
    command = [sys.executable, "-m", "export.backends.tensorrt_builder"]
    outcome, start = None, time.monotonic()
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            command,
            env={**os.environ, **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
        watch = threading.Timer(TIMEOUT, process.kill)
        watch.start()
        try:
            assert process.stdin is not None and process.stdout is not None
            with contextlib.suppress(BrokenPipeError), process.stdin as pipe:
                pipe.write(request.model_dump_json())
            outcome = _follow(process.stdout, request.package)
            status = process.wait()
        finally:
            watch.cancel()
            process.kill()
            process.wait()
        if outcome is not None and status == 0:
            return outcome
        log.seek(0)
        lines = log.read().decode(errors="replace").strip().splitlines() or ["no output"]
    if time.monotonic() - start >= TIMEOUT:
        return Outcome(status="refused", stage="process", errors=[f"no engine after {TIMEOUT} s: the build was ended"])
    return Outcome(status="refused", stage="process", errors=[f"exit status {status}: {lines[-1]}"])


def _follow(lines: Iterator[str], title: str) -> Outcome | None:
    """Until the builder says no more; what it said last, if that is an outcome."""
    form = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}{postfix}"
    with tqdm(total=1.0, desc=title, bar_format=form, disable=None, leave=False) as bar:
        for line in lines:
            if line.startswith('{"status"'):
                return Outcome.model_validate_json(line)
            progress = Progress.model_validate_json(line)
            bar.set_postfix_str(progress.phase, refresh=False)
            bar.update(progress.share - bar.n)
    return None
