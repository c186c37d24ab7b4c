"""The copy of a model repository that a server serves: whatever happens to the original, nothing happens to it."""

from __future__ import annotations

import shutil
from pathlib import Path

from serving.repository import PLAN, latest_version
from upsnet.contract import METADATA_KEY, MODEL, PHOTO_MODEL, PLUGINS
from upsnet.errors import InputError
from upsnet.files import sha256
from upsnet.manifest import Manifest

CONFIG = "configs/cpu.pbtxt"
CURE = "deploy it again with `upsnet deploy`"


def take_snapshot(repository: Path, target: Path) -> tuple[Manifest, tuple[str, ...]]:
    """Copies what the embedded server reads, of the version that Triton serves. Returns the model's manifest and the
    names of the models in the copy.

    InputError when there is no model, when a file cannot be read or copied, and when the files are not of one model:
    the ONNX file is damaged, or another model is being deployed at this moment.
    """
    versions = {MODEL: latest_version(repository)}
    if (repository / PHOTO_MODEL).is_dir():
        versions[PHOTO_MODEL] = latest_version(repository, PHOTO_MODEL)
    for name in ("model.onnx", "manifest.json"):
        if not (versions[MODEL] / name).is_file():
            raise InputError(
                f"there is no model to serve: {versions[MODEL] / name} is missing; make one with `make engine`"
            )
    for model, version in versions.items():
        for file in (repository / model / CONFIG, *sorted(version.rglob("*"))):
            if file.is_file() and file.name not in (PLAN, PLUGINS) and file.parent.name != "__pycache__":
                _copy(file, target / file.relative_to(repository))
    manifest = _check(repository, target, versions[MODEL])
    return manifest, tuple(versions)


def _copy(file: Path, place: Path) -> None:
    try:
        with file.open("rb") as source:
            place.parent.mkdir(parents=True, exist_ok=True)
            with place.open("wb") as copy:
                shutil.copyfileobj(source, copy, 1 << 20)
    except PermissionError as error:
        raise InputError(f"{file}: cannot be read: {error.strerror}; make it readable for this user") from error
    except OSError as error:
        raise InputError(
            f"{file}: cannot be copied to {place}: {error.strerror}; TMPDIR names another place for the server's copy"
        ) from error


def _check(repository: Path, target: Path, version: Path) -> Manifest:
    copy = target / version.relative_to(repository)
    manifest = Manifest.load(copy / "manifest.json")
    wanted = manifest.onnx_sha256
    if wanted and sha256(copy / "model.onnx") != wanted:
        raise InputError(f"{version / 'model.onnx'} is damaged, or not the model of manifest.json beside it; {CURE}")
    for config in target.glob(f"*/{CONFIG}"):
        text = config.read_text(encoding="utf-8", errors="replace")
        if METADATA_KEY in text and wanted not in text:
            raise InputError(f"{repository / config.relative_to(target)} describes another model; {CURE}")
    return manifest
