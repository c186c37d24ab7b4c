"""The manifest that is written beside each engine."""

from __future__ import annotations

import json
import platform
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from export.backends.backend import Backend, Job
from export.outcome import Outcome
from export.profiles import optimization_profile
from upsnet import __version__
from upsnet.contract import manifest_path
from upsnet.device import compute_capability, gpu_names
from upsnet.engines.kinds import identify
from upsnet.engines.manifest import ENGINES, LIBRARIES, EngineManifest, Part, engine_manifest_path, this_platform
from upsnet.errors import InputError
from upsnet.manifest import Manifest
from upsnet.tensorrt.api import HARDWARE_LEVELS

NO_INPUTS = {"profiles", "timing_cache"}  # the first has a key of its own, the second makes no other engine
BUILT_ON_A_GPU = ("tensorrt", "torch-tensorrt")


def write_manifest(
    backend: Backend, job: Job, source: Path, outcome: Outcome, configuration: dict[str, Any] | None, old: Path
) -> EngineManifest:
    """Beside the engine that `backend` has built in the job's folder.

    configuration: of the training run. old: the folder of the engine that it replaces: its parity figures stay where
    nothing differs but what a build leaves to chance.
    """
    engine = job.folder / ENGINES[backend.name]
    libraries = [job.folder / name for name in LIBRARIES[backend.name] if (job.folder / name).is_file()]
    normalisation = (configuration or {}).get("model", {})
    on_gpu = backend.name in BUILT_ON_A_GPU
    described = manifest_path(source)
    manifest = EngineManifest(
        backend=backend.name,
        engine=Part.of(engine),
        bytes=engine.stat().st_size,
        model=Part.of(source),
        libraries=tuple(map(Part.of, libraries)),
        builder=outcome.version or "unknown",
        built_with={"upsnet-trt": __version__, "python": platform.python_version(), **(outcome.built_with or {})},
        built=datetime.now(UTC).isoformat(timespec="seconds"),
        platform=this_platform(),
        gpu=next(iter(gpu_names()), None) if on_gpu else None,
        compute_capabilities=_capabilities(backend, job, engine),
        version_compatible=job.options.version_compatible,
        hardware_compatible=HARDWARE_LEVELS.get(job.options.hardware_compatible or ""),
        kernel_abi=outcome.kernel_abi,
        precision=job.manifest.precision,
        layers=outcome.layers or {},
        plugins=outcome.plugins or {},
        profiles=_profiles(backend, job),
        options={name: value for name, value in job.options.given().items() if name in backend.options - NO_INPUTS},
        seconds=outcome.seconds,
        network=Manifest.load(described) if described.is_file() else job.manifest,
        pixel_mean=normalisation.get("pixel_mean"),
        pixel_std=normalisation.get("pixel_std"),
        configuration=configuration,
    )
    manifest = manifest.model_copy(update={"parity": _kept(manifest, old / engine_manifest_path(engine).name)})
    manifest.save(engine_manifest_path(engine))
    return manifest


def _capabilities(backend: Backend, job: Job, engine: Path) -> tuple[str, ...]:
    """Those that were asked for; of TensorRT-RTX, those that its plan names; else that of the GPU here, unless the
    engine is for others, too."""
    if job.options.compute_capabilities:
        return job.options.compute_capabilities
    if backend.name == "tensorrt-rtx":
        return identify(engine).compute_capabilities
    if backend.name not in BUILT_ON_A_GPU or job.options.hardware_compatible == "ampere+":
        return ()
    return tuple(filter(None, [compute_capability(0)]))


def _profiles(backend: Backend, job: Job) -> Any:
    if "profiles" not in backend.options:
        return ()
    return job.options.profiles or (optimization_profile(job.manifest.resize, job.manifest.max_batch),)


def _kept(manifest: EngineManifest, file: Path) -> Any:
    """The parity figures of the engine before, where it was made of the same with the same."""
    try:
        old = EngineManifest.load(file)
    except InputError:  # there is none, or it is of another version
        return ()
    return old.parity if old.inputs() == manifest.inputs() else ()


def read_configuration(metadata: dict[str, str], key: str, beside: Path, manifest: Manifest) -> dict[str, Any] | None:
    """The training run's configuration: what the exporter wrote into the ONNX file; else that of the run in whose
    folder the file lies, if it describes this model: files of older exports hold none."""
    if key in metadata:
        try:
            found = json.loads(metadata[key])
        except ValueError:
            return None
        return found if isinstance(found, dict) else None
    if not beside.is_file():
        return None
    from training.config import load_config

    try:
        config = load_config(beside)
    except InputError:
        return None
    same = config.name == manifest.name and config.data.resize == manifest.resize
    return config.model_dump(mode="json") if same else None
