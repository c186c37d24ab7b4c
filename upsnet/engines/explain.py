"""What an engine is, where it runs, and, where it does not load, which of the usual causes it is and the cure."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from upsnet.contract import LIBRARY
from upsnet.device import AUTO, parse_device
from upsnet.engines.check import ON_A_GPU, Look
from upsnet.engines.describe import description, requirements
from upsnet.engines.findings import Finding, failed, fine, line, one, unknown
from upsnet.engines.folder import ENGINE_FILE, ENGINE_FOLDER, DamagedFolder, engines_in
from upsnet.engines.libraries import try_library
from upsnet.engines.manifest import ENGINES, EngineManifest
from upsnet.engines.refusals import refusal
from upsnet.files import PathLike
from upsnet.report import Report, Sparse
from upsnet.workshop import ROOT

LONGEST = 600  # seconds that an engine may take to load


class Explanation(Report, Sparse):
    """file: the engine; kind: what that file is; description and requirements: lines for people, by their headings;
    findings: what was checked; others: the other engines of the same folder; engine: its manifest."""

    version: Literal[1] = 1
    file: str
    kind: str
    description: dict[str, str]
    requirements: dict[str, str]
    findings: tuple[Finding, ...]
    others: tuple[str, ...] = ()
    engine: EngineManifest | None = None

    @property
    def errors(self) -> list[str]:
        """One line for each cause for which it does not load, with the cure; the first is what a runtime says."""
        return [line(self.file, each) for each in self.findings if each.status == "failed"]

    @property
    def verdict(self) -> str:
        """The sum, in a sentence. It never says that an engine loads which was not loaded."""
        if count := len(self.errors):
            return f"It does not load here: {count} {'cause' if count == 1 else 'causes'}."
        if self.findings and self.findings[-1].what == "loading" and self.findings[-1].status == "ok":
            return "It loads here."
        open_ = ", ".join(each.what for each in self.findings if each.status == "not checked")
        return f"All that could be checked here is fine; not checked: {open_}. Whether it loads is not known."


def explain(path: PathLike, device: str = AUTO, photo: tuple[int, int] | None = None, load: bool = True) -> Explanation:
    """Of an engine, or of the one that is opened in an engine's folder, or in the one of a run; where that one is
    missing, or cannot be told from its engine.json, this is what is found. Nothing is written.

    device: what it is to run on, see upsnet/device.py; InputError for another word. photo: height and width of one that
    the engine must hold. load: try to load the libraries, and the engine where this machine can, in processes of their
    own; this runs what is in them.
    """
    wanted = parse_device(device)
    try:
        engine, others = find_engine(Path(path))
    except DamagedFolder as error:
        why = failed("file", "no engine", f"says not which engine is opened: {error.text}", error.cure)
        return Explanation(file=str(error.file), kind="", description={}, requirements={}, findings=(why,))
    look = Look(engine, wanted.number, photo, must_have_gpu=wanted.kind == "cuda")
    findings = list(look.findings())
    if load:
        findings += _loading(look, findings, device)
    kind = look.kind
    return Explanation(
        file=str(engine),
        kind=kind.title if kind else "",
        description=description(engine, kind, look.manifest) if kind else {},
        requirements=requirements(kind, look.manifest) if kind and kind.backend else {},
        findings=tuple(findings),
        others=tuple(others),
        engine=look.manifest,
    )


def find_engine(path: Path) -> tuple[Path, list[str]]:
    """The file, or the engine that a folder is opened with, and the names of the others that are there. Of a run's
    folder, its engine's. The path itself where there is none. Raises DamagedFolder, see `engines_in`."""
    if not os.path.isdir(path):
        return path, []
    below = path / ENGINE_FOLDER
    is_run = os.path.isdir(below) and not os.path.lexists(path / ENGINE_FILE)
    # A run has its exported model, which is no engine.
    folder = below if is_run and engines_in(path) in ([], ["onnxruntime"]) else path
    files = [ENGINES[backend] for backend in engines_in(folder)]
    return (folder / files[0], files[1:]) if files else (folder, [])


def _loading(look: Look, findings: list[Finding], device: str) -> Iterator[Finding]:
    """The libraries that are right, loaded; then the engine in its runtime, where nothing is in the way."""
    wrong = [each.file for each in findings if each.status == "failed"]
    folder, manifest = look.engine.parent, look.manifest
    for part in manifest.libraries if manifest else ():
        if part.file not in wrong:
            tried = try_library(folder / part.file, manifest.kernel_abi if manifest else None)
            wrong += [part.file] * (tried.status == "failed")
            yield tried
    if look.backend is None:
        return
    if wrong:
        yield unknown("loading", "first mend what is above")
    elif look.backend in ON_A_GPU and (look.driver is None or look.driver.problem):
        yield unknown("loading", "without a GPU nothing can load it")
    else:
        yield attempt(look.engine, look.backend, device)


def attempt(engine: Path, backend: str, device: str = AUTO) -> Finding:
    """Opens it in its runtime, in another process: a broken engine may end the process that loads it."""
    beside = (engine.parent / LIBRARY).is_file()
    kernels = {"UPSNET_OPERATORS": str(engine.parent.resolve())} if beside else {"UPSNET_KERNELS": "off"}
    # -P: no module comes out of the folder that this was started in, which may be the engine's.
    command = [sys.executable, "-PB", "-m", "upsnet.runtimes.attempt", str(engine.absolute()), backend]
    command += ["cpu" if backend == "onnxruntime" and device == AUTO else device]
    path = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), str(ROOT)]))
    try:
        tried = subprocess.run(
            command,
            env={**os.environ, "PYTHONPATH": path, **(kernels if backend == "onnxruntime" else {})},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=LONGEST,
        )
    except subprocess.TimeoutExpired:
        return unknown("loading", f"it did not load within {LONGEST} s")
    try:
        answer = json.loads(tried.stdout.strip().splitlines()[-1])
    except (ValueError, IndexError):
        said = (tried.stderr.strip().splitlines() or ["it said nothing"])[-1]
        return refusal(f"the process that loads it ends with status {tried.returncode}: {said}", "")
    if "opened" in answer:
        return fine("loading", f"loads, on {answer['opened']}")
    text, _, cure = one(str(answer.get("error"))).removeprefix(f"{one(str(engine.absolute()))}: ").rpartition("; ")
    return refusal(f"{text or cure}{answer.get('diagnostics', '')}", cure if text else "")
