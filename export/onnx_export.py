"""Checkpoint -> one ONNX file: uint8 photo in, panoptic map and segment table out, custom operators as functions."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Annotated

import onnx
import torch
import typer

import plugins_cuda
from export.precision import prepare
from training.checkpoint import load_model
from training.model.upsnet import UPSNet
from training.predictor import make_manifest
from upsnet.contract import INPUTS, METADATA_KEY, OUTPUTS, manifest_path
from upsnet.files import atomic_path, sha256
from upsnet.geometry import ResizeRule
from upsnet.manifest import Manifest, Precision

OPSET = 20


def export_onnx(checkpoint: Path, out: Path, precision: Precision = "fp32") -> Manifest:
    """Write `out` and its manifest from a training checkpoint. InputError when the checkpoint cannot be read."""
    model, config, categories, _ = load_model(checkpoint)
    manifest = make_manifest(config, categories).model_copy(update={"precision": precision})
    return write_onnx(prepare(model, precision), manifest, out)


def write_onnx(model: UPSNet, manifest: Manifest, out: Path) -> Manifest:
    """Export a network that `prepare` has made; the manifest holds the file's sha256, so a mismatch shows."""
    proto = to_model_proto(model, manifest.resize)
    entry = proto.metadata_props.add()
    entry.key, entry.value = METADATA_KEY, manifest.model_dump_json()
    with atomic_path(out) as temporary:
        onnx.checker.check_model(proto)
        onnx.save(proto, str(temporary))
        manifest = manifest.model_copy(update={"onnx_sha256": sha256(temporary)})
        manifest.save(manifest_path(out))
    return manifest


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
) -> None:
    """Checkpoint -> one ONNX file that plain ONNX Runtime and TensorRT run, and its manifest beside it."""
    target = out or checkpoint.with_name("model.onnx")
    export_onnx(checkpoint, target, precision)
    print(f"{target}: {target.stat().st_size / 1e6:.1f} MB")
