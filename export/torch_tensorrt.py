"""Checkpoint -> a program of torch-tensorrt: TensorRT engines where it converts, PyTorch in between for our operators.

The program (model.pt2) runs where PyTorch, torch-tensorrt and `plugins_cuda` are: it holds the weights and no code of
ours, and names torch.ops.upsnet.*, which `import plugins_cuda` registers. See docs/runtimes.md.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import operator
import time
import warnings
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any, NamedTuple  # Any: torch_tensorrt, which may not be there

import torch
from torch import Tensor

import plugins_cuda  # noqa: F401 (registers torch.ops.upsnet)
from export.precision import prepare
from export.tensorrt_build import Counts, Outcome, Profile
from training.checkpoint import load_model
from training.model.upsnet import UPSNet
from upsnet import DISTRIBUTION
from upsnet.contract import INPUTS
from upsnet.errors import InputError, first_line
from upsnet.files import atomic_path
from upsnet.geometry import ResizeRule
from upsnet.manifest import Manifest, Precision

PRECISIONS: tuple[Precision, ...] = ("fp32", "tf32", "fp16", "bf16")
OPERATORS = ("best_anchors", "deform_conv", "nms", "panoptic_fusion", "roi_align_fpn")
# Sizes are the host's: an engine that gave one out would give it as a tensor, which the next part waits for.
SIZES = (torch.ops.aten.sym_size.int, operator.add, operator.sub, operator.mul, operator.floordiv)
LEAST_OPERATORS = 10  # in an engine; fewer stay with PyTorch, as what goes in and out of one costs more
LEAST_TILES = 3  # a side, in units of `divisor`: PyTorch traces P6 of fewer, which is one cell, as another network
NAMES = {torch.float32: "FLOAT", torch.float16: "HALF", torch.bfloat16: "BF16"}  # TensorRT's
WITH_WEIGHTS = {"conv2d": "CONVOLUTION", "conv_transpose2d": "DECONVOLUTION", "linear": "MATRIX_MULTIPLY"}


class Traced(NamedTuple):
    """What torch-tensorrt is given."""

    program: torch.export.ExportedProgram
    profile: Profile
    layers: Counts  # those with weights
    operators: Counts


def why_not() -> str | None:
    """Why torch-tensorrt cannot build here, in a line; None where it can."""
    if importlib.util.find_spec("torch_tensorrt") is None:
        return f"the package torch-tensorrt is not installed (pip install '{DISTRIBUTION}[gpu]')"
    if not torch.cuda.is_available():
        return "torch-tensorrt is installed but there is no NVIDIA GPU, which it needs to build"
    return None


def build(checkpoint: Path, engine: Path, manifest: Manifest) -> Outcome:
    """Compile a checkpoint for GPU 0 into `engine`; absent, with the reason, where that cannot be done here.

    Shapes: batch 1 to the manifest's max_batch, sides from three tiles to the longest. InputError when the checkpoint
    cannot be read.
    """
    if (reason := why_not()) is None and manifest.precision not in PRECISIONS:
        reason = f"torch-tensorrt builds {', '.join(PRECISIONS)} here, not {manifest.precision}"
    if reason is not None:
        return Outcome(status="absent", reason=reason)
    model = load_model(checkpoint)[0]
    start = time.monotonic()
    try:
        torch_tensorrt = import_package()
        traced = trace(prepare(model, manifest.precision).cuda(), manifest.resize, manifest.max_batch)
        compiled = compile_program(torch_tensorrt, traced, manifest.precision, engine.parent)
        with atomic_path(engine) as temporary:
            save(torch_tensorrt, compiled, temporary)
    except InputError:
        raise
    except Exception as error:  # what its converters and TensorRT raise
        return Outcome(status="refused", stage="builder", errors=[first_line(error) or type(error).__name__])
    print(f"torch-tensorrt: {time.monotonic() - start:.0f} s", flush=True)
    return Outcome(
        status="built",
        file=engine.name,
        bytes=engine.stat().st_size,
        version=torch_tensorrt.__version__,
        layers=traced.layers,
        plugins=traced.operators,
    )


def import_package() -> Any:
    """torch_tensorrt, which speaks while it is imported. InputError where it does not load, or is too old."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import torch_tensorrt
    except Exception as error:  # of TensorRT's libraries, whatever they are
        raise InputError(f"the package torch-tensorrt does not load ({first_line(error)})") from None
    if "profiles" not in getattr(torch_tensorrt.Input, "__annotations__", {}):
        raise InputError(f"torch-tensorrt {torch_tensorrt.__version__} takes no profiles of shapes: 2.14 or newer does")
    return torch_tensorrt


def trace(model: UPSNet, resize: ResizeRule, max_batch: int) -> Traced:
    """The network that `prepare` has made as a program of any batch and size, on the model's device."""
    device = model.pixel_mean.device
    profile = shapes(resize, max_batch)
    batch = min(2, max_batch)  # PyTorch takes a 1 for what it will always be
    usual = profile["images"][1][1:3]
    example = (
        torch.zeros(batch, *usual, 3, dtype=torch.uint8, device=device),
        torch.tensor([usual] * batch, dtype=torch.int32, device=device),
        torch.ones(batch, device=device),
    )
    low, high = (profile["images"][place] for place in (0, 2))
    batches = torch.export.Dim("batch", min=1, max=max_batch) if max_batch > 1 else torch.export.Dim.STATIC
    sides = {
        axis: resize.divisor * torch.export.Dim(name, min=1, max=high[axis] // resize.divisor)
        for axis, name in ((1, "rows"), (2, "columns"))
        if low[axis] < high[axis]
    }
    dynamic = ({0: batches, **sides}, {0: batches}, {0: batches})
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(model, example, dynamic_shapes=dynamic, strict=False)
    return Traced(program, profile, *_count_types(program))


def shapes(resize: ResizeRule, max_batch: int) -> Profile:
    """Smallest, usual (one photo of 4:3) and largest shape of each input."""
    from export.tensorrt_build import optimization_profile

    profile = optimization_profile(resize, max_batch)
    low, usual, high = profile["images"]
    least = resize.divisor * LEAST_TILES
    sizes = [(each[0], max(each[1], least), max(each[2], least), 3) for each in (low, usual, high)]
    return {**profile, "images": (sizes[0], sizes[1], sizes[2])}


def compile_program(torch_tensorrt: Any, traced: Traced, precision: Precision, cache: Path) -> Any:
    """The program with engines in the places of what torch-tensorrt converts. Types are as the program has them."""
    types = dict(zip(INPUTS, (torch.uint8, torch.int32, torch.float32), strict=True))
    inputs = [
        # In the form of profiles: what depends on the batch alone (5 x B rows of proposals) then has its exact bounds.
        torch_tensorrt.Input(
            profiles=[dict(zip(("min_shape", "opt_shape", "max_shape"), traced.profile[name], strict=True))],
            dtype=types[name],
        )
        for name in INPUTS
    ]
    return torch_tensorrt.dynamo.compile(
        traced.program,
        arg_inputs=inputs,
        device=torch_tensorrt.Device("cuda:0"),
        disable_tf32=precision != "tf32",
        min_block_size=LEAST_OPERATORS,
        torch_executed_ops={*(getattr(torch.ops.upsnet, name).default for name in OPERATORS), *SIZES},
        pass_through_build_failures=True,  # else the part would run in PyTorch, and nobody would know
        timing_cache_path=str(cache / "torch_tensorrt.timing"),
    )


def save(torch_tensorrt: Any, compiled: Any, path: Path) -> None:
    """As an ExportedProgram, its graph as it was compiled."""
    torch_tensorrt.save(compiled, str(path), output_format="exported_program", retrace=False)


def _count_types(program: torch.export.ExportedProgram) -> tuple[Counts, Counts]:
    """Layers with weights by the type that they compute in, our operators by the type of their first input: an engine
    of torch-tensorrt is strongly typed, hence as the program is."""
    layers: Counts = defaultdict(Counter)
    operators: Counts = defaultdict(Counter)
    for node in program.graph.nodes:
        namespace, _, name = str(node.target).partition(".")
        kind = WITH_WEIGHTS.get(name.partition(".")[0])
        if namespace == "aten" and kind:
            layers[kind][_type(node.meta["val"])] += 1
        elif namespace == "upsnet":
            first = node.args[0][0] if isinstance(node.args[0], list | tuple) else node.args[0]
            operators[name.partition(".")[0]][_type(first.meta["val"])] += 1
    return dict(layers), dict(operators)


def _type(value: Tensor) -> str:
    return NAMES.get(value.dtype, str(value.dtype).removeprefix("torch."))
