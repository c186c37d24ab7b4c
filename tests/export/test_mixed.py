"""bf16, fp8 and recipes: which types a file has, module by module, what stays float32, and what is refused."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
import torch
from typer.testing import CliRunner

import export.onnx_export
from eval.comparing.command import open_network
from eval.comparing.compare import compare
from export.building import build_engine
from export.calibration import OWN
from export.features import DEFORMABLE, LAYERS
from export.modules import module_at, modules_of, read_recipe, scope_of
from export.onnx_export import Exported
from export.onnx_export import export as export_checkpoint
from export.precision import prepare
from export.types import wrong_types
from tests.plugins_cuda.tensorrt.libraries import built, need
from training.checkpoint import load_model
from training.model.deform import DeformConv
from training.model.upsnet import UPSNet
from training.model_config import ModelConfig, TimmConfig
from upsnet.command_line.command import make_app
from upsnet.contract import CONFIGURATION_KEY, manifest_path, tensorrt_path
from upsnet.errors import InputError
from upsnet.manifest import Manifest, Recipe
from upsnet.runtimes.onnx_runtime import OnnxRuntimePredictor

FLOAT, HALF, BF16 = onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16
RECIPE = Recipe(
    default="bf16",
    modules={"backbone": "int8", "backbone.stages.2": "fp8", "fpn.p3": "fp32", "rpn": "fp32", "box_head": "fp16"},
)
Write = Callable[..., Exported]


@pytest.fixture(scope="module")
def write(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Write:
    """Exports of tiny_run's checkpoint; where the network is float32, it is not traced again."""
    traced = export.onnx_export.to_model_proto

    def trace(model: UPSNet, *arguments: object) -> onnx.ModelProto:
        if {parameter.dtype for parameter in model.parameters()} != {torch.float32}:
            return traced(model, *arguments)  # type: ignore[arg-type]
        proto = onnx.load(tiny_run / "model.onnx")
        del proto.metadata_props[:]
        return proto

    def run(precision: str, **options: object) -> Exported:
        out = tmp_path_factory.mktemp(precision) / "model.onnx"
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(export.onnx_export, "to_model_proto", trace)
            return export_checkpoint(tiny_run / "last.safetensors", out, precision, **options)  # type: ignore[arg-type]

    return run


@pytest.fixture(scope="module")
def bf16(write: Write) -> Exported:
    return write("bf16")


@pytest.fixture(scope="module")
def fp8(write: Write) -> Exported:
    return write("fp8", data=OWN)


@pytest.fixture(scope="module")
def mixed(write: Write) -> Exported:
    return write("mixed", recipe=RECIPE, data=OWN)


@pytest.fixture(params=["bf16", "fp8", "mixed"])
def exported(request: pytest.FixtureRequest) -> Exported:
    found: Exported = request.getfixturevalue(request.param)
    return found


def test_a_float8_file_of_tensorrt_runs_as_it_is(fp8: Exported, gt_json: Path) -> None:
    """ONNX Runtime's optimisation makes an invalid graph of it; with a part of that left out, a wrong one."""
    networks = [open_network(path, threads=1) for path in (fp8.files[0], fp8.files[-1])]
    report = compare(networks[0], networks[1], sorted(gt_json.with_name("val").iterdir())[:1])
    assert report.precision == "fp8"
    assert all(6 < place.snr_db < 90 for place in report.places if place.name in ("C2", "C3", "C4", "C5"))


def test_a_bfloat16_file_of_tensorrt_says_whose_it_is(bf16: Exported) -> None:
    with pytest.raises(InputError, match=r"the file is TensorRT's: take the other one of its export, model\.onnx"):
        OnnxRuntimePredictor(bf16.files[-1], threads=1)


class Graph:
    """TensorRT's graph of an export, and the type of every tensor of it that is known."""

    def __init__(self, exported: Exported) -> None:
        self.nodes = list((model := onnx.load(exported.files[-1])).graph.node)
        graph = model.graph
        values = [*graph.value_info, *graph.input, *graph.output]
        self.types = {value.name: value.type.tensor_type.elem_type for value in values}
        self.types |= {tensor.name: tensor.data_type for tensor in graph.initializer}
        for node in self.nodes:
            if node.op_type == "DequantizeLinear":
                self.types[node.output[0]] = self.types[node.input[1]]
        self.made = {name: node for node in self.nodes for name in node.output}

    def kind(self, layer: onnx.NodeProto) -> str:
        """What a layer computes in: INT8 or FLOAT8E4M3FN where its input comes from such, else its weights' type."""
        source = self.made.get(layer.input[0])
        if source is not None and source.op_type == "DequantizeLinear":
            zero = self.types[source.input[2]]
            assert self.types[self.made[layer.input[1]].input[0]] == zero, "both of one type"
            return onnx.TensorProto.DataType.Name(zero)
        return onnx.TensorProto.DataType.Name(self.types[layer.input[1]])


def test_what_decides_is_float32(exported: Exported) -> None:
    """RoIs, offsets, boxes, scores, softmax and top-k, by the types of the graph's edges."""
    graph = Graph(exported)
    types = graph.types
    seen = set()
    for node in graph.nodes:
        edges = {
            **{name: [1, 3] for name in DEFORMABLE},  # offsets, bias
            "RoiAlignFpn": [4],
            "PaddedNms": [0, 1],
            "BestAnchors": range(6),
            "PanopticFusion": [1, 3, 7],  # boxes, scores, scales
        }.get(node.op_type, [])
        for place in edges:
            if node.op_type != "BestAnchors" or types[node.input[place]] != onnx.TensorProto.INT32:  # sizes
                assert types[node.input[place]] == FLOAT, (node.name, place)
        if node.op_type in {"Softmax", "TopK", "Exp", "ReduceSum", "ReduceMax", "Min"}:
            known = {types.get(name) for name in (*node.input, *node.output)}
            assert not known & {HALF, BF16}, node.name
            edges = [0]
        if edges:
            seen.add(node.op_type)
    assert {"DeformConv2d", "RoiAlignFpn", "PaddedNms", "BestAnchors", "PanopticFusion", "Softmax"} <= seen


def test_every_edge_of_an_operator_is_of_one_type(exported: Exported) -> None:
    """TensorRT is strongly typed: features of levels, of two sides of a sum, of weights and what they read agree."""
    graph = Graph(exported)
    floats = {FLOAT, HALF, BF16}
    for node in graph.nodes:
        places = {"RoiAlignFpn": [0, 1, 2, 3], "DeformConv2d": [0, 2]}.get(node.op_type, [])
        if node.op_type in ("Add", "Mul", "Sub", "Div", "MatMul", "Concat", *LAYERS):
            places = list(range(len(node.input)))
        known = {graph.types[node.input[place]] for place in places if node.input[place] in graph.types} & floats
        assert len(known) <= 1, (node.op_type, node.name, known)


def test_bf16_everywhere(bf16: Exported) -> None:
    graph = Graph(bf16)
    kinds = {graph.kind(node) for node in graph.nodes if node.op_type in LAYERS}
    assert kinds == {"BFLOAT16"}
    for node in graph.nodes:
        if node.op_type in ("DeformConv2d", "RoiAlignFpn", "PanopticFusion"):  # whose plugins take it
            assert graph.types[node.input[0]] == BF16


def test_fp8_has_what_int8_has(fp8: Exported) -> None:
    graph = Graph(fp8)
    assert fp8.quantized is not None and (fp8.quantized.layers, fp8.quantized.weak) == (fp8.quantized.of, {})
    kinds = [graph.kind(node) for node in graph.nodes if node.op_type in LAYERS]
    assert kinds.count("FLOAT8E4M3FN") == fp8.quantized.layers > 30 and set(kinds) == {"FLOAT8E4M3FN", "FLOAT"}
    assert (
        str(fp8.quantized)
        == f"fp8: {fp8.quantized.layers} of {fp8.quantized.of} layers that compute features have eight bits"
    )


def test_each_module_has_its_type(mixed: Exported, tiny_run: Path) -> None:
    model, _, _, _ = load_model(tiny_run / "last.safetensors")
    modules = modules_of(model)
    graph, found = Graph(mixed), defaultdict(set)
    for node in graph.nodes:
        if node.op_type in LAYERS:
            found[module_at(scope_of(node), modules)].add(graph.kind(node))
    assert found == {
        **{name: {"INT8"} for name in ("backbone.stem", "backbone.stages.0.0", "backbone.stages.3.0")},
        **{f"backbone.stages.1.{index}": {"INT8"} for index in (0, 1)},
        **{f"backbone.stages.2.{index}": {"FLOAT8E4M3FN"} for index in (0, 1)},
        "fpn.p2": {"BFLOAT16"},
        "fpn.p3": {"FLOAT"},
        "fpn.p4": {"BFLOAT16"},
        "fpn.p5": {"BFLOAT16"},
        "rpn": {"FLOAT"},
        "semantic_head": {"BFLOAT16"},
        "box_head": {"FLOAT16"},
        "mask_head": {"BFLOAT16"},
    }


def test_two_files_that_know_each_other(exported: Exported, tiny_run: Path) -> None:
    """ONNX Runtime's is float32 where it has no kernels for a type."""
    own, other = exported.files
    assert other == tensorrt_path(own)
    manifests = [Manifest.load(manifest_path(path)) for path in (own, other)]
    assert len(manifests[0].twins) == 64 and manifests[0].twins == manifests[1].twins
    assert manifests[0].recipe == (RECIPE if manifests[0].precision == "mixed" else None)
    plain = onnx.load(own)
    assert not {node.op_type for node in plain.graph.node} & {"QuantizeLinear", "DequantizeLinear"}
    assert not {tensor.data_type for tensor in plain.graph.initializer} & {HALF, BF16}
    inside = {entry.key: entry.value for entry in plain.metadata_props}
    assert json.loads(inside[CONFIGURATION_KEY])["name"] == "tiny"


def test_tf32_is_float32_and_a_word_to_the_builder(write: Write, tiny_run: Path) -> None:
    (path,) = write("tf32").files
    assert Manifest.load(manifest_path(path)).precision == "tf32"
    graphs = [onnx.load(each).graph for each in (path, tiny_run / "model.onnx")]
    assert graphs[0].SerializeToString(deterministic=True) == graphs[1].SerializeToString(deterministic=True)


@pytest.mark.parametrize("precision", ["bf16", "fp8", "mixed"])
def test_tensorrt_rtx_takes_it(precision: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """With all plugins, and every layer in the type that was asked for."""
    exported = request.getfixturevalue(precision)
    need("tensorrt_rtx_bindings")
    outcome = build_engine(exported.files[0], tmp_path / "engine", built("cpu")[1], "tensorrt-rtx").tensorrt_rtx
    assert outcome.layers is not None and wrong_types(exported.manifest, outcome.layers) == []
    kind = {"bf16": "BF16", "fp8": "FLOAT", "mixed": "FLOAT"}[precision]
    assert outcome.plugins is not None and set(outcome.plugins["RoiAlignFpn"]) == {kind}


class TestPrepare:
    @pytest.fixture(scope="class")
    def network(self) -> UPSNet:
        torch.manual_seed(0)
        backbone = TimmConfig(kind="timm", name="resnet14t", deformable_stages=(3,))
        return UPSNet(ModelConfig(backbone=backbone), num_stuff=3, num_things=2).eval()

    def test_a_mixed_network_runs_and_computes_nearly_the_same(self, network: UPSNet) -> None:
        recipe = Recipe(default="bf16", modules={"backbone.layer2": "fp16", "fpn.p4": "fp32", "semantic_head": "fp16"})
        mixed = prepare(network, "mixed", recipe)
        images = torch.randint(0, 256, (1, 64, 96, 3), dtype=torch.uint8)
        sizes = torch.tensor([[64, 96]], dtype=torch.int32)
        with torch.inference_mode():
            pyramid = mixed.pyramid(images, sizes)
            assert {level.dtype for level in pyramid} == {torch.float32}, "the widest of the levels, for RoIAlign"
            for found, expected in zip(pyramid, network.pyramid(images, sizes), strict=True):
                assert (found - expected).norm() < 0.05 * expected.norm()
            assert mixed.semantic_head(pyramid[:4], sizes).dtype == torch.float16
            assert mixed(images, sizes, torch.ones(1))[0].dtype == torch.uint8

    def test_weights_have_their_modules_types(self, network: UPSNet) -> None:
        mixed = prepare(network, "mixed", Recipe(default="fp16", modules={"backbone.layer2": "bf16", "rpn": "int8"}))
        layer = mixed.get_submodule("backbone.network.layer2")
        assert {p.dtype for p in layer.parameters()} == {torch.bfloat16, torch.float32}
        deform = next(module for module in layer.modules() if isinstance(module, DeformConv))
        assert deform.bias is not None and deform.bias.dtype == torch.float32
        assert {p.dtype for p in mixed.rpn.parameters()} == {torch.float16}, "around its eight bits"

    def test_modules_of_timms_networks(self, network: UPSNet) -> None:
        names = list(modules_of(network))
        assert "backbone.layer2.0" in names and names[-5:] == [
            "fpn.p5",
            "rpn",
            "semantic_head",
            "box_head",
            "mask_head",
        ]


class TestRecipeFile:
    def refused(self, tmp_path: Path, tiny_run: Path, text: str, *arguments: str) -> str:
        (tmp_path / "recipe.yaml").write_text(text)
        out = tmp_path / "out/model.onnx"
        command = ["--checkpoint", str(tiny_run / "last.safetensors"), "--out", str(out)]
        command += ["--recipe", str(tmp_path / "recipe.yaml"), *arguments]
        result = CliRunner().invoke(make_app(export.onnx_export.main), command)
        assert result.exit_code == 2 and result.stderr.count("\n") == 1, result.output
        assert not out.parent.exists() or not list(out.parent.iterdir())
        return result.stderr

    def test_json_and_yaml(self, tmp_path: Path) -> None:
        for text in (
            '{"default": "fp16", "modules": {"rpn": "fp32"}}',
            '{\n\t"default": "fp16",\n\t"modules": {\n\t\t"rpn": "fp32"\n\t}\n}',
            "default: fp16\nmodules:\n  rpn: fp32\n",
        ):
            (tmp_path / "r").write_text(text)
            assert read_recipe(tmp_path / "r") == Recipe(default="fp16", modules={"rpn": "fp32"})

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("default: fp16\nmodules: {rpm: fp32}", "no module 'rpm' in this network; did you mean rpn. There are"),
            ("modules: {backbone.stages.9: fp16}", "backbone.stages.3.0"),  # names those there are
            ("default: fp64", "recipe.yaml: default"),
            ("modules: {rpn: tf32}", "recipe.yaml: modules"),
            ("defualt: fp16", "recipe.yaml: defualt"),
            ("- fp16", "recipe.yaml: "),
            ("{", "recipe.yaml: cannot be read as a recipe"),
            ("", "recipe.yaml: no recipe, which is as {default: fp16"),
            (
                "default: fp16\nmodules: {}\ndefault: fp32",
                "yaml: .*'default' stands twice, the second .* line 3",
            ),
            ('{"modules": {"rpn": "int8", "r\\u0070n": "fp16"}}', "'rpn' stands twice"),
        ],
    )
    def test_a_wrong_one_is_refused(self, tmp_path: Path, tiny_run: Path, text: str, message: str) -> None:
        assert re.search(message, self.refused(tmp_path, tiny_run, text))

    def test_eight_bits_need_photos(self, tmp_path: Path, tiny_run: Path) -> None:
        line = self.refused(tmp_path, tiny_run, "modules: {box_head: fp8}")
        assert "recipe.yaml needs photos: --calibrate train" in line
        line = self.refused(tmp_path, tiny_run, "modules: {box_head: fp16}", "--calibrate", OWN)
        assert "recipe.yaml has nothing of int8 or fp8" in line and "leave out --calibrate and --photos" in line

    def test_a_recipe_is_mixed(self, tmp_path: Path, tiny_run: Path) -> None:
        assert "--precision mixed goes with" in self.refused(tmp_path, tiny_run, "default: fp16", "--precision", "fp16")

    def test_a_module_that_cannot_have_eight_bits(self, write: Write) -> None:
        for kind in ("int8", "fp8"):
            with pytest.raises(InputError, match=f"semantic_head: none of its layers can have {kind}"):
                write("mixed", recipe=Recipe(modules={"semantic_head": kind}), data=OWN)
