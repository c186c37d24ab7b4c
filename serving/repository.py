"""Triton's model repository of a run: what lies where, and putting a model into it. triton_repo/ is its template."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np

from export.profiles import optimization_profile
from serving.limits import Limits
from upsnet.contract import CUDA_LIBRARY, LIBRARY, METADATA_KEY, MODEL, PHOTO_MODEL, PLUGINS
from upsnet.engines.manifest import ENGINES, EngineManifest, Part, Profile, Shape, engine_manifest_path
from upsnet.errors import InputError
from upsnet.files import WriteError, sha256, staged_folder, writing
from upsnet.json_model import JsonModel
from upsnet.manifest import Manifest

TEMPLATE = Path(__file__).resolve().parent.parent / "triton_repo"
PLAN = ENGINES["tensorrt"]
CONFIGS = ("config.pbtxt", "configs/cpu.pbtxt")  # of each model: for the container, for the server of the wheel
WARM_UP = {"sizes": np.ones(2, np.int32), "scales": np.ones(1, np.float32)}  # of an image; its pixels are zero


def repository_of(run: Path) -> Path:
    """Where a run's own repository lies."""
    return run / "triton_repo"


def versions(repository: Path, model: str = MODEL) -> list[Path]:
    """The version folders, the one that Triton serves last: their names are numbers."""
    found = [folder for folder in (repository / model).glob("*") if folder.is_dir() and folder.name.isdecimal()]
    return sorted(found, key=lambda folder: int(folder.name))


def latest_version(repository: Path, model: str = MODEL) -> Path:
    """The version folder that Triton serves: the highest number. InputError where there is none."""
    found = versions(repository, model)
    if not found:
        raise InputError(f"{repository} is no model repository: it has no {model}/1; make one with `upsnet deploy`")
    return found[-1]


class _Built(JsonModel):
    """What is read of an engine.json: the libraries that the engine was built with."""

    cure: ClassVar[str] = "; build it again with `make engine`"

    plugins: Part | None = None
    kernels: tuple[Part, ...] = ()


def deploy_engine(engine: Path, repository: Path) -> Path:
    """Deploys what `make engine` built in the folder `engine`: ONNX Runtime's kernels too, and TensorRT's plan where
    there is one, with its plugins.

    Raises like `deploy`, and InputError where one of these libraries is gone, or not that of engine.json, and where the
    plan is not that of its manifest. Returns the repository.
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
    return deploy(engine / "model.onnx", engine / "model.manifest.json", repository, more, profile)


def deploy(
    model_onnx: Path, manifest: Path, repository: Path, more: Sequence[Path] = (), profile: Profile | None = None
) -> Path:
    """Makes the repository, or puts another model into it, with the files `more` beside it. Returns the repository.

    profile: of the plan among them; the server takes no larger batches than that one. Default: the manifest's.

    The manifest goes into the configurations too, with the ONNX file's SHA-256, so that a client needs only the
    server's address. Files are moved into place when all of them are written; another model's plan does not stay
    behind. A running server keeps what it loaded. InputError when a file is missing, cannot be read or cannot be
    written, when the manifest is another model's, and when the repository would lie in the template.
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
    for file in more:
        _hash(file)
    if TEMPLATE in (repository.resolve(), *repository.resolve().parents):
        raise InputError(f"{repository} is the template of all repositories; give another folder with --repository")
    version = [repository / MODEL / "1", *versions(repository)][-1]
    try:
        with staged_folder(repository) as stage, writing(repository):
            place = stage / version.relative_to(repository)
            place.mkdir(parents=True)
            for file, name in ((model_onnx, "model.onnx"), (manifest, "manifest.json"), *((f, f.name) for f in more)):
                shutil.copyfile(file, place / name)
            for model in (MODEL, PHOTO_MODEL):
                _from_template(model, served, profile, repository, stage)
            for name in {PLAN, engine_manifest_path(Path(PLAN)).name, PLUGINS, LIBRARY, CUDA_LIBRARY} - {
                file.name for file in more
            }:
                (version / name).unlink(missing_ok=True)
    except WriteError as error:
        raise InputError(f"{error}; give another folder with --repository") from error
    return repository


def _hash(file: Path) -> str:
    try:
        return sha256(file)
    except InputError as error:
        raise InputError(f"{error}; build it again with `make engine`, or ask its owner to let you read it") from None


def _from_template(model: str, manifest: Manifest, profile: Profile, repository: Path, stage: Path) -> None:
    """One model's code, configurations and warm-up data."""
    version = [repository / model / "1", *versions(repository, model)][-1].name
    for folder in (version, "configs"):
        (stage / model / folder).mkdir(parents=True, exist_ok=True)
    shutil.copyfile(TEMPLATE / model / "1/model.py", stage / model / version / "model.py")
    for name in CONFIGS:
        warm_up = _warm_up(profile, largest=name == CONFIGS[0]) if model == MODEL else ""
        (stage / model / name).write_text((TEMPLATE / model / name).read_text() + warm_up + _of_this_model(manifest))
    if model == MODEL:
        (stage / model / "warmup").mkdir()
        for name, array in WARM_UP.items():
            (stage / model / "warmup" / name).write_bytes(array.tobytes())


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
