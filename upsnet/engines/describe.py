"""An engine in words: what it is, and what it needs."""

from __future__ import annotations

from pathlib import Path

from upsnet.contract import INPUTS
from upsnet.engines.gpus import DRIVERS, GPUS
from upsnet.engines.here import LEAST_LEVEL, capabilities, capability
from upsnet.engines.kinds import Kind, check_json
from upsnet.engines.manifest import Counts, EngineManifest, ParityFigures
from upsnet.engines.packages import TITLES, cuda_for, numbers
from upsnet.engines.profiles import bounds
from upsnet.errors import InputError
from upsnet.manifest import Manifest

BRIEF = 8  # figures of a hash
ROUNDINGS = {"exact": "", "double": ", rounded as detectron2 does"}  # of a resize rule


def description(engine: Path, kind: Kind, manifest: EngineManifest | None) -> dict[str, str]:
    """What it is, by headings."""
    size = f"{engine.stat().st_size / 1e6:.1f} MB"
    said = {"file": f"{engine.name}, {size}, {kind.title}"}
    if manifest is None:
        return said | _bare(engine, kind)
    said |= _network(manifest.network)
    said["precision"] = manifest.precision + (f": {counted(manifest.layers)}" if manifest.layers else "")
    if manifest.plugins:
        said["operators"] = counted(manifest.plugins)
    if manifest.profiles:
        said["profiles"] = "; ".join(bounds(each) for each in manifest.profiles if set(INPUTS) <= set(each))
    said["built"] = _built(manifest)
    if manifest.options:
        said["options"] = ", ".join(f"{key} {value}" for key, value in manifest.options.items())
    said["from"] = f"{manifest.model.file} (sha256 {manifest.model.sha256[:BRIEF]})"
    if manifest.libraries:
        abi = f"; kernel ABI {manifest.kernel_abi}" if manifest.kernel_abi is not None else ""
        said["libraries"] = (
            ", ".join(f"{each.file} (sha256 {each.sha256[:BRIEF]})" for each in manifest.libraries) + abi
        )
    said["parity"] = "; ".join(map(parity, manifest.parity)) or "not measured: `make parity` does"
    return said


def _bare(engine: Path, kind: Kind) -> dict[str, str]:
    """Of an engine without a manifest: what its file says, and the manifest of the model that lies beside it."""
    said = {"built by": f"{TITLES[kind.backend]} {kind.version}"} if kind.backend and kind.version else {}
    try:
        check_json(path := engine.with_name("model.manifest.json"))
        return said | _network(Manifest.load(path))
    except InputError:
        return said


def _network(network: Manifest) -> dict[str, str]:
    things, stuff = ([each for each in network.categories if each.isthing == kind] for kind in (1, 0))
    resize = network.resize
    return {
        "network": (
            f"{network.name}: {len(network.categories)} categories ({len(things)} things, {len(stuff)} stuff), "
            f"at most {network.max_detections} things in a photo"
        ),
        "photos": (
            f"short side {resize.short_side}, long side at most {resize.max_side}{ROUNDINGS[resize.rounding]}, "
            f"{network.max_batch} at once"
        ),
        "precision": network.precision,
    }


def requirements(kind: Kind, manifest: EngineManifest | None) -> dict[str, str]:
    """Where it runs, by headings."""
    backend = kind.backend
    assert backend is not None
    built = kind.version or (manifest.builder if manifest else "")
    said = {"package": f"{TITLES[backend]}{_versions(backend, built, manifest)}"}
    if backend != "onnxruntime":
        wanted, upwards = capabilities(kind, manifest)
        named = [f"{capability(each)} ({GPUS[each]})" if each in GPUS else capability(each) for each in wanted]
        said["GPU"] = ", ".join(named) + (" and newer" if upwards else "") or "not said; the one that it was built on"
        cuda = cuda_for(backend, manifest)
        said["driver"] = (
            f"NVIDIA {DRIVERS[cuda]} or newer (CUDA {cuda})" if cuda in DRIVERS else "as the package needs it"
        )
    if manifest is not None:
        said["platform"] = manifest.platform
        if manifest.libraries:
            said["CPU"] = f"x86-64-v{LEAST_LEVEL} (SSE4.2) at least; AVX2 and AVX-512 are used where they are"
    return said


def _versions(backend: str, built: str, manifest: EngineManifest | None) -> str:
    if backend == "onnxruntime" or not built:
        return " 1.23 or newer" if backend == "onnxruntime" else ""
    if manifest is not None and manifest.version_compatible:
        return f" {built} or newer"
    parts = numbers(built)[: 2 if backend == "torch-tensorrt" else 3]
    return f" {'.'.join(map(str, parts))}, no other"


def _built(manifest: EngineManifest) -> str:
    parts = [manifest.built or "", f"by {TITLES[manifest.backend]} {manifest.builder}"]
    if others := ", ".join(f"{name} {version}" for name, version in manifest.built_with.items()):
        parts.append(f"with {others}")
    parts.append(f"on {manifest.gpu or manifest.platform}")
    if manifest.seconds is not None:
        parts.append(f"in {manifest.seconds:.0f} s")
    return ", ".join(filter(None, parts))


def counted(counts: Counts) -> str:
    """53 CONVOLUTION FLOAT, 2 HALF; 6 MATRIX_MULTIPLY FLOAT."""
    return "; ".join(
        f"{name} {', '.join(f'{count} {kind}' for kind, count in kinds.items())}" for name, kinds in counts.items()
    )


def parity(figures: ParityFigures) -> str:
    return (
        f"{figures.data}, {figures.images} photos, batch {figures.batch}: PQ {100 * figures.pq:.1f}, "
        f"{100 * figures.difference:+.2f} of {figures.reference}'s, {100 * figures.identical:.2f} % of the pixels equal"
    )
