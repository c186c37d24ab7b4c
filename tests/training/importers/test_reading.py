"""Files of weights in all forms that users have: the contents say which one it is, and nothing in them is executed."""

from __future__ import annotations

import argparse
import os
import pickle
import runpy
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from training.importers.building import family_of
from training.importers.reading import read_weights
from upsnet.errors import InputError

WEIGHTS = {
    "backbone.bottom_up.res4.0.conv1.weight": torch.arange(24.0).reshape(2, 3, 4),
    "sem_seg_head.predictor.weight": torch.tensor([1.5, -2.0]),
    "sem_seg_head.predictor.bias": torch.tensor(3.0),
}
ARRAYS = {name: tensor.numpy() for name, tensor in WEIGHTS.items()}
EXTRA = ("cell_anchors", "pixel_")


@pytest.fixture(scope="module")
def make_checkpoint(tmp_path_factory: pytest.TempPathFactory, shared_data: Path) -> dict[str, Any]:
    """The functions of the shared data's script, which writes the forms that detectron2 has."""
    return runpy.run_path(str(shared_data / "panoptic_fpn_golden/make_checkpoint.py"))


def check(found: dict[str, Tensor]) -> None:
    assert found.keys() == WEIGHTS.keys()
    assert all(torch.equal(tensor, WEIGHTS[name]) for name, tensor in found.items())


@pytest.mark.parametrize("form", ["zoo", "plain", "train", "train-old", "train-ddp"])
def test_forms_of_detectron2(tmp_path: Path, make_checkpoint: dict[str, Any], form: str) -> None:
    path = tmp_path / "weights.bin"  # its name says nothing
    if form == "zoo":
        make_checkpoint["write_zoo"](ARRAYS, path)
    else:
        make_checkpoint["write_torch"](ARRAYS, path, form)
    found = read_weights(path)
    more = [name for name in found if any(part in name for part in EXTRA)]
    assert len(more) == {"zoo": 5, "train-old": 7}.get(form, 0)
    check({name: tensor for name, tensor in found.items() if name not in more})


@pytest.mark.parametrize("old", [False, True], ids=["zip", "before 1.6"])
@pytest.mark.parametrize("form", ["bare", "ordered", "model", "prefix", "parameters", "views"])
def test_forms_of_torch(tmp_path: Path, form: str, old: bool) -> None:
    content: Any = {
        "bare": WEIGHTS,
        "ordered": OrderedDict(WEIGHTS),
        "model": {"model": OrderedDict(WEIGHTS), "iteration": 3, "scheduler": {"lr": 0.5}},
        "prefix": {f"module.{name}": tensor for name, tensor in WEIGHTS.items()},
        "parameters": {name: torch.nn.Parameter(tensor) for name, tensor in WEIGHTS.items()},
        "views": {name: torch.stack([tensor, tensor], dim=-1)[..., 0] for name, tensor in WEIGHTS.items()},
    }[form]
    torch.save(content, tmp_path / "weights.pkl", _use_new_zipfile_serialization=not old)
    check(read_weights(tmp_path / "weights.pkl"))


def test_a_prefix_of_some_stays(tmp_path: Path) -> None:
    torch.save({"module.a": torch.zeros(1), "b": torch.zeros(1)}, tmp_path / "weights.pth")
    assert set(read_weights(tmp_path / "weights.pth")) == {"module.a", "b"}


class Call:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch HACKED",)


@pytest.mark.parametrize("old", [False, True])
def test_a_torch_file_with_more_than_tensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, old: bool) -> None:
    """Refused with the cure, even where the network itself could be read; nothing is called."""
    monkeypatch.chdir(tmp_path)
    for number, value in enumerate((Call(), argparse.Namespace(lr=1), Path("x"))):
        path = tmp_path / f"{number}.pth"
        torch.save({"model": WEIGHTS, "trainer": value}, path, _use_new_zipfile_serialization=not old)
        with pytest.raises(InputError, match=r"\.pth: .*weights_only=True .*torch\.save\(\{'model'") as error:
            read_weights(path)
        assert len(str(error.value)) < 600
    assert not (tmp_path / "HACKED").exists()


@pytest.mark.parametrize(
    "content",
    [[1], {"a": 1}, {"model": {"a": [1.0]}}, {"a": torch.zeros(2).to_sparse()}, {"a": torch.zeros(2, device="meta")}],
)
def test_what_is_no_tensor_is_named(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "weights.pth")
    with pytest.raises(InputError, match=r"weights\.pth: not a plain state_dict"):
        read_weights(tmp_path / "weights.pth")


CAFFE2 = {"blobs": {"conv1_w": np.zeros(3, np.float32)}}


@pytest.mark.parametrize("content", [CAFFE2, CAFFE2["blobs"], {"model": ARRAYS}, {"__author__": "x"}, {}])
def test_a_pickle_of_caffe2_is_refused(tmp_path: Path, content: object) -> None:
    """As detectron2 tells them apart: its own say who wrote them."""
    (tmp_path / "weights.pkl").write_bytes(pickle.dumps(content))
    with pytest.raises(InputError, match=r"weights\.pkl: a pickle without .* Caffe2"):
        read_weights(tmp_path / "weights.pkl")


def test_files_of_other_kinds(tmp_path: Path) -> None:
    contents = {
        "Git LFS": b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n",
        "web page": b"<html>404</html>",
        "HDF5": b"\x89HDF\r\n",
        "needs no import": b"\x08\0\0\0\0\0\0\0{}      ",
        "truncated or corrupt": b"PK\3\4 and no more",
        "or no file of weights": b"weights",
    }
    for words, content in contents.items():
        (tmp_path / "a.pkl").write_bytes(content)
        with pytest.raises(InputError, match=words):
            read_weights(tmp_path / "a.pkl")
    (tmp_path / "a.pkl").write_bytes(b"")
    for path, words in ((tmp_path / "a.pkl", "truncated"), (tmp_path / "b", "no such"), (tmp_path, "cannot be read")):
        with pytest.raises(InputError, match=words):
            read_weights(path)


@pytest.mark.parametrize("old", [False, True])
def test_truncated_torch_files(tmp_path: Path, old: bool) -> None:
    path = tmp_path / "weights.pth"
    torch.save(WEIGHTS, path, _use_new_zipfile_serialization=not old)
    content = path.read_bytes()
    for end in range(30, len(content) - 1, 37):
        path.write_bytes(content[:end])
        with pytest.raises(InputError, match=r"weights\.pth: "):
            read_weights(path)


def test_the_family_is_told_by_the_names(tmp_path: Path) -> None:
    assert family_of(WEIGHTS, tmp_path).name == "detectron2's Panoptic FPN"
    assert family_of({"resnet_backbone.conv1.conv1.weight": torch.zeros(1)}, tmp_path).name == "the original UPSNet"
    with pytest.raises(InputError, match=r"no weights of the original UPSNet and .*: its first tensor is layer1"):
        family_of({"layer1.0.conv1.weight": torch.zeros(1)}, tmp_path)
