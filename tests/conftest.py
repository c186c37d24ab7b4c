"""Fixtures that several test folders use: a tiny data set, a predictor without a network, a trained run."""

from __future__ import annotations

import json
import logging
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from upsnet.categories import Categories
from upsnet.datasets.coco_format import id2rgb
from upsnet.geometry import NetworkBatch, ResizeRule
from upsnet.manifest import Manifest
from upsnet.runtimes.predictor import RawPrediction

ROOT = Path(__file__).resolve().parent.parent
pytest_plugins = ["tests.bucket", "tests.hand_made_dataset", "tests.shared", "tests.skips"]


def pytest_sessionstart() -> None:
    """`make test-cpus` says what is in force, and ends where its variables did not take."""
    wanted = {"default": ("DEFAULT", "v2"), "avx2": ("AVX2", "v3")}.get(os.environ.get("ATEN_CPU_CAPABILITY", ""))
    if wanted is None:
        return
    import torch

    from plugins_cuda import library

    taken = torch.backends.cpu.get_cpu_capability(), library.load("cpu").cpu_level()
    if taken != wanted:
        raise pytest.UsageError(f"instruction sets of PyTorch and the operators: {taken}, wanted {wanted}")
    print(f"instruction sets: PyTorch {taken[0]}, operators {taken[1]}")


@pytest.fixture(scope="session", autouse=True)
def heed_interrupts() -> None:
    """A shell's background jobs ignore Ctrl-C, and so would what the tests start and interrupt."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def nothing_is_left_behind() -> Iterator[None]:
    """What a test leaves behind, another one meets, in another order: so it fails itself."""

    def state() -> dict[str, object]:
        return {**os.environ, "disabled logging": logging.root.manager.disable, "folder": os.getcwd()}

    before = state()
    yield
    after = state()
    # Libraries set variables of their own on first use, for the process.
    watched = [key for key in before | after if key in before or key.startswith("UPSNET_")]
    changed = {key: (before.get(key), after.get(key)) for key in watched if before.get(key) != after.get(key)}
    changed.pop("PYTEST_CURRENT_TEST", None)
    assert changed == {}, "before, after"


@pytest.fixture(scope="session")
def project_root() -> Path:
    return ROOT


@pytest.fixture(scope="session")
def triton_environment() -> Path:
    """The virtual environment that holds the real Triton server."""
    from serving.environment import Environment
    from upsnet.errors import InputError

    try:
        return Environment.find(None).folder
    except InputError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run as `make demo` makes it, at the size of a test: two photos learned by heart, exported, its engine built."""
    pytest.importorskip("torch", reason="needs the workshop: PyTorch is not installed")
    from export.building import build_engine
    from export.onnx_export import export_onnx
    from training.config import load_config
    from training.loop import train
    from upsnet.datasets.shapes import write_shapes

    folder = tmp_path_factory.mktemp("tiny")
    data = write_shapes(folder / "shapes", {"train": 2, "val": 4}, progress=False)
    splits = [
        f"data.{name}.{key}={data / path}"
        for name in ("train", "val")
        for key, path in (("json_file", f"{name}.json"), ("segments", f"panoptic_{name}"), ("images", name))
    ]
    schedule = {"iterations": 80, "images_per_step": 2, "warmup": 10, "evaluate_every": 0, "log_every": 10}
    steps = [f"schedule.{key}={value}" for key, value in schedule.items()]
    overrides = [*splits, *steps, "name=tiny", "data.augment.flip=0"]
    config = load_config(ROOT / "training/configs/shapes.yaml", tuple(overrides))
    run = folder / "run"
    assert train(config, run, "cpu") == 0
    export_onnx(run / "last.safetensors", run / "model.onnx")
    build_engine(run / "model.onnx", run / "engine")
    return run


# A tiny data set in the COCO panoptic format, and a predictor that reads its answer out of the photo's colours

CATEGORIES = [
    {"id": 7, "name": "cat", "isthing": 1, "color": [220, 60, 40]},
    {"id": 3, "name": "dog", "isthing": 1, "color": [40, 90, 220]},
    {"id": 200, "name": "grass", "isthing": 0, "color": [80, 180, 80]},
    {"id": 9, "name": "sky", "isthing": 0, "color": [120, 190, 250]},
]
ORDER = [9, 200, 3, 7]  # contiguous: stuff by id, then things by id
SIZES = [(48, 64), (48, 48), (64, 48), (48, 60), (50, 48)]
GRASS, SKY, DOG, CAT, CAT_2 = (1, 0), (0, 0), (2, 0), (3, 0), (3, 1)


def scene(index: int) -> np.ndarray:
    """int H x W x 2: (contiguous category, instance) of every pixel of image `index`."""
    height, width = SIZES[index]
    pixels = np.zeros((height, width, 2), int)
    pixels[: height // 2], pixels[height // 2 :] = SKY, GRASS
    pixels[10:30, 4 + index : 20 + index] = CAT
    pixels[18:40, 14 + index : 30 + index] = CAT_2
    pixels[30:44, 34:44] = DOG
    return pixels


def photo_of(pixels: np.ndarray) -> np.ndarray:
    """Red = 60 (1 + category), green = 100 (1 + instance): what FakePredictor reads."""
    return np.stack([60 * (pixels[..., 0] + 1), 100 * (pixels[..., 1] + 1), np.full(pixels.shape[:2], 90)], -1).astype(
        np.uint8
    )


def write_dataset(root: Path, images: int = 5) -> Path:
    """root/val.json, val/*.png, panoptic_val/*.png. Truth: the photo, but the dog of image 2 is grass there."""
    entries, annotations = [], []
    for index in range(images):
        pixels = scene(index)
        ids = np.zeros(pixels.shape[:2], int)
        segments = []
        if index == 2:
            pixels[(pixels == DOG).all(-1)] = GRASS
        for number, key in enumerate((SKY, GRASS, DOG, CAT, CAT_2)):
            mask = (pixels == key).all(-1)
            if not mask.any():
                continue
            segment_id = 300_000 * (number + 1) + index
            ids[mask] = segment_id
            segments.append(
                {"id": segment_id, "category_id": ORDER[key[0]], "area": int(mask.sum()), "iscrowd": 0, "bbox": []}
            )
        for folder, array in (("val", photo_of(scene(index))), ("panoptic_val", id2rgb(ids))):
            (root / folder).mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(root / folder / f"{index:03d}.png")
        height, width = SIZES[index]
        entries.append({"id": 10 + index, "file_name": f"{index:03d}.png", "height": height, "width": width})
        annotations.append({"image_id": 10 + index, "file_name": f"{index:03d}.png", "segments_info": segments})
    content = {"images": entries, "annotations": annotations[::-1], "categories": CATEGORIES}
    (root / "val.json").write_text(json.dumps(content))
    return root / "val.json"


class FakePredictor:
    """A predictor without a network: categories and instances come from the photo's colours.

    permute: the segments in another order, with other scores. damage: the photo (by its size) in which a share of the
    pixels becomes void.
    """

    kernels = "none"

    def __init__(
        self, name: str, *, permute: bool = False, damage: tuple[tuple[int, int], float] | None = None
    ) -> None:
        self.name, self.permute, self.damage, self.device_name = name, permute, damage, "cpu"
        self.closed = False
        self.batches: list[int] = []
        self.manifest = Manifest(
            name="fake",
            categories=list(Categories.from_coco(CATEGORIES)),
            resize=ResizeRule(short_side=48, max_side=64),
            max_detections=8,
            versions={"torch": "0.0"},
        )

    def predict(self, batch: NetworkBatch) -> RawPrediction:
        images, sizes, _ = batch
        self.batches.append(len(images))
        panoptic = np.zeros(images.shape[:3], np.uint8)
        segments = np.zeros((len(images), 10, 7), np.float32)
        counts = np.zeros(len(images), np.int32)
        for index, (image, (height, width)) in enumerate(zip(images, sizes, strict=True)):
            keys = [SKY, GRASS, DOG, CAT, CAT_2]
            keys = keys[::-1] if self.permute else keys
            category, instance = image[..., 0] // 60 - 1, image[..., 1] // 100 - 1
            for row, (wanted, which) in enumerate(keys):
                panoptic[index][(category == wanted) & (instance == which)] = row + 1
                segments[index, row, :2] = wanted, 0.5 if self.permute else 0.9
            counts[index] = len(keys)
            if self.damage and (height, width) == self.damage[0]:
                panoptic[index, : round(self.damage[1] * height)] = 0
        return RawPrediction(panoptic, segments, counts)

    def close(self) -> None:
        self.closed = True


class Halves:
    """Sky above, grass below: a predictor for photos of any content."""

    name = "halves"
    device_name, kernels = "cpu", "none"

    def __init__(self, manifest: Manifest | None = None) -> None:
        self.manifest = manifest or FakePredictor("x").manifest
        self.batches: list[int] = []
        self.closed = 0

    def predict(self, batch: NetworkBatch) -> RawPrediction:
        images, sizes, _ = batch
        self.batches.append(len(images))
        panoptic = np.zeros(images.shape[:3], np.uint8)
        segments = np.zeros((len(images), 10, 7), np.float32)
        segments[:, 1, 0], segments[:, :2, 1] = 1, 1
        for row, (height, width) in zip(panoptic, sizes, strict=True):
            row[: (height + 1) // 2, :width], row[(height + 1) // 2 : height, :width] = 1, 2
        return RawPrediction(panoptic, segments, np.full(len(images), 2, np.int32))

    def close(self) -> None:
        self.closed += 1


@pytest.fixture
def halves() -> Halves:
    return Halves()


@pytest.fixture
def gt_json(tmp_path: Path) -> Path:
    return write_dataset(tmp_path / "data")


@pytest.fixture
def fake() -> Callable[..., FakePredictor]:
    return FakePredictor
