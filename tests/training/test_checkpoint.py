"""Checkpoints: what goes in comes out, and every file that is not a good checkpoint gets one clear line."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from panoptic.categories import Categories
from panoptic.errors import InputError
from training.checkpoint import Checkpoint, load, load_model, save, versions
from training.config import Config, parse_config
from training.model.upsnet import UPSNet
from training.predictor import PyTorchPredictor

CATEGORIES = Categories.from_coco(
    [
        {"id": 3, "name": "cat", "isthing": 1},
        {"id": 9, "name": "sky", "isthing": 0},
        {"id": 5, "name": "sea", "isthing": 0},
    ]
)


def small_config(**model: Any) -> Config:
    split = {"json_file": "x.json", "segments": "x", "images": "x"}
    sections = {
        "backbone": {"stem": [4, 4], "widths": [4, 4, 8, 8], "depths": [1, 1, 1, 1], "expansion": 1},
        "fpn": {"channels": 4},
        "rpn": {"channels": 4, "test_top_n": 20},
        "box_head": {"hidden": 8},
        "mask_head": {"channels": 4, "layers": 1},
        "semantic_head": {"channels": [4]},
    }
    return parse_config(
        {
            "name": "small",
            "model": sections | model,
            "data": {"train": split, "val": split, "resize": {"short_side": 64, "max_side": 96}},
            "schedule": {"iterations": 10, "images_per_step": 1},
        },
        "test",
    )


def small_checkpoint(config: Config | None = None) -> Checkpoint:
    torch.manual_seed(0)
    config = config or small_config()
    model = UPSNet(config.model, CATEGORIES.num_stuff, CATEGORIES.num_things)
    return Checkpoint(config, CATEGORIES, 7, 0.25, model.state_dict(), {"state": {}, "param_groups": []}, versions())


@pytest.fixture
def path(tmp_path: Path) -> Path:
    save(tmp_path / "last.safetensors", small_checkpoint())
    return tmp_path / "last.safetensors"


def rewrite(path: Path, **changes: Any) -> None:
    torch.save(torch.load(path, weights_only=True) | changes, path)


def refusal(path: Path, config: Config | None = None) -> str:
    """The one line that load_model refuses the file with."""
    with pytest.raises(InputError) as caught:
        load_model(path, config)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    return message


def test_round_trip(path: Path) -> None:
    saved, loaded = small_checkpoint(), load(path)
    assert (loaded.config, loaded.categories, loaded.step, loaded.best_pq) == (saved.config, CATEGORIES, 7, 0.25)
    assert loaded.versions["torch"] == torch.__version__.split("+")[0]
    model, config, categories, step = load_model(path, small_config())
    assert not model.training
    assert (config, categories, step) == (saved.config, CATEGORIES, 7)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, saved.model[name])


def test_missing_file_and_folder(tmp_path: Path) -> None:
    assert "no such checkpoint" in refusal(tmp_path / "none.pt")
    assert "no such checkpoint" in refusal(tmp_path)


@pytest.mark.parametrize("share", [0.0, 0.0001, 0.1, 0.5, 0.9, 0.9999])
def test_truncated(path: Path, share: float) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    assert "truncated or corrupt" in refusal(path)


def test_flipped_bit_in_a_weight(path: Path) -> None:
    weight = max(small_checkpoint().model.values(), key=torch.Tensor.numel).numpy().tobytes()
    content = bytearray(path.read_bytes())
    place = content.find(weight)
    assert place > 0
    content[place + 1] ^= 1
    path.write_bytes(content)
    assert "truncated or corrupt" in refusal(path)


def test_damaged_anywhere(path: Path) -> None:
    """Bytes overwritten at random: refused in one line, or (in a file name's padding, say) read without any change."""
    good, expected = path.read_bytes(), small_checkpoint()
    random = np.random.default_rng(0)
    refused = 0
    for _ in range(150):
        content = bytearray(good)
        start = (
            int(random.integers(len(content)))
            if random.random() < 0.5
            else len(content) - int(random.integers(1, 9000))
        )
        for place in range(start, min(start + int(random.integers(1, 5)), len(content))):
            content[place] = int(random.integers(256))
        path.write_bytes(content)
        try:
            loaded = load(path)
        except InputError as error:
            refused += 1
            assert "\n" not in str(error)
        else:
            assert (loaded.config, loaded.step) == (expected.config, expected.step)
            assert all(torch.equal(loaded.model[name], tensor) for name, tensor in expected.model.items())
    assert refused > 50


class Marker:
    """Creates a file when it is unpickled by a careless reader."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def test_not_ours(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    contents: list[Any] = [
        {},
        [1, 2],
        torch.zeros(3),
        small_checkpoint().model,
        {"format": "other"},
        Marker(tmp_path / "bad"),
    ]
    for content in contents:
        torch.save(content, path)
        assert "not a checkpoint of this project" in refusal(path)
    path.write_text("not a zip archive at all\n" * 100)
    assert "not a checkpoint" in refusal(path)
    assert not (tmp_path / "bad").exists()


def test_other_format_version_and_missing_part(path: Path) -> None:
    rewrite(path, format_version=2)
    assert "checkpoint format 2, this version reads 1" in refusal(path)
    save(path, small_checkpoint())
    content = torch.load(path, weights_only=True)
    del content["optimizer"], content["step"]
    torch.save(content, path)
    assert "without step, optimizer" in refusal(path)


def test_unknown_configuration_key(path: Path) -> None:
    content = torch.load(path, weights_only=True)["config"]
    content["model"]["fpn"]["colour"] = 1
    rewrite(path, config=content)
    assert "model.fpn.colour" in refusal(path)


def test_every_wrong_weight_is_named(path: Path) -> None:
    weights = small_checkpoint().model
    names = list(weights)
    missing, wrong = [names[0], names[10]], [names[5], names[20]]
    for name in missing:
        del weights[name]
    for name in wrong:
        weights[name] = torch.zeros(3, 1, 2)
    rewrite(path, model={**weights, "head.extra": torch.zeros(1), "head.more": torch.zeros(1)})
    message = refusal(path)
    for name in missing:
        assert f"missing {name};" in message
    for name in wrong:
        assert f"{name} is [3, 1, 2] instead of" in message
    assert "unexpected head.extra; unexpected head.more" in message


def test_every_differing_key_is_named(path: Path) -> None:
    other = small_config(fpn={"channels": 8}, panoptic={"max_detections": 7, "nms_threshold": 0.4})
    message = refusal(path, other)
    assert "model.fpn.channels (4 against 8)" in message
    assert "model.panoptic.max_detections (100 against 7)" in message
    assert "model.panoptic.nms_threshold (0.5 against 0.4)" in message
    assert message.count(" against ") == 4  # these three, and the words "checkpoint against given"


def test_failed_save_leaves_the_old_file_alone(path: Path) -> None:
    before = path.read_bytes()
    with pytest.raises(AttributeError):
        save(path, small_checkpoint()._replace(optimizer={"state": lambda: None}))
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name]


def test_predictor(path: Path) -> None:
    predictor = PyTorchPredictor(path)
    assert predictor.manifest.resize == small_config().data.resize
    assert predictor.manifest.categories_table == CATEGORIES
    assert predictor.manifest.max_detections == 100
    images = np.zeros((2, 64, 96, 3), np.uint8)
    raw = predictor.predict(images, np.array([[64, 96], [64, 80]], np.int32), np.ones(2, np.float32))
    assert (raw.panoptic.dtype, raw.panoptic.shape) == (np.uint8, (2, 64, 96))
    assert (raw.segments.dtype, raw.segments.shape) == (np.float32, (2, 102, 7))
    assert (raw.segment_count.dtype, raw.segment_count.shape) == (np.int32, (2,))
    with pytest.raises(InputError, match="device 'gpu0'"):
        PyTorchPredictor(path, device="gpu0")
    with pytest.raises(InputError, match="CUDA devices"):
        PyTorchPredictor(path, device="cuda:99")


def test_too_many_segments_for_the_map(tmp_path: Path) -> None:
    stuff = Categories.from_coco([{"id": i, "name": f"s{i}", "isthing": 0} for i in range(1, 151)])
    path = tmp_path / "last.safetensors"
    config = small_config(panoptic={"max_detections": 150})
    model = UPSNet(config.model, stuff.num_stuff, stuff.num_things)
    save(path, small_checkpoint()._replace(config=config, categories=stuff, model=model.state_dict()))
    with pytest.raises(InputError, match="exceed 255 segments"):
        PyTorchPredictor(path)
