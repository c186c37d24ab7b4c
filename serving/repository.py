"""Triton's model repository of a run: what lies where, and putting a model into it. triton_repo/ is its template."""

from __future__ import annotations

import shutil
from pathlib import Path

from upsnet.contract import METADATA_KEY, MODEL, PLUGINS
from upsnet.errors import InputError
from upsnet.files import atomic_path, sha256, write_text
from upsnet.manifest import Manifest

TEMPLATE = Path(__file__).resolve().parent.parent / "triton_repo"
CONFIGS = (f"{MODEL}/config.pbtxt", f"{MODEL}/configs/cpu.pbtxt")


def repository_of(run: Path) -> Path:
    """Where a run's own repository lies."""
    return run / "triton_repo"


def latest_version(repository: Path, model: str = MODEL) -> Path:
    """The version folder that Triton serves: the highest number. InputError where there is none."""
    versions = [folder for folder in (repository / model).glob("*") if folder.is_dir() and folder.name.isdigit()]
    if not versions:
        raise InputError(f"{repository} is no model repository: it has no {model}/1; make one with `upsnet deploy`")
    return max(versions, key=lambda folder: int(folder.name))


def deploy_engine(engine: Path, repository: Path) -> None:
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


def deploy(model_onnx: Path, manifest: Path, repository: Path) -> Path:
    """Makes the repository, or puts another model into it: each file by an atomic rename, none before all is checked.

    The manifest goes into the configurations too, so that a client needs only the server's address. A running server
    keeps what it loaded. InputError when either file is missing, the manifest is another model's, or the repository
    would be the template. Returns the repository.
    """
    if not model_onnx.is_file():
        raise InputError(f"there is no model {model_onnx}; make one with `make engine`")
    described = Manifest.load(manifest)
    if described.onnx_sha256 not in ("", sha256(model_onnx)):
        raise InputError(f"{manifest} belongs to another model than {model_onnx}; export again with `make engine`")
    if repository.resolve() == TEMPLATE:
        raise InputError(f"{repository} is the template of all repositories; give another folder with --repository")
    version = latest_version(repository) if (repository / MODEL).is_dir() else repository / MODEL / "1"
    code = TEMPLATE / MODEL / "1/model.py"
    for source, name in ((model_onnx, "model.onnx"), (manifest, "manifest.json"), (code, "model.py")):
        _copy(source, version / name)
    for name in CONFIGS:
        text = (TEMPLATE / name).read_text()
        write_text(repository / name, text + _parameter(METADATA_KEY, described.model_dump_json()))
    return repository


def _parameter(key: str, value: str) -> str:
    """One more entry of a model configuration's map of parameters, in protobuf's text format."""
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'\nparameters {{ key: "{key}" value: {{ string_value: "{escaped}" }} }}\n'


def _copy(source: Path, target: Path) -> None:
    with atomic_path(target) as temporary:
        shutil.copyfile(source, temporary)
