"""The engine of a machine: TensorRT's plan where TensorRT and a GPU are; for ONNX Runtime the exported file itself, and
the library of compiled kernels that goes with it."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import onnx
import torch
import typer

from export.tensorrt_build import Library, Outcome
from upsnet.contract import CUDA_LIBRARY, LIBRARY, PLUGINS, is_for_tensorrt, manifest_path, tensorrt_path
from upsnet.errors import InputError
from upsnet.files import atomic_path, sha256
from upsnet.manifest import Manifest, Precision
from upsnet.report import Report
from upsnet.runtimes.onnx_runtime import CUDA, open_with_kernels

BUILD_TIMEOUT = 3600  # seconds
MADE_PLUGINS = Path(__file__).resolve().parent.parent / "build/plugins" / PLUGINS  # by `make plugins`
PLUGINS_VARIABLE = "UPSNET_PLUGINS"


class Engine(Report):
    """engine.json: what was built from which model."""

    model_sha256: str
    precision: Precision
    plugins: Library | None
    kernels: tuple[Library, ...] = ()  # ONNX Runtime's, beside model.onnx
    onnxruntime: Outcome
    tensorrt: Outcome
    tensorrt_rtx: Outcome


def build_engine(model: Path, folder: Path, plugins: Path | None = None) -> Engine:
    """Build into `folder`: model.onnx, model.manifest.json, model.plan if it can be, engine.json.

    plugins: the library of TensorRT plugins; default: `find_plugins`. A copy lies beside the plans, which need it; and
    one of ONNX Runtime's kernels beside model.onnx, for servers.
    InputError when the model is missing, broken or has no manifest, or the plugin library named is missing.
    """
    manifest = Manifest.load(manifest_path(model))
    for_tensorrt = _for_tensorrt(model, manifest)
    library = find_plugins(plugins)
    folder.mkdir(parents=True, exist_ok=True)
    own, plan, rtx_plan = (folder / name for name in ("model.onnx", "model.plan", "model.rtx.plan"))
    graph, kernels = _onnxruntime(model, own)
    manifest.model_copy(update={"onnx_sha256": sha256(own)}).save(manifest_path(own))
    for old in (plan, rtx_plan):
        old.unlink(missing_ok=True)
    engine = Engine(
        model_sha256=sha256(model),
        precision=manifest.precision,
        plugins=None if library is None else Library(file=library.name, sha256=sha256(library)),
        kernels=tuple(Library(file=path.name, sha256=sha256(path)) for path in kernels),
        onnxruntime=graph,
        tensorrt=_tensorrt(for_tensorrt, plan, library),
        tensorrt_rtx=_tensorrt_rtx(for_tensorrt, rtx_plan, library),
    )
    _keep(library if plan.is_file() or rtx_plan.is_file() else None, folder / PLUGINS)
    engine.save(folder / "engine.json")
    return engine


def _onnxruntime(model: Path, own: Path) -> tuple[Outcome, list[Path]]:
    """The file as it is: ONNX Runtime optimises it for the processor whenever it loads it, and a file that it optimised
    ahead of time loads hardly sooner (docs/onnxruntime.md). It is opened here once for each device, which compiles the
    kernels; the copies of those that it ran with."""
    session, kernels = open_with_kernels(model, device="auto")
    opened = [kernels]
    if session.get_providers()[0] == CUDA:
        opened.append(open_with_kernels(model)[1])
    del session
    found = {each.library.name: each.library for each in opened if each.library is not None}
    for name in (LIBRARY, CUDA_LIBRARY):
        _keep(found.get(name), own.with_name(name))
    _keep(model, own)
    nodes = len(onnx.load(str(own), load_external_data=False).graph.node)
    built = Outcome(status="built", file=own.name, nodes=nodes, bytes=own.stat().st_size, kernels=str(kernels))
    return built, [own.with_name(name) for name in sorted(found)]


def find_plugins(given: Path | None) -> Path | None:
    """The library of TensorRT plugins: `given`, else $UPSNET_PLUGINS, else what `make plugins` built, else None.

    InputError when one is named and is not there.
    """
    variable = os.environ.get(PLUGINS_VARIABLE)
    named = given or (Path(variable) if variable else None)
    if named is None:
        return MADE_PLUGINS if MADE_PLUGINS.is_file() else None
    if not named.is_file():
        raise InputError(f"{named}: no such plugin library; build it with `make plugins`")
    return named


def _keep(file: Path | None, copy: Path) -> None:
    """A copy of the file in the engine's folder; without a file, no old one either."""
    if file is None:
        copy.unlink(missing_ok=True)
    elif file.resolve() != copy.resolve():
        with atomic_path(copy) as temporary:
            shutil.copyfile(file, temporary)


def _for_tensorrt(model: Path, manifest: Manifest) -> Path | Outcome:
    """The file that TensorRT's plans are built from: of an int8 model, the one beside it, or why there are none.
    InputError where that is of another export, or not the file that its manifest describes."""
    if manifest.precision != "int8" or is_for_tensorrt(model):
        return model
    other = tensorrt_path(model)
    for part in (other, manifest_path(other)):
        if not part.is_file():
            return Outcome(
                status="absent", reason=f"int8 plans are built from {other.name}, and there is no {part.name}"
            )
    found = Manifest.load(manifest_path(other))
    own, its = (each.model_copy(update={"onnx_sha256": ""}) for each in (manifest, found))
    if own != its or manifest.calibration is None or not manifest.calibration.pair:
        raise InputError(f"{other}: not of the same export as {model}; export it again")
    if found.onnx_sha256 != sha256(other):
        raise InputError(f"{other}: not the file that {manifest_path(other).name} describes; export it again")
    return other


def _tensorrt(model: Path | Outcome, plan: Path, plugins: Path | None) -> Outcome:
    if importlib.util.find_spec("tensorrt") is None:
        return Outcome(status="absent", reason="the package tensorrt is not installed (pip install '.[gpu]')")
    if not torch.cuda.is_available():
        return Outcome(status="absent", reason="tensorrt is installed but there is no NVIDIA GPU")
    if isinstance(model, Outcome):
        return model
    return _run_build("tensorrt", model, plan, plugins, {})


def _tensorrt_rtx(model: Path | Outcome, plan: Path, plugins: Path | None) -> Outcome:
    """TensorRT-RTX builds without a GPU: it proves that graph, shapes and types hold, not numerics nor speed."""
    module = "tensorrt_rtx_bindings"
    if importlib.util.find_spec(module) is None:
        return Outcome(status="absent", reason="TensorRT-RTX is not installed (pip install '.[rtx]')")
    if isinstance(model, Outcome):
        return model
    with rtx_environment() as environment:
        return _run_build(module, model, plan, plugins, environment)


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


def _run_build(module: str, model: Path, plan: Path, plugins: Path | None, env: dict[str, str]) -> Outcome:
    command = [sys.executable, "-m", "export.tensorrt_build", module, str(model), str(plan), str(plugins or "")]
    done = subprocess.run(
        command, env={**os.environ, **env}, capture_output=True, text=True, timeout=BUILD_TIMEOUT, check=False
    )
    if done.returncode == 0:
        outcome = Outcome.model_validate_json(done.stdout.strip().splitlines()[-1])
    else:
        log = (done.stderr.strip() or done.stdout.strip() or "no output").splitlines()
        errors = [f"exit status {done.returncode}: {log[-1]}"]
        outcome = Outcome(status="refused", stage="process", errors=errors)
    if outcome.status == "refused" and plugins is None:
        cure = "the custom operators need their plugins: `make plugins`, then `make engine` again"
        return outcome.model_copy(update={"reason": cure})
    return outcome


def main(
    model: Annotated[Path, typer.Option(help="An exported ONNX file with its manifest.")],
    out: Annotated[Path | None, typer.Option(help="Folder of the engine; default: engine/ beside the model.")] = None,
    plugins: Annotated[
        Path | None, typer.Option(help=f"TensorRT plugin library; default: ${PLUGINS_VARIABLE}, else `make plugins`'s.")
    ] = None,
) -> None:
    """Build what this machine can run: ONNX Runtime's kernels, TensorRT's plan; says what it found."""
    folder = out or model.parent / "engine"
    engine = build_engine(model, folder, plugins)
    for runtime in ("onnxruntime", "tensorrt", "tensorrt_rtx"):
        outcome: Outcome = getattr(engine, runtime)
        print(f"{runtime}: {outcome.status}: {outcome}")
