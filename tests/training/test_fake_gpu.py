"""The watch over fake CUDA tensors: what it refuses and what it lets pass; its walk against PyTorch's own engine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.training.fake_gpu import CUDA, Waits, Watch, _walk, fake_gpu, pinned

HERE = r"tests/training/test_fake_gpu\.py:\d+: "


def set_where(x: Tensor, index: Any, value: Any) -> None:
    x[index] = value


def recorded() -> torch.cuda.Event:
    event = torch.cuda.Event()
    event.record()
    return event


REFUSED: dict[str, tuple[Callable[[Tensor], Any], str]] = {
    "item": (lambda x: x.sum().item(), "a number is read"),
    "float": (lambda x: float(x.sum()), "a number is read"),
    "if": (lambda x: bool((x > 0).all()), "a number is read"),
    "tolist": (lambda x: x.sum().tolist(), "a number is read"),
    "equal": (lambda x: torch.equal(x, x), r"torch\.equal"),
    "nonzero": (lambda x: x.nonzero(), "nonzero"),
    "where": (lambda x: torch.where(x > 0), "nonzero"),
    "unique": (lambda x: x.unique(), "unique"),
    "unique rows": (lambda x: x.unique(dim=0), "unique"),
    "masked_select": (lambda x: x.masked_select(x > 0), "masked_select"),
    "bincount": (lambda x: x.long().flatten().bincount(), "bincount"),
    "repeats": (lambda x: torch.repeat_interleave(x[0].long()), "repeat_interleave"),
    "isin": (lambda x: torch.isin(x, x[0]), "isin"),
    "multinomial": (lambda x: x.multinomial(2), "multinomial"),
    "histc": (lambda x: x.histc(4), "histc"),
    "inv": (lambda x: torch.linalg.inv(x[:, :3]), "linalg"),
    "solve": (lambda x: torch.linalg.solve(x[:, :3], x), "linalg"),
    "cholesky": (lambda x: torch.linalg.cholesky(x[:, :3]), "linalg"),
    "eigh": (lambda x: torch.linalg.eigh(x[:, :3]), r"linalg\.eigh"),
    "svd": (lambda x: torch.linalg.svd(x), r"linalg\.svd"),
    "printed": (lambda x: f"{x}", "a tensor that is printed"),
    "event": (lambda x: recorded().synchronize(), r"Event\.synchronize"),
    "stream": (lambda x: torch.cuda.current_stream().synchronize(), r"Stream\.synchronize"),
    "all of the GPU": (lambda x: torch.cuda.synchronize(), r"torch\.cuda\.synchronize"),
    "boolean index": (lambda x: x[x > 0], "a boolean index"),
    "boolean assignment": (lambda x: set_where(x, x > 0, x[0, 0]), "a boolean index"),
    "list index": (lambda x: x[:, [1, 0]], "a blocking copy .* from cpu to cuda, unpinned"),
    "host index": (lambda x: x[torch.tensor([1, 0])], "an index on the host"),
    "cpu": (lambda x: x.cpu(), "a blocking copy .* from cuda to cpu"),
    "cpu, later": (lambda x: torch.empty(3, 4).copy_(x, non_blocking=True), "a copy .* from cuda to cpu, unpinned"),
    "into host memory": (lambda x: torch.empty(3, 4).copy_(x), "a blocking copy .* from cuda to cpu"),
    "new tensor": (lambda x: x.new_tensor([1.0]), "a blocking copy .* from cpu to cuda"),
    "to the GPU": (lambda x: torch.zeros(3).to(CUDA), "a blocking copy .* from cpu to cuda"),
    "pinned, at once": (lambda x: pinned(torch.zeros(3)).to(CUDA), "a blocking copy .* pinned"),
    "unpinned, later": (lambda x: torch.zeros(3).to(CUDA, non_blocking=True), "a copy .* unpinned"),
    "two devices": (lambda x: x + torch.zeros(3, 4), r"add\.Tensor of tensors on cpu and cuda:0"),
    "two GPUs": (lambda x: x + x.new_zeros(1, device="cuda:1"), r"add\.Tensor of tensors on cuda:0 and cuda:1"),
    "a number of the host": (lambda x: torch.where(x > 0, x, torch.tensor(1.0)), r"where\.self of tensors on cpu"),
}

ALLOWED: dict[str, Callable[[Tensor], Any]] = {
    "numbers": lambda x: torch.where(x > 0, x * 2 + 1, 0.0).clamp(min=0),
    "slices": lambda x: x[1:, ::2],
    "indices of the GPU": lambda x: x[torch.arange(2, device=x.device)],
    "assigned numbers": lambda x: set_where(x, 0, 1.0),
    "filled": lambda x: x.new_full((2,), 7.0),
    "the host's own": lambda x: torch.tensor([1, 2]).sum().item(),
    "a pinned batch": lambda x: pinned(torch.zeros(3)).to(x.device, non_blocking=True),
    "pinned under the watch": lambda x: torch.zeros(3).pin_memory().to(x.device, non_blocking=True),
    "to memory that PyTorch pins": lambda x: x.to("cpu", non_blocking=True),
    "a number where a mask is true": lambda x: set_where(x, x > 0, 0.0),
    "so many repeats": lambda x: torch.repeat_interleave(x, x[:, 0].long(), dim=0, output_size=5),
    "printed on the host": lambda x: f"{torch.zeros(3)}",
    "a name": lambda x: f"{x.shape} {x.device}",
    "to pinned memory": lambda x: torch.empty(3, 4, pin_memory=True).copy_(x, non_blocking=True),
}


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str, grad: bool) -> None:
    """In inference mode, too, where operations come in other pieces."""
    action, message = REFUSED[name]
    if name == "two GPUs" and torch.cuda.device_count() == 1:
        pytest.skip("there is one GPU, and PyTorch refuses to speak of another")
    with fake_gpu():
        x = torch.zeros(3, 4, device=CUDA)
        with Watch(), torch.inference_mode(not grad), pytest.raises(Waits, match=HERE + message):
            action(x)


@pytest.mark.parametrize("name", ALLOWED)
def test_allowed(name: str) -> None:
    with fake_gpu():
        x = torch.zeros(3, 4, device=CUDA)
        with Watch():
            ALLOWED[name](x)


def test_counts_what_runs_on_the_gpu() -> None:
    with fake_gpu(), Watch() as watch:
        torch.zeros(3, device=CUDA).exp()
        torch.zeros(3).exp()
    assert watch.calls["exp"] == 1


def test_the_walk_gives_the_engines_gradients() -> None:
    """On real tensors: sums of broadcasts, several outputs of a node, a layer that is used twice."""
    torch.manual_seed(0)
    layer, norm = nn.Linear(6, 6), nn.BatchNorm1d(6)
    x = torch.randn(5, 6, requires_grad=True)

    def loss() -> Tensor:
        a, b = (layer(F.relu(layer(x))) + x[0]).chunk(2, dim=1)
        best, _ = norm(torch.cat([a * b, a], dim=1)).max(dim=1)
        return (best.half().float() - x.mean()).square().sum()

    leaves = [x, *layer.parameters(), *norm.parameters()]
    expected = torch.autograd.grad(loss(), leaves)
    found = _walk(loss())
    assert len(found) == len(leaves)
    for leaf, gradient in zip(leaves, expected, strict=True):
        torch.testing.assert_close(found[leaf], gradient)
