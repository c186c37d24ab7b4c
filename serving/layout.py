"""What lies where in a model repository, of one version for ever or of many in turn (docs/rollouts.md)."""

from __future__ import annotations

from pathlib import Path

from upsnet.contract import MODEL, PHOTO_MODEL
from upsnet.errors import InputError

MODELS = (MODEL, PHOTO_MODEL)
CONFIGS = ("config.pbtxt", "configs/cpu.pbtxt")  # of each model: for the container, for the server of the wheel
CANDIDATES = ("configs/candidate.pbtxt", "configs/candidate_cpu.pbtxt")  # the same of the candidate, where one may be
CONFIGS_FOLDER = "configs"  # of a managed version, in its folder of `upsnet`: those of both models
ROLLOUTS = "rollouts"  # in the folder of `upsnet`: a folder for each step
INCOMING = "incoming"  # in it: a model that is being staged, where no server looks
NOW = "now"  # the link in it to the step that holds, by which everything is decided
SERVING, CANDIDATE = "serving", "candidate"  # links in a step's folder, to `version_configs` of a version


def versions(repository: Path, model: str = MODEL) -> list[Path]:
    """The version folders in the order of their numbers."""
    found = [folder for folder in (repository / model).glob("*") if folder.is_dir() and folder.name.isdecimal()]
    return sorted(found, key=lambda folder: int(folder.name))


def latest_version(repository: Path, model: str = MODEL) -> Path:
    """The version folder of the highest number. InputError where there is none."""
    found = versions(repository, model)
    if not found:
        raise InputError(f"{repository} is no model repository: it has no {model}/1; make one with `upsnet deploy`")
    return found[-1]


def is_managed(repository: Path) -> bool:
    """Whether its versions are rolled out step by step: a link says which one is served, not the highest number."""
    return (repository / MODEL / ROLLOUTS / NOW).is_symlink()


def version_configs(repository: Path, version: int) -> Path:
    """The folder of a managed version's configurations of both models. They never change."""
    return repository / MODEL / str(version) / CONFIGS_FOLDER


def config_name(model: str, config: str) -> str:
    """The name in that folder of what Triton reads as `config`, one of CONFIGS: upsnet.pbtxt, upsnet_cpu.pbtxt, ..."""
    return f"{model}{'' if config == CONFIGS[0] else '_cpu'}.pbtxt"


def config_links(repository: Path) -> dict[Path, Path]:
    """The configurations that Triton reads in a managed repository, and where each leads: relative links by way of
    NOW, so that one rename changes them all."""
    found: dict[Path, Path] = {}
    for model in MODELS:
        for names, role in ((CONFIGS, SERVING), (CANDIDATES, CANDIDATE)):
            for kind, name in zip(CONFIGS, names, strict=True):
                link = repository / model / name
                up = Path(*[".."] * (1 + name.count("/")))
                found[link] = up / MODEL / ROLLOUTS / NOW / role / config_name(model, kind)
    return found
