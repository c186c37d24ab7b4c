"""What eight bits rest on: the range of every feature on photos, and how much of a layer's output survives rounding."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnxruntime as ort
from onnx.helper import make_node, make_tensor_value_info
from onnx.numpy_helper import from_array, to_array
from tqdm import tqdm

from training.config import Config
from upsnet.contract import INPUTS
from upsnet.datasets.folder import PanopticFolder
from upsnet.datasets.split import Split
from upsnet.errors import InputError
from upsnet.geometry import ResizeRule, collate, to_network
from upsnet.photos import read_photo
from upsnet.runtimes.onnx_runtime import session_options
from upsnet.sources import find_sources

OWN = "train"  # in place of a data set: the photos that the network was trained on
METHOD = "minmax"  # a feature's range is that of all its values on the photos; docs/export.md has other methods
SIGNED = 127  # the largest weight of eight bits; a feature, unsigned, has twice as many steps

ENDS = ("Min", "Max")
TINY = 1e-30
Ranges = dict[str, tuple[float, float]]  # a feature's least and largest value; 0 lies between them


class Photos(NamedTuple):
    """A data set, and those of its photos that are looked at."""

    data: str
    paths: list[Path]


def find_photos(data: str, config: Config, most: int) -> Photos:
    """`most` photos, evenly spaced, of OWN, a COCO panoptic JSON, a folder or a pattern.

    InputError where there is none, and where a data set's photos are not there.
    """
    if data == OWN:
        split = config.data.train
        data = str(split.json_file)
        for path in (split.json_file, split.images):
            if not path.exists():
                raise InputError(f"{path}: not there; give --calibrate other photos than those of the training")
        paths = _photos_of(split)
    elif data.endswith(".json"):
        paths = _photos_of(Split.usual(Path(data)))
    else:
        paths = [source.path for source in find_sources([data]) if not source.is_video]
    if not paths:
        raise InputError(f"{data}: no photo to calibrate on")
    count = min(most, len(paths))
    return Photos(data, [paths[index * len(paths) // count] for index in range(count)])


def _photos_of(split: Split) -> list[Path]:
    return [record.photo for record in PanopticFolder(split).records]


def find_ranges(model: onnx.ModelProto, features: Sequence[str], paths: Sequence[Path], rule: ResizeRule) -> Ranges:
    """The least and the largest value of each feature on all photos. These alone leave the network: no feature is kept.

    InputError for a photo that cannot be read, and where features are not finite.
    """
    nodes = [make_node(f"Reduce{end}", [name], [f"{name}:{end}"], keepdims=0) for name in features for end in ENDS]
    wanted = [f"{name}:{end}" for name in features for end in ENDS]
    low, high = np.zeros((2, len(features)))
    for path, values in _measure(model, nodes, wanted, paths, rule, "ranges of the features"):
        if not np.isfinite(values).all():
            raise InputError(f"{path}: the network's features are not finite here; train it before it is made int8")
        low, high = np.minimum(low, values[0::2]), np.maximum(high, values[1::2])
    return {name: (float(low[index]), float(high[index])) for index, name in enumerate(features)}


def signal_to_noise(
    model: onnx.ModelProto, layers: Sequence[onnx.NodeProto], ranges: Ranges, paths: Sequence[Path], rule: ResizeRule
) -> list[float]:
    """Of each layer alone, in dB: the power of its output, to that of the error that eight bits make there.

    Its features are rounded to unsigned, its weights, channel by channel, to signed numbers of eight bits.
    """
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    nodes: list[onnx.NodeProto] = []
    constants: dict[str, onnx.TensorProto] = {}
    for layer in layers:
        feature, weight, output = layer.input[0], layer.input[1], layer.output[0]
        low, high = ranges[feature]
        step = np.float32(max(high - low, TINY) / (2 * SIGNED + 1))
        steps = {feature: (step, np.uint8(round(-low / step))), weight: _weight_steps(to_array(weights[weight]), layer)}
        for name, (scale, zero) in steps.items():
            if f"{name}:step" in constants:
                continue
            constants[f"{name}:step"] = from_array(np.asarray(scale), f"{name}:step")
            constants[f"{name}:zero"] = from_array(np.asarray(zero), f"{name}:zero")
            axis: dict[str, Any] = {"axis": channel_axis(layer)} if name == weight else {}
            rule_of = [f"{name}:step", f"{name}:zero"]
            nodes.append(make_node("QuantizeLinear", [name, *rule_of], [f"{name}:integers"], **axis))
            nodes.append(make_node("DequantizeLinear", [f"{name}:integers", *rule_of], [f"{name}:rounded"], **axis))
        twin = copy.deepcopy(layer)
        twin.name, twin.input[0], twin.input[1], twin.output[0] = (
            f"{layer.name}:twin",
            f"{feature}:rounded",
            f"{weight}:rounded",
            f"{output}:twin",
        )
        nodes.append(twin)
        nodes.append(make_node("Sub", [f"{output}:twin", output], [f"{output}:error"]))
        nodes.append(make_node("ReduceSumSquare", [output], [f"{output}:signal"], keepdims=0))
        nodes.append(make_node("ReduceSumSquare", [f"{output}:error"], [f"{output}:noise"], keepdims=0))
    wanted = [f"{layer.output[0]}:{what}" for layer in layers for what in ("signal", "noise")]
    powers = np.zeros((len(layers), 2))
    for _, values in _measure(model, nodes, wanted, paths, rule, "sensitivity of the layers", constants.values()):
        powers += values.reshape(-1, 2)
    signal, noise = powers.T
    exact = noise == 0  # as where all features are 0
    return [float(ratio) for ratio in np.where(exact, np.inf, 10 * np.log10((signal + TINY) / (noise + exact)))]


def channel_axis(layer: onnx.NodeProto) -> int:
    """The axis of a layer's weights along which its output channels lie."""
    if layer.op_type == "Gemm":
        return 0 if any(each.name == "transB" and each.i for each in layer.attribute) else 1
    return 1 if layer.op_type == "ConvTranspose" else 0


def _weight_steps(weight: np.ndarray, layer: onnx.NodeProto) -> tuple[np.ndarray, np.ndarray]:
    """Scale and zero point of each output channel."""
    axis = channel_axis(layer)
    largest = np.abs(weight).max(axis=tuple(each for each in range(weight.ndim) if each != axis))
    return np.maximum(largest / SIGNED, TINY).astype(np.float32), np.zeros(len(largest), np.int8)


def _insert(nodes: Sequence[onnx.NodeProto], graph: onnx.GraphProto) -> None:
    """Each node as soon as what it reads is there."""
    old = list(graph.node)
    made = {name: place for place, node in enumerate(old) for name in node.output}
    places = []
    for node in nodes:  # in topological order
        places.append(max(made.get(name, 0) for name in node.input))
        made |= dict.fromkeys(node.output, places[-1])
    del graph.node[:]
    for place, node in enumerate(old):
        graph.node.append(node)
        graph.node.extend(new for new, where in zip(nodes, places, strict=True) if where == place)


def _measure(
    model: onnx.ModelProto,
    nodes: Sequence[onnx.NodeProto],
    wanted: Sequence[str],
    paths: Sequence[Path],
    rule: ResizeRule,
    title: str,
    constants: Iterable[onnx.TensorProto] = (),
) -> Iterator[tuple[Path, np.ndarray]]:
    """Of each photo, what `nodes`, added to the network, find: the numbers `wanted`, in that order."""
    observed = copy.deepcopy(model)
    _insert(nodes, observed.graph)
    observed.graph.initializer.extend(constants)
    observed.graph.output.extend(make_tensor_value_info(name, onnx.TensorProto.FLOAT, []) for name in wanted)
    options = session_options()
    # In the order in which the nodes stand, and without copies in layouts of the processor's: a feature is measured,
    # and its memory is free again. Otherwise all of them would wait for the end.
    options.execution_order = ort.ExecutionOrder.PRIORITY_BASED
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    session = ort.InferenceSession(observed.SerializeToString(), options, providers=["CPUExecutionProvider"])
    del observed
    for path in tqdm(paths, title, unit="photo", disable=None):
        batch = collate([to_network(read_photo(path), rule)])
        yield path, np.array(session.run(wanted, dict(zip(INPUTS, batch, strict=True))), np.float64)
