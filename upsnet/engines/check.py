"""Whether an engine is what its manifest says and can run on this machine: what a runtime asks before it loads one, and
`upsnet engine explain` before it says more. Nothing of an engine is run here."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from pathlib import Path

from upsnet.contract import is_for_tensorrt, manifest_path
from upsnet.driver import Driver, find_driver
from upsnet.engines.findings import Finding, failed, fine, line, unknown
from upsnet.engines.folder import ENGINE_FILE, chosen_engine
from upsnet.engines.here import check_cpu, check_gpu, check_platform
from upsnet.engines.kinds import Kind, check_json, identify, regular_file
from upsnet.engines.libraries import check_library, hash_of
from upsnet.engines.manifest import ENGINES, Backend, EngineManifest, backend_of, engine_manifest_path
from upsnet.engines.packages import TITLES, check_package, cuda_for
from upsnet.engines.profiles import AGAIN, check_profiles
from upsnet.errors import InputError
from upsnet.files import read_json
from upsnet.manifest import Manifest

BUILDS = "`make engine` builds one"
SEARCHED = 2**30  # bytes of an engine without a manifest
OF_OURS = b"PanopticFusion"  # every network of this project has this operator, and a plan names its operators
ON_A_GPU: tuple[Backend | None, ...] = ("tensorrt", "tensorrt-rtx", "torch-tensorrt")


def check_engine(engine: Path, gpu: int = 0) -> EngineManifest:
    """The manifest of an engine whose files are those that it names, and that this machine can run, as far as can be
    said without loading it. gpu: the number of the GPU that it is for; a machine without any is no error here.

    InputError that names the file, what is wrong with it and the cure: another file, half of it, no manifest, another
    engine than the manifest's, a library that is missing or of another build, another platform, version of the
    package, driver or GPU. The files' hashes are computed once in a process for files that stay as they are.
    """
    look = Look(engine, gpu)
    for finding in look.findings():
        if finding.status == "failed":
            raise InputError(line(engine, finding))
    if look.manifest is None:
        raise InputError(line(engine, _no_manifest(engine)))
    return look.manifest


class Look:
    """One engine, looked at. kind and manifest are known as far as `findings` has come."""

    def __init__(
        self, engine: Path, gpu: int = 0, photo: tuple[int, int] | None = None, must_have_gpu: bool = False
    ) -> None:
        """photo: height and width of a photo that it must hold. must_have_gpu: a machine without one is a fault."""
        self.engine, self.gpu, self.photo, self.must_have_gpu = engine, gpu, photo, must_have_gpu
        self.kind: Kind | None = None
        self.manifest: EngineManifest | None = None
        self.driver: Driver | None = None

    @property
    def backend(self) -> Backend | None:
        return self.kind.backend if self.kind else None

    def findings(self) -> Iterator[Finding]:
        """From what is needed most to what is needed least. Ends where the file is no engine at all."""
        yield (first := self._file())
        if self.kind is None or self.backend is None or first.status == "failed":
            return
        yield self._manifest()
        if self.manifest is not None:
            yield self._content(self.manifest)
            yield check_platform(self.manifest)
            for part in self.manifest.libraries:
                # ONNX Runtime's is a server's: in this process, UPSNET_OPERATORS or the compiler gives the kernels.
                yield check_library(part, self.engine.parent, runs=self.backend != "onnxruntime")
            if self.manifest.libraries:
                yield check_cpu()
        elif (found := self._bare()) is not None:
            yield found
        yield check_package(self.backend, self.kind, self.manifest)
        if self.backend in ON_A_GPU:
            self.driver = find_driver()
            if self.must_have_gpu:
                self.driver = self.driver._replace(has_gpu=True)
            yield from check_gpu(self.driver, self.gpu, self.kind, self.manifest, cuda_for(self.backend, self.manifest))
        if self.manifest is not None and self.manifest.profiles:
            yield check_profiles(self.manifest, self.photo)

    def _file(self) -> Finding:
        try:
            self.kind = identify(self.engine)
        except InputError as error:
            return self._no_file(str(error))
        if self.kind.backend is None:
            return failed("file", "no engine", f"no engine: it is {self.kind.title}", self.kind.cure)
        if self.backend == "onnxruntime" and is_for_tensorrt(self.engine):
            text = "no engine: it is the ONNX file that TensorRT's builders read"
            return failed("file", "no engine", text, f"{BUILDS}; ONNX Runtime's is {ENGINES['onnxruntime']}")
        by_name = backend_of(self.engine)
        if by_name not in (None, self.backend):
            text = f"it is {self.kind.title}, and by its name {TITLES[by_name]}'s"  # type: ignore[index]
            return failed("file", "wrong name", text, f"rename it, or {AGAIN}")
        return fine("file", self.kind.title + (f" of version {self.kind.version}" if self.kind.version else ""))

    def _no_file(self, problem: str) -> Finding:
        if not self.engine.is_dir() or self._is_chosen():
            said = f", and {ENGINE_FILE} says that it is opened here" if self._is_chosen() else ""
            return failed("file", "no engine", problem + said, "copy it again, or " * bool(said) + BUILDS)
        report = self.engine / ENGINE_FILE
        text = f"a folder without an engine: none of {', '.join(ENGINES.values())} is in it"
        try:
            check_json(report)
            found = read_json(report)
        except InputError:
            found = {}
        for backend, title in TITLES.items():
            outcome = found.get(backend.replace("-", "_")) if isinstance(found, dict) else None
            if isinstance(outcome, dict) and (why := outcome.get("reason") or outcome.get("errors")):
                text += f"; {title}: {why if isinstance(why, str) else ' '.join(map(str, why))}"
        return failed("file", "no engine", text, BUILDS)

    def _is_chosen(self) -> bool:
        """Whether the engine.json beside it says that its folder is opened with it."""
        try:
            chosen = chosen_engine(self.engine.parent)
        except InputError:
            return False
        return chosen is not None and ENGINES[chosen] == self.engine.name

    def _manifest(self) -> Finding:
        path = engine_manifest_path(self.engine)
        try:
            regular_file(path)
        except InputError:
            if self.backend == "onnxruntime":
                return unknown("manifest", f"no {path.name}: an exported model, of which no engine was built yet")
            return _no_manifest(self.engine)
        try:
            check_json(path)
            found = EngineManifest.load(path)
        except InputError as error:
            text = str(error).replace(f"{path}: ", "", 1).removesuffix(EngineManifest.cure)
            cure = f"it was written by another version of this project, or damaged; {AGAIN}"
            return failed("manifest", "manifest damaged", f"its manifest {path.name} cannot be used ({text})", cure)
        if found.backend != self.backend:
            text = f"{path.name} describes {found.engine.file}, an engine of {TITLES[found.backend]}"
            return failed("manifest", "another engine's manifest", text, f"put both back together, or {AGAIN}")
        self.manifest = found
        return fine("manifest", f"{path.name}, of version {found.version}")

    def _content(self, manifest: EngineManifest) -> Finding:
        size = regular_file(self.engine).st_size
        name = engine_manifest_path(self.engine).name
        copy = f"copy it again from where it was built, or {AGAIN}"
        if size < manifest.bytes:
            text = f"cut off: {size} bytes are left of the {manifest.bytes} that {name} says"
            return failed("content", "truncated", text, copy)
        if size > manifest.bytes:
            text = f"another file than {name} describes: {size} bytes and not {manifest.bytes}"
            return failed("content", "altered", text, copy)
        try:
            found = hash_of(self.engine)
        except InputError as error:
            return failed("content", "no engine", str(error), copy)
        if found != manifest.engine.sha256:
            if manifest.engine.file != self.engine.name:
                text = f"{name} describes another engine, {manifest.engine.file} (its sha256 differs)"
                return failed("content", "another engine's manifest", text, f"put both back together, or {AGAIN}")
            text = f"not the engine that {name} describes: it was altered or damaged, or replaced (its sha256 differs)"
            return failed("content", "altered", text, copy)
        return fine("content", f"all {size} bytes are as they were built (sha256 {found[:8]})")

    def _bare(self) -> Finding | None:
        """Of a file without an engine's manifest, what can be said about its content."""
        assert self.kind is not None
        size = regular_file(self.engine).st_size
        if self.kind.bytes is not None and size != self.kind.bytes:
            cut = size < self.kind.bytes
            text = f"{'cut off' if cut else 'damaged'}: it has {size} bytes, and says that it has {self.kind.bytes}"
            return failed("content", "truncated" if cut else "altered", text, f"copy it again, or {AGAIN}")
        exported = manifest_path(self.engine)
        if self.backend != "onnxruntime" or not os.path.isfile(exported):
            return None
        try:
            check_json(exported)
            wanted = Manifest.load(exported).onnx_sha256
        except InputError as error:
            text = str(error).replace(f"{exported}: ", "", 1)
            return failed("content", "manifest damaged", f"{exported.name}: {text}", "export it again with `make onnx`")
        if wanted and hash_of(self.engine) != wanted:
            text = f"not the model that {exported.name} describes: it was altered, damaged or replaced"
            return failed("content", "altered", text, "export it again with `make onnx`")
        return fine("content", f"as {exported.name} describes it") if wanted else None


def _no_manifest(engine: Path) -> Finding:
    text = f"there is no {engine_manifest_path(engine).name} beside it"
    if not (is_onnx := engine.suffix == ".onnx") and not holds(engine, OF_OURS):
        text += ", and none of this project's operators in it: another program built it, as trtexec does"
        cure = "this project runs what `make engine` builds of a model of its own"
        return failed("manifest", "no manifest", text, cure)
    older = "no engine was built of it yet" if is_onnx else "an older version of this project built it, or trtexec"
    return failed("manifest", "no manifest", f"{text}: {older}", AGAIN)


def holds(engine: Path, word: bytes) -> bool:
    """Whether the word is in the first gigabyte of a file."""
    try:
        with engine.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return content.find(word, 0, SEARCHED) >= 0
    except (OSError, ValueError):  # ValueError: it is empty
        return False
