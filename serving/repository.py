"""Triton's model repository of a run: what lies where, and putting a model into it. triton_repo/ is its template."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np

from export.profiles import optimization_profile
from serving.layout import CONFIGS, MODELS, is_managed, versions
from serving.limits import Limits
from serving.lock import locked
from upsnet.contract import CUDA_LIBRARY, LIBRARY, METADATA_KEY, MODEL, PLUGINS
from upsnet.engines.manifest import ENGINES, EngineManifest, Part, Profile, Shape, engine_manifest_path
from upsnet.errors import InputError
from upsnet.files import PARTIAL, WriteError, sha256, staged_folder, writing
from upsnet.json_model import JsonModel
from upsnet.manifest import Manifest

CODE, MANIFEST = "model.py", "manifest.json"
TEMPLATE = Path(__file__).resolve().parent.parent / "triton_repo"
PLAN = ENGINES["tensorrt"]
WARM_UP = {"sizes": np.ones(2, np.int32), "scales": np.ones(1, np.float32)}  # of an image; its pixels are zero


def repository_of(run: Path) -> Path:
    """Where a run's own repository lies."""
    return run / "triton_repo"


class _Built(JsonModel):
    """What is read of an engine.json: the libraries that the engine was built with."""

    cure: ClassVar[str] = "; build it again with `make engine`"

    plugins: Part | None = None
    kernels: tuple[Part, ...] = ()


class Parts(NamedTuple):
    """What a version of the models is made of; checked."""

    model_onnx: Path
    manifest: Path
    more: tuple[Path, ...]  # libraries, the plan
    profile: Profile
    served: Manifest  # as the server tells it
    digests: dict[str, str]  # SHA-256 of each file, by its name in the repository


def engine_parts(engine: Path) -> Parts:
    """What `make engine` built in the folder `engine`: ONNX Runtime's kernels too, and TensorRT's plan where there is
    one, with its plugins.

    Raises like `check_parts`, and InputError where one of these libraries is gone, or not that of engine.json, and
    where the plan is not that of its manifest.
    """
    plan = engine / PLAN
    beside = engine_manifest_path(plan)
    more = [engine / name for name in (LIBRARY, CUDA_LIBRARY, *((PLAN, PLUGINS) if plan.is_file() else ()))]
    more = [path for path in more if path.is_file()]
    profile = None
    if plan.is_file() and beside.is_file():
        described = EngineManifest.load(beside)
        if described.engine.sha256 != _hash(plan):
            raise InputError(f"{plan} is not the engine that {beside.name} describes{described.cure}")
        more.append(beside)
        profile = next(iter(described.profiles), None)  # Triton takes the first
    if (engine / "engine.json").is_file():
        built = _Built.load(engine / "engine.json")
        named = {engine / each.file: each.sha256 for each in built.kernels}
        if plan.is_file() and built.plugins is not None:
            named[engine / PLUGINS] = built.plugins.sha256
        for path, digest in named.items():
            if path not in more:
                raise InputError(f"there is no {path}, which the engine was built with; `upsnet engine` makes it anew")
            if _hash(path) != digest:
                raise InputError(f"{path} is not what the engine was built with; `upsnet engine` makes it anew")
    return check_parts(engine / "model.onnx", engine / "model.manifest.json", more, profile)


def check_parts(model_onnx: Path, manifest: Path, more: Sequence[Path] = (), profile: Profile | None = None) -> Parts:
    """profile: of the plan among `more`; the server takes no larger batches than that one. Default: the manifest's.

    InputError when a file is missing or cannot be read, and when the manifest is another model's.
    """
    if not model_onnx.is_file():
        raise InputError(f"there is no model {model_onnx}; make one with `make engine`")
    described = Manifest.load(manifest)
    profile = profile or optimization_profile(described.resize, described.max_batch)
    served = described.model_copy(
        update={"onnx_sha256": _hash(model_onnx), "max_batch": profile["images"][2][0]}  # of the largest
    )
    if described.onnx_sha256 not in ("", served.onnx_sha256):
        raise InputError(f"{manifest} belongs to another model than {model_onnx}; export again with `make engine`")
    digests = {"model.onnx": served.onnx_sha256, MANIFEST: _hash(manifest)}
    digests |= {file.name: _hash(file) for file in more}
    return Parts(model_onnx, manifest, tuple(more), profile, served, digests)


def deploy_engine(engine: Path, repository: Path) -> Path:
    """Deploys what `make engine` built in the folder `engine`. Raises like `engine_parts` and `deploy_parts`."""
    return deploy_parts(engine_parts(engine), repository)


def deploy(
    model_onnx: Path, manifest: Path, repository: Path, more: Sequence[Path] = (), profile: Profile | None = None
) -> Path:
    """Deploys these files. Raises like `check_parts` and `deploy_parts`. Returns the repository."""
    return deploy_parts(check_parts(model_onnx, manifest, more, profile), repository)


def deploy_parts(parts: Parts, repository: Path) -> Path:
    """Makes the repository, or puts another model into it in place of the one that is there. Returns the repository.

    The manifest goes into the configurations too, with the ONNX file's SHA-256, so that a client needs only the
    server's address. Files are moved into place when all of them are written; another model's plan does not stay
    behind. A running server keeps what it loaded. InputError when a file cannot be written, when the repository would
    lie in the template, and when its versions are rolled out step by step.
    """
    check_place(repository)
    served = (repository / MODEL).is_dir()
    try:
        with locked(repository) if served else nullcontext():
            if is_managed(repository):
                raise InputError(
                    f"{repository} is served step by step: a model gets there by `upsnet deploy stage` and "
                    "`upsnet deploy promote`"
                )
            if served:
                remove_rubbish(repository)
            number = max((int(folder.name) for model in MODELS for folder in versions(repository, model)), default=1)
            version = repository / MODEL / str(number)
            # A folder in the repository itself is a model to Triton, which does not start with one that is half made.
            with staged_folder(repository, at=repository / MODEL if served else None) as stage, writing(repository):
                write_version(parts, {model: stage / model / str(number) for model in MODELS})
                write_warm_up(stage)
                for model in MODELS:
                    (stage / model / "configs").mkdir()
                    for name in CONFIGS:
                        (stage / model / name).write_text(config_of(model, name, parts))
                for name in {PLAN, engine_manifest_path(Path(PLAN)).name, PLUGINS, LIBRARY, CUDA_LIBRARY} - {
                    file.name for file in parts.more
                }:
                    (version / name).unlink(missing_ok=True)
    except WriteError as error:
        raise InputError(f"{error}; give another folder with --repository") from error
    return repository


def check_place(repository: Path) -> None:
    if TEMPLATE in (repository.resolve(), *repository.resolve().parents):
        raise InputError(f"{repository} is the template of all repositories; give another folder with --repository")


def remove_rubbish(repository: Path) -> None:
    """What a deployment that was killed has left. Only where nobody else is at work."""
    for place in (repository, repository / MODEL):
        for folder in place.glob(f"{PARTIAL}*"):
            shutil.rmtree(folder, ignore_errors=True)


def write_version(parts: Parts, places: Mapping[str, Path]) -> None:
    """The version folder of each model, which is made, without configurations."""
    for place in places.values():
        place.mkdir(parents=True)
    for file, name in (
        (parts.model_onnx, "model.onnx"),
        (parts.manifest, MANIFEST),
        *((file, file.name) for file in parts.more),
    ):
        shutil.copyfile(file, places[MODEL] / name)
    for model, place in places.items():
        _put((TEMPLATE / model / "1" / CODE).read_bytes(), place / CODE)


def write_warm_up(repository: Path) -> None:
    """The data of every version's warm-up."""
    folder = repository / MODEL / "warmup"
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in WARM_UP.items():
        _put(array.tobytes(), folder / name)


def _put(content: bytes, path: Path) -> None:
    """By one rename. What a kill leaves, the next attempt takes up: one at a time is at work here."""
    fresh = path.with_name(f".{path.name}")
    fresh.write_bytes(content)
    os.replace(fresh, path)


def config_of(model: str, name: str, parts: Parts) -> str:
    """The text of one of a model's CONFIGS."""
    warm_up = _warm_up(parts.profile, largest=name == CONFIGS[0]) if model == MODEL else ""
    return (TEMPLATE / model / name).read_text() + warm_up + _of_this_model(parts.served)


def _hash(file: Path) -> str:
    try:
        return sha256(file)
    except InputError as error:
        raise InputError(f"{error}; build it again with `make engine`, or ask its owner to let you read it") from None


def _of_this_model(manifest: Manifest) -> str:
    """What a configuration says of the model that is served, in protobuf's text format."""
    limits = Limits.of(manifest)
    parameters = {
        "max_pixels": str(limits.max_pixels),
        "max_photo_bytes": str(limits.max_photo_bytes),
        METADATA_KEY: json.dumps(manifest.model_dump(mode="json")),
    }
    # The values are ASCII without line breaks, whose quoted form is the same in JSON.
    entries = [
        f"parameters {{ key: {json.dumps(key)} value: {{ string_value: {json.dumps(value)} }} }}\n"
        for key, value in parameters.items()
    ]
    return f"\nmax_batch_size: {manifest.max_batch}\n{''.join(entries)}"


def _warm_up(profile: Profile, largest: bool) -> str:
    """The inferences that Triton makes before the model counts as ready: of the plan's smallest shape, and its largest.

    Where `largest` is False, of one usual photo in its place: on a CPU the largest takes seconds and gigabytes.
    """
    small, usual, high = profile["images"]
    return "".join(_warm_up_of(shape) for shape in (small, high if largest else usual))


def _warm_up_of(shape: Shape) -> str:
    batch, height, width, channels = shape
    return f"""
model_warmup {{
  name: "{batch} x {height} x {width}" batch_size: {batch}
  inputs {{ key: "images" value: {{ data_type: TYPE_UINT8 dims: [ {height}, {width}, {channels} ] zero_data: true }} }}
  inputs {{ key: "sizes" value: {{ data_type: TYPE_INT32 dims: [ 2 ] input_data_file: "sizes" }} }}
  inputs {{ key: "scales" value: {{ data_type: TYPE_FP32 dims: [ 1 ] input_data_file: "scales" }} }}
}}
"""
