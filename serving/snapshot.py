"""The copy of a model repository that a server serves: whatever happens to the original, nothing happens to it."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import NamedTuple

from serving.layout import MODELS, config_name, latest_version, version_configs
from serving.repository import PLAN
from upsnet.contract import MODEL, PHOTO_MODEL, PLUGINS
from upsnet.errors import InputError
from upsnet.files import sha256
from upsnet.manifest import Manifest

CONFIG = "configs/cpu.pbtxt"
# The cure, where there are roll-outs.
ROLLED_OUT = "`upsnet deploy rollback` returns to the version before, and `upsnet deploy stage` brings it anew"
NOT_READ = ("__pycache__", "configs")
CLAIM = r'onnx_sha256\\?": \\?"([0-9a-f]{64})'  # in a manifest, and in the one that a configuration carries


class Snapshot(NamedTuple):
    """What is in the copy."""

    manifest: Manifest
    models: tuple[str, ...]  # their names
    model_sha256: str  # of the ONNX file


def take_snapshot(repository: Path, target: Path, version: int | None = None) -> Snapshot:
    """Copies what the embedded server reads: of that version where the repository is a managed one, which then is the
    only one in the copy, else of the highest.

    InputError when there is no model, when a file cannot be read or copied, and when the files are not of one model:
    the ONNX file is damaged, or another model is being deployed at this moment.
    """
    if version is not None:
        versions = {model: repository / model / str(version) for model in MODELS}
    else:
        versions = {MODEL: latest_version(repository)}
        if (repository / PHOTO_MODEL).is_dir():
            versions[PHOTO_MODEL] = latest_version(repository, PHOTO_MODEL)
    cure = ROLLED_OUT if version is not None else "deploy it again with `upsnet deploy`"
    for name in ("model.onnx", "manifest.json"):
        if not (versions[MODEL] / name).is_file():
            built = "make one with `make engine`" if version is None else cure
            raise InputError(f"there is no model to serve: {versions[MODEL] / name} is missing; {built}")
    for model, place in versions.items():
        folder = repository / model
        config = (
            folder / CONFIG if version is None else version_configs(repository, version) / config_name(model, CONFIG)
        )
        if config.is_file():
            _copy(config, target / model / CONFIG)
        for file in (*sorted((folder / "warmup").rglob("*")), *sorted(place.rglob("*"))):
            if file.is_file() and file.name not in (PLAN, PLUGINS) and file.parent.name not in NOT_READ:
                _copy(file, target / file.relative_to(repository))
    copy = target / versions[MODEL].relative_to(repository)
    digest = sha256(copy / "model.onnx")
    for file in (copy / "manifest.json", *(target / model / CONFIG for model in versions)):
        found = re.search(CLAIM, file.read_text(encoding="utf-8", errors="replace")) if file.is_file() else None
        if found is not None and found[1] != digest:
            raise InputError(
                f"{versions[MODEL] / 'model.onnx'} is damaged, or not the model that "
                f"{repository / file.relative_to(target)} describes; {cure}"
            )
    try:
        manifest = Manifest.load(copy / "manifest.json")
    except InputError as error:
        raise InputError(str(error).replace(str(copy), str(versions[MODEL]))) from error
    return Snapshot(manifest, tuple(versions), digest)


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
