"""The declarations: the definitions, the ONNX bodies and the C++ say the same."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import plugins_cuda
from plugins_cuda import generate, library
from plugins_cuda.pytorch import operator, params_type
from plugins_cuda.schema import Attribute, value_of
from tests.plugins_cuda.conftest import schema_of

ROOMS = ["roi_align_fpn", "nms", "deform_conv", "panoptic_fusion", "best_anchors"]
OF_TRAINING = ["roi_align_fpn/backward", "deform_conv/backward", "deform_conv/columns"]


@pytest.mark.parametrize("room", ROOMS)
def test_definition_has_the_declared_arguments(room: str) -> None:
    declared = {
        argument.name: argument.default if isinstance(argument, Attribute) else None
        for argument in schema_of(room).given
    }
    signature = inspect.signature(getattr(plugins_cuda, room))
    empty = inspect.Parameter.empty
    assert {name: None if p.default is empty else p.default for name, p in signature.parameters.items()} == declared
    assert list(signature.parameters) == list(declared)


def test_bodies_have_the_declared_inputs_and_attributes() -> None:
    functions = {function.name: function for function in plugins_cuda.onnx_functions()}
    for schema in map(schema_of, ROOMS):
        attributes = {attribute.node_name for attribute in schema.attributes if not attribute.gone}
        for node in (schema.node, *(tensor.node for tensor in schema.tensors if tensor.node)):
            body = functions[node]
            tensors = [tensor for tensor in schema.tensors if tensor.node in ("", node)]
            assert len(body.input) == sum(len(tensor.shapes) for tensor in tensors)
            assert len(body.output) == len(schema.outputs)
            assert {*body.attribute, *(attribute.name for attribute in body.attribute_proto)} == attributes


def test_rooms_without_a_gpu_say_so() -> None:
    for room in [*ROOMS, *OF_TRAINING]:
        schema = schema_of(room)
        wanted = {"launch.cu": schema.on_gpu, "plugin.cpp": schema.on_gpu and room in ROOMS, "cpu.cpp": schema.on_cpu}
        assert {file: (library.SOURCES / room / file).is_file() for file in wanted} == wanted


def test_headers_need_no_pytorch_and_hold_the_struct(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-I", "-S", generate.__file__, tmp_path, *ROOMS, *OF_TRAINING], check=True
    )  # no site-packages
    for room in [*ROOMS, *OF_TRAINING]:
        text = (tmp_path / room / "params.h").read_text()
        members = re.findall(r"^  .* \*?(\w+)(?:\[\d+\])?;", text, re.MULTILINE)
        assert members == [field[0] for field in params_type(schema_of(room))._fields_]


def test_sizes_are_calculated_from_left_to_right() -> None:
    assert value_of("4*h", {"h": 3}) == 12
    assert value_of("S+N", {"S": 2, "N": 5}) == 7
    assert value_of("P/2/kh/kw", {"P": 36, "kh": 3, "kw": 3}) == 2


def test_arguments_may_be_named_and_are_not_to_be_wrong() -> None:
    boxes, scores = torch.zeros(1, 2, 4), torch.zeros(1, 2)
    named = plugins_cuda.nms(scores=scores, boxes=boxes, max_output=3, iou_threshold=0.5, score_threshold=-1.0)
    assert all(map(torch.equal, named, plugins_cuda.nms(boxes, scores, 0.5, -1.0, 3)))
    for wrong in ({"max_output": 3, "nosuch": 1}, {}, {"max_output": 3, "boxes": boxes}):
        with pytest.raises(TypeError):
            plugins_cuda.nms(boxes, scores, 0.5, -1.0, **wrong)  # type: ignore[arg-type]


def test_a_definition_without_a_declared_argument_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before PyTorch hears of it: a second operator of a name frees what the first one's calls go through."""
    monkeypatch.setattr(torch.library, "custom_op", lambda *_, **__: pytest.fail("registered"))
    with pytest.raises(TypeError, match=r"nms: reference\.py and schema\.py must name the same arguments"):
        operator(schema_of("nms"), lambda boxes: boxes)
