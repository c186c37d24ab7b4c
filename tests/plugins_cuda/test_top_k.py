"""top_k: the order of ties, in PyTorch and in the node that it becomes."""

from __future__ import annotations

from functools import partial

import torch

import plugins_cuda
from tests.plugins_cuda.conftest import Calling, export, run_model


def test_ties_go_to_the_lower_index() -> None:
    scores = torch.zeros(1, 1000)
    scores[0, 500] = 1
    assert plugins_cuda.top_k(scores, 4)[1].tolist() == [[500, 0, 1, 2]]


def test_exported_node_orders_ties_alike() -> None:
    scores = torch.randint(0, 5, (3, 200), generator=torch.Generator().manual_seed(0)).float()
    model = export(Calling(partial(plugins_cuda.top_k, k=40)), (scores,))
    values, indices = run_model(model, scores)
    expected = plugins_cuda.top_k(scores, 40)
    assert torch.equal(torch.from_numpy(indices), expected[1]) and torch.equal(torch.from_numpy(values), expected[0])
