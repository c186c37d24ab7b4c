"""The commands of polygraphy that docs/debugging.md has, on a model of ours. They need no GPU."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from eval.comparing.errors import Errors
from eval.comparing.taps import Tapped, with_outputs
from tests.plugins_cuda.tensorrt.libraries import built
from upsnet.manifest import Manifest

pytest.importorskip("polygraphy", reason="polygraphy is not installed (pip install '.[dev]')")
SHAPES = ["--input-shapes", "images:[1,64,96,3]", "sizes:[1,2]", "scales:[1]"]
VALUES = ["--val-range", "sizes:[64,64]", "scales:[1,1]"]  # an image that fills its square


def polygraphy(*words: object, **variables: str) -> str:
    """What a command prints, when it succeeds."""
    command = [sys.executable, "-c", "import sys; from polygraphy.tools import main; sys.exit(main())"]
    environment = {**os.environ, **variables}
    done = subprocess.run([*command, *map(str, words)], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def test_it_lists_our_operators(tiny_run: Path) -> None:
    told = polygraphy("inspect", "model", tiny_run / "model.onnx", "--show", "layers")
    assert "Other Opsets: {'upsnet': 1}" in told
    assert all(f"[Op: {name}]" in told for name in ("RoiAlignFpn", "PanopticFusion", "BestAnchors"))


def test_it_runs_two_files_and_compares_tensors_inside(tiny_run: Path, tmp_path: Path) -> None:
    """A file and the same with rounded weights, at a tensor that we name: its decibels are ours."""
    model = onnx.load(str(tiny_run / "model.onnx"))
    tensor = Tapped(model.graph).find()["C4"]
    for weight in model.graph.initializer:
        if weight.name.endswith("conv.weight"):
            rounded = onnx.numpy_helper.to_array(weight).astype(np.float16).astype(np.float32)
            weight.CopyFrom(onnx.numpy_helper.from_array(rounded, weight.name))
    onnx.save(model, str(tmp_path / "rounded.onnx"))
    data = [*SHAPES, *VALUES, "--onnx-outputs", tensor]
    saved = ["--save-outputs", tmp_path / "outputs.json", "--save-inputs", tmp_path / "inputs.json"]
    polygraphy("run", tiny_run / "model.onnx", "--onnxrt", *data, *saved)
    loaded = ["--load-inputs", tmp_path / "inputs.json", "--load-outputs", tmp_path / "outputs.json"]
    told = polygraphy(
        *("run", tmp_path / "rounded.onnx", "--onnxrt", "--onnx-outputs", tensor, *loaded),
        *("--compare", "snr"),
    )
    (theirs,) = {float(found) for found in re.findall(r"SNR: (-?[0-9.]+) dB", told)}
    from polygraphy.json import load_json

    (feed,) = load_json(str(tmp_path / "inputs.json"))
    errors = Errors()
    answers = []
    for path in (tiny_run / "model.onnx", tmp_path / "rounded.onnx"):
        proto = with_outputs(onnx.load(str(path)), [tensor])
        session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
        answers.append(session.run([tensor], dict(feed))[0])
    errors.add(*answers)
    assert errors.snr_db == pytest.approx(theirs, abs=0.5)


def test_it_takes_the_backbone_out_and_lints(tiny_run: Path, tmp_path: Path) -> None:
    """The part gives what the whole has there."""
    pytest.importorskip("onnx_graphsurgeon", reason="onnx-graphsurgeon is not installed (pip install '.[dev]')")
    polygraphy("check", "lint", tiny_run / "model.onnx", *SHAPES, *VALUES)
    whole, part = onnx.load(str(tiny_run / "model.onnx")), tmp_path / "backbone.onnx"
    taps = Tapped(whole.graph).find()
    ends = [taps["normalised photo"], taps["C5"]]
    arguments = ["--inputs", f"{ends[0]}:auto:auto", "--outputs", f"{ends[1]}:auto"]
    polygraphy("surgeon", "extract", tiny_run / "model.onnx", "-o", part, *arguments)
    images = np.random.default_rng(0).integers(0, 256, (1, 64, 96, 3), np.uint8)
    feed = {"images": images, "sizes": np.array([[64, 96]], np.int32), "scales": np.ones(1, np.float32)}
    sessions = [
        ort.InferenceSession(model, providers=["CPUExecutionProvider"])
        for model in (with_outputs(whole, ends).SerializeToString(), str(part))
    ]
    photo, wanted = sessions[0].run(ends, feed)
    np.testing.assert_allclose(sessions[1].run(ends[1:], {ends[0]: photo})[0], wanted, rtol=1e-3, atol=1e-4)


@pytest.mark.tensorrt
def test_it_builds_a_plan_of_rtx_with_our_plugins(tiny_run: Path, tmp_path: Path) -> None:
    if find_spec("tensorrt_rtx") is None:
        pytest.skip("polygraphy wants the package tensorrt_rtx, which is not installed")
    from export.backends.tensorrt_engine import rtx_environment

    manifest = Manifest.load(tiny_run / "model.manifest.json")
    side = manifest.resize.max_side
    shapes = [f"--trt-{kind}-shapes" for kind in ("min", "opt", "max")]
    sizes = [f"images:[1,{each},{each},3]" for each in (32, 64, side)]
    profile = [
        word for kind, size in zip(shapes, sizes, strict=True) for word in (kind, size, "sizes:[1,2]", "scales:[1]")
    ]
    plan = tmp_path / "model.rtx.plan"
    with rtx_environment() as environment:
        words = ["convert", tiny_run / "model.onnx", "-o", plan, "--plugins", built("cpu")[1], *profile]
        words += ["--profiling-verbosity", "detailed"]  # TensorRT-RTX is loaded then before the plugins
        told = polygraphy(*words, POLYGRAPHY_USE_TENSORRT_RTX="1", **environment)
    assert "Finished engine building" in told and plan.read_bytes()[:4] == b"vtrt"
