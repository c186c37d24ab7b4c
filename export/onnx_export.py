"""Checkpoint -> one ONNX file: uint8 photo in, panoptic map and segment table out, custom operators as functions."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, NamedTuple

import onnx
import torch
import typer

import plugins_cuda
from export.calibration import METHOD, OWN, find_photos
from export.modules import modules_of, read_recipe
from export.precision import float_type, prepare, recipe_of
from export.quantization import Quantized, digest, quantize, quantize_layers
from training.checkpoint import load_model
from training.model.upsnet import UPSNet
from training.predictor import make_manifest
from upsnet.contract import CONFIGURATION_KEY, INPUTS, METADATA_KEY, OUTPUTS, manifest_path, tensorrt_path
from upsnet.datasets.places import File
from upsnet.errors import InputError
from upsnet.files import atomic_path, check_target, sha256
from upsnet.geometry import ResizeRule
from upsnet.manifest import EIGHT_BITS, Calibration, Manifest, ModuleType, Precision, Recipe

OPSET = 20
PHOTOS = 32  # to calibrate on: 8 to 128 gave the same PQ (docs/precision.md)
WITHOUT_KERNELS: set[ModuleType] = {"bf16", "fp8"}  # ONNX Runtime's file is float32 then
INTEGERS: set[ModuleType] = {"int8", "fp32"}  # of these alone, ONNX Runtime has a graph with integers of its own


class Exported(NamedTuple):
    """What an export wrote."""

    manifest: Manifest  # of ONNX Runtime's file
    files: tuple[Path, ...]
    quantized: Quantized | None  # where it was calibrated


def export(
    checkpoint: Path,
    out: Path,
    precision: Precision = "fp32",
    *,
    recipe: Recipe | None = None,
    data: str | None = None,
    photos: int = PHOTOS,
) -> Exported:
    """Write `out` from a training checkpoint, and its `tensorrt_path` where TensorRT needs a file of its own, each with
    its manifest.

    recipe: of precision mixed. data, photos: what to calibrate on, where a type has eight bits; see `find_photos`.
    InputError when the checkpoint or a photo cannot be read, or there is no photo, or the recipe does not fit the
    network; nothing is written then.
    """
    if (precision == "mixed") != (recipe is not None):
        raise InputError("precision mixed goes with a recipe, and no other does")
    wanted = recipe_of(precision, recipe)
    if bool(wanted.types & set(EIGHT_BITS)) != (data is not None):
        raise InputError("int8 and fp8 need photos to calibrate on, and no other precision does")
    paths = [out, tensorrt_path(out)][: 1 + _needs_two(wanted)]
    _check_targets(paths)
    model, config, categories, _ = load_model(checkpoint)
    manifest = make_manifest(config, categories).model_copy(update={"precision": precision, "recipe": recipe})
    chosen = None if data is None else find_photos(data, config, photos)
    own, graph, quantized = _graphs(model, wanted, manifest.resize, None if chosen is None else chosen.paths)
    pair = digest(own, graph) if len(paths) > 1 else ""
    if chosen is not None:
        calibration = Calibration(data=chosen.data, photos=len(chosen.paths), method=METHOD, pair=pair)
        manifest = manifest.model_copy(update={"calibration": calibration})
    elif pair:
        manifest = manifest.model_copy(update={"pair": pair})
    protos = {tensorrt_path(out): graph, out: own} if pair else {out: graph}
    manifests = _write(protos, manifest, config.model_dump_json())
    if quantized is not None:
        quantized = quantized._replace(precision=precision)
    return Exported(manifests[out], tuple(paths), quantized)


def _graphs(
    model: UPSNet, recipe: Recipe, rule: ResizeRule, photos: Sequence[File] | None
) -> tuple[onnx.ModelProto, onnx.ModelProto, Quantized | None]:
    """ONNX Runtime's graph, where that has one of its own, and TensorRT's, which else serves both; and what the
    calibration on `photos` found."""
    network, modules = prepare(model, "mixed", recipe), modules_of(model)
    graph = own = to_model_proto(network, rule)
    floats = {recipe.between, *(float_type(recipe, name) for name in modules)}
    if floats != {"fp32"} and (photos is not None or _needs_two(recipe)):
        own = to_model_proto(prepare(model, "fp32"), rule)
    if photos is None:
        return own, graph, None
    if recipe.types <= INTEGERS:
        quantized = quantize(own, photos, rule, recipe, modules)
        assert quantized.tensorrt is not None
        return quantized.graph, quantized.tensorrt, quantized
    quantized = quantize_layers(own, graph, photos, rule, recipe, modules)
    return own, quantized.graph, quantized


def _needs_two(recipe: Recipe) -> bool:
    """Whether ONNX Runtime on a CPU needs another graph than TensorRT: it has no bfloat16, makes an invalid graph of
    fp8's Q/DQ pairs, and wants other integers."""
    types = {*recipe.types, recipe.between}
    return bool(types & WITHOUT_KERNELS) or ("int8" in types and types <= INTEGERS)


def export_onnx(checkpoint: Path, out: Path, precision: Precision = "fp32") -> Manifest:
    """`export` of a precision that needs no calibration."""
    return export(checkpoint, out, precision).manifest


def export_int8(checkpoint: Path, out: Path, data: str, photos: int = PHOTOS) -> tuple[Manifest, Quantized]:
    """`export` of int8."""
    exported = export(checkpoint, out, "int8", data=data, photos=photos)
    assert exported.quantized is not None
    return exported.manifest, exported.quantized


def write_onnx(model: UPSNet, manifest: Manifest, out: Path) -> Manifest:
    """Export a network that `prepare` has made; the manifest holds the file's sha256, so a mismatch shows."""
    return _write({out: to_model_proto(model, manifest.resize)}, manifest)[out]


def _write(protos: dict[Path, onnx.ModelProto], manifest: Manifest, configuration: str = "") -> dict[Path, Manifest]:
    """Each graph and its manifest, inside and beside it, to the path that it stands at: all of them or none. What an
    earlier export left beside a single file goes.

    All are written under temporary names before the first is renamed; a model is renamed before its manifest.
    configuration: the run's, as JSON, which goes into the file.
    """
    _check_targets(protos)
    manifests = {}
    with ExitStack() as stack:  # which renames last what comes first
        beside = {path: stack.enter_context(atomic_path(manifest_path(path))) for path in protos}
        for path, proto in protos.items():
            proto.metadata_props.add(key=METADATA_KEY, value=manifest.model_dump_json())
            if configuration:
                proto.metadata_props.add(key=CONFIGURATION_KEY, value=configuration)
            onnx.checker.check_model(proto)
            temporary = stack.enter_context(atomic_path(path))
            onnx.save(proto, str(temporary))
            manifests[path] = manifest.model_copy(update={"onnx_sha256": sha256(temporary)})
            manifests[path].save(beside[path])
    if len(protos) == 1:
        (out,) = protos
        for old in (tensorrt_path(out), manifest_path(tensorrt_path(out))):
            old.unlink(missing_ok=True)
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
    precision: Annotated[
        Precision | None, typer.Option(help="Of features and convolution weights (default: fp32; mixed with a recipe).")
    ] = None,
    recipe: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="mixed: JSON or YAML, {default: fp16, modules: {rpn: fp32, fpn.p2: int8}}."),
    ] = None,
    calibrate: Annotated[
        str | None,
        typer.Option(
            metavar="DATASET",
            help=f"int8, fp8: photos to measure the features on: {OWN} (those that the network was trained on), a "
            "folder, a pattern ('photos/**/*.jpg') or a COCO panoptic JSON.",
        ),
    ] = None,
    photos: Annotated[
        int | None, typer.Option(min=1, help=f"int8, fp8: how many of them, evenly spaced (default: {PHOTOS}).")
    ] = None,
) -> None:
    """Checkpoint -> one ONNX file that plain ONNX Runtime and TensorRT run, and its manifest beside it.

    int8, bf16, fp8: a second file beside it, NAME.tensorrt.onnx, is TensorRT's.
    """
    target = out or checkpoint.with_name("model.onnx")
    kind: Precision = precision or ("mixed" if recipe else "fp32")
    if (kind == "mixed") != (recipe is not None):
        raise InputError("--precision mixed goes with --recipe FILE, and with no other precision")
    wanted = None if recipe is None else read_recipe(recipe)
    named = f"--recipe {recipe}" if recipe else f"--precision {kind}"
    if not recipe_of(kind, wanted).types & set(EIGHT_BITS):
        if calibrate is not None or photos is not None:
            raise InputError(
                f"{named} has nothing of int8 or fp8, for which photos are measured: leave out --calibrate and --photos"
                + ("" if recipe else ", or take --precision int8 or fp8")
            )
    elif calibrate is None:
        raise InputError(f"{named} needs photos: --calibrate {OWN}, or --calibrate FOLDER")
    exported = export(checkpoint, target, kind, recipe=wanted, data=calibrate, photos=photos or PHOTOS)
    if exported.quantized is not None:
        print(exported.quantized)
    for path in exported.files:
        print(f"{path}: {path.stat().st_size / 1e6:.1f} MB")
