"""Checkpoint -> one ONNX file: uint8 photo in, panoptic map and segment table out, custom operators as functions."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import onnx
import torch
import typer

import plugins_cuda
from export.calibration import METHOD, OWN, find_photos
from export.precision import prepare
from export.quantization import Quantized, quantize
from training.checkpoint import load_model
from training.model.upsnet import UPSNet
from training.predictor import make_manifest
from upsnet.contract import INPUTS, METADATA_KEY, OUTPUTS, manifest_path, tensorrt_path
from upsnet.errors import InputError
from upsnet.files import atomic_path, check_target, sha256
from upsnet.geometry import ResizeRule
from upsnet.manifest import Calibration, Manifest, Precision

OPSET = 20
PHOTOS = 32  # to calibrate on: 8 to 128 gave the same PQ (docs/export.md)


def export_onnx(checkpoint: Path, out: Path, precision: Precision = "fp32") -> Manifest:
    """Write `out` and its manifest from a training checkpoint. InputError when the checkpoint cannot be read."""
    _check_targets([out])
    model, config, categories, _ = load_model(checkpoint)
    manifest = make_manifest(config, categories).model_copy(update={"precision": precision})
    return write_onnx(prepare(model, precision), manifest, out)


def export_int8(checkpoint: Path, out: Path, data: str, photos: int = PHOTOS) -> tuple[Manifest, Quantized]:
    """Write `out` for ONNX Runtime and its `tensorrt_path` for TensorRT, each with its manifest, from one calibration.

    data, photos: see `find_photos`. InputError when the checkpoint or a photo cannot be read, or there is no photo;
    nothing is written then.
    """
    _check_targets([out, tensorrt_path(out)])
    model, config, categories, _ = load_model(checkpoint)
    chosen = find_photos(data, config, photos)
    manifest = make_manifest(config, categories)
    proto = to_model_proto(prepare(model, "int8"), manifest.resize)
    quantized = quantize(proto, chosen.paths, manifest.resize)
    calibration = Calibration(data=chosen.data, photos=len(chosen.paths), method=METHOD, pair=quantized.digest())
    manifest = manifest.model_copy(update={"precision": "int8", "calibration": calibration})
    manifests = _write({tensorrt_path(out): quantized.tensorrt, out: quantized.cpu}, manifest)
    return manifests[out], quantized


def write_onnx(model: UPSNet, manifest: Manifest, out: Path) -> Manifest:
    """Export a network that `prepare` has made; the manifest holds the file's sha256, so a mismatch shows."""
    manifest = _write({out: to_model_proto(model, manifest.resize)}, manifest)[out]
    for old in (tensorrt_path(out), manifest_path(tensorrt_path(out))):
        old.unlink(missing_ok=True)
    return manifest


def _write(protos: dict[Path, onnx.ModelProto], manifest: Manifest) -> dict[Path, Manifest]:
    """Each graph and its manifest, inside and beside it, to the path that it stands at: all of them or none.

    All are written under temporary names before the first is renamed; a model is renamed before its manifest.
    """
    _check_targets(protos)
    manifests = {}
    with ExitStack() as stack:  # which renames last what comes first
        beside = {path: stack.enter_context(atomic_path(manifest_path(path))) for path in protos}
        for path, proto in protos.items():
            proto.metadata_props.add(key=METADATA_KEY, value=manifest.model_dump_json())
            onnx.checker.check_model(proto)
            temporary = stack.enter_context(atomic_path(path))
            onnx.save(proto, str(temporary))
            manifests[path] = manifest.model_copy(update={"onnx_sha256": sha256(temporary)})
            manifests[path].save(beside[path])
    return manifests


def _check_targets(paths: Iterable[Path]) -> None:
    for path in paths:
        for each in (path, manifest_path(path)):
            check_target(each)


def to_model_proto(model: UPSNet, resize: ResizeRule) -> onnx.ModelProto:
    """Trace with batch, height and width dynamic (sides are multiples of `resize.divisor`)."""
    divisor = resize.divisor
    height, width = 3 * divisor, 4 * divisor
    example = (
        torch.zeros(2, height, width, 3, dtype=torch.uint8),
        torch.tensor([[height, width], [height - 5, width - 7]], dtype=torch.int32),
        torch.ones(2),
    )
    batch = torch.export.Dim("batch", min=1, max=64)
    rows = torch.export.Dim("rows", min=1, max=128)
    columns = torch.export.Dim("columns", min=1, max=128)
    dynamic = ({0: batch, 1: divisor * rows, 2: divisor * columns}, {0: batch}, {0: batch})
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # the exporter's own deprecation notes
        program = torch.onnx.export(
            model,
            example,
            dynamo=True,
            dynamic_shapes=dynamic,
            input_names=INPUTS,
            output_names=OUTPUTS,
            opset_version=OPSET,
            verbose=False,
        )
    assert program is not None
    proto = program.model_proto
    proto.functions.extend(plugins_cuda.onnx_functions())
    declared = {entry.domain for entry in proto.opset_import}
    if "upsnet" not in declared:
        proto.opset_import.append(onnx.helper.make_opsetid("upsnet", 1))
    _cast_bytes(proto.graph)
    return proto


def _cast_bytes(graph: onnx.GraphProto) -> None:
    """A Cast to uint8 after every uint8 output of the graph, which changes nothing.

    TensorRT wants it: no plugin may give out bytes, and a network's uint8 output must come from a Cast.
    """
    for output in graph.output:
        if output.type.tensor_type.elem_type != onnx.TensorProto.UINT8:
            continue
        name = f"{output.name}_bytes"
        for node in graph.node:
            node.output[:] = [name if each == output.name else each for each in node.output]
        graph.node.append(onnx.helper.make_node("Cast", [name], [output.name], to=onnx.TensorProto.UINT8))


def main(
    checkpoint: Annotated[Path, typer.Option(help="A training checkpoint, as runs/NAME/last.safetensors.")],
    out: Annotated[Path | None, typer.Option(help="The ONNX file; default: model.onnx beside the checkpoint.")] = None,
    precision: Annotated[Precision, typer.Option(help="Of features and convolution weights.")] = "fp32",
    calibrate: Annotated[
        str | None,
        typer.Option(
            metavar="DATASET",
            help=f"int8: photos to measure the features on: {OWN} (those that the network was trained on), a folder, a "
            "pattern ('photos/**/*.jpg') or a COCO panoptic JSON.",
        ),
    ] = None,
    photos: Annotated[
        int | None, typer.Option(min=1, help=f"int8: how many of them, evenly spaced (default: {PHOTOS}).")
    ] = None,
) -> None:
    """Checkpoint -> one ONNX file that plain ONNX Runtime and TensorRT run, and its manifest beside it.

    int8: a second file beside it, NAME.tensorrt.onnx, is TensorRT's.
    """
    target = out or checkpoint.with_name("model.onnx")
    if precision == "int8":
        if calibrate is None:
            raise InputError(f"--precision int8 needs photos: --calibrate {OWN}, or --calibrate FOLDER")
        _, quantized = export_int8(checkpoint, target, calibrate, photos or PHOTOS)
        print(quantized)
    else:
        if calibrate is not None or photos is not None:
            raise InputError(f"--calibrate and --photos are for --precision int8; {precision} needs no calibration")
        export_onnx(checkpoint, target, precision)
    for path in (target, tensorrt_path(target))[: 1 + (precision == "int8")]:
        print(f"{path}: {path.stat().st_size / 1e6:.1f} MB")
