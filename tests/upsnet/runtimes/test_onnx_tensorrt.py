"""ONNX Runtime's TensorRT provider, without a GPU: a stand-in for its session."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import CATEGORIES, ORDER
from upsnet.categories import Categories
from upsnet.contract import INPUTS, METADATA_KEY, OUTPUTS, PLUGINS, manifest_path
from upsnet.errors import InputError
from upsnet.geometry import ResizeRule
from upsnet.manifest import Manifest
from upsnet.runtimes import onnx_runtime
from upsnet.runtimes.onnx_runtime import CPU, CUDA
from upsnet.runtimes.onnx_tensorrt import CACHE, PLUGINS_VARIABLE, TENSORRT, TensorRTProviderPredictor, profile

# Of the provider's documentation; ONNX Runtime refuses an option that it does not know.
KNOWN = {
    "device_id",
    "trt_extra_plugin_lib_paths",
    "trt_fp16_enable",
    "trt_profile_min_shapes",
    "trt_profile_opt_shapes",
    "trt_profile_max_shapes",
    "trt_engine_cache_enable",
    "trt_engine_cache_path",
    "trt_engine_cache_prefix",
    "trt_timing_cache_enable",
    "trt_timing_cache_path",
}


class Session:
    """In place of onnxruntime's InferenceSession: its TensorRT provider works, raises, or does not load in silence."""

    tensorrt: Exception | bool = True
    asked: list[Any]

    def __init__(self, model: str, options: object, providers: list[Any], **more: int) -> None:
        Session.asked = providers
        assert more == {"enable_fallback": 0}
        if isinstance(self.tensorrt, Exception):
            raise self.tensorrt

    def get_providers(self) -> list[str]:
        return [TENSORRT, CUDA, CPU] if self.tensorrt else [CUDA, CPU]

    def get_modelmeta(self) -> Any:
        return type("Metadata", (), {"custom_metadata_map": {METADATA_KEY: MANIFEST.model_dump_json()}})

    def get_inputs(self) -> list[Any]:
        return [type("Value", (), {"name": name}) for name in INPUTS]

    def get_outputs(self) -> list[Any]:
        return [type("Value", (), {"name": name}) for name in OUTPUTS]


MANIFEST = Manifest(
    name="made up",
    categories=list(Categories.from_coco(CATEGORIES)),
    resize=ResizeRule(short_side=64, max_side=96),
    max_detections=10,
    max_batch=4,
)


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with an NVIDIA driver, onnxruntime-gpu and TensorRT; a model with the plugins beside it."""
    assert [category.id for category in MANIFEST.categories] == ORDER
    monkeypatch.setattr(onnx_runtime.ort, "get_available_providers", lambda: [TENSORRT, CUDA, CPU])
    monkeypatch.setattr(onnx_runtime.ort, "preload_dlls", lambda: None)
    monkeypatch.setattr(onnx_runtime.ort, "InferenceSession", Session)
    monkeypatch.setattr(onnx_runtime, "DRIVER_LIBRARY", "libc.so.6")
    monkeypatch.setattr(Session, "tensorrt", True)
    monkeypatch.delenv(PLUGINS_VARIABLE, raising=False)
    (tmp_path / "model.onnx").touch()
    (tmp_path / PLUGINS).touch()
    MANIFEST.save(manifest_path(tmp_path / "model.onnx"))
    return tmp_path / "model.onnx"


def test_what_the_provider_is_asked_for(model: Path) -> None:
    predictor = TensorRTProviderPredictor(model, device="cuda:1")
    (name, options), (cuda, _), cpu = Session.asked
    assert (name, cuda, cpu) == (TENSORRT, CUDA, CPU)
    assert set(options) == KNOWN and all(isinstance(value, str) for value in options.values())
    assert options["device_id"] == "1" and options["trt_fp16_enable"] == "0"
    assert options["trt_extra_plugin_lib_paths"] == str(model.with_name(PLUGINS))
    assert options["trt_engine_cache_path"] == str(model.parent / CACHE)
    assert options["trt_profile_min_shapes"] == "images:1x32x32x3,sizes:1x2,scales:1"
    assert options["trt_profile_opt_shapes"] == "images:1x64x96x3,sizes:1x2,scales:1"
    assert options["trt_profile_max_shapes"] == "images:4x96x96x3,sizes:4x2,scales:4"
    assert (predictor.name, predictor.device_name) == ("onnxruntime-tensorrt", "cuda:1")
    assert predictor.kernels.startswith(f"{PLUGINS}, and ")
    assert predictor.manifest == MANIFEST
    predictor.close()


def test_the_shapes_are_those_of_a_built_engine() -> None:
    pytest.importorskip("torch", reason="needs the workshop: PyTorch is not installed")
    from export.profiles import optimization_profile

    for resize in (ResizeRule(short_side=800, max_side=1333), ResizeRule(short_side=500, max_side=1333)):
        built = optimization_profile(resize, 8)
        assert [list(each) for each in zip(*(built[name] for name in INPUTS), strict=True)] == [
            list(each) for each in profile(resize, 8)
        ]


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_nothing_is_kept_where_nothing_can_be_written(model: Path) -> None:
    model.parent.chmod(0o500)
    try:
        TensorRTProviderPredictor(model)
    finally:
        model.parent.chmod(0o700)
    assert not any("cache" in option for option in Session.asked[0][1])


BROKEN = {
    "raises": (
        RuntimeError("TensorRT EP failed\nto build"),
        "the TensorRT provider cannot run it .TensorRT EP failed to",
    ),
    "does not load": (False, "the TensorRT provider does not load; ONNX Runtime's lines"),
}


@pytest.mark.parametrize(("tensorrt", "words"), BROKEN.values(), ids=BROKEN)
def test_nothing_takes_its_place(
    model: Path, monkeypatch: pytest.MonkeyPatch, tensorrt: Exception | bool, words: str
) -> None:
    monkeypatch.setattr(Session, "tensorrt", tensorrt)
    with pytest.raises(InputError, match=words) as error:
        TensorRTProviderPredictor(model)
    assert "the runtime onnxruntime runs it on CUDA" in str(error.value)


def test_what_is_missing_is_named(model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="runs on an NVIDIA GPU alone, not on device cpu"):
        TensorRTProviderPredictor(model, device="cpu")
    monkeypatch.setattr(onnx_runtime.ort, "get_available_providers", lambda: [CUDA, CPU])
    with pytest.raises(InputError, match=r"no TensorRT provider \(the package onnxruntime has none"):
        TensorRTProviderPredictor(model)
    (tmp_path / PLUGINS).unlink()
    with pytest.raises(InputError, match=r"no TensorRT provider"):  # first, as no plugins cure it
        TensorRTProviderPredictor(model)
    monkeypatch.setattr(onnx_runtime.ort, "get_available_providers", lambda: [TENSORRT, CUDA, CPU])
    with pytest.raises(InputError, match=rf"model\.onnx: no {PLUGINS} beside it or in engine/.*`make plugins engine`"):
        TensorRTProviderPredictor(model)
    (tmp_path / "engine").mkdir()
    (tmp_path / "engine" / PLUGINS).touch()
    TensorRTProviderPredictor(model)
    assert Session.asked[0][1]["trt_extra_plugin_lib_paths"] == str(tmp_path / "engine" / PLUGINS)
    monkeypatch.setenv(PLUGINS_VARIABLE, str(tmp_path / "elsewhere.so"))
    with pytest.raises(InputError, match=r"elsewhere\.so: no such plugin library"):
        TensorRTProviderPredictor(model)
    with pytest.raises(InputError, match="no such model"):
        TensorRTProviderPredictor(tmp_path / "none.onnx")
