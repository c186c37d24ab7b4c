"""What eight bits rest on: the range of every feature on photos, and how much of a layer's output survives rounding."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np
import onnx
import onnxruntime as ort
from onnx.helper import make_node, make_tensor_value_info
from onnx.numpy_helper import from_array, to_array
from tqdm import tqdm

from export.eight_bits import STORED, TINY, EightBits, Ranges, channel_axis, channel_steps, steps
from export.features import LAYERS, MOVING
from training.config import Config
from upsnet import storage
from upsnet.contract import INPUTS
from upsnet.datasets.folder import PanopticFolder
from upsnet.datasets.places import File
from upsnet.datasets.split import ShardSplit, Split, usual_split
from upsnet.errors import InputError
from upsnet.geometry import ResizeRule, collate, to_network
from upsnet.photos import read_photo
from upsnet.runtimes.onnx_runtime import session_options
from upsnet.sources import find_sources

OWN = "train"  # in place of a data set: the photos that the network was trained on
METHOD = "minmax"  # a feature's range is that of all its values on the photos; docs/export.md has other methods
ENDS = ("Min", "Max")
UNSIGNED = 255  # steps of a feature


class Photos(NamedTuple):
    """A data set, and those of its photos that are looked at."""

    data: str
    paths: list[File]


def find_photos(data: str, config: Config, most: int) -> Photos:
    """`most` photos, evenly spaced, of OWN, a COCO panoptic JSON, an index of shards, a folder or a pattern.

    InputError where there is none, and where a data set's photos are not there.
    """
    if data == OWN:
        split = config.data.train
        data = str(split.shards if isinstance(split, ShardSplit) else split.json_file)
        for place in (split.shards,) if isinstance(split, ShardSplit) else (split.json_file, split.images):
            if not storage.exists(str(place)):
                raise InputError(f"{place}: not there; give --calibrate other photos than those of the training")
        paths = _photos_of(split)
    elif data.endswith(".json"):
        paths = _photos_of(usual_split(data))
    else:
        paths = [source.path for source in find_sources([data]) if not source.is_video]
    if not paths:
        raise InputError(f"{data}: no photo to calibrate on")
    count = min(most, len(paths))
    return Photos(data, [paths[index * len(paths) // count] for index in range(count)])


def _photos_of(split: Split | ShardSplit) -> list[File]:
    return [record.photo for record in PanopticFolder(split).records]


def find_ranges(model: onnx.ModelProto, features: Sequence[str], paths: Sequence[File], rule: ResizeRule) -> Ranges:
    """The least and the largest value of each feature on all photos. These alone leave the network: no feature is kept.

    InputError for a photo that cannot be read, and where features are not finite.
    """
    nodes = [make_node(f"Reduce{end}", [name], [f"{name}:{end}"], keepdims=0) for name in features for end in ENDS]
    wanted = [f"{name}:{end}" for name in features for end in ENDS]
    low, high = np.zeros((2, len(features)))
    for path, values in _measure(model, nodes, wanted, paths, rule, "ranges of the features"):
        if not np.isfinite(values).all():
            raise InputError(
                f"{path}: the network's features are not finite here; train it before it is given eight bits"
            )
        low, high = np.minimum(low, values[0::2]), np.maximum(high, values[1::2])
    return {name: (float(low[index]), float(high[index])) for index, name in enumerate(features)}


def signal_to_noise(
    model: onnx.ModelProto,
    readers: Sequence[str],
    ranges: Ranges,
    paths: Sequence[File],
    rule: ResizeRule,
    features: EightBits | Literal["uint8"] = "uint8",
) -> list[float]:
    """Of each node that reads features, alone, in dB: its output's power, to that of the error that eight bits make.

    readers: the nodes' names, in the graph's order. The features in `ranges` are rounded to numbers of eight bits where
    the node reads them: unsigned with a zero point, or signed and symmetric, or fp8; the weights, channel by channel,
    to int8 or fp8 where the node gives a feature.
    """
    twins = _Twins(model.graph, ranges, features)
    chosen = set(readers)
    nodes = [node for node in model.graph.node if node.name in chosen]
    for node in nodes:
        twins.measure(node)
    wanted = [f"{node.output[0]}:{what}" for node in nodes for what in ("signal", "noise")]
    powers = np.zeros((len(nodes), 2))
    constants = twins.constants.values()
    for _, values in _measure(model, twins.nodes, wanted, paths, rule, "sensitivity of the layers", constants):
        powers += values.reshape(-1, 2)
    signal, noise = powers.T
    exact = noise == 0  # as where all features are 0
    return [float(ratio) for ratio in np.where(exact, np.inf, 10 * np.log10((signal + TINY) / (noise + exact)))]


class _Twins:
    """Nodes beside those of a network, which compute the same from rounded features, and the error of that."""

    def __init__(self, graph: onnx.GraphProto, ranges: Ranges, features: EightBits | Literal["uint8"]) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, onnx.TensorProto] = {}
        self._ranges = ranges
        self._features = features
        self._kind: EightBits = "fp8" if features == "fp8" else "int8"  # of the weights
        self._weights = {tensor.name: tensor for tensor in graph.initializer}
        self._moved = {node.output[0]: node for node in graph.node if node.op_type in MOVING}
        self._made: set[str] = set()

    def measure(self, node: onnx.NodeProto) -> None:
        """Adds what gives the numbers OUTPUT:signal and OUTPUT:noise of the node's first output."""
        output = node.output[0]
        inputs = [self._rounded(name) for name in node.input]
        if node.op_type in LAYERS and output in self._ranges:
            weight, axis = node.input[1], channel_axis(node)
            scale = channel_steps(to_array(self._weights[weight]), axis, self._kind)
            inputs[1] = self._round(weight, scale, np.zeros(scale.shape, STORED[self._kind]), axis)
        self._copy(node, inputs, "twin")
        self.nodes += [
            make_node("Sub", [f"{output}:twin", output], [f"{output}:error"]),
            make_node("ReduceSumSquare", [output], [f"{output}:signal"], keepdims=0),
            make_node("ReduceSumSquare", [f"{output}:error"], [f"{output}:noise"], keepdims=0),
        ]

    def _rounded(self, name: str) -> str:
        """The tensor where its feature is rounded; itself where it is none."""
        if name in self._ranges:
            low, high = self._ranges[name]
            if self._features != "uint8":
                return self._round(name, steps(max(-low, high), self._kind), np.zeros((), STORED[self._kind]))
            step = np.float32(max(high - low, TINY) / UNSIGNED)
            return self._round(name, step, np.uint8(round(-low / step)))
        node = self._moved.get(name)
        inputs = [self._rounded(each) for each in node.input] if node else []
        if node is None or inputs == list(node.input):
            return name
        if name not in self._made:
            self._made.add(name)
            self._copy(node, inputs, "rounded")
        return f"{name}:rounded"

    def _round(self, name: str, scale: np.generic | np.ndarray, zero: np.generic | np.ndarray, axis: int = 1) -> str:
        if name not in self._made:
            self._made.add(name)
            rule = [f"{name}:step", f"{name}:zero"]
            self.constants |= {
                each: from_array(np.asarray(value), each) for each, value in zip(rule, (scale, zero), strict=True)
            }
            self.nodes.append(make_node("QuantizeLinear", [name, *rule], [f"{name}:integers"], axis=axis))
            self.nodes.append(
                make_node("DequantizeLinear", [f"{name}:integers", *rule], [f"{name}:rounded"], axis=axis)
            )
        return f"{name}:rounded"

    def _copy(self, node: onnx.NodeProto, inputs: list[str], suffix: str) -> None:
        copied = copy.deepcopy(node)
        copied.name = f"{node.name}:{suffix}"
        copied.input[:] = inputs
        copied.output[:] = [f"{name}:{suffix}" for name in node.output]
        self.nodes.append(copied)


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
    paths: Sequence[File],
    rule: ResizeRule,
    title: str,
    constants: Iterable[onnx.TensorProto] = (),
) -> Iterator[tuple[File, np.ndarray]]:
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
