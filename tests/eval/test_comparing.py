"""`upsnet engine compare`: what it measures, and that it names the module that somebody damaged."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from matplotlib.figure import Figure
from onnx import TensorProto, helper, numpy_helper

import upsnet.command_line.main
from eval.comparing import chart
from eval.comparing.boundaries import PLACES, Instances, Outputs, order, real_proposals
from eval.comparing.compare import compare
from eval.comparing.errors import MOST_DB, Errors, from_centre, match
from eval.comparing.in_tensorrt import add_outputs
from eval.comparing.limits import LIMITS, Rounding, lesser, types_of, types_on_cpu
from eval.comparing.report import Comparison, comparison_table, conclusion
from eval.comparing.taps import Tapped
from export.backends.tensorrt_builder import Request
from export.backends.tensorrt_engine import rtx_environment, run_builder
from export.options import EngineOptions
from export.profiles import optimization_profile
from tests.plugins_cuda.tensorrt.libraries import built, need
from upsnet.contract import METADATA_KEY, manifest_path
from upsnet.geometry import NetworkBatch
from upsnet.manifest import Manifest, Recipe

Damage = Callable[[onnx.ModelProto], None]


def errors_of(a: list[float], b: list[float]) -> Errors:
    errors = Errors()
    errors.add(np.array(a, np.float32), np.array(b, np.float32))
    return errors


def test_errors_by_hand() -> None:
    errors = errors_of([3, -4, 0], [3, -3, 0])
    assert errors.max_error == pytest.approx(1 / 4) and errors.mean_error == pytest.approx(1 / 7)
    assert errors.snr_db == pytest.approx(10 * np.log10(25))
    assert errors.cosine == pytest.approx((9 + 12) / (5 * np.sqrt(18)))
    assert errors_of([1, 2], [1, 2]).snr_db == MOST_DB
    assert errors_of([0, 0], [0, 1]).snr_db == -MOST_DB


def test_errors_add_up() -> None:
    generator = np.random.default_rng(0)
    a, b = generator.normal(size=(2, 5, 7)).astype(np.float32)
    whole, parts = errors_of(a.ravel().tolist(), b.ravel().tolist()), Errors()
    for mine, others in zip(a, b, strict=True):
        parts.add(mine, others)
    assert parts.values == 35
    for name in ("snr_db", "cosine", "max_error", "mean_error"):
        assert getattr(parts, name) == pytest.approx(getattr(whole, name))


def test_what_is_not_finite_is_counted_and_in_no_sum() -> None:
    inf, nan = np.inf, np.nan
    errors = errors_of([1, 2, inf, nan, -inf, 5], [1, 2, inf, nan, inf, nan])
    assert (errors.values, errors.not_finite_a, errors.not_finite_b, errors.unlike) == (6, 3, 4, 2)
    assert errors.snr_db == MOST_DB


def test_another_shape_is_not_looked_at() -> None:
    errors = errors_of([1, 2], [1, 2, 3])
    assert errors.shapes == ([2], [3]) and errors.values == 0


def test_instances_are_matched_by_overlap_and_label() -> None:
    a = np.array([[0, 0, 10, 10], [0, 0, 10, 8], [50, 50, 60, 60]], np.float32)
    b = np.array([[100, 0, 110, 10], [0, 0, 10, 8], [0, 0, 10, 10]], np.float32)
    assert [each.tolist() for each in match(a, b)] == [[0, 1], [2, 1]]
    # The first is like both; with labels only the worse one is left for it.
    assert [each.tolist() for each in match(a, b, np.array([1, 2, 1]), np.array([1, 1, 3]))] == [[0], [1]]
    assert [len(each) for each in match(a, np.zeros((0, 4), np.float32))] == [0, 0]


def test_boxes_are_seen_from_their_centre() -> None:
    near, far = (np.array([[at, at, at + 10, at + 20]], np.float32) for at in (0, 1000))
    for a in (near, far):
        mine, others = from_centre(a, a + 1)
        assert mine.tolist() == [[-5, -10, 5, 10]] and (others - mine == 1).all()


def test_padding_is_no_proposal() -> None:
    boxes = np.array([[0, 0, 5, 5], [0, 0, 0, 0], [2, 2, 3, 9]], np.float32)
    found = real_proposals(boxes, np.arange(6).reshape(3, 2), None)
    assert found.boxes.tolist() == boxes[[0, 2]].tolist() and found.deltas is None
    assert found.logits is not None and found.logits.tolist() == [[0, 1], [4, 5]]


def test_blocks_stand_before_the_stage_that_they_end_in() -> None:
    blocks = {"backbone.stages.0.0", "backbone.stages.1.0", "backbone.stages.1.10", "backbone.stages.1.9"}
    ordered = order({*blocks, "C3", "C2", "P2", "stem"})
    assert ordered == [
        *("stem", "backbone.stages.0.0", "C2", "backbone.stages.1.0", "backbone.stages.1.9", "backbone.stages.1.10"),
        *("C3", "P2"),
    ]
    assert order(set(PLACES)) == list(PLACES)


def test_the_type_that_rounds_most_sets_the_limits(fake: Callable[..., Any]) -> None:
    plain = fake("x").manifest
    recipe = Recipe(modules={"fpn": "fp8", "rpn": "bf16"})
    mixed = plain.model_copy(update={"precision": "mixed", "recipe": recipe, "pair": "both"})
    assert types_of(plain) == {"fp32"} and types_of(mixed) == {"fp32", "bf16", "fp8"}
    assert lesser(types_of(plain), types_of(mixed)) == "fp8" and lesser({"tf32"}, {"fp32"}) == "tf32"
    assert types_on_cpu(mixed, Path("model.onnx")) == {"fp32"}  # its other file is TensorRT's
    assert types_on_cpu(mixed, Path("model.tensorrt.onnx")) == types_of(mixed)
    assert types_on_cpu(plain.model_copy(update={"precision": "tf32"}), Path("model.onnx")) == {"fp32"}
    assert [each.snr_db for each in LIMITS.values()] == sorted(each.snr_db for each in LIMITS.values())


def call(*words: object) -> int:
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as stop:
        patch.setattr(sys, "argv", ["upsnet", "engine", "compare", *map(str, words)])
        upsnet.command_line.main.main()
    return int(stop.value.code or 0)


@pytest.fixture(scope="module")
def compared(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Comparison]:
    """The command on the run's ONNX file, as it is and damaged, on the photos that it has learnt by heart: every head
    has something to say of them."""
    folder = tmp_path_factory.mktemp("compare")

    def run(damage: Damage, *words: object, code: int = 1) -> Comparison:
        model = onnx.load(str(tiny_run / "model.onnx"))
        damage(model)
        onnx.save(model, str(folder / "damaged.onnx"))
        shutil.copy(tiny_run / "model.manifest.json", folder / "damaged.manifest.json")
        out = folder / "compare.json"
        files = (tiny_run / "model.onnx", folder / "damaged.onnx")
        assert call(*files, "--photo", tiny_run.parent / "shapes/train", "--threads", 1, "--out", out, *words) == code
        return Comparison.load(out)

    return run


def scale(name: str, factor: float) -> Damage:
    """One weight."""

    def damage(model: onnx.ModelProto) -> None:
        weight = next(each for each in model.graph.initializer if each.name == name)
        weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * np.float32(factor), name))

    return damage


def before_normalising(node: onnx.NodeProto) -> Damage:
    """A node between the photo, as float32 planes, and its normalisation."""

    def damage(model: onnx.ModelProto) -> None:
        graph = model.graph
        place, reader = next((i, each) for i, each in enumerate(graph.node) if each.op_type == "Sub")
        node.input[0], node.output[0] = reader.input[0], "changed"
        reader.input[0] = "changed"
        graph.node.insert(place, node)

    return damage


def swap_colours(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(numpy_helper.from_array(np.array([2, 1, 0]), "bgr"))
    before_normalising(helper.make_node("Gather", ["", "bgr"], [""], axis=1))(model)


def normalise_to_one(model: onnx.ModelProto) -> None:
    """As if the photo were 0 to 1, and not 0 to 255."""
    model.graph.initializer.append(numpy_helper.from_array(np.array(1 / 255, np.float32), "scale"))
    before_normalising(helper.make_node("Mul", ["", "scale"], [""]))(model)


def saturate(model: onnx.ModelProto) -> None:
    """What a stage of the backbone gives goes through half precision, in which it is too large."""
    reader = next(each for each in model.graph.node if "fpn.lateral.2.weight" in each.input)
    value = reader.input[0]
    place = next(i for i, each in enumerate(model.graph.node) if value in each.output)
    model.graph.initializer.append(numpy_helper.from_array(np.array(1e5, np.float32), "gain"))
    nodes = [
        helper.make_node("Mul", ["before", "gain"], ["large"]),
        helper.make_node("Cast", ["large"], ["half"], to=TensorProto.FLOAT16),
        helper.make_node("Cast", ["half"], [value], to=TensorProto.FLOAT),
    ]
    model.graph.node[place].output[0] = "before"
    for offset, node in enumerate(nodes, 1):
        model.graph.node.insert(place + offset, node)


@pytest.mark.parametrize(
    ("damage", "words", "first"),
    [
        (scale("backbone.stages.2.0.project_conv.weight", 1.05), (), "C4"),
        (scale("backbone.stages.2.0.project_conv.weight", 1.05), ("--blocks",), "backbone.stages.2.0"),
        (scale("backbone.stem.0.weight", 1.01), (), "stem"),
        (scale("fpn.smooth.1.weight", 0.99), (), "P3"),
        (scale("rpn.conv.bias", 2), (), "RPN logits"),
        (scale("semantic_head.score.bias", 2), (), "semantic logits"),
        (scale("box_head.fc7.weight", 1.02), (), "box logits"),
        (scale("mask_head.convs.1.weight", 0.9), (), "mask logits"),
        (swap_colours, (), "normalised photo"),
        (normalise_to_one, (), "normalised photo"),
        (saturate, (), "C4"),
    ],
)
def test_the_damaged_module_is_the_first_place(
    damage: Damage, words: tuple[str, ...], first: str, compared: Callable[..., Comparison]
) -> None:
    report = compared(damage, *words)
    assert report.first == first and not report.equal
    before = [place.name for place in report.places][: [place.name for place in report.places].index(first)]
    assert all(place.problem is None and place.snr_db == MOST_DB for place in report.places if place.name in before)
    if damage is saturate:
        (place,) = (place for place in report.places if place.name == first)
        assert place.not_finite[1] > 0 and place.problem is not None and "infinite or no number" in place.problem


def test_a_checkpoint_and_its_export(tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every place is compared, on photos of the run's validation set; the picture and the JSON are written."""
    files = [tmp_path / "compare.png", tmp_path / "compare.json"]
    words = ["--blocks", "--limit", 2, "--threads", 1, "--picture", files[0], "--out", files[1]]
    assert call(tiny_run / "last.safetensors", tiny_run / "model.onnx", *words) == 0
    assert "equal within the limits of fp32" in capsys.readouterr().out
    report = Comparison.load(files[1])
    assert [place.name for place in report.places if not place.name.startswith("backbone.")] == list(PLACES)
    assert sum(place.name.startswith("backbone.") for place in report.places) == 6
    assert not report.left_out and len(report.photos) == 2 and report.first is None
    assert all(place.values for place in report.places if place.identical is None and place.name != "mask logits")
    assert len(comparison_table(report).rows) == len(report.places)
    assert files[0].read_bytes().startswith(b"\x89PNG")


def test_the_library_against_function_bodies(
    tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "compare.json"
    words = ["--kernels", "auto", "--kernels", "off", "--limit", 1, "--out", out]
    assert call(tiny_run / "model.onnx", tiny_run / "model.onnx", *words) == 0
    report = Comparison.load(out)
    assert "UPSNET_KERNELS=off" in report.b.title and "UPSNET_KERNELS=off" not in report.a.title


def halve(model: onnx.ModelProto) -> None:
    """Weights of half precision, and a manifest that says so."""
    for weight in model.graph.initializer:
        if weight.name.endswith(".weight"):
            rounded = numpy_helper.to_array(weight).astype(np.float16).astype(np.float32)
            weight.CopyFrom(numpy_helper.from_array(rounded, weight.name))
    entry = next(each for each in model.metadata_props if each.key == METADATA_KEY)
    entry.value = Manifest.model_validate_json(entry.value).model_copy(update={"precision": "fp16"}).model_dump_json()


def test_half_precision_has_its_own_limits(compared: Callable[..., Comparison]) -> None:
    report = compared(halve, code=0)
    (stage,) = (place for place in report.places if place.name == "C4")
    assert report.precision == "fp16" and report.limits.snr_db < stage.snr_db < 90
    assert all(place.values for place in report.places if place.identical is None)


class Made:
    """A network that gives the same for every photo."""

    note = ""

    def __init__(self, title: str, manifest: Manifest, outputs: Outputs) -> None:
        self.title, self.manifest, self._outputs = title, manifest, outputs
        self.types: set[Rounding] = {"fp32"}

    def run(self, batch: NetworkBatch) -> Outputs:
        return self._outputs

    def close(self) -> None: ...


@pytest.fixture
def made(fake: Callable[..., Any], gt_json: Path) -> Callable[..., Comparison]:
    """Two made-up networks compared on one photo of 48 x 64: what changes the outputs of the second is given."""
    manifest = fake("x").manifest
    boxes = np.array([[0, 0, 10, 10], [20, 20, 40, 40], [5, 30, 25, 44]], np.float32)
    instances = Instances(boxes, np.array([0, 1, 0]), np.ones(3, np.float32), np.ones((3, 4, 4), np.float32))
    arrays = {"C2": np.ones((1, 2, 3), np.float32), "P2": np.ones((1, 4), np.float32)}
    panoptic, segments = np.ones((1, 64, 64), np.uint8), np.zeros((1, 10, 7), np.float32)
    outputs = Outputs(arrays, None, instances, panoptic, segments, np.ones(1, np.int32))

    def run(both: Instances = instances, **changed: Any) -> Comparison:
        mine = outputs._replace(detections=both)
        networks = Made("A", manifest, mine), Made("B", manifest, mine._replace(**changed))
        return compare(*networks, [gt_json.with_name("val") / "000.png"])

    return run


def test_the_same_is_equal(made: Callable[..., Comparison]) -> None:
    report = made()
    assert report.equal and report.first is None and not report.left_out
    assert [place.name for place in report.places] == [
        "C2",
        "P2",
        "detections",
        "scores",
        "mask logits",
        "panoptic map",
    ]


def test_what_neither_shows_is_said(made: Callable[..., Comparison]) -> None:
    """A broken mask head is like a sound one on photos without instances."""
    none = Instances(np.zeros((0, 4), np.float32), np.zeros(0, int), np.zeros(0, np.float32), np.zeros((0, 4, 4)))
    report = made(both=none)
    assert report.equal and [place.name for place in report.places if not place.values] == [
        "detections",
        "scores",
        "mask logits",
        "panoptic map",
    ]
    assert conclusion(report).splitlines()[1:] == [
        "NOT compared: detections, scores, mask logits; give photos (--photo) on which both find instances"
    ]


def test_a_place_without_an_error_is_none_of_the_worst(made: Callable[..., Comparison]) -> None:
    """And has neither a bar nor a dot in the picture, in which the panoptic map has a row."""
    assert made().worst == [] and conclusion(made()) == "equal within the limits of fp32; no place has an error"
    report = made(
        arrays={"C2": np.ones((1, 2, 3), np.float32), "P2": np.full((1, 4), 1.5, np.float32)},
        panoptic=np.full((1, 64, 64), 255, np.uint8),
    )
    assert report.worst == ["P2"] and conclusion(report).endswith("worst: P2")
    left, right = Figure().subplots(1, 2)
    chart._decibels(left, report, report.places)
    chart._errors(right, report.places)
    lengths = dict(zip([place.name for place in report.places], left.patches, strict=True))
    assert [name for name, bar in lengths.items() if bar.get_width()] == ["P2"]
    words = [text.get_text().strip() for text in left.texts]
    assert words[0] == "no error" and words[-1].startswith("0.000 % identical pixels, limit 99.9 %")
    assert [line.get_ydata().tolist() for line in right.lines] == [[1], [1]]


def test_another_shape(made: Callable[..., Comparison]) -> None:
    report = made(arrays={"C2": np.ones((1, 2, 4), np.float32), "P2": np.ones((1, 4), np.float32)})
    assert report.first == "C2" and report.places[0].problem == "shape [1, 2, 3] and [1, 2, 4]"
    assert [place.name for place in report.places if place.problem] == ["C2"]


def test_a_place_that_one_side_lacks(made: Callable[..., Comparison]) -> None:
    report = made(arrays={"C2": np.ones((1, 2, 3), np.float32)}, detections=None)
    assert report.equal and report.left_out == {"P2": "A", "detections": "A"}


def test_the_order_of_instances_is_no_difference_but_their_number_is(made: Callable[..., Comparison]) -> None:
    def some(rows: list[int]) -> dict[str, Instances]:
        boxes = np.array([[0, 0, 10, 10], [20, 20, 40, 40], [5, 30, 25, 44]], np.float32)[rows]
        scores, masks = np.ones(len(rows), np.float32), np.ones((len(rows), 4, 4), np.float32)
        return {"detections": Instances(boxes, np.array([0, 1, 0])[rows], scores, masks)}

    assert made(**some([2, 0, 1])).equal
    report = made(**some([0, 1]))
    (place,) = (place for place in report.places if place.name == "detections")
    assert (place.matched, place.of, report.first) == (2, 3, "detections")
    assert place.problem == "only 2 of 3 instances are in both" and place.snr_db == MOST_DB


def test_a_map_that_is_none(made: Callable[..., Comparison]) -> None:
    report = made(segment_count=np.zeros(1, np.int32))
    assert report.first == "panoptic map"
    assert report.places[-1].problem == "panoptic has pixels of segment row 0, but segment_count is 0"


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["no/such", "RUN"], "no/such: no such file or folder; a model is "),
        (["RUN", "RUN/config.yaml"], "no model by its name"),
        (["RUN", "RUN", "--photo", "no/photo.jpg"], "no/photo.jpg: no such file"),
        (["RUN", "RUN", "--kernels", "fast"], "kernels=fast: use auto or off"),
        (
            ["RUN", "RUN", "--kernels", "off", "--kernels", "off", "--kernels", "off"],
            "--kernels is given once for both",
        ),
        (["RUN", "RUN", "--picture", "compare.txt"], "--picture compare.txt: give a file that ends in .png or .svg"),
        (["RUN", "RUN", "--out", "RUN"], "cannot be written: a folder; give the name of a file"),
        (["ALONE", "ALONE"], "neither network lies in a run that has a validation set: give --photo"),
        (["RUN", "OTHER"], "not the same network"),
    ],
)
def test_bad_input_is_one_line(
    words: list[str], line: str, tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    alone, other = tmp_path / "a" / "b" / "alone.onnx", tmp_path / "other.onnx"
    alone.parent.mkdir(parents=True)
    shutil.copy(tiny_run / "model.onnx", alone)
    model = onnx.load(str(alone))
    manifest = Manifest.load(manifest_path(tiny_run / "model.onnx"))
    rule = manifest.resize.model_copy(update={"short_side": 64})
    entry = next(each for each in model.metadata_props if each.key == METADATA_KEY)
    entry.value = manifest.model_copy(update={"resize": rule}).model_dump_json()
    onnx.save(model, str(other))
    places = {"RUN": str(tiny_run), "ALONE": str(alone), "OTHER": str(other)}
    given = [word.replace("RUN", places["RUN"]).replace("ALONE", places["ALONE"]) for word in words]
    assert call(*(word.replace("OTHER", places["OTHER"]) for word in given)) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and line in error


@pytest.mark.tensorrt
def test_rtx_builds_a_plan_with_inner_outputs(tiny_run: Path, tmp_path: Path) -> None:
    """The real parser and builder take every place as an output."""
    need("tensorrt_rtx_bindings")
    model = onnx.load(str(tiny_run / "model.onnx"))
    outputs = add_outputs(model, Tapped(model.graph).find(blocks=True))
    assert len(outputs) >= 25
    onnx.save(model, str(tmp_path / "tapped.onnx"))
    manifest = Manifest.load(tiny_run / "model.manifest.json")
    with rtx_environment() as environment:
        request: dict[str, Any] = {
            "package": "tensorrt-rtx",
            "model": tmp_path / "tapped.onnx",
            "manifest": manifest,
            "plan": tmp_path / "tapped.plan",
            "plugins": built("cpu")[1],
            "profiles": (optimization_profile(manifest.resize, manifest.max_batch),),
            "options": EngineOptions(),
        }
        outcome = run_builder(Request(**request), environment)
    assert outcome.status == "built", str(outcome)
