from __future__ import annotations

import asyncio
import os
from pathlib import Path

import numpy as np
import onnx
import pytest

from serving.benchmark.canary import compare
from serving.benchmark.measures import Turns, of_transport
from serving.benchmark.models import make_jpeg, trivial, with_rule
from serving.load_test.loops import Sample
from serving.server import TritonServer
from tests.serving.conftest import Exported, make_request
from upsnet.contract import manifest_path
from upsnet.files import sha256
from upsnet.geometry import ResizeRule
from upsnet.manifest import Manifest
from upsnet.photos import read_photo
from upsnet.runtimes.onnx_runtime import OnnxRuntimePredictor


def test_the_ratio_is_that_of_most_rounds() -> None:
    """The quotient of the two medians would be 2.2."""
    rounds = [([1.0, 1.0, 9.0], [2.0, 2.0]), ([10.0], [20.0]), ([1.0], [2.2])]
    assert Turns.of(rounds) == Turns(here=1.0, server=2.2, ratio=2.0)


def test_a_canarys_ratio_is_that_of_most_rounds_too() -> None:
    def turn(*seconds: float) -> list[Sample]:
        return [Sample(each, "OK") for each in seconds]

    without = [turn(0.1, 0.1, 0.3), turn(0.2), turn(0.1)]
    beside = [turn(0.2), turn(0.2), turn(0.3, 0.3)]
    assert compare(without, beside, 50) == (100.0, 200.0, 2.0)


def test_another_rule_for_the_same_network(exported: Exported, tmp_path: Path) -> None:
    path = with_rule(exported.model, ResizeRule(short_side=32, max_side=32), tmp_path / "new/model.onnx")
    predictor, request = OnnxRuntimePredictor(path), make_request(2, 32, 64)
    assert predictor.manifest.resize.max_side == 32
    assert Manifest.load(manifest_path(path)).onnx_sha256 == sha256(path)
    for ours, theirs in zip(predictor.predict(request), exported.predict(request), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_the_trivial_model_is_one_of_the_contract(exported: Exported, tmp_path: Path) -> None:
    path = trivial(exported.manifest, tmp_path / "model.onnx")
    request = make_request(2, 32, 64)
    raw = OnnxRuntimePredictor(path).predict(request)
    np.testing.assert_array_equal(raw.panoptic.ravel(), request.images.reshape(2, 3, -1)[:, 0].ravel())
    assert raw.segments.shape == (2, exported.manifest.max_segments, 7)
    assert raw.segment_count.tolist() == [1, 1]
    assert len(onnx.load(path).metadata_props) == 1


def test_the_photo_is_one() -> None:
    assert read_photo(make_jpeg(640, 480)).shape == (480, 640, 3)


@pytest.mark.triton
def test_an_image_in_shared_memory_is_answered_like_one_in_a_message(server: TritonServer) -> None:
    """Which is what `of_transport` looks at first. Afterwards no region is left."""
    before = set(os.listdir("/dev/shm"))
    ratio = asyncio.run(of_transport(server.url, rounds=1, seconds=0.2))
    assert ratio.ratio > 0
    assert not [name for name in set(os.listdir("/dev/shm")) - before if name.startswith("upsnet-client")]
