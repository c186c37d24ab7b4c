"""precision-search: the search on made-up networks, rounding in PyTorch, the journal, and the command."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import eval.precision_search.command
import eval.precision_search.measure
import export.onnx_export
from eval.precision_search.estimate import Layer, milliseconds
from eval.precision_search.journal import Evaluation, Journal
from eval.precision_search.measure import EngineMeasure, Evaluator, RoundingMeasure, rounded, score
from eval.precision_search.report import PrecisionSearch
from eval.precision_search.rounding import to_eight_bits, to_float
from eval.precision_search.search import Figures, OutOfBudgetError, check_types, search, types_of
from eval.profiling.gpus import find_gpu
from eval.profiling.roofline import Roofline
from export.building import PLUGINS_VARIABLE
from export.calibration import OWN
from export.modules import read_recipe
from tests.upsnet.tensorrt.fake_tensorrt import environment, install, write_plugins
from training.checkpoint import load_model
from training.model.backbone import MBConv
from training.model.upsnet import UPSNet
from training.predictor import make_manifest
from upsnet.command_line.command import make_app
from upsnet.contract import PLUGINS
from upsnet.datasets.folder import PanopticFolder
from upsnet.datasets.split import Split
from upsnet.driver import Driver
from upsnet.errors import InputError
from upsnet.manifest import ModuleType, Recipe
from upsnet.runtimes.onnx_runtime import OnnxRuntimePredictor

SPEED: dict[ModuleType, float] = {"fp32": 4, "fp16": 2, "bf16": 2, "int8": 1, "fp8": 1}  # of a module
TYPES: Mapping[str, list[ModuleType]] = {name: ["int8", "fp16"] for name in ("a", "b", "c", "d")}


class Network:
    """Each module loses points of its own in a type; all together what they lose alone, and `more`."""

    def __init__(self, losses: dict[tuple[str, str], float], more: Callable[[Recipe], float] = lambda _: 0.0) -> None:
        self.losses, self.more = losses, more
        self.seen: list[Recipe] = []
        self.budget = 1000

    def __call__(self, recipe: Recipe, whole: bool = False) -> Figures:
        if recipe not in self.seen:
            if not whole and len(self.seen) >= self.budget:
                raise OutOfBudgetError
            self.seen.append(recipe)
        kinds = {name: recipe.type_of(name) for name in TYPES}
        lost = sum(self.losses.get((name, kind), 0.0) for name, kind in kinds.items()) + self.more(recipe)
        return Figures(0.6 - lost / 100, sum(SPEED[kind] for kind in kinds.values()))


class TestSearch:
    def test_all_go_down_where_nothing_is_lost(self) -> None:
        network = Network({})
        found = search(network, TYPES, ["fp16"], 0.1)
        assert found.complete and found.recipe == Recipe(default="fp16", modules=dict.fromkeys(TYPES, "int8"))
        assert (found.reference.time, found.figures.time) == (16, 4)
        assert len(network.seen) == 2 + 4 + 1, "the reference, all in fp16, each alone, all together"

    def test_a_module_that_loses_much_stays_up(self) -> None:
        found = search(Network({("b", "int8"): 5.0}), TYPES, ["fp16"], 0.1)
        assert found.recipe == Recipe(default="fp16", modules={"a": "int8", "c": "int8", "d": "int8"})
        assert found.alone[-1].module == "b" and found.alone[-1].drop == pytest.approx(5)

    def test_one_that_cannot_even_have_fp16(self) -> None:
        """The default is float32 then, and the others have fp16 or less by name."""
        network = Network({("b", "int8"): 5.0, ("b", "fp16"): 3.0, ("c", "int8"): 1.0})
        found = search(network, TYPES, ["fp16"], 0.1)
        assert found.recipe == Recipe(default="fp32", modules={"a": "int8", "d": "int8", "c": "fp16"})

    def test_small_losses_add_up_and_the_cheapest_come_first(self) -> None:
        losses = {("a", "int8"): 0.06, ("b", "int8"): 0.02, ("c", "int8"): 0.045, ("d", "int8"): 0.03}
        found = search(Network(losses), TYPES, ["fp16"], 0.1)
        assert found.recipe.modules == {"b": "int8", "d": "int8", "c": "int8"}, "0.095 together"
        assert 100 * (found.reference.pq - found.figures.pq) == pytest.approx(0.095)

    def test_what_they_lose_only_together_is_seen(self) -> None:
        def more(recipe: Recipe) -> float:
            return 1.0 if {"a", "d"} <= recipe.modules.keys() else 0.0

        found = search(Network({}, more), TYPES, ["fp16"], 0.1)
        assert len(found.recipe.modules) == 3 and not {"a", "d"} <= found.recipe.modules.keys()

    def test_the_budget_ends_it_with_what_is_sure(self) -> None:
        network = Network({("b", "int8"): 5.0})
        network.budget = 4
        found = search(network, TYPES, ["fp16"], 0.1)
        assert not found.complete and found.recipe == Recipe(default="fp16")

    def test_the_whole_data_set_has_the_last_word(self) -> None:
        """What was added last goes until all images agree."""

        class Other(Network):
            def __call__(self, recipe: Recipe, whole: bool = False) -> Figures:
                figures = super().__call__(recipe, whole)
                return figures._replace(pq=figures.pq - 0.01 * whole * max(0, len(recipe.modules) - 1))

        found = search(Other({("a", "int8"): 0.01}), TYPES, ["fp16"], 0.1)
        assert list(found.recipe.modules) == ["b"], "not a, which was added last"

    def test_nothing_may_go_down(self) -> None:
        everywhere = {(name, kind): 9.0 for name in TYPES for kind in ("fp16", "int8")}
        found = search(Network(everywhere), TYPES, ["fp16"], 0.1)
        assert found.recipe == Recipe() and found.figures == found.reference

    def test_types(self) -> None:
        wanted = check_types(["fp16", "int8", "fp16"])
        assert types_of(wanted, eligible=True) == ["int8", "fp16"] and types_of(wanted, eligible=False) == ["fp16"]
        with pytest.raises(InputError, match="no type 'fp64'; there are fp16, bf16, int8, fp8"):
            check_types(["fp64"])


class TestRounding:
    def test_e4m3_by_hand(self) -> None:
        values = torch.tensor([1.0, 1.06, 1.07, 17.0, -300.0, 448.0, 9e9])
        assert to_eight_bits(values, 448.0, "fp8").tolist() == [1.0, 1.0, 1.125, 16.0, -288.0, 448.0, 448.0]
        assert to_eight_bits(values / 4, 112.0, "fp8").tolist()[:3] == [0.25, 0.25, 0.28125]

    def test_int8_by_hand(self) -> None:
        values = torch.tensor([[0.2, 0.26, -1.0], [2.0, 126.4, 300.0]])
        found = to_eight_bits(values, torch.tensor([[63.5], [127.0]]), "int8")
        assert found.tolist() == [[0.0, 0.5, -1.0], [2.0, 126.0, 127.0]]
        assert not to_eight_bits(torch.zeros(3), 0.0, "int8").any()

    def test_floats_by_hand(self) -> None:
        values = torch.tensor([1 + 2**-9, 1 + 2**-12])
        assert to_float(values, "fp16").tolist() == [1 + 2**-9, 1.0]
        assert to_float(values, "bf16").tolist() == [1.0, 1.0] and to_float(values, "fp32") is values


class TestEstimate:
    GPU = Roofline(gflops=1.0, half_gflops=10.0, int8_gops=20.0, gb_per_s=1.0)

    def test_by_hand(self) -> None:
        product = Layer("a", eligible=True, macs=10**6, read=100, weights=100, written=100)
        moving = Layer("b", eligible=False, macs=1, read=10**6, weights=0, written=10**6)
        assert milliseconds([product], Recipe(), self.GPU) == pytest.approx(2.0)
        assert milliseconds([product], Recipe(default="fp16"), self.GPU) == pytest.approx(0.2)
        assert milliseconds([product], Recipe(default="int8"), self.GPU) == pytest.approx(0.1)
        assert milliseconds([moving], Recipe(), self.GPU) == pytest.approx(8.0)
        assert milliseconds([moving], Recipe(default="fp16", modules={"b": "int8"}), self.GPU) == pytest.approx(4.0)


class TestJournal:
    LINE = Evaluation(recipe=Recipe(default="fp16", modules={"rpn": "int8"}), images=4, pq=0.5, time=1.5)

    def test_it_goes_on_where_it_was(self, tmp_path: Path) -> None:
        path = tmp_path / "new/evaluations.jsonl"
        Journal(path, {"checkpoint": "a"}).add(self.LINE)
        with path.open("a") as stream:
            stream.write('{"recipe": {"def')  # killed while it wrote
        again = Journal(path, {"checkpoint": "a"})
        assert again.find(self.LINE.recipe, 4) == self.LINE and again.find(self.LINE.recipe, 5) is None
        again.add(self.LINE.model_copy(update={"images": 5}))
        assert len(Journal(path, {"checkpoint": "a"}).evaluations) == 2

    def test_another_subject_is_refused(self, tmp_path: Path) -> None:
        path = tmp_path / "evaluations.jsonl"
        Journal(path, {"checkpoint": "a", "data set": ["x", 4]}).add(self.LINE)
        with pytest.raises(InputError, match="evaluations with another checkpoint, data set; delete it, or give"):
            Journal(path, {"checkpoint": "b", "data set": ["x", 5]})

    @pytest.mark.parametrize("text", ["[]\n", "no json\n", '{"checkpoint": "a"}\n{"pq": 1}\n', "\xff\n"])
    def test_what_is_no_journal_is_refused(self, tmp_path: Path, text: str) -> None:
        path = tmp_path / "evaluations.jsonl"
        path.write_bytes(text.encode("latin-1"))
        with pytest.raises(InputError, match=r"evaluations\.jsonl: .*delete it") as caught:
            Journal(path, {"checkpoint": "a"})
        assert "\n" not in str(caught.value)

    def test_a_figure_that_is_known_costs_nothing(self, tmp_path: Path, tiny_run: Path) -> None:
        class Once:
            how, unit, estimated, calls = "", "", True, 0

            def run(self, *_: object) -> Figures:
                self.calls += 1
                return Figures(0.5, 1.0)

        measure, dataset = Once(), PanopticFolder(Split.usual(tiny_run.parent / "shapes/val.json"))
        for _ in range(2):
            evaluate = Evaluator(measure, Journal(tmp_path / "e.jsonl", {}), dataset, images=2, budget=2)
            assert evaluate(Recipe()) == evaluate(Recipe(default="fp16")) == Figures(0.5, 1.0)
            with pytest.raises(OutOfBudgetError):
                evaluate(Recipe(default="bf16"))
        evaluate(Recipe(default="bf16"), whole=True)
        assert measure.calls == 3 and evaluate.spent == 2


def make_hard(model: UPSNet) -> None:
    """Channels of an MBConv block 512 times as large, and their next weights a 512th: the same network, but eight bits
    leave nothing of the block's other channels."""
    block = model.get_submodule("backbone.stages.1.1")
    assert isinstance(block, MBConv)
    channels = block.project_conv.weight.abs().sum((0, 2, 3)).topk(4).indices
    for tensor, factor in ((block.bn0.weight, 512.0), (block.bn0.bias, 512.0), (block.dw_conv.weight, 1 / 512)):
        tensor.data[channels] *= factor


@pytest.fixture
def graph(tiny_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The network is not traced again: which of its layers may have eight bits, tiny_run's file says."""
    path = tiny_run / "model.onnx"
    monkeypatch.setattr(eval.precision_search.measure, "to_model_proto", lambda *_: onnx.load(path))


class TestRounded:
    @pytest.fixture
    def measure(self, graph: None, tiny_run: Path) -> RoundingMeasure:
        model, config, categories, _ = load_model(tiny_run / "last.safetensors")
        make_hard(model)
        manifest = make_manifest(config, categories)
        photos = sorted((tiny_run.parent / "shapes/train").iterdir())
        return RoundingMeasure(rounded(model, manifest), manifest, photos, find_gpu("h200"), torch.device("cpu"))

    def test_float32_is_the_network_itself(self, measure: RoundingMeasure, tiny_run: Path) -> None:
        network, predictor = measure._network, measure._predictor
        batch = eval.precision_search.measure._usual(predictor.manifest)
        expected = predictor.predict(batch)
        before = {name: value.clone() for name, value in network.model.named_parameters()}
        with network.computing(Recipe()):
            for found, wanted in zip(predictor.predict(batch), expected, strict=True):
                np.testing.assert_array_equal(found, wanted)
        with network.computing(Recipe(default="int8", modules={"semantic_head": "bf16"})):
            assert (predictor.predict(batch).segments != expected.segments).any()
        assert all(torch.equal(before[name], value) for name, value in network.model.named_parameters())
        np.testing.assert_array_equal(predictor.predict(batch).panoptic, expected.panoptic)

    def test_rounding_is_where_the_recipe_says(self, measure: RoundingMeasure) -> None:
        """Of each layer the values that it gave: on a grid in its own module, and float32's before it."""
        network, predictor = measure._network, measure._predictor
        batch = eval.precision_search.measure._usual(predictor.manifest)
        levels = []
        for recipe in (Recipe(), Recipe(modules={"fpn.p3": "bf16"})):
            with torch.inference_mode(), network.computing(recipe):
                images, sizes, _ = (torch.from_numpy(array) for array in batch)
                features = network.model.backbone(network.model.normalize(images, sizes))
                levels.append([*features, *network.model.fpn(features, sizes)])
        for place, (plain, found) in enumerate(zip(*levels, strict=True)):
            changed = place in (4, 5)  # P3, and P2, to which it is added
            assert torch.equal(plain, found) != changed, place
        assert torch.equal(levels[1][5], levels[1][5].bfloat16().float())

    def test_the_hard_block_stays_up(self, measure: RoundingMeasure, tiny_run: Path, tmp_path: Path) -> None:
        """PQ says so, on the photos that the network knows by heart."""
        dataset = PanopticFolder(Split.usual(tiny_run.parent / "shapes/train.json"))
        evaluate = Evaluator(measure, Journal(tmp_path / "e.jsonl", {}), dataset, images=2, budget=20)
        modules: dict[str, list[ModuleType]] = {
            name: ["int8"] for name in ("backbone.stages.0", "backbone.stages.1", "fpn.p4", "mask_head")
        }
        found = search(evaluate, modules, ["fp16"], 15.0)
        assert "backbone.stages.1" not in found.recipe.modules and len(found.recipe.modules) >= 2, found
        drops = {each.module: each.drop for each in found.alone}
        assert drops["backbone.stages.1"] > 20 > max(drops["backbone.stages.0"], drops["fpn.p4"])
        assert found.figures.time < found.reference.time == 100


class TestEngines:
    """On a machine with a GPU: TensorRT's and CUDA's place is taken by the fakes of tests/upsnet/tensorrt."""

    @pytest.fixture
    def measure(self, tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> EngineMeasure:
        plugins = write_plugins(tmp_path / PLUGINS)
        for name, value in (environment("11.1") | {PLUGINS_VARIABLE: str(plugins)}).items():
            monkeypatch.setenv(name, value)
        for place in ("export.backends.tensorrt_engine", "export.building"):
            monkeypatch.setattr(f"{place}.gpu_problem", lambda: None)
        monkeypatch.setattr("upsnet.engines.check.find_driver", lambda: Driver("no GPU"))
        install(monkeypatch, "11.1")

        def load(*_: object) -> onnx.ModelProto:
            proto = onnx.load(tiny_run / "model.onnx")
            del proto.metadata_props[:]
            return proto

        monkeypatch.setattr(export.onnx_export, "to_model_proto", load)
        return EngineMeasure(tiny_run / "last.safetensors", "tensorrt", OWN, 2)

    def test_pq_and_time_are_the_engines(self, measure: EngineMeasure, tiny_run: Path) -> None:
        dataset = PanopticFolder(Split.usual(tiny_run.parent / "shapes/train.json"))
        assert not measure.estimated and "engines of tensorrt" in measure.how and measure.unit == "ms"
        predictor = OnnxRuntimePredictor(tiny_run / "model.onnx")
        expected, _ = score(predictor, dataset, dataset.records)
        full = measure.run(Recipe(), dataset, dataset.records)
        assert full.pq == pytest.approx(expected, abs=1e-6) and full.time > 0
        rounded = measure.run(Recipe(modules={"backbone": "int8"}), dataset, dataset.records)
        assert full.pq - 0.2 < rounded.pq != full.pq


class TestCommand:
    def run(self, run: Path, out: Path, *arguments: str) -> tuple[int, str]:
        """The exit code, and what it says."""
        command = ["--run", str(run), "--out", str(out), "--calibrate", str(run.parent / "shapes/train.json")]
        app = make_app(eval.precision_search.command.main)
        result = CliRunner().invoke(app, [*command, "--max-drop", "50", "--gpu", "h200", *arguments])
        return result.exit_code, result.output

    def test_it_writes_a_recipe_and_goes_on(self, graph: None, tiny_run: Path, tmp_path: Path) -> None:
        code, text = self.run(tiny_run, tmp_path, "--budget", "3", "--limit", "2")
        assert code == 0 and "a larger --budget goes on from here" in text and "estimate" in text, text
        lines = (tmp_path / "evaluations.jsonl").read_text()
        recipe = read_recipe(tmp_path / "recipe.json")
        report = PrecisionSearch.load(tmp_path / "precision_search.json")
        assert report.recipe == recipe and report.estimated and not report.complete and report.searched_images == 2
        assert recipe.default == "fp16" and report.drop <= 50
        with Image.open(tmp_path / "precision_search.png") as picture:
            assert picture.width > 1000 and len(picture.getcolors(2**24) or []) > 20
        code, _ = self.run(tiny_run, tmp_path, "--budget", "4", "--limit", "2")
        assert code == 0 and (tmp_path / "evaluations.jsonl").read_text().startswith(lines)
        assert len(PrecisionSearch.load(tmp_path / "precision_search.json").alone) == 2

    def test_another_data_set_is_refused(self, graph: None, tiny_run: Path, tmp_path: Path) -> None:
        (tmp_path / "evaluations.jsonl").write_text(json.dumps({"checkpoint": "0", "data set": ["1", 4]}) + "\n")
        code, text = self.run(tiny_run, tmp_path)
        assert code == 2 and "evaluations with another calibration, checkpoint, data set" in text
        assert [path.name for path in tmp_path.iterdir()] == ["evaluations.jsonl"]

    def test_wrong_arguments(self, graph: None, tiny_run: Path, tmp_path: Path) -> None:
        assert "no type 'fp4'" in self.run(tiny_run, tmp_path / "x", "--types", "fp4")[1]
        assert "--gpu abacus: its limits are not known" in self.run(tiny_run, tmp_path / "x", "--gpu", "abacus")[1]
        assert not (tmp_path / "x").exists()
