"""A GPU that is not there: fake CUDA tensors, which know shapes, types and devices alone, and a watch over them.

PyTorch's FakeTensorMode runs the Python of the whole path, its own and ours, as a machine with a GPU would. What it
computes nobody knows; that nothing waits for it, `Watch` sees.
"""

from __future__ import annotations

import traceback
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode_stack
from torch.utils._pytree import tree_leaves

PROJECT = Path(__file__).resolve().parents[2]
OURS = [str(PROJECT / folder) for folder in ("training", "plugins_cuda", "tests")]
CUDA = torch.device("cuda", 0)

# What the host can only answer when it has the tensor's values, or their number.
ASKS = {
    "_local_scalar_dense": "a number is read (item, float, bool, int)",
    "equal": "torch.equal",
    "is_nonzero": "a truth value is read",
    "nonzero": "nonzero",
    "masked_select": "masked_select",
    "repeat_interleave.Tensor": "repeat_interleave with a tensor",
    "bincount": "bincount",
    "histc": "histc",
    "isin.Tensor_Tensor": "isin",
    "multinomial": "multinomial",
    "_linalg_check_errors": "linalg, which looks whether it worked,",
    "_linalg_eigh": "linalg.eigh",
    "_linalg_svd": "linalg.svd",
    "linalg_eig": "linalg.eig",
    "torchvision::nms": "torchvision's nms",
    "unique_consecutive": "unique",
    "unique_dim": "unique",
    "_unique": "unique",
    "_unique2": "unique",
}
FUSED = ("_fused_sgd_", "_fused_adamw_")  # in place, and PyTorch has no fake of the first
INDEXED = ("index.", "index_put", "_index_put", "_unsafe_index")
MAY_MIX = ("_to_copy", "copy_", "fill_", "lift_fresh")  # between devices by their nature; `_copied` judges them


class Waits(AssertionError):
    """The host would wait for the GPU, or the GPU would refuse."""


class Watch(TorchDispatchMode):
    """Raises `Waits`, with the file and line of ours, where an operation makes the host wait for the GPU or has its
    tensors on different devices.

    A copy between the two waits unless it says `non_blocking` and the host's memory is pinned (see `pinned`).
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()  # of each operation on the GPU

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func.namespace == "prim":  # questions to a tensor, as where it is
            return func(*args, **kwargs)
        if func._can_decompose():  # in inference mode such operations come whole
            with self:
                return func.decompose(*args, **kwargs)
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        name = func.name().removeprefix("aten::")
        on_gpu = [tensor for tensor in given if tensor.device.type == "cuda"]
        if on_gpu:
            self.calls[name.partition(".")[0]] += 1
            self._asked(name, kwargs)
            if name.startswith(INDEXED) and not filled(name, args):
                self._indexed(name, args)
            if not name.startswith(MAY_MIX) and not filled(name, args):
                self._mixed(name, given)
        if name in FUSED:
            return None
        if name == "is_pinned":
            return getattr(args[0], "is_pinned_memory", False)
        if name in ("pin_memory", "_pin_memory"):
            return pinned(args[0].clone())
        pin = bool(kwargs.pop("pin_memory", None))  # there is no memory to be pinned
        result = func(*args, **kwargs)
        if pin:
            pinned(result)
        if name.startswith(("_to_copy", "copy_")):
            source = args[1] if name.startswith("copy_") else args[0]
            non_blocking = kwargs.get("non_blocking", args[2] if len(args) > 2 else False)
            self._copied(name, source, result, non_blocking)
        return result

    def _asked(self, name: str, kwargs: Any) -> None:
        if kwargs.get("output_size") is not None:  # of repeat_interleave: nothing to ask
            return
        for operation, words in ASKS.items():
            if name == operation or name.startswith(f"{operation}."):
                raise Waits(f"{ours()}: {words} waits for the GPU")

    def _indexed(self, name: str, args: Sequence[Any]) -> None:
        for index in args[1]:
            if index is None:
                continue
            if index.dtype in (torch.bool, torch.uint8):
                raise Waits(f"{ours()}: a boolean index ({name}) waits for the GPU to count what is true")
            if index.device.type != "cuda":
                raise Waits(f"{ours()}: an index on the host ({name}), a list perhaps, is copied, and waited for")

    def _mixed(self, name: str, given: Sequence[Tensor]) -> None:
        """A tensor of one number on the host, too: some kernels take it as an argument, others copy it and wait."""
        devices = {tensor.device for tensor in given}
        if len(devices) > 1:
            raise Waits(f"{ours()}: {name} of tensors on {' and '.join(sorted(map(str, devices)))}")

    def _copied(self, name: str, source: Tensor, result: Tensor, non_blocking: bool) -> None:
        if source.device.type == result.device.type:
            return
        if name.startswith("_to_copy") and non_blocking and source.device.type == "cuda":
            pinned(result)  # PyTorch takes pinned memory then
        host = source if source.device.type == "cpu" else result
        memory = "pinned" if getattr(host, "is_pinned_memory", False) else "unpinned"
        if not non_blocking or memory == "unpinned":
            how = "" if non_blocking else "blocking "
            where = f"from {source.device.type} to {result.device.type}"
            raise Waits(f"{ours()}: a {how}copy ({name}) {where}, {memory} memory, is waited for")


def ours() -> str:
    """file:line of the innermost frame in this project that is not this file."""
    for frame, line in traceback.walk_stack(None):
        path = frame.f_code.co_filename
        if path.startswith(tuple(OURS)) and path != __file__:
            return f"{Path(path).relative_to(PROJECT)}:{line}"
    return "?"


def filled(name: str, args: Sequence[Any]) -> bool:
    """x[mask] = 0.0: of which PyTorch makes a masked_fill with the number, as long as that is on the host."""
    if "index_put" not in name or (len(args) > 3 and args[3]):
        return False
    indices, value = [index for index in args[1] if index is not None], args[2]
    return len(indices) == 1 and indices[0].dtype == torch.bool and value.device.type == "cpu" and value.numel() == 1


def host_waits(what: str) -> None:
    """Raises `Waits` under a Watch."""
    if any(isinstance(mode, Watch) for mode in _get_current_dispatch_mode_stack()):
        raise Waits(f"{ours()}: {what} waits for the GPU")


def printed(tensor: Tensor, *args: Any, _printed: Any = torch._tensor_str._str, **kwargs: Any) -> str:
    if tensor.device.type == "cuda":
        host_waits("a tensor that is printed")
    return _printed(tensor, *args, **kwargs)


class FakeEvent:
    """torch.cuda.Event, which knows the device whose stream it was recorded on."""

    def __init__(self, **_: Any) -> None:
        self.stream: Any = None

    def record(self, stream: Any = None) -> None:
        self.stream = torch.cuda.current_stream() if stream is None else stream

    def synchronize(self) -> None:
        assert self.stream is not None, "an event that was never recorded is over at once"
        host_waits("Event.synchronize")


class FakeStream:
    def __init__(self, device: Any = None) -> None:
        self.device = torch.device("cuda", 0) if device is None else torch.device(device)

    def synchronize(self) -> None:
        host_waits("Stream.synchronize")


def pinned(tensor: Tensor) -> Tensor:
    """The same, and from now on its memory counts as pinned."""
    tensor.is_pinned_memory = True  # type: ignore[attr-defined]
    return tensor


def _converted(module: nn.Module, convert: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
    """Module.to with new parameters: PyTorch would swap the tensors inside, which fake ones do not survive."""
    for each in module.modules():
        for name, parameter in each._parameters.items():
            if parameter is not None:
                each._parameters[name] = nn.Parameter(convert(parameter.detach()), parameter.requires_grad)
        for name, buffer in each._buffers.items():
            if buffer is not None:
                each._buffers[name] = convert(buffer)
    return module


def _deep_copy(tensor: Tensor, memo: dict[int, Any]) -> Tensor:
    """PyTorch would copy memory, of which fake tensors have none."""
    copy = memo[id(tensor)] = nn.Parameter(tensor.detach().clone(), tensor.requires_grad)
    return copy


@contextmanager
def fake_gpu() -> Iterator[None]:
    """Inside, "cuda" is a device of fake tensors, and so is "cpu"; gradients go through the walk below."""
    generator = torch.Generator
    with ExitStack() as stack:
        # Fake tensors stay fake where there is a GPU, and also when everybody has been told that there is one.
        stack.enter_context(mock.patch.object(FakeTensorMode, "avoid_device_init", True))
        stack.enter_context(FakeTensorMode(shape_env=ShapeEnv()))
        for target, value in {
            "torch.cuda.is_available": lambda: True,
            "torch.cuda.device_count": lambda: 1,
            "torch.cuda.current_device": lambda: 0,
            "torch.cuda._lazy_init": lambda: None,
            "torch.cuda.is_current_stream_capturing": lambda: False,
            "torch._subclasses.fake_tensor.init_gpu_context": lambda device: None,  # PyTorch 2.11 asks nobody first
            "torch.cuda.is_bf16_supported": lambda *_, **__: True,
            "torch.cuda.get_device_capability": lambda *_: (9, 0),
            "torch.cuda.current_stream": FakeStream,
            "torch.cuda.Event": FakeEvent,
            "torch.cuda.synchronize": lambda *_: host_waits("torch.cuda.synchronize"),
            "torch._tensor_str._str": printed,
            "torch.Generator": lambda device=None: generator(),
            "torch.nn.Module._apply": _converted,
            "torch.Tensor.__deepcopy__": _deep_copy,
            "torch.autograd.backward": backward,
            "torch.autograd.grad": grad,
        }.items():
            stack.enter_context(mock.patch(target, value))
        yield


# --- the gradient ----------------------------------------------------------------------------------------------------
# PyTorch's own engine wants the GPU's context and streams. Its walk, over the same nodes:


def backward(tensors: Any, *_: Any, **__: Any) -> None:
    """torch.autograd.backward: into the leaves' `grad`."""
    for leaf, gradient in _walk(tensors).items():
        leaf.grad = gradient if leaf.grad is None else leaf.grad + gradient


def grad(outputs: Any, inputs: Any, *_: Any, **__: Any) -> tuple[Tensor | None, ...]:
    """torch.autograd.grad with respect to leaves."""
    found = _walk(outputs)
    return tuple(found.get(leaf) for leaf in ([inputs] if isinstance(inputs, Tensor) else inputs))


@torch.no_grad()
def _walk(outputs: Any) -> dict[Tensor, Tensor]:
    """The gradients of the sum of the outputs: leaf -> gradient."""
    outputs = [outputs] if isinstance(outputs, Tensor) else list(outputs)
    order = _reachable([output.grad_fn for output in outputs])
    waiting = Counter(after for node in order for after, _ in node.next_functions if after is not None)
    arrived: defaultdict[Any, dict[int, Tensor]] = defaultdict(dict)
    for output in outputs:
        arrived[output.grad_fn][output.output_nr] = torch.ones_like(output)
    ready, leaves = [node for node in order if not waiting[node]], {}
    while ready:
        node = ready.pop()
        given = arrived.pop(node, {})
        if hasattr(node, "variable"):  # AccumulateGrad
            leaves[node.variable] = given[0]
            continue
        run = getattr(node, "apply", node)  # of an autograd.Function, of PyTorch's own
        results = run(*(given.get(i) for i in range(len(node._input_metadata)))) if given else ()
        results = results if isinstance(results, tuple) else (results,)
        for position, (after, number) in enumerate(node.next_functions):
            if after is None:
                continue
            result = results[position] if position < len(results) else None
            if result is not None:
                wanted = after._input_metadata[number]  # formulas leave it to the engine to sum what was broadcast
                result = result.sum_to_size(wanted.shape).to(wanted.dtype)
                before = arrived[after].get(number)
                arrived[after][number] = result if before is None else before + result
            waiting[after] -= 1
            if not waiting[after]:
                ready.append(after)
    return leaves


def _reachable(nodes: Sequence[Any]) -> list[Any]:
    seen, stack = dict.fromkeys(nodes), list(nodes)
    while stack:
        for after, _ in stack.pop().next_functions:
            if after is not None and after not in seen:
                seen[after] = None
                stack.append(after)
    return list(seen)
