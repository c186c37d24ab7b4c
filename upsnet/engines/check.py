"""Whether an engine is what its manifest says, before a runtime loads it."""

from __future__ import annotations

from pathlib import Path

from upsnet.engines.manifest import EngineManifest, engine_manifest_path
from upsnet.errors import InputError
from upsnet.files import sha256


def check_engine(engine: Path) -> EngineManifest:
    """The manifest of an engine whose files are those that it names, and that this machine can run.

    InputError that names the file, what is wrong with it and the cure: no manifest, another engine than the manifest's
    (or half of it), a library that is missing or of another build, another GPU, driver or version of the package.
    """
    manifest = EngineManifest.load(engine_manifest_path(engine))
    if sha256(engine) != manifest.engine.sha256:
        raise InputError(f"{engine}: not the engine that {engine_manifest_path(engine).name} describes{manifest.cure}")
    return manifest
