"""--precision int8: two files from one calibration, what stays float32, and what is refused."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx.numpy_helper import from_array, to_array
from typer.testing import CliRunner

import export.onnx_export
from export.backends import tensorrt_engine
from export.backends.backend import Job
from export.backends.tensorrt_engine import TensorRT
from export.building import build_engine
from export.calibration import OWN, find_photos, find_ranges, signal_to_noise
from export.features import LAYERS, feature_nodes, features_of
from export.modules import modules_of
from export.onnx_export import export_int8, export_onnx
from export.quantization import quantize, quantize_layers
from tests import backends
from tests.agreement import compare_segments
from tests.folders import local
from tests.plugins_cuda.tensorrt.libraries import built, need
from tests.small_disk import small_disk
from training.checkpoint import load_model
from upsnet.command_line.command import make_app
from upsnet.contract import CONFIGURATION_KEY, METADATA_KEY, manifest_path, tensorrt_path
from upsnet.errors import InputError
from upsnet.geometry import collate, to_network
from upsnet.manifest import Manifest, Recipe
from upsnet.photos import read_photo
from upsnet.runtimes.onnx_runtime import OnnxRuntimePredictor

UINT8, INT8 = onnx.TensorProto.UINT8, onnx.TensorProto.INT8


@pytest.fixture(scope="module")
def int8(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file for ONNX Runtime of tiny_run's checkpoint."""
    model = tmp_path_factory.mktemp("int8") / "model.onnx"
    export_int8(tiny_run / "last.safetensors", model, OWN)
    return model


@pytest.fixture
def traced(tiny_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The network is not traced again: an export begins with the graph that is in tiny_run's file."""

    def load(*_: object) -> onnx.ModelProto:
        proto = onnx.load(tiny_run / "model.onnx")
        del proto.metadata_props[:]
        return proto

    monkeypatch.setattr(export.onnx_export, "to_model_proto", load)


@pytest.fixture
def refused(traced: None, tiny_run: Path, tmp_path: Path) -> Callable[..., str]:
    """The one line that an export with these arguments ends in; it writes nothing."""

    def run(*arguments: str, checkpoint: Path = tiny_run / "last.safetensors") -> str:
        out = tmp_path / "out/model.onnx"
        command = ["--checkpoint", str(checkpoint), "--out", str(out), *arguments]
        result = CliRunner().invoke(make_app(export.onnx_export.main), command)
        assert result.exit_code == 2 and result.stderr.count("\n") == 1, result.output
        assert not out.parent.exists() or not list(out.parent.iterdir())
        return result.stderr

    return run


def zero_points(path: Path) -> Counter[int]:
    """The types of the zero points of a file's QuantizeLinear nodes, which features alone have."""
    graph = onnx.load(path).graph
    kinds = {tensor.name: tensor.data_type for tensor in graph.initializer}
    return Counter(kinds[node.input[2]] for node in graph.node if node.op_type == "QuantizeLinear")


class TestFiles:
    def test_each_executor_has_its_kind(self, int8: Path) -> None:
        assert set(zero_points(int8)) == {UINT8}
        assert set(zero_points(tensorrt_path(int8))) == {INT8}
        weights = {tensor.name: tensor for tensor in onnx.load(tensorrt_path(int8)).graph.initializer}
        zeros = [to_array(tensor) for name, tensor in weights.items() if name.endswith("zero_point")]
        assert zeros and not any(zero.any() for zero in zeros), "symmetric"

    def test_weights_are_eight_bits_channel_by_channel(self, int8: Path, tiny_run: Path) -> None:
        for path in (int8, tensorrt_path(int8)):
            assert path.stat().st_size < 0.5 * (tiny_run / "model.onnx").stat().st_size
            weights = {tensor.name: tensor for tensor in onnx.load(path).graph.initializer}
            scale = weights["backbone.stem.3.weight_scale"]
            assert list(scale.dims) == [48] and weights["backbone.stem.3.weight_quantized"].data_type == INT8

    def test_custom_operators_are_as_they_were(self, int8: Path, tiny_run: Path) -> None:
        before = onnx.load(tiny_run / "model.onnx")
        for path in (int8, tensorrt_path(int8)):
            after = onnx.load(path)
            assert [each.name for each in after.functions] == [each.name for each in before.functions]
            counts = [Counter(n.op_type for n in m.graph.node if n.domain == "upsnet") for m in (before, after)]
            assert counts[0] == counts[1]

    def test_layers_that_decide_have_float_weights(self, int8: Path) -> None:
        for path in (int8, tensorrt_path(int8)):
            graph = onnx.load(path).graph
            floats = {tensor.name for tensor in graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT}
            read = {name for node in graph.node if node.op_type in LAYERS for name in node.input[1:2]}
            for name in ("semantic_head.convs.0.conv_offset", "box_head.logits", "box_head.deltas"):
                assert f"{name}.weight" in floats & read
            made = {node.output[0]: node for node in graph.node}
            (anchors,) = (node for node in graph.node if node.op_type == "BestAnchors")
            assert all(made[name].input[1] in floats for name in anchors.input[:5]), "the RPN's, side by side"

    def test_manifest_says_what_it_was_calibrated_on(self, int8: Path, tiny_run: Path) -> None:
        for path in (int8, tensorrt_path(int8)):
            inside = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
            assert set(inside) == {METADATA_KEY, CONFIGURATION_KEY}
            for manifest in (Manifest.load(manifest_path(path)), Manifest.model_validate_json(inside[METADATA_KEY])):
                assert manifest.precision == "int8" and manifest.calibration is not None
                assert (manifest.calibration.photos, manifest.calibration.method) == (2, "minmax")
                assert manifest.calibration.data.endswith("shapes/train.json")
        assert "calibration" not in (tiny_run / "model.manifest.json").read_text()

    def test_the_same_photos_give_the_same_file(self, traced: None, int8: Path, tiny_run: Path, tmp_path: Path) -> None:
        again = tmp_path / "model.onnx"
        export_int8(tiny_run / "last.safetensors", again, OWN)
        assert again.read_bytes() == int8.read_bytes()
        assert tensorrt_path(again).read_bytes() == tensorrt_path(int8).read_bytes()

    def test_segments_stay(self, int8: Path, tiny_run: Path) -> None:
        """On the photos that the network knows by heart."""
        rule = Manifest.load(manifest_path(int8)).resize
        photos = sorted((tiny_run.parent / "shapes/train").iterdir())
        batch = collate([to_network(read_photo(path), rule) for path in photos])
        expected = OnnxRuntimePredictor(tiny_run / "model.onnx").predict(batch)
        assert (expected.segment_count > 0).all()
        for path in (int8, tensorrt_path(int8)):
            same, _ = compare_segments(OnnxRuntimePredictor(path).predict(batch), expected, score=0.2)
            assert same >= 0.9

    def test_a_float_export_takes_the_old_file_away(
        self, traced: None, int8: Path, tiny_run: Path, tmp_path: Path
    ) -> None:
        model = tmp_path / "model.onnx"
        for path in (int8, tensorrt_path(int8)):
            for each in (path, manifest_path(path)):
                shutil.copy(each, tmp_path)
        export_onnx(tiny_run / "last.safetensors", model)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["model.manifest.json", "model.onnx"]

    @pytest.mark.parametrize("name", ["model.onnx", "model.manifest.json", "model.tensorrt.onnx"])
    def test_a_folder_in_the_place_of_a_file_is_refused_first(self, name: str, tiny_run: Path, tmp_path: Path) -> None:
        (tmp_path / name).mkdir()
        with pytest.raises(InputError, match=f"{name}: cannot be written: a folder"):
            export_int8(tmp_path / "no checkpoint is opened", tmp_path / "model.onnx", OWN)
        assert [path.name for path in tmp_path.iterdir()] == [name]

    def test_a_full_disk_leaves_what_was_there(self, traced: None, int8: Path, tiny_run: Path, tmp_path: Path) -> None:
        """One of the models has no room any more."""
        before = {}
        for path in (int8, tensorrt_path(int8)):
            for each in (path, manifest_path(path)):
                shutil.copy(each, tmp_path)
                before[each.name] = each.read_bytes()
        size = max(path.stat().st_size for path in (int8, tensorrt_path(int8)))
        with small_disk(size * 9 // 10), pytest.raises(InputError, match="cannot be written: File too large"):
            export_int8(tiny_run / "last.safetensors", tmp_path / "model.onnx", OWN, 1)
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before

    def test_a_full_disk_leaves_nothing(self, traced: None, tiny_run: Path, tmp_path: Path) -> None:
        with small_disk(100_000), pytest.raises(InputError, match="cannot be written: File too large"):
            export_int8(tiny_run / "last.safetensors", tmp_path / "model.onnx", OWN, 1)
        assert list(tmp_path.iterdir()) == []


class TestSensitivity:
    """One channel of an MBConv block a thousand times as large, and its next weights a thousandth: the same network,
    but eight bits for the whole feature leave nothing of the other channels."""

    BLOCK = "backbone.stages.1.1"

    @pytest.fixture
    def hard(self, tiny_run: Path) -> onnx.ModelProto:
        model = onnx.load(tiny_run / "model.onnx")
        tensors = {tensor.name: tensor for tensor in model.graph.initializer}
        for name, factor in (("expand_conv.weight", 1e3), ("expand_conv.bias", 1e3), ("dw_conv.weight", 1e-3)):
            tensor = tensors[f"{self.BLOCK}.{name}"]
            values = to_array(tensor).copy()
            values[self.channel(tensors)] *= factor
            tensor.CopyFrom(from_array(values, tensor.name))
        return model

    def channel(self, tensors: dict[str, onnx.TensorProto]) -> int:
        """One that is active."""
        return int(np.abs(to_array(tensors[f"{self.BLOCK}.project_conv.weight"])).sum((0, 2, 3)).argmax())

    def test_it_stays_float32_with_what_gives_it(self, hard: onnx.ModelProto, tiny_run: Path) -> None:
        _, config, _, _ = load_model(tiny_run / "last.safetensors")
        paths = find_photos(OWN, config, 2).paths
        found = quantize(hard, paths, config.data.resize)
        assert list(found.weak) == [f"{self.BLOCK}.dw_conv.weight"] and found.weak[f"{self.BLOCK}.dw_conv.weight"] < 10
        assert found.layers == found.of - 2
        assert f"{self.BLOCK}.dw_conv (" in str(found)
        assert found.tensorrt is not None
        for graph in (found.graph.graph, found.tensorrt.graph):
            names = {tensor.name for tensor in graph.initializer}
            for name in ("expand_conv", "dw_conv"):
                assert f"{self.BLOCK}.{name}.weight" in names
            assert f"{self.BLOCK}.project_conv.weight_quantized" in names

    def test_a_recipe_has_it_nevertheless_and_says_so(self, hard: onnx.ModelProto, tiny_run: Path) -> None:
        model, config, _, _ = load_model(tiny_run / "last.safetensors")
        paths = find_photos(OWN, config, 1).paths
        recipe = Recipe(modules={"backbone.stages.1": "int8"})
        found = quantize(hard, paths, config.data.resize, recipe, modules_of(model))
        assert f"{self.BLOCK}.dw_conv.weight" in found.weak and found.layers == 6, "three in each of two blocks"
        assert f"{self.BLOCK}.dw_conv (" in str(found) and "the recipe has them nevertheless" in str(found)

    def test_fp8_keeps_what_is_small_beside_something_large(self, hard: onnx.ModelProto, tiny_run: Path) -> None:
        model, config, _, _ = load_model(tiny_run / "last.safetensors")
        paths = find_photos(OWN, config, 1).paths
        found = quantize_layers(hard, hard, paths, config.data.resize, Recipe(default="fp8"), modules_of(model))
        assert found.weak == {} and found.layers == found.of

    def test_what_deciding_layers_read_is_measured_there(self, tiny_run: Path) -> None:
        """Logits and deltas are float32; eight bits for what they read spoil them all the same."""
        model = onnx.load(tiny_run / "model.onnx")
        tensors = {tensor.name: tensor for tensor in model.graph.initializer}
        deciding = ("logits.weight", "deltas.weight")
        read = sum(np.abs(to_array(tensors[f"box_head.{name}"])).sum(0) for name in deciding)
        for unit in np.argsort(read)[-9:]:  # some are active
            for name, factor in (("fc7.weight", 1e4), ("fc7.bias", 1e4), *((name, 1e-4) for name in deciding)):
                tensor = tensors[f"box_head.{name}"]
                values = to_array(tensor).copy()
                values[unit if name.startswith("fc7") else (slice(None), unit)] *= factor
                tensor.CopyFrom(from_array(values, tensor.name))
        _, config, _, _ = load_model(tiny_run / "last.safetensors")
        found = quantize(model, find_photos(OWN, config, 2).paths, config.data.resize)
        assert {"box_head.logits.weight", "box_head.deltas.weight"} & set(found.weak), found
        assert all(name.startswith("box_head.") for name in found.weak) and found.layers == found.of - 1
        names = {tensor.name for tensor in found.graph.graph.initializer}
        assert "box_head.fc7.weight" in names and "box_head.fc6.weight_quantized" in names

    def test_decibels_of_a_layer_by_hand(self, tiny_run: Path) -> None:
        """The error of eight bits is about the uniform one, a twelfth of a squared step."""
        model = onnx.load(tiny_run / "model.onnx")
        _, config, _, _ = load_model(tiny_run / "last.safetensors")
        paths, rule = find_photos(OWN, config, 2).paths, config.data.resize
        nodes = feature_nodes(model.graph)
        ranges = find_ranges(model, features_of(nodes, model.graph), paths, rule)
        assert all(low <= 0 <= high for low, high in ranges.values())
        stem = next(node for node in nodes if node.input[1] == "backbone.stem.0.weight")
        (decibels,) = signal_to_noise(model, [stem.name], ranges, paths, rule)
        assert 30 < decibels < 60


class TestPhotos:
    def test_evenly_spaced(self, tiny_run: Path, tmp_path: Path) -> None:
        _, config, _, _ = load_model(tiny_run / "last.safetensors")
        for index in range(10):
            shutil.copy(next((tiny_run.parent / "shapes/train").iterdir()), tmp_path / f"{index}.png")
        found = find_photos(str(tmp_path), config, 5)
        assert [path.name for path in found.paths] == ["0.png", "2.png", "4.png", "6.png", "8.png"]
        assert len(find_photos(str(tmp_path), config, 99).paths) == 10

    def test_a_data_set_by_its_json(self, tiny_run: Path) -> None:
        _, config, _, _ = load_model(tiny_run / "last.safetensors")
        found = find_photos(str(tiny_run.parent / "shapes/val.json"), config, 99)
        assert len(found.paths) == 4 and all(local(path).parent.name == "val" for path in found.paths)


class TestRefused:
    def test_one_without_the_other(self, refused: Callable[..., str], tmp_path: Path) -> None:
        assert "--calibrate train" in refused("--precision", "int8")
        assert "--precision int8" in refused("--calibrate", str(tmp_path))
        assert "--precision int8" in refused("--photos", "3", "--precision", "fp16")

    def test_no_photos(self, refused: Callable[..., str], tmp_path: Path) -> None:
        (tmp_path / "empty").mkdir()
        for name in ("empty", "nowhere", "*.jpg"):
            assert name in refused("--precision", "int8", "--calibrate", str(tmp_path / name))

    def test_a_video_alone(self, refused: Callable[..., str], tmp_path: Path) -> None:
        (tmp_path / "clip.mp4").write_bytes(b"")
        assert "no photo" in refused("--precision", "int8", "--calibrate", str(tmp_path / "clip.mp4"))

    def test_a_broken_photo(self, refused: Callable[..., str], tmp_path: Path) -> None:
        (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8 and nothing more")
        line = refused("--precision", "int8", "--calibrate", str(tmp_path / "broken.jpg"))
        assert "broken.jpg: not a readable image" in line

    def test_training_photos_that_are_gone(
        self, refused: Callable[..., str], tiny_run: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        model, config, categories, step = load_model(tiny_run / "last.safetensors")
        gone = config.data.train.model_copy(update={"images": Path("/nowhere/train")})
        data = config.data.model_copy(update={"train": gone})
        answer = (model, config.model_copy(update={"data": data}), categories, step)
        monkeypatch.setattr(export.onnx_export, "load_model", lambda _: answer)
        line = refused("--precision", "int8", "--calibrate", OWN)
        assert "/nowhere/train: not there; give --calibrate other photos" in line

    def test_an_engine_of_two_exports(self, int8: Path, tmp_path: Path) -> None:
        model = tmp_path / "model.onnx"
        for path in (int8, tensorrt_path(int8)):
            for each in (path, manifest_path(path)):
                shutil.copy(each, tmp_path)
        twin = manifest_path(tensorrt_path(model))
        good = Manifest.load(twin)
        assert good.calibration is not None and len(good.calibration.pair) == 64
        for change in ({"data": "x"}, {"pair": "0" * 64}, {"pair": ""}):
            calibration = good.calibration.model_copy(update=change)
            good.model_copy(update={"calibration": calibration}).save(twin)
            with pytest.raises(InputError, match=r"model\.tensorrt\.onnx: not of the same export"):
                build_engine(model, tmp_path / "engine")
        good.save(twin)
        shutil.copy(model, tensorrt_path(model))
        with pytest.raises(InputError, match=r"not the file that model\.tensorrt\.manifest\.json describes"):
            build_engine(model, tmp_path / "engine")


@pytest.mark.parametrize("missing", ["model.tensorrt.onnx", "model.tensorrt.manifest.json"])
def test_an_engine_of_half_an_export_is_onnx_runtimes(
    int8: Path, missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in (int8, tensorrt_path(int8)):
        for each in (path, manifest_path(path)):
            if each.name != missing:
                shutil.copy(each, tmp_path)
    monkeypatch.setattr(tensorrt_engine, "installed", lambda name: name)
    monkeypatch.setattr(tensorrt_engine, "gpu_problem", lambda: None)
    found = build_engine(tmp_path / "model.onnx", tmp_path / "engine")
    assert found.onnxruntime.status == "built" and (tmp_path / "engine/model.onnx").is_file()
    for outcome in (found.tensorrt, found.tensorrt_rtx):
        assert outcome.status == "absent" and f"there is no {missing}" in str(outcome.reason)


def test_an_engine_of_tensorrts_file(int8: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its plans are built from itself."""
    backends.put_in_place(monkeypatch)
    assert build_engine(tensorrt_path(int8), tmp_path).onnxruntime.status == "built"
    job = Job(tensorrt_path(int8), Manifest.load(manifest_path(tensorrt_path(int8))), tmp_path)
    assert TensorRT("tensorrt-rtx").source(job) == tensorrt_path(int8)


@pytest.mark.tensorrt
def test_rtx_builds_the_signed_file(int8: Path, tmp_path: Path) -> None:
    need("tensorrt_rtx_bindings")
    _, plugins = built("cpu")
    found = build_engine(int8, tmp_path, plugins).tensorrt_rtx
    assert found.status == "built" and found.layers is not None, found
    assert found.layers["CONVOLUTION"]["INT8"] > 30
    assert found.layers["CONVOLUTION"]["FLOAT"] > 0, "the layers that decide"
