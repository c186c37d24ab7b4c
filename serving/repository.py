"""Triton's model repository: what lies where, and putting a model into it."""

from __future__ import annotations

import shutil
from pathlib import Path

from export.contract import PLUGINS
from panoptic.errors import InputError
from panoptic.files import atomic_path, sha256
from panoptic.manifest import Manifest

MODEL = "upsnet"
REPOSITORY = Path(__file__).resolve().parent.parent / "triton_repo"
SOURCES = (f"{MODEL}/config.pbtxt", f"{MODEL}/configs/cpu.pbtxt", f"{MODEL}/1/model.py")


def latest_version(repository: Path, model: str = MODEL) -> Path:
    """The version folder that Triton serves: the highest number. InputError where there is none."""
    versions = [folder for folder in (repository / model).glob("*") if folder.is_dir() and folder.name.isdigit()]
    if not versions:
        raise InputError(f"{repository} is no model repository: it has no {model}/1 folder")
    return max(versions, key=lambda folder: int(folder.name))


def deploy_engine(engine: Path, repository: Path = REPOSITORY) -> None:
    """Deploys what `make engine` built in the folder `engine`: TensorRT's plan too where there is one, and its plugins.

    A plan of another model does not stay behind. Raises like `deploy`.
    """
    deploy(engine / "model.onnx", engine / "model.manifest.json", repository)
    version = latest_version(repository)
    has_plan = (engine / "model.plan").is_file()
    for name in ("model.plan", PLUGINS):
        if has_plan and (engine / name).is_file():
            _copy(engine / name, version / name)
        else:
            (version / name).unlink(missing_ok=True)


def deploy(model_onnx: Path, manifest: Path, repository: Path = REPOSITORY) -> None:
    """Copies a model and its manifest into the repository's version folder, each by an atomic rename.

    A running server keeps what it loaded. InputError when either file is missing, or the manifest is another model's.
    """
    if not model_onnx.is_file():
        raise InputError(f"there is no model {model_onnx}; make one with `make engine`")
    if Manifest.load(manifest).onnx_sha256 not in ("", sha256(model_onnx)):
        raise InputError(f"{manifest} belongs to another model than {model_onnx}; export again with `make engine`")
    version = latest_version(repository)
    for source, name in ((model_onnx, "model.onnx"), (manifest, "manifest.json")):
        _copy(source, version / name)


def make_repository(dest: Path, model: Path, manifest: Path) -> Path:
    """A repository of its own at dest, holding this model: for tests and demos, which leave triton_repo alone."""
    for name in SOURCES:
        _copy(REPOSITORY / name, dest / name)
    deploy(model, manifest, dest)
    return dest


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(target) as temporary:
        shutil.copyfile(source, temporary)
