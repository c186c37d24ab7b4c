"""An engine's folder: what this machine can build of a model, what each needs beside it, and the reports on them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from export.backends.backend import Backend, Job
from export.backends.onnx_runtime import OnnxRuntime
from export.backends.tensorrt_engine import TensorRT
from export.backends.torch_tensorrt_program import TorchTensorRT
from export.engine_manifest import read_configuration, write_manifest
from export.exported import read_exported
from export.options import EngineOptions
from export.outcome import Outcome
from upsnet.contract import CONFIGURATION_KEY, PLUGINS, manifest_path
from upsnet.device import compute_capability
from upsnet.driver import gpu_problem
from upsnet.engines import manifest as engines
from upsnet.engines.manifest import ENGINES, LIBRARIES, EngineManifest, Part, engine_manifest_path
from upsnet.errors import InputError
from upsnet.files import sha256, staged_folder, writing
from upsnet.manifest import Precision
from upsnet.report import Report

Choice = Literal["auto", "onnxruntime", "tensorrt", "tensorrt-rtx", "torch-tensorrt"]
BACKENDS: tuple[Backend, ...] = (OnnxRuntime(), TensorRT("tensorrt"), TensorRT("tensorrt-rtx"), TorchTensorRT())
AUTO = ("onnxruntime", "tensorrt", "tensorrt-rtx")  # torch-tensorrt's takes long and is no faster than TensorRT's own
ALWAYS: engines.Backend = "onnxruntime"
PREFERRED: tuple[engines.Backend, ...] = ("tensorrt", "tensorrt-rtx")  # on a GPU
MADE_PLUGINS = Path(__file__).resolve().parent.parent / "build/plugins" / PLUGINS  # by `make plugins`
PLUGINS_VARIABLE = "UPSNET_PLUGINS"
NOT_ASKED = Outcome(status="absent", reason="not asked for")


class Engine(Report):
    """engine.json: what was built from which model, and which of it runs where the folder is opened."""

    model_sha256: str
    precision: Precision
    chosen: engines.Backend = "onnxruntime"
    why: str = ""
    plugins: Part | None
    kernels: tuple[Part, ...] = ()  # ONNX Runtime's, beside model.onnx
    onnxruntime: Outcome
    tensorrt: Outcome
    tensorrt_rtx: Outcome
    torch_tensorrt: Outcome = NOT_ASKED

    def outcomes(self) -> dict[engines.Backend, Outcome]:
        return {name: getattr(self, name.replace("-", "_")) for name in ENGINES}


def build_engine(
    model: Path,
    folder: Path,
    plugins: Path | None = None,
    backend: Choice = "auto",
    options: EngineOptions | None = None,
    checkpoint: Path | None = None,
) -> Engine:
    """Build into `folder`: model.onnx, model.manifest.json, the engines with a manifest beside each, engine.json.

    ONNX Runtime's engine is always among them. backend: auto, whatever this machine can build besides; else one that
    must be built. plugins: the library of TensorRT plugins; default: `find_plugins`; a copy lies beside the plans,
    which need it. checkpoint: for torch-tensorrt; default: last.safetensors beside the model.

    InputError when the model is missing, broken or has no manifest, when the plugin library named is missing, when an
    option is not one of the backends that would build, and when the backend that is named builds no engine. Then
    nothing in `folder` has changed.
    """
    exported, library = read_exported(model), find_plugins(plugins)
    job = Job(model, exported.manifest, folder, library, checkpoint or _beside(model), options or EngineOptions())
    sources = {each.name: each.source(job) for each in BACKENDS}
    wanted = [each for each in BACKENDS if each.name == backend or (each.name in AUTO and backend == "auto")]
    missing = {each.name: each.available() or _no_source(sources[each.name]) for each in wanted}
    if backend != "auto" and (reason := missing[backend]):
        raise InputError(f"{model}: no engine of {backend}: {reason}")
    building = [each for each in wanted if not missing[each.name]]
    _check_options(job.options, building, missing, backend)
    if checkpoint is not None and backend != "torch-tensorrt":
        raise InputError(f"--checkpoint: --backend torch-tensorrt compiles one; {backend} builds from {model.name}")
    if plugins is not None and backend not in ("auto", *PREFERRED):
        raise InputError(f"--plugins: they are for --backend {' and '.join(PREFERRED)}; {backend} has no use for them")
    with staged_folder(folder) as stage:
        job = job._replace(folder=stage)
        outcomes = {each.name: NOT_ASKED for each in BACKENDS}
        outcomes |= {name: Outcome(status="absent", reason=reason) for name, reason in missing.items() if reason}
        for each in (BACKENDS[0], *(other for other in building if other.name != ALWAYS)):
            outcomes[each.name] = each.build(job, _path(sources[each.name]))
            if backend == each.name and outcomes[each.name].status != "built":
                raise InputError(f"{model}: no engine of {backend}: {outcomes[each.name]}")
        outcomes[ALWAYS] = outcomes[ALWAYS].model_copy(update={"nodes": exported.nodes})
        configuration = read_configuration(
            exported.metadata, CONFIGURATION_KEY, model.with_name("config.yaml"), job.manifest
        )
        own = stage / ENGINES[ALWAYS]
        job.manifest.model_copy(update={"onnx_sha256": sha256(own)}).save(manifest_path(own))
        manifests = {}
        for each in BACKENDS:
            if (outcome := outcomes[each.name]).status == "built":
                outcomes[each.name] = outcome.model_copy(update={"file": ENGINES[each.name]})
                source = _path(sources[each.name])
                manifests[each.name] = write_manifest(each, job, source, outcome, configuration, old=folder)
        chosen, why = choose(outcomes, manifests) if backend == "auto" else (backend, "it was asked for")
        engine = _report(job, outcomes, chosen, why)
        engine.save(stage / "engine.json")
        made = {path.name for path in stage.iterdir()}
    _remove_old(folder, without=made)
    return engine


def _report(job: Job, outcomes: Mapping[engines.Backend, Outcome], chosen: engines.Backend, why: str) -> Engine:
    kernels = [job.folder / name for name in sorted(LIBRARIES[ALWAYS])]
    return Engine(
        model_sha256=sha256(job.model),
        precision=job.manifest.precision,
        chosen=chosen,
        why=why,
        plugins=None if job.plugins is None else Part.of(job.plugins),
        kernels=tuple(Part.of(library) for library in kernels if library.is_file()),
        onnxruntime=outcomes["onnxruntime"],
        tensorrt=outcomes["tensorrt"],
        tensorrt_rtx=outcomes["tensorrt-rtx"],
        torch_tensorrt=outcomes["torch-tensorrt"],
    )


def _no_source(source: Path | str) -> str | None:
    return source if isinstance(source, str) else None


def _path(source: Path | str) -> Path:
    assert isinstance(source, Path)
    return source


def choose(
    outcomes: Mapping[engines.Backend, Outcome], manifests: Mapping[engines.Backend, EngineManifest]
) -> tuple[engines.Backend, str]:
    """What `upsnet.load` opens in the folder, and why, in one line. manifests: of the engines that were built."""
    if problem := gpu_problem():
        ahead = " and ".join(name for name in PREFERRED if name in manifests)
        return ALWAYS, problem + (f"; {ahead} built ahead of time, for other machines" if ahead else "")
    here, reasons = compute_capability(0), []
    for name in PREFERRED:
        if name not in manifests:
            reasons.append(f"{name}: {outcomes[name].brief()}")
            continue
        its = manifests[name].compute_capabilities
        if not its or here in its:
            return name, f"this machine has a GPU (compute capability {here})"
        reasons.append(f"{name}: built for compute capability {', '.join(its)}, and the GPU here has {here}")
    return ALWAYS, "; ".join(reasons)


def _check_options(
    options: EngineOptions,
    building: Sequence[Backend],
    missing: Mapping[engines.Backend, str | None],
    backend: Choice,
) -> None:
    """InputError for an option that one of those that would build does not have, or that nothing here has. In auto,
    ONNX Runtime, which has none, is not asked."""
    asked = [each for each in building if each.name == backend or each.name != ALWAYS]
    for name in options.given():
        word = "--batch, --size and --profile" if name == "profiles" else f"--{name.replace('_', '-')}"
        have = [each.name for each in BACKENDS if name in each.options]
        if lack := [each.name for each in asked if name not in each.options]:
            raise InputError(f"{word}: {' and '.join(lack)} has no such option; --backend {' or '.join(have)} has")
        if not asked:
            reasons = "; ".join(f"{each}: {missing[each]}" for each in have if missing.get(each))
            raise InputError(f"{word}: nothing that can be built here has it; {reasons}")


def _beside(model: Path) -> Path | None:
    checkpoint = model.with_name("last.safetensors")
    return checkpoint if checkpoint.is_file() else None


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


def _remove_old(folder: Path, without: set[str]) -> None:
    """What an earlier build left that this one does not have: engines, their manifests, libraries."""
    names = {name for backend in ENGINES for name in (ENGINES[backend], *LIBRARIES[backend])}
    names |= {engine_manifest_path(Path(name)).name for name in ENGINES.values()}
    for name in names - without:
        with writing(folder / name):
            (folder / name).unlink(missing_ok=True)
