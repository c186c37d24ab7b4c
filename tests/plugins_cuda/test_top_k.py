"""top_k: the order of ties, in PyTorch and in the node that it becomes."""

from __future__ import annotations

import onnxruntime
import torch
from torch import Tensor, nn

import plugins_cuda


class Best(nn.Module):
    def forward(self, scores: Tensor) -> tuple[Tensor, Tensor]:
        return plugins_cuda.top_k(scores, 40)


def test_ties_go_to_the_lower_index() -> None:
    scores = torch.zeros(1, 1000)
    scores[0, 500] = 1
    assert plugins_cuda.top_k(scores, 4)[1].tolist() == [[500, 0, 1, 2]]


def test_exported_node_orders_ties_alike() -> None:
    scores = torch.randint(0, 5, (3, 200), generator=torch.Generator().manual_seed(0)).float()
    program = torch.onnx.export(Best().eval(), (scores,), dynamo=True, verbose=False)
    assert program is not None
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString())
    values, indices = session.run(None, {session.get_inputs()[0].name: scores.numpy()})
    expected = plugins_cuda.top_k(scores, 40)
    assert torch.equal(torch.from_numpy(indices), expected[1]) and torch.equal(torch.from_numpy(values), expected[0])
