"""Triton's model repository of a run: what lies where, and putting a model into it. triton_repo/ is its template."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from upsnet.contract import METADATA_KEY, MODEL, PLUGINS
from upsnet.errors import InputError
from upsnet.files import sha256, staged_folder, writing
from upsnet.manifest import Manifest

TEMPLATE = Path(__file__).resolve().parent.parent / "triton_repo"
PLAN = "model.plan"
CONFIGS = (f"{MODEL}/config.pbtxt", f"{MODEL}/configs/cpu.pbtxt")


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


def deploy_engine(engine: Path, repository: Path) -> Path:
    """Deploys what `make engine` built in the folder `engine`: TensorRT's plan too where there is one, and its plugins.

    Raises like `deploy`. Returns the repository.
    """
    plan = engine / PLAN
    more = [path for path in (plan, engine / PLUGINS) if plan.is_file() and path.is_file()]
    return deploy(engine / "model.onnx", engine / "model.manifest.json", repository, more)


def deploy(model_onnx: Path, manifest: Path, repository: Path, more: Sequence[Path] = ()) -> Path:
    """Makes the repository, or puts another model into it, with the files `more` beside it. Returns the repository.

    The manifest goes into the configurations too, so that a client needs only the server's address. Files are moved
    into place when all of them are written; another model's plan does not stay behind. A running server keeps what it
    loaded. InputError when a file is missing or cannot be written, when the manifest is another model's, and when the
    repository would lie in the template.
    """
    if not model_onnx.is_file():
        raise InputError(f"there is no model {model_onnx}; make one with `make engine`")
    described = Manifest.load(manifest)
    if described.onnx_sha256 not in ("", sha256(model_onnx)):
        raise InputError(f"{manifest} belongs to another model than {model_onnx}; export again with `make engine`")
    if TEMPLATE in (repository.resolve(), *repository.resolve().parents):
        raise InputError(f"{repository} is the template of all repositories; give another folder with --repository")
    version = [repository / MODEL / "1", *versions(repository)][-1]
    parameter = _parameter(METADATA_KEY, json.dumps(described.model_dump(mode="json")))
    with staged_folder(repository) as stage, writing(repository):
        place = stage / version.relative_to(repository)
        place.mkdir(parents=True)
        shutil.copyfile(model_onnx, place / "model.onnx")
        shutil.copyfile(manifest, place / "manifest.json")
        for file in (TEMPLATE / MODEL / "1/model.py", *more):
            shutil.copyfile(file, place / file.name)
        for name in CONFIGS:
            (stage / name).parent.mkdir(parents=True, exist_ok=True)
            (stage / name).write_text((TEMPLATE / name).read_text() + parameter)
        for name in {PLAN, PLUGINS} - {file.name for file in more}:
            (version / name).unlink(missing_ok=True)
    return repository


def _parameter(key: str, value: str) -> str:
    """One more entry of a model configuration's map of parameters, in protobuf's text format. `value` is ASCII without
    line breaks, whose quoted form is the same in JSON."""
    return f'\nparameters {{ key: "{key}" value: {{ string_value: {json.dumps(value)} }} }}\n'
