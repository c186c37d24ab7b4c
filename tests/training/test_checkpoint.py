"""Checkpoints: what goes in comes out, and every file that is not a good checkpoint gets one clear line."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tests.small_disk import small_disk
from tests.training.tiny_network import SMALL, settings
from training.checkpoint import Checkpoint, copy_tensors, digest, load, load_model, save, versions
from training.config import Config
from training.model.upsnet import UPSNet
from training.predictor import PyTorchPredictor
from upsnet.categories import Categories
from upsnet.errors import InputError
from upsnet.geometry import NetworkBatch

CATEGORIES = Categories.from_coco(
    [
        {"id": 3, "name": "cat", "isthing": 1},
        {"id": 9, "name": "sky", "isthing": 0},
        {"id": 5, "name": "sea", "isthing": 0},
    ]
)


def small_config(**model: Any) -> Config:
    return settings(Path("x"), model=SMALL | {"panoptic": {}} | model)


def small_checkpoint(config: Config | None = None) -> Checkpoint:
    torch.manual_seed(0)
    config = config or small_config()
    model = UPSNet(config.model, CATEGORIES.num_stuff, CATEGORIES.num_things)
    momentum = {"rpn.conv.weight.momentum_buffer": torch.randn(3, 2), "rpn.conv.weight.step": torch.tensor(7.0)}
    return Checkpoint(config, CATEGORIES, 7, 0.25, model.state_dict(), momentum, versions())


@pytest.fixture
def path(tmp_path: Path) -> Path:
    save(tmp_path / "last.safetensors", small_checkpoint())
    return tmp_path / "last.safetensors"


def rewrite(path: Path, remove: tuple[str, ...] = (), **changes: str) -> None:
    """Other metadata in a file that is whole: its SHA-256 is right."""
    with safe_open(path, framework="pt") as file:
        metadata = {key: value for key, value in (file.metadata() | changes).items() if key not in (*remove, "sha256")}
    tensors = load_file(path)
    save_file(tensors, path, metadata | {"sha256": digest(tensors, metadata)})


def refusal(path: Path) -> str:
    """The one line that load_model refuses the file with."""
    with pytest.raises(InputError) as caught:
        load_model(path)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    return message


def test_round_trip(path: Path) -> None:
    saved, loaded = small_checkpoint(), load(path)
    assert (loaded.config, loaded.categories, loaded.step, loaded.best_pq) == (saved.config, CATEGORIES, 7, 0.25)
    assert loaded.versions["torch"] == torch.__version__.split("+")[0]
    model, config, categories, step = load_model(path)
    assert not model.training
    assert (config, categories, step) == (saved.config, CATEGORIES, 7)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, saved.model[name])
    assert loaded.optimizer.keys() == saved.optimizer.keys() and loaded.ema == {} and loaded.scaler == {}
    assert all(torch.equal(loaded.optimizer[name], tensor) for name, tensor in saved.optimizer.items())


def test_others_may_read_it_as_any_file(path: Path, tmp_path: Path) -> None:
    (tmp_path / "any").touch()
    assert path.stat().st_mode == (tmp_path / "any").stat().st_mode


def test_all_that_a_run_keeps(tmp_path: Path) -> None:
    saved = small_checkpoint()._replace(
        best_pq=None, images_per_step=16, evaluated=False, scaler={"scale": 1.5e-7}, image_ids="ab", versions={"a": "1"}
    )
    save(tmp_path / "x", saved)
    loaded = load(tmp_path / "x")
    for field in Checkpoint._fields:
        if field not in ("model", "optimizer"):
            assert getattr(loaded, field) == getattr(saved, field)


def test_averaged_weights_are_the_ones_to_predict_with(tmp_path: Path) -> None:
    saved = small_checkpoint()
    ema = {name: tensor + 1 for name, tensor in saved.model.items()}
    save(tmp_path / "x", saved._replace(ema=ema))
    model, *_ = load_model(tmp_path / "x")
    assert all(torch.equal(tensor, ema[name]) for name, tensor in model.state_dict().items())
    assert all(torch.equal(tensor, saved.model[name]) for name, tensor in load(tmp_path / "x").model.items())


def test_tensors_of_any_layout_type_and_size(tmp_path: Path) -> None:
    """Strided as channels_last weights are, empty, without dimensions, of two bytes."""
    tensors = {
        "a": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "b": torch.zeros(0, 4),
        "c": torch.tensor(True),
        "d": torch.randn(3).bfloat16(),
    }
    save(tmp_path / "x", small_checkpoint()._replace(optimizer=tensors))
    loaded = load(tmp_path / "x").optimizer
    for name, tensor in tensors.items():
        assert torch.equal(loaded[name], tensor) and loaded[name].dtype == tensor.dtype


def test_copies_keep_the_layout() -> None:
    """Optimizers' kernels expect a state of its parameter's strides."""
    own = {"a": torch.zeros(2, 3, 4, 5).to(memory_format=torch.channels_last)}
    strides, saved = own["a"].stride(), {"a": torch.randn(2, 3, 4, 5)}
    copy_tensors(own, saved, "x")
    assert own["a"].stride() == strides and torch.equal(own["a"], saved["a"])
    with pytest.raises(InputError, match=r"^x: missing a; unexpected b; give"):
        copy_tensors(own, {"b": torch.zeros(1)}, "x")


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


def test_not_ours(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    for metadata in (None, {"format": "pt"}):
        save_file(small_checkpoint().model, path, metadata)
        assert "not a checkpoint of this project" in refusal(path)
    path.write_text("not a checkpoint at all\n" * 100)
    assert "not a checkpoint" in refusal(path)


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("resnet50.pth", b"PK\3\4", "`upsnet import FILE --out CHECKPOINT`"),
        ("old.pkl", b"\x80\2\x8a\nl\xfc\x9cF\xf9 j\xa8P", "a file of torch.save"),
        ("model.onnx", b"\x08\x08", "an exported model"),
        ("model.plan", b"ftrt", "a TensorRT engine"),
        ("config.yaml", b"name: demo", "a text file"),
        ("last.safetensors", b"version https://git-lfs.github.com/spec/v1", "git lfs pull"),
        ("best.safetensors", b"<!DOCTYPE html>", "a web page"),
    ],
)
def test_a_file_of_another_kind_is_named(tmp_path: Path, name: str, content: bytes, expected: str) -> None:
    (tmp_path / name).write_bytes(content)
    assert expected in refusal(tmp_path / name)


def test_a_header_of_any_length_is_no_other_kind(tmp_path: Path) -> None:
    """A safetensors file begins with its header's length: that of this one is a pickle's first byte."""
    for length in range(8):
        save_file({"a": torch.zeros(1)}, tmp_path / "x", {"format": "pt", "fill": "-" * 8 * length})
        assert "weights in the safetensors format" in refusal(tmp_path / "x")
    (tmp_path / "x").write_bytes(b"\x80\2\0\0\0\0\0\0{" + b" " * 100)
    assert "truncated or corrupt" in refusal(tmp_path / "x")


class Marker:
    """Creates a folder when it is unpickled by a careless reader."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def test_pickled_checkpoints_of_older_versions_are_not_opened(tmp_path: Path) -> None:
    torch.save(Marker(tmp_path / "bad"), tmp_path / "last.pt")
    assert "older versions of this project" in refusal(tmp_path / "last.pt")
    assert not (tmp_path / "bad").exists()


def test_other_format_version_and_missing_part(path: Path) -> None:
    rewrite(path, format_version="3")
    assert "checkpoint format 3, this version reads 2" in refusal(path)
    save(path, small_checkpoint())
    rewrite(path, remove=("config", "step"))
    assert "without config, step" in refusal(path)


def test_unknown_configuration_key(path: Path) -> None:
    content = small_config().model_dump(mode="json")
    content["model"]["fpn"]["colour"] = 1
    rewrite(path, config=json.dumps(content))
    assert "model.fpn.colour" in refusal(path) and "use the version of upsnet-trt that wrote it" in refusal(path)


def test_changed_metadata_is_noticed(path: Path) -> None:
    content = path.read_bytes()
    assert content.count(b'"step":"7"') == 1
    path.write_bytes(content.replace(b'"step":"7"', b'"step":"8"'))
    assert "SHA-256" in refusal(path)


def test_every_wrong_weight_is_named(path: Path) -> None:
    weights = small_checkpoint().model
    names = list(weights)
    missing, wrong = [names[0], names[10]], [names[5], names[20]]
    for name in missing:
        del weights[name]
    for name in wrong:
        weights[name] = torch.zeros(3, 1, 2)
    weights |= {"head.extra": torch.zeros(1), "head.more": torch.zeros(1)}
    save(path, small_checkpoint()._replace(model=weights))
    message = refusal(path)
    for name in missing:
        assert f"missing {name};" in message
    for name in wrong:
        assert f"{name} is [3, 1, 2] instead of" in message
    assert "unexpected head.extra; unexpected head.more" in message


@pytest.mark.parametrize("part", ["model", "ema", "optimizer"])
def test_numbers_that_are_not_finite_are_named(path: Path, part: str) -> None:
    checkpoint = small_checkpoint()
    tensors = {name: tensor.clone() for name, tensor in checkpoint.model.items()}
    for name in list(tensors)[:5]:
        tensors[name].view(-1)[-1] = -math.inf
    spoiled: dict[str, Any] = {part: tensors}
    save(path, checkpoint._replace(**spoiled))
    assert f"{path}: not finite: {part}." in refusal(path) and " and 2 more; give the path of a" in refusal(path)


def test_failed_save_leaves_the_old_file_alone(path: Path) -> None:
    before = path.read_bytes()
    with pytest.raises(TypeError):
        save(path, small_checkpoint()._replace(versions={"torch": object()}))  # type: ignore[dict-item]
    shared = torch.zeros(4)
    with pytest.raises(RuntimeError, match="share memory"):
        save(path, small_checkpoint()._replace(optimizer={"a": shared, "b": shared}))
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name]


def test_predictor(path: Path) -> None:
    predictor = PyTorchPredictor(path)
    assert predictor.manifest.resize == small_config().data.resize
    assert predictor.manifest.categories_table == CATEGORIES
    assert predictor.manifest.max_detections == 100
    images = np.zeros((2, 64, 96, 3), np.uint8)
    raw = predictor.predict(NetworkBatch(images, np.array([[64, 96], [64, 80]], np.int32), np.ones(2, np.float32)))
    assert (raw.panoptic.dtype, raw.panoptic.shape) == (np.uint8, (2, 64, 96))
    assert (raw.segments.dtype, raw.segments.shape) == (np.float32, (2, 102, 7))
    assert (raw.segment_count.dtype, raw.segment_count.shape) == (np.int32, (2,))
    with pytest.raises(InputError, match="device 'gpu0'"):
        PyTorchPredictor(path, device="gpu0")
    with pytest.raises(InputError, match=r"device 'cuda:99': PyTorch (has no GPU here|sees)"):
        PyTorchPredictor(path, device="cuda:99")


def test_too_many_segments_for_the_map(tmp_path: Path) -> None:
    table = Categories.from_coco([{"id": i, "name": f"s{i}", "isthing": int(i == 151)} for i in range(1, 152)])
    path = tmp_path / "last.safetensors"
    config = small_config(panoptic={"max_detections": 150})
    model = UPSNet(config.model, table.num_stuff, table.num_things)
    save(path, small_checkpoint()._replace(config=config, categories=table, model=model.state_dict()))
    with pytest.raises(InputError, match="exceed 255 segments"):
        PyTorchPredictor(path)


def test_a_full_disk_keeps_the_checkpoint_that_is_there(path: Path) -> None:
    before = path.read_bytes()
    words = r"last\.safetensors: cannot be written: File too large; the one that was there before is whole"
    with small_disk(100_000), pytest.raises(InputError, match=words):
        save(path, small_checkpoint())
    assert path.read_bytes() == before and list(path.parent.iterdir()) == [path]
    with small_disk(100_000), pytest.raises(InputError, match=r"other\.safetensors: cannot be written: [A-z ]+$"):
        save(path.with_name("other.safetensors"), small_checkpoint())
