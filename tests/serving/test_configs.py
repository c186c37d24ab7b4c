"""The models' configurations, read with Triton's own schema: one contract, the graph's and the photo model's."""

from __future__ import annotations

import ast
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from export.profiles import optimization_profile
from serving.environment import REQUIREMENTS, Environment
from serving.layout import CONFIGS
from serving.limits import Limits
from serving.repository import TEMPLATE, deploy
from tests.serving.conftest import Exported
from upsnet import contract, stub
from upsnet.manifest import Manifest

MODELS = (contract.MODEL, contract.PHOTO_MODEL)
ALL = [(model, name) for model in MODELS for name in CONFIGS]


def config(model: str, name: str, repository: Path = TEMPLATE) -> Any:
    reason = "needs tritonclient (pip install 'upsnet-trt[triton]')"
    messages = pytest.importorskip("tritonclient.grpc.model_config_pb2", reason=reason)
    text_format = pytest.importorskip("google.protobuf.text_format", reason=reason)
    return text_format.Parse((repository / model / name).read_text(), messages.ModelConfig())


def tensors(parsed: Any) -> list[tuple[str, str, list[int], bool]]:
    """Name, type, shape without the batch, and whether the batch is a dimension of the wire's alone."""
    types = parsed.DESCRIPTOR.fields_by_name["input"].message_type.fields_by_name["data_type"].enum_type
    return [
        (each.name, types.values_by_number[each.data_type].name, list(each.dims), each.HasField("reshape"))
        for each in [*parsed.input, *parsed.output]
    ]


@pytest.mark.parametrize("name", CONFIGS)
def test_upsnet_has_the_graphs_contract(name: str) -> None:
    parsed = config(contract.MODEL, name)
    assert tensors(parsed) == [
        ("images", "TYPE_UINT8", [-1, -1, 3], False),
        ("sizes", "TYPE_INT32", [2], False),
        ("scales", "TYPE_FP32", [1], True),
        ("panoptic", "TYPE_UINT8", [-1, -1], False),
        ("segments", "TYPE_FP32", [-1, 7], False),
        ("segment_count", "TYPE_INT32", [1], True),
    ]
    assert [each.name for each in parsed.input] == contract.INPUTS
    assert [each.name for each in parsed.output] == contract.OUTPUTS


@pytest.mark.parametrize("name", CONFIGS)
def test_the_photo_model_has_the_contract(name: str) -> None:
    assert tensors(config(contract.PHOTO_MODEL, name)) == [
        (contract.PHOTO, "TYPE_STRING", [1], False),
        (contract.LABELS, "TYPE_UINT8", [-1, -1], False),
        (contract.LABELS16, "TYPE_UINT16", [-1, -1], False),
        (contract.PHOTO_SIZES, "TYPE_INT32", [2], False),
        (contract.SEGMENTS_JSON, "TYPE_STRING", [1], False),
        (contract.COCO_PNG, "TYPE_STRING", [1], False),
        (contract.OVERLAY, "TYPE_STRING", [1], False),
        (contract.STAGES_JSON, "TYPE_STRING", [1], False),
    ]


@pytest.mark.parametrize(("model", "name"), ALL)
def test_what_triton_24_10_needs(model: str, name: str) -> None:
    parsed = config(model, name)
    assert parsed.name == model
    assert (parsed.platform or parsed.backend) == ("tensorrt_plan" if (model, name) == ALL[0] else "python")
    assert parsed.version_policy.latest.num_versions == 1
    assert parsed.HasField("dynamic_batching")
    assert not parsed.dynamic_batching.HasField("default_queue_policy")
    assert not parsed.dynamic_batching.priority_levels


def test_only_the_wheels_server_runs_more_than_one_network() -> None:
    assert [config(contract.MODEL, name).instance_group[0].count for name in CONFIGS] == [1, 2]
    assert [config(contract.PHOTO_MODEL, name).instance_group[0].count for name in CONFIGS] == [4, 2]


@pytest.mark.parametrize(("model", "name"), ALL)
@pytest.mark.parametrize("max_batch", [1, 4, 7])
def test_a_deployed_configuration_is_the_template_and_the_model(
    exported: Exported, tmp_path: Path, model: str, name: str, max_batch: int
) -> None:
    manifest = exported.manifest.model_copy(update={"max_batch": max_batch, "onnx_sha256": ""})
    manifest.save(tmp_path / "manifest.json")
    repository = deploy(exported.model, tmp_path / "manifest.json", tmp_path / "repository")
    made, expected = config(model, name, repository), config(model, name)
    assert made.max_batch_size == max_batch
    added = {key: made.parameters.pop(key).string_value for key in set(made.parameters) - set(expected.parameters)}
    carried = Manifest.model_validate_json(added.pop(contract.METADATA_KEY))
    assert carried == manifest.model_copy(update={"onnx_sha256": exported.manifest.onnx_sha256})
    limits = Limits.of(manifest)
    assert added == {"max_pixels": str(limits.max_pixels), "max_photo_bytes": str(limits.max_photo_bytes)}
    made.ClearField("max_batch_size")
    made.ClearField("model_warmup")
    assert made == expected


@pytest.mark.parametrize("name", CONFIGS)
def test_the_network_is_warmed_up_within_its_profile(exported: Exported, repository: Path, name: str) -> None:
    """Triton crashes where a warm-up is refused, so the data must be good ones."""
    parsed = config(contract.MODEL, name, repository)
    profile = optimization_profile(exported.manifest.resize, exported.manifest.max_batch)["images"]
    shapes = []
    for each in parsed.model_warmup:
        images, sizes, scales = (each.inputs[name] for name in contract.INPUTS)
        shapes.append((each.batch_size, *images.dims))
        assert images.zero_data and (list(sizes.dims), list(scales.dims)) == ([2], [1])
        folder = repository / contract.MODEL / "warmup"
        assert (folder / sizes.input_data_file).read_bytes() == b"\1\0\0\0\1\0\0\0"
        assert (folder / scales.input_data_file).read_bytes() == b"\0\0\x80\x3f"
    assert shapes == [profile[0], profile[2] if name == "config.pbtxt" else profile[1]]
    assert max(batch * height * width for batch, height, width, _ in shapes) <= int(
        parsed.parameters["max_pixels"].string_value
    )


def test_the_photo_model_is_not_warmed_up(repository: Path) -> None:
    """Triton loads the models at once: a warm-up would ask for a network that is not there yet."""
    for name in CONFIGS:
        assert not config(contract.PHOTO_MODEL, name, repository).model_warmup


def test_the_server_decodes_photos_as_this_process_does() -> None:
    pins = dict(line.split("==") for line in REQUIREMENTS.read_text().splitlines() if "==" in line)
    assert pins["pillow"] == version("pillow")


@pytest.mark.parametrize("path", [*(TEMPLATE / model / "1/model.py" for model in MODELS), Path(stub.__file__)])
def test_the_backend_has_what_the_models_use(triton_environment: Path, path: Path) -> None:
    """Of triton_python_backend_utils, half is Python and half is in the program that runs a model."""
    tree = ast.parse(path.read_text())
    used = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "pb_utils"
    }
    assert "Tensor" in used
    _, utils, program = Environment.find(triton_environment).backend_files
    defined = {node.name for node in ast.parse(utils.read_text()).body if isinstance(node, ast.FunctionDef)}
    compiled = program.read_bytes()
    assert [name for name in sorted(used - defined) if f"\0{name}\0".encode() not in compiled] == []
