"""`upsnet engine`: what builds the engines of a model is building.py."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

import typer

from export.building import PLUGINS_VARIABLE, Choice, build_engine
from export.building import Engine as Engine
from export.exported import read_exported
from export.options import EngineOptions
from export.profiles import chosen_profiles
from upsnet.engines.manifest import Profile
from upsnet.errors import InputError

UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30}


def main(
    model: Annotated[Path, typer.Option(help="An exported ONNX file with its manifest.")],
    out: Annotated[Path | None, typer.Option(help="Folder of the engine; default: engine/ beside the model.")] = None,
    backend: Annotated[
        Choice, typer.Option(help="What must be built beside ONNX Runtime's engine; auto: whatever this machine can.")
    ] = "auto",
    plugins: Annotated[
        Path | None, typer.Option(help=f"TensorRT plugin library; default: ${PLUGINS_VARIABLE}, else `make plugins`'s.")
    ] = None,
    batch: Annotated[
        list[int] | None, typer.Option(metavar="MIN OPT MAX", help="TensorRT: photos at once; default: 1 1 and 4.")
    ] = None,
    size: Annotated[
        list[str] | None,
        typer.Option(metavar="MIN OPT MAX", help="TensorRT: HxW, or one number; default: all that the resizing gives."),
    ] = None,
    profile: Annotated[
        list[str] | None,
        typer.Option(metavar="MIN:OPT:MAX", help="TensorRT: BxHxW each, in place of both; several: several profiles."),
    ] = None,
    workspace: Annotated[
        str | None, typer.Option(metavar="BYTES", help="TensorRT: most memory for one layer's work, as 512M or 2G.")
    ] = None,
    level: Annotated[
        int | None, typer.Option(min=0, max=5, help="TensorRT: how long to look for faster kernels; default: 3.")
    ] = None,
    timing_cache: Annotated[
        Path | None, typer.Option(help="TensorRT: what builds measured, kept for the next; default: in ~/.cache.")
    ] = None,
    version_compatible: Annotated[
        bool, typer.Option("--version-compatible", help="TensorRT: newer versions load it, too.")
    ] = False,
    hardware_compatible: Annotated[
        Literal["same", "ampere+"] | None,
        typer.Option(help="TensorRT: for every GPU of the same compute capability, or from Ampere on."),
    ] = None,
    compute_capabilities: Annotated[
        list[str] | None, typer.Option(metavar="CC ...", help="TensorRT-RTX: the GPUs that it is for, as 86 89 120.")
    ] = None,
    weight_streaming: Annotated[
        bool, typer.Option("--weight-streaming", help="TensorRT: weights may stay in the CPU's memory.")
    ] = False,
    refit: Annotated[bool, typer.Option("--refit", help="TensorRT: its weights can be replaced.")] = False,
    checkpoint: Annotated[
        Path | None, typer.Option(help="torch-tensorrt: compiled; default: last.safetensors beside the model.")
    ] = None,
) -> None:
    """Build what this machine can run: ONNX Runtime's kernels, TensorRT's plan; says what it found, and chose."""
    profiles: tuple[Profile, ...] = ()
    if batch or size or profile:  # a large model is read for them alone
        manifest = read_exported(model).manifest
        profiles = chosen_profiles(manifest.resize, manifest.max_batch, batch or (), size or (), profile or ())
    options = EngineOptions(
        profiles=profiles,
        workspace=None if workspace is None else _parse_bytes(workspace),
        level=level,
        timing_cache=timing_cache,
        version_compatible=version_compatible,
        hardware_compatible=hardware_compatible,
        compute_capabilities=tuple(each.replace(".", "") for each in compute_capabilities or ()),
        weight_streaming=weight_streaming,
        refit=refit,
    )
    engine = build_engine(model, out or model.parent / "engine", plugins, backend, options, checkpoint)
    for runtime, outcome in engine.outcomes().items():
        print(f"{runtime}: {'not used' if outcome.lacks_plugins else outcome.status}: {outcome.brief()}")
        for note in outcome.notes or []:
            print(f"{runtime}: note: {note}")
    print(f"chosen: {engine.chosen}: {engine.why}")


def _parse_bytes(text: str) -> int:
    found = re.fullmatch(r"([1-9][0-9]{0,15})([KMG]?)", text)
    if found is None:
        raise InputError(f"--workspace {text}: give a number of bytes, as 512M or 2G")
    return int(found[1]) * UNITS[found[2]]
