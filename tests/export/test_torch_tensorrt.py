"""torch-tensorrt's backend, without a GPU: what it is called with, what it converts, what it saves."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from export import torch_tensorrt, torch_tensorrt_predictor
from export.backends import torch_tensorrt_program
from export.building import build_engine
from export.precision import prepare
from export.profiles import optimization_profile
from export.torch_tensorrt import at_least, build, compile_program, trace
from tests.training.tiny_network import SMALL
from training import gpu_step_check
from training.checkpoint import Checkpoint, versions
from training.checkpoint import save as save_checkpoint
from training.model.upsnet import UPSNet
from training.model_config import ModelConfig
from training.predictor import make_manifest
from upsnet.categories import Categories
from upsnet.errors import InputError
from upsnet.geometry import ResizeRule
from upsnet.manifest import Manifest, Recipe

RESIZE = ResizeRule(short_side=96, max_side=192)
# Of torch-tensorrt 2.14: `test_the_real_package` holds them against it.
PARAMETERS = {
    "compile": "exported_program arg_inputs device disable_tf32 min_block_size torch_executed_ops "
    "pass_through_build_failures timing_cache_path",
    "save": "module file_path output_format retrace",
    "load": "file_path",
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the smallest network, with random weights."""
    config = gpu_step_check.configuration("fp32")
    stuff, things = gpu_step_check.STUFF, gpu_step_check.THINGS
    table = [{"id": i + 1, "name": f"class {i}", "isthing": int(i >= stuff)} for i in range(stuff + things)]
    torch.manual_seed(0)
    model = UPSNet(config.model, stuff, things)
    path = tmp_path_factory.mktemp("torch_tensorrt") / "last.safetensors"
    save_checkpoint(path, Checkpoint(config, Categories.from_coco(table), 0, None, model.state_dict(), {}, versions()))
    return path


@pytest.fixture(scope="module")
def manifest() -> Manifest:
    config = gpu_step_check.configuration("fp32")
    table = [{"id": i + 1, "name": f"class {i}", "isthing": int(i >= 3)} for i in range(7)]
    return make_manifest(config, Categories.from_coco(table))


@pytest.fixture(scope="module")
def network() -> UPSNet:
    torch.manual_seed(0)
    return UPSNet(ModelConfig.model_validate(SMALL), 3, 4).eval()


class Stub(ModuleType):
    """torch_tensorrt as far as it is called; a parameter that the real one does not have is refused."""

    def __init__(self) -> None:
        super().__init__("torch_tensorrt")
        self.__version__ = "2.14.0"
        self.calls: dict[str, dict[str, Any]] = {}
        self.dynamo = SimpleNamespace(compile=self._compile)

    class Input:
        profiles: list[dict[str, tuple[int, ...]]] | None = None

        def __init__(self, *, profiles: list[dict[str, tuple[int, ...]]], dtype: torch.dtype) -> None:
            self.profiles, self.dtype = profiles, dtype

    def Device(self, spec: str) -> str:
        return spec

    def _compile(self, exported_program: torch.export.ExportedProgram, **named: Any) -> Any:
        assert set(named) <= set(PARAMETERS["compile"].split())
        self.calls["compile"] = named
        return exported_program

    def save(self, module: torch.export.ExportedProgram, file_path: str, **named: Any) -> None:
        assert set(named) <= set(PARAMETERS["save"].split())
        self.calls["save"] = named
        torch.export.save(module, file_path)

    def load(self, file_path: str) -> Any:
        return torch.export.load(file_path)


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stub]:
    """With it, a machine whose GPU is this CPU."""
    package = Stub()
    monkeypatch.setitem(sys.modules, "torch_tensorrt", package)
    monkeypatch.setattr(torch.nn.Module, "cuda", lambda self: self)
    yield package


class TestRefusals:
    def test_the_command_says_why_not(self, tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        model = tiny_run / "model.onnx"
        find_spec = importlib.util.find_spec
        for there, words in (
            (False, "the package torch-tensorrt is not installed"),
            (True, "torch-tensorrt is installed, but there is no"),
        ):

            def spec(name: str, *rest: Any, there: bool = there) -> object:
                return (SimpleNamespace() if there else None) if name == "torch_tensorrt" else find_spec(name, *rest)

            monkeypatch.setattr(importlib.util, "find_spec", spec)
            monkeypatch.setattr(torch_tensorrt_program, "gpu_problem", lambda: "there is no NVIDIA GPU")
            with pytest.raises(InputError, match=words):
                build_engine(model, tmp_path / "engine", backend="torch-tensorrt")
        assert list(tmp_path.iterdir()) == []

    def test_a_precision_that_it_does_not_build(self, stub: Stub, tmp_path: Path, manifest: Manifest) -> None:
        recipe = Recipe(default="fp16", modules={"rpn": "fp8"})
        for name, update in (("int8", {"precision": "int8"}), ("fp8", {"precision": "mixed", "recipe": recipe})):
            outcome = build(tmp_path / "none", tmp_path / "model.pt2", manifest.model_copy(update=update))
            assert (outcome.status, str(outcome)) == ("refused", f"torch-tensorrt builds no {name} here")

    def test_types_that_were_not_asked_for(
        self, stub: Stub, checkpoint: Path, tmp_path: Path, manifest: Manifest, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(torch_tensorrt, "prepare", lambda model, *_: prepare(model, "fp32"))
        outcome = build(checkpoint, tmp_path / "model.pt2", manifest.model_copy(update={"precision": "fp16"}))
        assert (outcome.status, outcome.stage) == ("refused", "types")
        assert outcome.errors and "CONVOLUTION layers compute in FLOAT, not in HALF" in outcome.errors[0]
        assert list(tmp_path.iterdir()) == []

    def test_an_old_package(self, stub: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(stub, "Input", object)
        with pytest.raises(InputError, match=r"torch-tensorrt 2\.14\.0 takes no profiles of shapes"):
            torch_tensorrt.import_package()

    def test_what_fails_leaves_no_file(
        self, stub: Stub, checkpoint: Path, tmp_path: Path, manifest: Manifest, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fails(*_: Any, **__: Any) -> None:
            raise RuntimeError("no tactic\nand more")

        monkeypatch.setattr(stub.dynamo, "compile", fails)
        outcome = build(checkpoint, tmp_path / "model.pt2", manifest)
        assert (outcome.status, outcome.stage, outcome.errors) == ("refused", "builder", ["no tactic"])
        assert list(tmp_path.iterdir()) == []

    def test_a_predictor_without_a_gpu(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        with pytest.raises(InputError, match=r"runs on an NVIDIA GPU alone \(PyTorch sees none\); --runtime pytorch"):
            torch_tensorrt_predictor.TorchTensorRTPredictor(tmp_path / "model.pt2")


class TestCalls:
    def test_the_program_is_built_saved_and_loaded_again(
        self, stub: Stub, checkpoint: Path, tmp_path: Path, manifest: Manifest
    ) -> None:
        outcome = build(checkpoint, tmp_path / "model.pt2", manifest)
        assert outcome.status == "built", outcome
        assert outcome.bytes == (tmp_path / "model.pt2").stat().st_size
        assert outcome.plugins is not None and set(outcome.plugins) == set(torch_tensorrt.OPERATORS)
        compiled = stub.calls["compile"]
        assert compiled["disable_tf32"] is True and compiled["pass_through_build_failures"] is True
        assert [each.dtype for each in compiled["arg_inputs"]] == [torch.uint8, torch.int32, torch.float32]
        program = torch_tensorrt_predictor.load(tmp_path / "model.pt2")
        images = torch.randint(0, 256, (1, 96, 96, 3), dtype=torch.uint8)
        answer = program(images, torch.tensor([[90, 80]], dtype=torch.int32), torch.ones(1))
        assert [tuple(each.shape) for each in answer] == [(1, 96, 96), (1, 3 + manifest.max_detections, 7), (1,)]

    def test_types_are_the_programs(self, network: UPSNet) -> None:
        traced = trace(prepare(network, "fp16"), optimization_profile(RESIZE, 1), RESIZE.divisor)
        assert traced.layers == {"CONVOLUTION": {"HALF": 42}, "MATRIX_MULTIPLY": {"HALF": 5}}
        assert traced.operators["deform_conv"] == {"HALF": 4}

    def test_any_batch_and_size_of_the_profile(self, stub: Stub, network: UPSNet) -> None:
        traced = trace(prepare(network, "fp32"), optimization_profile(RESIZE, 4), RESIZE.divisor)
        compile_program(stub, traced, "tf32")
        assert stub.calls["compile"]["disable_tf32"] is False
        program = traced.program.module()
        for batch, height, width in ((1, 96, 96), (4, 96, 192)):
            images = torch.randint(0, 256, (batch, height, width, 3), dtype=torch.uint8)
            inputs = (images, torch.tensor([[height, width - 5]] * batch, dtype=torch.int32), torch.ones(batch))
            with torch.no_grad():
                for ours, theirs in zip(program(*inputs), network(*inputs), strict=True):
                    assert torch.isclose(ours.float(), theirs.float(), atol=1e-3).float().mean() > 0.99

    def test_the_smallest_side_is_three_tiles(self, manifest: Manifest) -> None:
        profile = at_least(optimization_profile(ResizeRule(short_side=64, max_side=256), 8), manifest)
        assert profile["images"] == ((1, 96, 96, 3), (1, 96, 96, 3), (8, 256, 256, 3))
        images = np.ones((2, 64, 128, 3), np.uint8)
        padded = torch_tensorrt_predictor.at_least(images, 96)
        assert padded.shape == (2, 96, 128, 3) and padded.sum() == images.sum()
        assert torch_tensorrt_predictor.at_least(padded, 96) is padded


def test_the_real_package(checkpoint: Path, tmp_path: Path) -> None:
    """Its converters and TensorRT's builder, on the CPU; what only a GPU does is stubbed (convert_without_gpu.py)."""
    if not importlib.util.find_spec("torch_tensorrt"):
        pytest.skip("torch-tensorrt, which `make setup` does not install")

    def child(*files: Path) -> dict[str, Any]:
        command = [sys.executable, "-m", "tests.export.convert_without_gpu", *map(str, files)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=os.environ.copy())
        assert done.returncode == 0, done.stderr[-2000:]
        return json.loads(done.stdout.splitlines()[-1])

    engine = tmp_path / "model.pt2"
    made = child(checkpoint, engine)
    assert made["outcome"]["status"] == "built", made["outcome"]
    assert len(made["engines"]) >= 3 and min(made["engines"]) > 10_000
    for name, parameters in PARAMETERS.items():
        assert set(parameters.split()) <= set(made["signatures"][name])
    loaded = child(engine)
    assert loaded["operators"].count("tensorrt.execute_engine.default") == len(made["engines"])
    assert {f"upsnet.{name}.default" for name in torch_tensorrt.OPERATORS} <= set(loaded["operators"])
    assert "training" not in loaded["modules"]
