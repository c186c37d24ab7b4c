"""UsedRows and AllRows: bodies keep all rows, the kernels those that mean something."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from onnxruntime.capi.onnxruntime_pybind11_state import InvalidArgument
from torch import Tensor, nn

import plugins_cuda
from tests.plugins_cuda.conftest import export, run_model
from tests.plugins_cuda.onnxruntime.nodes import feeds_of, model_of, open_session, session_options

pytestmark = pytest.mark.numeric


class Doubling(nn.Module):
    """Work on the used rows of boxes [B, 6, 4] and labels [B, 6]: [B, 6, 2, 2]."""

    def forward(self, boxes: Tensor, labels: Tensor, counts: Tensor) -> Tensor:
        used, own = (plugins_cuda.used_rows(each, counts).flatten(0, 1) for each in (boxes, labels))
        return plugins_cuda.all_rows((used * 2 + own[:, None]).reshape(-1, 2, 2), boxes)


def inputs(counts: list[int]) -> tuple[Tensor, Tensor, Tensor]:
    batch = len(counts)
    boxes, labels = torch.arange(batch * 24.0).reshape(batch, 6, 4), torch.arange(batch * 6).reshape(batch, 6)
    return boxes, labels, torch.tensor(counts, dtype=torch.int32)


@pytest.fixture(scope="module")
def model() -> onnx.ModelProto:
    batch = torch.export.Dim("batch", min=1, max=8)
    return export(Doubling(), inputs([1, 2]), dynamic_shapes=({0: batch}, {0: batch}, {0: batch}))


@pytest.mark.parametrize("counts", [[3], [2, 4], [0, 0, 0], [6, 1], [9]])
def test_rows_that_mean_something_stay(model: onnx.ModelProto, counts: list[int]) -> None:
    given = inputs(counts)
    expected = Doubling()(*given).numpy()
    np.testing.assert_array_equal(run_model(model, *given)[0], expected)
    session = open_session(model, session_options())
    names = [each.name for each in session.get_inputs()]
    (found,) = session.run(None, {name: each.numpy() for name, each in zip(names, given, strict=True)})
    kept = min(max(*counts, 1), 6)
    assert found.shape == expected.shape
    np.testing.assert_array_equal(found[:, :kept], expected[:, :kept])
    assert not found[:, kept:].any(), "the kernels had no more rows than that"


def test_sizes_that_do_not_fit_are_refused() -> None:
    rows, counts, like = torch.zeros(2, 6, 4), torch.zeros(3, dtype=torch.int32), torch.zeros(2, 5, 4)
    for name, tensors, words in (("UsedRows", [rows, counts], "rows must be"), ("AllRows", [rows[:, 0], like], None)):
        model = model_of(
            [onnx.helper.make_node(name, ["in0", "in1"], ["out0"], domain="upsnet")],
            {f"in{i}": (each.dtype, [None] * each.ndim) for i, each in enumerate(tensors)},
            {"out0": torch.float32},
        )
        session = open_session(model, session_options())
        if words:
            with pytest.raises(InvalidArgument, match=f"upsnet::{name}: {words}"):
                session.run(None, feeds_of(tensors))
        else:
            assert session.run(None, feeds_of(tensors))[0].shape == (2, 5, 4)
    with pytest.raises(InvalidArgument, match="upsnet::AllRows: results must"):
        session.run(None, feeds_of([torch.zeros(3, 4), like]))
