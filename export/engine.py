"""The engine of a machine: TensorRT's plan where TensorRT and a GPU are, ONNX Runtime's optimised graph everywhere."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any

import onnx
import torch
import typer

from export.contract import manifest_path
from export.predictor import open_session
from export.tensorrt_build import optimization_profile
from panoptic.files import atomic_path, sha256, write_json
from panoptic.manifest import Manifest

BUILD_TIMEOUT = 3600  # seconds


def build_engine(model: Path, folder: Path) -> dict[str, Any]:
    """Build into `folder`: model.onnx (optimised), model.manifest.json, model.plan if it can be, engine.json.

    Returns what engine.json says: one entry a runtime with its status and, where it was not built, the reason.
    InputError when the model is missing, broken or has no manifest.
    """
    manifest = Manifest.load(manifest_path(model))
    folder.mkdir(parents=True, exist_ok=True)
    optimized = folder / "model.onnx"
    report: dict[str, Any] = {"model_sha256": sha256(model), "onnxruntime": optimize(model, optimized)}
    manifest.model_copy(update={"onnx_sha256": sha256(optimized)}).save(manifest_path(optimized))
    report["tensorrt"] = _tensorrt(model, folder / "model.plan", manifest)
    report["tensorrt_rtx"] = _tensorrt_rtx(model, folder / "model.rtx.plan", manifest)
    write_json(folder / "engine.json", report)
    return report


def optimize(model: Path, out: Path) -> dict[str, Any]:
    """ONNX Runtime's graph optimisation, ahead of time: functions inlined, constants folded, operators fused."""
    with atomic_path(out) as temporary:
        session = open_session(model, optimized=temporary)
        nodes = len(onnx.load(str(temporary), load_external_data=False).graph.node)
        del session
    return {"status": "built", "file": out.name, "nodes": nodes, "bytes": out.stat().st_size}


def _tensorrt(model: Path, plan: Path, manifest: Manifest) -> dict[str, Any]:
    if importlib.util.find_spec("tensorrt") is None:
        return {"status": "absent", "reason": "the package tensorrt is not installed (pip install '.[gpu]')"}
    if not torch.cuda.is_available():
        return {"status": "absent", "reason": "tensorrt is installed but there is no NVIDIA GPU"}
    return _run_build("tensorrt", model, plan, manifest, {})


def _tensorrt_rtx(model: Path, plan: Path, manifest: Manifest) -> dict[str, Any]:
    """TensorRT-RTX builds without a GPU: it proves that graph, shapes and types hold, not numerics nor speed."""
    module = "tensorrt_rtx_bindings"
    if importlib.util.find_spec(module) is None:
        return {"status": "absent", "reason": "TensorRT-RTX is not installed (pip install '.[rtx]')"}
    library = _rtx_library()
    with tempfile.TemporaryDirectory() as links:
        # The wheel has only libtensorrt_rtx.so.1, but the parser opens libtensorrt_rtx.so and aborts without it.
        if library is not None:
            (Path(links) / "libtensorrt_rtx.so").symlink_to(library)
        path = os.pathsep.join(filter(None, [links, os.environ.get("LD_LIBRARY_PATH", "")]))
        return _run_build(module, model, plan, manifest, {"LD_LIBRARY_PATH": path})


def _rtx_library() -> Path | None:
    spec = importlib.util.find_spec("tensorrt_rtx_libs")
    folders = list(spec.submodule_search_locations or []) if spec else []
    return next((path for folder in folders for path in Path(folder).rglob("libtensorrt_rtx.so.1")), None)


def _run_build(module: str, model: Path, plan: Path, manifest: Manifest, env: dict[str, str]) -> dict[str, Any]:
    profile = json.dumps(optimization_profile(manifest.resize, manifest.max_batch))
    command = [sys.executable, "-m", "export.tensorrt_build", module, str(model), str(plan), profile]
    done = subprocess.run(
        command, env={**os.environ, **env}, capture_output=True, text=True, timeout=BUILD_TIMEOUT, check=False
    )
    if done.returncode == 0:
        return json.loads(done.stdout.strip().splitlines()[-1])
    log = (done.stderr.strip() or done.stdout.strip() or "no output").splitlines()
    return {"status": "refused", "stage": "process", "errors": [f"exit status {done.returncode}: {log[-1]}"]}


def main(
    model: Annotated[Path, typer.Option(help="An exported ONNX file with its manifest.")],
    out: Annotated[Path | None, typer.Option(help="Folder of the engine; default: engine/ beside the model.")] = None,
) -> None:
    """Build what this machine can run: ONNX Runtime's optimised graph, TensorRT's plan; says what it found."""
    folder = out or model.parent / "engine"
    report = build_engine(model, folder)
    for runtime in ("onnxruntime", "tensorrt", "tensorrt_rtx"):
        found = report[runtime]
        reason = found.get("reason") or "; ".join(found.get("errors", [])) or f"{found['bytes'] / 1e6:.1f} MB"
        print(f"{runtime}: {found['status']}: {reason}")
