"""What a recipe is worth: PQ on a data set, and the time of an image. On a GPU with TensorRT both are the engine's;
elsewhere PQ is that of the network rounded in PyTorch, and the time an estimate by a GPU's data sheet."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from tqdm import tqdm

from eval.precision_search.estimate import layers_of, milliseconds
from eval.precision_search.journal import Evaluation, Journal
from eval.precision_search.rounding import Rounded
from eval.precision_search.search import Figures, OutOfBudgetError
from eval.profiling.roofline import Roofline
from export.building import build_engine
from export.features import LAYERS
from export.modules import module_at, modules_of, scope_of
from export.onnx_export import export, to_model_proto
from export.precision import prepare
from export.quantization import fold
from export.quantization import layers_of as eight_bit_layers
from training.model.upsnet import UPSNet
from training.predictor import UPSNetPredictor
from upsnet.datasets.folder import PanopticFolder, Record
from upsnet.datasets.places import File
from upsnet.driver import find_driver, gpu_problem
from upsnet.geometry import NetworkBatch, collate, to_network
from upsnet.manifest import EIGHT_BITS, Manifest, Recipe
from upsnet.metrics.evaluation import Partial, predict_records
from upsnet.photos import read_photo
from upsnet.runtimes.open import open_runtime
from upsnet.runtimes.options import RuntimeOptions
from upsnet.runtimes.predictor import Predictor
from upsnet.tensorrt.api import MODULES, Name, installed


class Measure(Protocol):
    """One way to measure recipes."""

    how: str  # in words
    unit: str  # of the time
    estimated: bool  # whether the time is

    def run(self, recipe: Recipe, dataset: PanopticFolder, records: Sequence[Record]) -> Figures:
        """On these images of the data set. InputError names an image that cannot be read."""
        ...


def builder_here() -> Name | None:
    """The TensorRT whose engines this machine can build and run, if any."""
    return None if gpu_problem() else next((name for name in MODULES if installed(name)), None)


def engines_of(backend: Name) -> str:
    """The backend's engines on this machine's GPU, in words."""
    gpus = find_driver().gpus
    return f"engines of {backend} on {gpus[0].name if gpus else 'a GPU'}"


class EngineMeasure:
    """Exports each recipe, builds its engine and runs that."""

    unit, estimated = "ms", False

    def __init__(self, checkpoint: Path, backend: Name, data: str, photos: int) -> None:
        self._checkpoint, self._backend, self._data, self._photos = checkpoint, backend, data, photos
        self.how = engines_of(backend)

    def run(self, recipe: Recipe, dataset: PanopticFolder, records: Sequence[Record]) -> Figures:
        """The time is the median of the predictor's calls, with the copies to the GPU and back."""
        data = self._data if recipe.types & set(EIGHT_BITS) else None
        with tempfile.TemporaryDirectory() as folder:
            model, engine = Path(folder) / "model.onnx", Path(folder) / "engine"
            export(self._checkpoint, model, "mixed", recipe=recipe, data=data, photos=self._photos)
            build_engine(model, engine, backend=self._backend)
            with closing(open_runtime(RuntimeOptions(engine, self._backend))) as predictor:
                return Figures(*score(predictor, dataset, records))


class RoundingMeasure:
    """Rounds in PyTorch; the time is an estimate, in per cent of float32's."""

    unit, estimated = "% of float32's", True

    def __init__(
        self, network: Rounded, manifest: Manifest, photos: Sequence[File], gpu: Roofline, device: torch.device
    ) -> None:
        """photos: to calibrate on."""
        self._network, self._gpu = network, gpu
        self._predictor = UPSNetPredictor(network.model.to(device), manifest, device)
        self.how = f"rounded in PyTorch; time estimated from the layers with weights ({gpu.source})"
        with network.calibrate():
            for path in tqdm(photos, "ranges of the features", unit="photo", disable=None):
                self._predictor.predict(collate([to_network(read_photo(path), manifest.resize)]))
        with network.observe() as calls:
            self._predictor.predict(_usual(manifest))
        self._layers = layers_of(calls, network)
        self._all = milliseconds(self._layers, Recipe(), gpu)

    def run(self, recipe: Recipe, dataset: PanopticFolder, records: Sequence[Record]) -> Figures:
        with self._network.computing(recipe):
            pq, _ = score(self._predictor, dataset, records)
        return Figures(pq, 100 * milliseconds(self._layers, recipe, self._gpu) / self._all)


def rounded(model: UPSNet, manifest: Manifest) -> Rounded:
    """The network as it is exported, ready to be rounded."""
    network = prepare(model, "fp32")
    proto = to_model_proto(network, manifest.resize)
    fold(proto)
    able = {node.name for node in eight_bit_layers(proto.graph)}
    layers = [node for node in proto.graph.node if node.op_type in LAYERS]
    own = modules_of(network)
    names = [module_at(scope_of(node), own) for node in layers]
    return Rounded(network, own, [node.name in able for node in layers], names)


def score(predictor: Predictor, dataset: PanopticFolder, records: Sequence[Record]) -> tuple[float, float]:
    """PQ as a fraction, 0 where no segment is there, and the median of milliseconds an image."""
    part, times = Partial(("pq",), dataset.categories), []
    answers = predict_records(predictor, dataset, records)
    for answer in tqdm(answers, "images", len(records), unit="image", disable=None, leave=False):
        part.add(answer, dataset.categories)
        times.append(answer.milliseconds)
    return part.results(dataset.categories)["pq"] or 0.0, statistics.median(times)


def _usual(manifest: Manifest) -> NetworkBatch:
    """Noise of the usual size: one photo of 4 to 3."""
    rule = manifest.resize
    height, width = rule.padded_size(*rule.network_size(3 * rule.short_side, 4 * rule.short_side))
    images = np.random.default_rng(0).integers(0, 256, (1, height, width, 3), np.uint8)
    return NetworkBatch(images, np.array([[height, width]], np.int32), np.ones(1, np.float32))


class Evaluator:
    """Measures recipes for a search, within a budget; the journal's figures cost nothing."""

    def __init__(self, measure: Measure, journal: Journal, dataset: PanopticFolder, images: int, budget: int) -> None:
        self._measure, self._journal, self._dataset, self._budget = measure, journal, dataset, budget
        records = dataset.records
        count = min(images, len(records))
        self._some = [records[index * len(records) // count] for index in range(count)]
        self.bar = tqdm(total=budget, unit="evaluation", disable=None)
        self.bar.update(min(self.spent, budget))

    @property
    def images(self) -> int:
        return len(self._dataset)

    @property
    def searched_images(self) -> int:
        return len(self._some)

    @property
    def spent(self) -> int:
        """Evaluations of the search so far, earlier runs' too."""
        return sum(each.images == len(self._some) for each in self._journal.evaluations)

    def close(self) -> None:
        """Ends the bar."""
        self.bar.close()

    def note(self, text: str) -> None:
        """What is being looked at."""
        self.bar.set_description(text[:60])

    def __call__(self, recipe: Recipe, whole: bool = False) -> Figures:
        records = self._dataset.records if whole else self._some
        known = self._journal.find(recipe, len(records))
        if known is None:
            if not whole and self.spent >= self._budget:
                raise OutOfBudgetError
            figures = self._measure.run(recipe, self._dataset, records)
            known = Evaluation(recipe=recipe, images=len(records), pq=figures.pq, time=figures.time)
            self._journal.add(known)
            self.bar.update()
        return Figures(known.pq, known.time)
