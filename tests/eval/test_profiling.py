"""`upsnet engine profile`: what it counts, against what a pencil says."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from matplotlib.figure import Figure
from onnx import TensorProto, helper, numpy_helper

import upsnet.command_line.main
from eval.profiling.costs import complete, count_bytes, count_macs
from eval.profiling.in_tensorrt import executions_of
from eval.profiling.measure import BODIES, LIBRARY, record
from eval.profiling.report import Profile, caption
from eval.profiling.roofline import Roofline
from eval.profiling.subjects import BY_FILE
from eval.profiling.summary import Row, Variant, summarize
from eval.profiling.trace import Tensor, read_trace
from upsnet.errors import InputError
from upsnet.geometry import NetworkBatch
from upsnet.kernels.choice import find_kernels

ROOF = Roofline(gflops=100, int8_gops=400, gb_per_s=10)
STEPS = 5


def floats(*shape: int) -> Tensor:
    return Tensor("float", shape)


IMAGE, WEIGHT, SCALE = Tensor("uint8", (1, 3, 5, 7)), Tensor("int8", (4, 3, 3, 3)), floats()
BYTES = Tensor("uint8", (1, 4, 5, 7))
PLANES = floats(1, 8, 2, 2)
SAMPLED, OFFSET = [floats(1, 2, 4, 4), floats(3, 2, 3, 3)], floats(1, 18, 4, 4)
MACS: dict[str, tuple[str, list[Tensor], Tensor, int]] = {
    "convolution": ("Conv", [floats(1, 3, 5, 7), floats(4, 3, 3, 3), floats(4)], floats(1, 4, 5, 7), 140 * 27),
    "with a sum": ("FusedConv", [PLANES, floats(8, 8, 1, 1), floats(8), PLANES], PLANES, 256),
    "depthwise": ("Conv", [floats(2, 8, 4, 4), floats(8, 1, 3, 3)], floats(2, 8, 4, 4), 256 * 9),
    "int8": ("QLinearConv", [IMAGE, SCALE, Tensor("uint8", ()), WEIGHT, SCALE], BYTES, 140 * 27),
    "transposed": ("ConvTranspose", [floats(1, 6, 2, 3), floats(6, 4, 2, 2)], floats(1, 4, 4, 6), 6 * 6 * 16),
    "deformable": ("DeformConv", [*SAMPLED, OFFSET], floats(1, 3, 4, 4), 48 * 18 + 4 * 32 * 9),
    "ours": ("DeformConv2d", [SAMPLED[0], OFFSET, SAMPLED[1], floats(3)], floats(1, 3, 4, 4), 48 * 18 + 4 * 32 * 9),
    "matrices": ("MatMul", [floats(5, 2, 3), floats(5, 3, 4)], floats(5, 2, 4), 40 * 3),
    "layer": ("Gemm", [floats(10, 6), floats(4, 6), floats(4)], floats(10, 4), 240),
    "nothing": ("MatMul", [floats(0, 28, 28), floats(0, 28, 9)], floats(0, 28, 9), 0),
    "no product": ("Add", [floats(3), floats(3)], floats(3), 0),
}  # fmt: skip


@pytest.mark.parametrize("case", MACS)
def test_macs_by_hand(case: str) -> None:
    operator, inputs, output, macs = MACS[case]
    assert count_macs(operator, inputs, [output]) == macs


def test_a_turned_layer() -> None:
    assert count_macs("Gemm", [floats(6, 10), floats(6, 4)], [floats(10, 4)], turned=True) == 240


@pytest.mark.parametrize(
    ("operator", "inputs", "output", "moved"),
    [
        ("Add", [floats(2, 3), floats(3)], floats(2, 3), 24 + 12 + 24),
        ("Cast", [Tensor("int64", (4,))], Tensor("bool", (4,)), 32 + 4),
        ("Reshape", [floats(2, 3), Tensor("int64", (1,))], floats(6), 0),
        ("Gather", [floats(1000, 4), Tensor("int64", (2,))], floats(2, 4), 32 + 32 + 16),
        ("Scan", [floats(100)], floats(100), 0),  # what is in it moves bytes
    ],
)
def test_bytes_by_hand(operator: str, inputs: list[Tensor], output: Tensor, moved: int) -> None:
    assert count_bytes(operator, inputs, [output]) == moved


def test_weights_that_a_profile_leaves_out() -> None:
    names, weights = ["x", "w", "", "b"], {1: floats(4, 6), 3: floats(4)}
    whole = (floats(10, 6), floats(4, 6), floats(4))
    assert complete(whole, names, weights) == whole
    assert complete((floats(10, 6), floats(4)), names, weights) == whole
    assert complete((floats(10, 6),), names, weights) == whole


def event(name: str, start: int, length: int, operator: str = "") -> dict[str, Any]:
    if not operator:
        return {"cat": "Session", "name": name, "ts": start, "dur": length, "args": {}}
    args = {"op_name": operator, "input_type_shape": [{"float": [2, 3]}], "output_type_shape": [{"float": []}]}
    return {"cat": "Node", "name": f"{name}_kernel_time", "ts": start, "dur": length, "args": args}


def test_a_body_is_counted_once(tmp_path: Path) -> None:
    """ONNX Runtime writes a node when it ends: a body's nodes come before the node whose body it is."""
    entries = [
        event("session_initialization", 0, 90),
        event("before", 100, 10, "Conv"),
        event("inner", 115, 7, "Add"),
        event("deep", 124, 3, "Mul"),
        event("loop", 122, 8, "Loop"),
        event("inner", 131, 5, "Add"),
        event("SequentialExecutor::Execute", 112, 26),
        event("scan", 110, 30, "Scan"),
        event("after", 140, 1, "Conv"),
        event("model_run", 99, 45),
    ]
    (tmp_path / "profile.json").write_text(json.dumps(entries))
    (run,) = read_trace(tmp_path / "profile.json")
    assert run.ms == 0.045
    assert [(each.path, round(1e3 * each.ms)) for each in run.executions] == [
        (("before",), 10),
        (("scan",), 30 - 7 - 8 - 5),
        (("scan", "inner"), 7),
        (("scan", "loop"), 8 - 3),
        (("scan", "loop", "deep"), 3),
        (("scan", "inner"), 5),
        (("after",), 1),
    ]
    assert sum(each.ms for each in run.executions) == pytest.approx(0.041)
    assert run.executions[0].inputs == (floats(2, 3),) and run.executions[0].outputs == (floats(),)


@pytest.mark.parametrize("text", ["{}", "[1]", "[]", "not json", '[{"cat": "Node"}]'])
def test_what_is_no_profile(text: str, tmp_path: Path) -> None:
    (tmp_path / "profile.json").write_text(text)
    with pytest.raises(InputError, match=r"profile\.json: not "):
        read_trace(tmp_path / "profile.json")


def hand_made_model(path: Path) -> Path:
    """A convolution and a ReLU of the backbone, then one of the FPN, whose mean a loop multiplies by a matrix.

    16 channels: ONNX Runtime computes 8 or 16 of them together, and fills others up.
    """
    arrays: dict[str, np.ndarray] = {
        "backbone.stem.weight": np.ones((16, 3, 3, 3), np.float32),
        "backbone.stem.bias": np.ones(16, np.float32),
        "fpn.lateral.weight": np.ones((16, 16, 1, 1), np.float32),
        "matrix": np.eye(16, dtype=np.float32),
        "steps": np.array(STEPS, np.int64),
    }
    make, value = helper.make_node, helper.make_tensor_value_info
    go = value("go", TensorProto.BOOL, [])
    body = helper.make_graph(
        [make("MatMul", ["before", "matrix"], ["after"], "product"), make("Identity", ["go"], ["go_on"], "go on")],
        "body",
        [value("i", TensorProto.INT64, []), go, value("before", TensorProto.FLOAT, [1, 16])],
        [value("go_on", TensorProto.BOOL, []), value("after", TensorProto.FLOAT, [1, 16])],
    )
    nodes = [
        make("Cast", ["images"], ["float"], "cast", to=TensorProto.FLOAT),
        make("Transpose", ["float"], ["planes"], "planes", perm=[0, 3, 1, 2]),
        make("Conv", ["planes", "backbone.stem.weight", "backbone.stem.bias"], ["stem"], "stem", pads=[1, 1, 1, 1]),
        make("Relu", ["stem"], ["active"], "relu"),
        make("Conv", ["active", "fpn.lateral.weight"], ["pyramid"], "lateral"),
        make("GlobalAveragePool", ["pyramid"], ["pooled"], "pool"),
        make("Flatten", ["pooled"], ["mean"], "mean"),
        make("Loop", ["steps", "", "mean"], ["out"], "loop", body=body),
    ]
    inputs = [
        value("images", TensorProto.UINT8, ["B", "H", "W", 3]),
        value("sizes", TensorProto.INT32, ["B", 2]),
        value("scales", TensorProto.FLOAT, ["B"]),
    ]
    tensors = [numpy_helper.from_array(array, name) for name, array in arrays.items()]
    graph = helper.make_graph(nodes, "hand-made", inputs, [value("out", TensorProto.FLOAT, [1, 16])], tensors)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


def by_name(rows: list[Row]) -> dict[str, Row]:
    return {row.name: row for row in rows}


def test_a_model_that_was_counted_by_hand(tmp_path: Path) -> None:
    model = hand_made_model(tmp_path / "model.onnx")
    batch = NetworkBatch(np.ones((1, 6, 8, 3), np.uint8), np.array([[6, 8]], np.int32), np.ones(1, np.float32))
    recording = record(model, batch, threads=1, library=None, runs=3)
    assert len(recording.runs) == 3
    for run in recording.runs:
        assert sum(each.ms for each in run.executions) <= run.ms  # twice counted would be more
    variant = summarize(*recording, ROOF)
    modules, operators = by_name(variant.modules), by_name(variant.operators)
    assert list(modules) == ["backbone", "FPN"]
    assert modules["backbone"].macs == 48 * 16 * 27
    assert modules["FPN"].macs == 48 * 16 * 16 + STEPS * 256
    assert operators["MatMul"].nodes == STEPS and operators["MatMul"].macs == STEPS * 256
    assert operators["Loop"].moved_bytes == 0
    assert_adds_up(variant)


def assert_adds_up(variant: Variant) -> None:
    for rows in (variant.modules, variant.operators):
        assert sum(row.nodes for row in rows) == variant.total.nodes
        assert sum(row.macs for row in rows) == variant.total.macs
        assert sum(row.moved_bytes for row in rows) == variant.total.moved_bytes
        assert sum(row.ms for row in rows) == pytest.approx(variant.total.ms)
    for row in variant.modules:
        assert sum(variant.shares[row.name].values()) == pytest.approx(row.ms)


def call(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["upsnet", "engine", "profile", *words])
    with pytest.raises(SystemExit) as stop:
        upsnet.command_line.main.main()
    return int(stop.value.code or 0)


@pytest.fixture(scope="module")
def profiled(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("profile")
    photo = sorted((tiny_run.parent / "shapes" / "train").iterdir())[0]
    words = [
        "--photo",
        str(photo),
        "--runs",
        "2",
        "--threads",
        "1",
        "--gpu",
        "h200",
        "--out",
        str(out / "profile.json"),
    ]
    with pytest.MonkeyPatch.context() as patch:
        assert call(patch, "--model", str(tiny_run), *words, "--picture", str(out / "profile.png")) == 0
    return out


def test_the_network_by_module(profiled: Path) -> None:
    """The modules have the same products whoever runs the operators, fused or not; but the mask head, in which the
    library leaves out the padding. No node is nobody's."""
    report = Profile.load(profiled / "profile.json")
    expected = [LIBRARY, BODIES] if find_kernels("auto").library else [BODIES]
    assert [each.kernels for each in report.variants] == expected
    titles = ["backbone", "FPN", "semantic head", "RPN", "box head", "mask head", "panoptic head"]
    macs = []
    for variant in report.variants:
        assert_adds_up(variant)
        assert [row.name for row in variant.modules] == titles
        macs.append({row.name: row.macs for row in variant.modules[:-1]})  # the fusion's body has products of its own
        assert variant.ms > 0 and variant.profiled_ms >= variant.outside_ms
    assert all(all(each.values()) for each in macs)
    masks = [each.pop("mask head") for each in macs]
    assert masks == sorted(masks) and all(each == macs[0] for each in macs)
    assert report.shape[3] == 3 and report.roofline.gflops > 0 and report.roofline.gb_per_s > 0


def test_the_least_time_counts_what_the_file_has(profiled: Path) -> None:
    report = Profile.load(profiled / "profile.json")
    assert report.least is not None
    ran = {row.name: row.macs for row in report.variants[0].modules}
    counted = {row.name: row.macs for row in report.least.rows}
    if find_kernels("auto").library:
        assert report.least.counted == BY_FILE and list(counted) == list(ran)
        assert all(counted[name] <= macs for name, macs in ran.items())
        assert counted["semantic head"] < ran["semantic head"]  # its score has few channels, which are filled up
    else:
        assert report.least.counted.startswith("what ONNX Runtime ran here") and counted == ran


def test_neither_filled_channels_nor_packed_weights_are_missed(tmp_path: Path) -> None:
    """A convolution to 5 channels, which ONNX Runtime would fill up, and a product whose matrix it packs."""
    arrays = {"w": np.ones((5, 3, 3, 3), np.float32), "matrix": np.ones((5, 7), np.float32)}
    make, value = helper.make_node, helper.make_tensor_value_info
    nodes = [
        make("Cast", ["images"], ["float"], "cast", to=TensorProto.FLOAT),
        make("Transpose", ["float"], ["planes"], "planes", perm=[0, 3, 1, 2]),
        make("Conv", ["planes", "w"], ["maps"], "conv", pads=[1, 1, 1, 1]),
        make("GlobalAveragePool", ["maps"], ["pooled"], "pool"),
        make("Flatten", ["pooled"], ["mean"], "mean"),
        make("Gemm", ["mean", "matrix"], ["out"], "product"),
    ]
    inputs = [
        value("images", TensorProto.UINT8, ["B", "H", "W", 3]),
        value("sizes", TensorProto.INT32, ["B", 2]),
        value("scales", TensorProto.FLOAT, ["B"]),
    ]
    tensors = [numpy_helper.from_array(array, name) for name, array in arrays.items()]
    graph = helper.make_graph(nodes, "hand-made", inputs, [value("out", TensorProto.FLOAT, ["B", 7])], tensors)
    model = tmp_path / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), model)
    batch = NetworkBatch(np.ones((1, 6, 8, 3), np.uint8), np.array([[6, 8]], np.int32), np.ones(1, np.float32))
    found = {each.operator: each for each in executions_of(model, batch)}
    assert found["Conv"].outputs[0].shape == (1, 5, 6, 8)
    assert [each.shape for each in found["Conv"].inputs] == [(1, 3, 6, 8), (5, 3, 3, 3)]
    assert [each.shape for each in found["Gemm"].inputs] == [(1, 5), (5, 7)]


def test_the_picture(profiled: Path, tiny_run: Path) -> None:
    from eval.profiling.chart import draw

    assert (profiled / "profile.png").read_bytes().startswith(b"\x89PNG")
    report = Profile.load(profiled / "profile.json")
    svg = draw(report, "svg")
    assert svg == draw(report, "svg") and b"<svg" in svg


def made_up(ms: float, profiled_ms: float, int8_macs: int = 0) -> Profile:
    """Seven modules of the same rate, each with an operator of its own, and eight operators that take longer."""
    operators = [f"Long{index}" for index in range(8)] + [f"Own{index}" for index in range(7)]
    lengths = [9.0] * 8 + [1.0] * 7
    facts = {"nodes": 1, "best_ms": 1.0, "macs": 10**6, "moved_bytes": 10**5, "roof_ms": 0.1}
    names = [f"module {index}" for index in range(7)]
    variant = Variant(
        kernels=LIBRARY,
        ms=ms,
        profiled_ms=profiled_ms,
        outside_ms=0,
        total=Row(name="all nodes", ms=ms, int8_macs=int8_macs, **facts),
        modules=[Row(name=name, ms=1, **facts) for name in names],
        operators=[Row(name=name, ms=length, **facts) for name, length in zip(operators, lengths, strict=True)],
        shares={name: {f"Own{index}": 1.0} for index, name in enumerate(names)},
        nodes=[],
    )
    shape, versions = [1, 64, 64, 3], {"torch": "2"}
    facts_of_all = {"machine": {}, "versions": versions, "model": "m", "shape": shape, "threads": 1, "runs": 3}
    return Profile(roofline=ROOF, variants=[variant], **facts_of_all)


def test_a_disturbed_profile_says_so() -> None:
    assert "Only 50 % of a profiled call is in the table" in caption(made_up(ms=5, profiled_ms=10))
    assert "is in the table" not in caption(made_up(ms=8, profiled_ms=10))


def test_the_disturbed_one_of_two_is_named() -> None:
    """The line above it has the first one's figures, which are others."""
    report = made_up(ms=8, profiled_ms=10)
    (second,) = made_up(ms=9, profiled_ms=30).variants
    report.variants.append(second.model_copy(update={"kernels": BODIES}))
    lines = [line for line in caption(report).splitlines() if "is in the table" in line]
    assert lines == [
        "Only 30 % of a profiled call from function bodies (30.0 ms) is in the table: other programs had the CPU; take "
        "more --runs."
    ]


def test_no_module_is_grey_and_labels_stand_apart() -> None:
    from eval.profiling.chart import LINE, REST, _apart, _colors

    colors = _colors(made_up(8, 10))
    assert all(colors.get(f"Own{index}", REST) != REST for index in range(7)) and len(set(colors.values())) == len(
        colors
    )
    for heights in ([50.0] * 7, [1.0] * 7, [100.0] * 7, [1.0, 90.0, 3.0, 3.1]):
        found = _apart(heights, 1, 100)
        places = sorted(np.log(found) / np.log(100))
        assert places[0] >= 0 and places[-1] <= 1 and min(np.diff(places)) >= LINE - 1e-9
    assert np.argsort(found).tolist() == [0, 2, 3, 1]


def test_bytes_have_a_roof_of_their_own() -> None:
    from eval.profiling.chart import _roofline

    for int8_macs, labels in ((0, ["100 GFLOP/s"]), (10**6, ["100 GFLOP/s", "400 GOP/s, int8"])):
        axes = Figure().subplots()
        _roofline(axes, made_up(8, 10, int8_macs))
        assert [text.get_text() for text in axes.texts if "OP/s" in text.get_text()] == labels
        assert len(axes.lines) == len(labels)


def test_a_size_in_place_of_a_photo(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--size", "64x96", "--batch", "2", "--runs", "1", "--threads", "1", "--kernels", "off"]
    picture = tmp_path / "profile.svg"
    assert call(monkeypatch, "--model", str(tiny_run / "model.onnx"), *words, "--picture", str(picture)) == 0
    assert "2 x 64 x 96, 1 thread; a call:" in " ".join(capsys.readouterr().out.split())
    assert picture.read_text().startswith("<?xml")


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--model", "no/such"], "no/such: no such file or folder; a model is "),
        (["--model", "RUN/config.yaml"], "no model by its name"),
        (["--size", "800"], "--size 800: give HEIGHTxWIDTH in network pixels, as 800x1088"),
        (["--size", "0x32"], "--size 0x32: give multiples of 32"),
        (["--size", "100x128"], "--size 100x128: give multiples of 32"),
        (["--size", "64x64", "--photo", "p.jpg"], "--photo has a size of its own; leave --size out"),
        (["--photo", "no/photo.jpg"], "no/photo.jpg: "),
        (["--size", "16384x16384"], "a batch of 1 x 16384 x 16384 pixels is over "),
        (["--kernels", "fast"], "kernels=fast: use auto or off"),
        (["--picture", "/proc/profile.png"], "/proc/profile.png: cannot be written"),
        (["--out", "RUN"], "cannot be written: a folder; give the name of a file"),
        (["--picture", "profile.txt"], "--picture profile.txt: give a file that ends in .png or .svg"),
    ],
)
def test_bad_input_is_one_line(
    words: list[str], line: str, tiny_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [word.replace("RUN", str(tiny_run)) for word in words]
    assert call(monkeypatch, *([] if "--model" in given else ["--model", str(tiny_run)]), *given) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and line in error


def test_a_model_of_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(monkeypatch, "--model", str(hand_made_model(tmp_path / "model.onnx"))) == 2
    assert "not an upsnet model" in capsys.readouterr().err
