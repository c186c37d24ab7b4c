"""Checkpoint -> a program of torch-tensorrt: TensorRT engines where it converts, PyTorch in between for our operators.

The program (model.pt2) runs where PyTorch, torch-tensorrt and `plugins_cuda` are: it holds the weights and no code of
ours, and names torch.ops.upsnet.*, which `import plugins_cuda` registers. See docs/runtimes.md.
"""

from __future__ import annotations

import contextlib
import io
import operator
import tempfile
import time
import warnings
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple  # Any: torch_tensorrt, which may not be there

import torch
from torch import Tensor

import plugins_cuda  # noqa: F401 (registers torch.ops.upsnet)
from export.outcome import Outcome
from export.precision import prepare
from export.profiles import optimization_profile
from export.torch_tensorrt_predictor import LEAST_TILES
from export.types import wrong_types
from training.checkpoint import load_model
from training.model.upsnet import UPSNet
from upsnet.contract import INPUTS
from upsnet.engines.manifest import Counts, Profile
from upsnet.errors import InputError, first_line
from upsnet.files import atomic_path, user_cache
from upsnet.manifest import EIGHT_BITS, Manifest, Precision

OPERATORS = ("best_anchors", "deform_conv", "nms", "panoptic_fusion", "roi_align_fpn")
# Sizes are the host's: an engine that gave one out would give it as a tensor, which the next part waits for.
SIZES = (torch.ops.aten.sym_size.int, operator.add, operator.sub, operator.mul, operator.floordiv)
LEAST_OPERATORS = 10  # in an engine; fewer stay with PyTorch, as what goes in and out of one costs more
NAMES = {torch.float32: "FLOAT", torch.float16: "HALF", torch.bfloat16: "BF16"}  # TensorRT's
WITH_WEIGHTS = {"conv2d": "CONVOLUTION", "conv_transpose2d": "DECONVOLUTION", "linear": "MATRIX_MULTIPLY"}


class Traced(NamedTuple):
    """What torch-tensorrt is given."""

    program: torch.export.ExportedProgram
    profile: Profile
    layers: Counts  # those with weights
    operators: Counts


def build(checkpoint: Path, engine: Path, manifest: Manifest, profiles: Sequence[Profile] = ()) -> Outcome:
    """Compile a checkpoint for GPU 0 into `engine`, for any shape of the one profile (default: `optimization_profile`).

    InputError when the checkpoint or the package cannot be read, or the package is too old.
    """
    types = manifest.recipe.types if manifest.recipe else {manifest.precision}
    if eight := sorted(types & set(EIGHT_BITS)):
        return Outcome(status="refused", stage="options", errors=[f"torch-tensorrt builds no {eight[0]} here"])
    if len(profiles) > 1:
        return Outcome(status="refused", stage="options", errors=["torch-tensorrt takes one profile"])
    profile = at_least(profiles[0] if profiles else optimization_profile(manifest.resize, manifest.max_batch), manifest)
    model = load_model(checkpoint)[0]
    start = time.monotonic()
    try:
        torch_tensorrt = import_package()
        network = prepare(model, manifest.precision, manifest.recipe).cuda()
        traced = trace(network, profile, manifest.resize.divisor)
        if wrong := wrong_types(manifest, traced.layers):
            return Outcome(status="refused", stage="types", errors=wrong)
        compiled = compile_program(torch_tensorrt, traced, manifest.precision)
        with atomic_path(engine) as temporary:
            save(torch_tensorrt, compiled, temporary)
    except InputError:
        raise
    except Exception as error:  # what its converters and TensorRT raise
        return Outcome(status="refused", stage="builder", errors=[first_line(error) or type(error).__name__])
    return Outcome(
        status="built",
        file=engine.name,
        bytes=engine.stat().st_size,
        seconds=round(time.monotonic() - start, 2),
        version=torch_tensorrt.__version__,
        built_with={"torch": torch.__version__},
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


def at_least(profile: Profile, manifest: Manifest) -> Profile:
    """The same, no side under LEAST_TILES: the predictor pads smaller photos."""
    least = manifest.resize.divisor * LEAST_TILES
    low, usual, high = ((batch, max(h, least), max(w, least), 3) for batch, h, w, _ in profile["images"])
    return {**profile, "images": (low, usual, high)}


def trace(model: UPSNet, profile: Profile, divisor: int) -> Traced:
    """The network that `prepare` has made as a program of the profile's shapes, on the model's device."""
    device = model.pixel_mean.device
    low, usual, high = profile["images"]
    batch = min(2, high[0])  # PyTorch takes a 1 for what it will always be
    example = (
        torch.zeros(batch, *usual[1:], dtype=torch.uint8, device=device),
        torch.tensor([usual[1:3]] * batch, dtype=torch.int32, device=device),
        torch.ones(batch, device=device),
    )
    batches = torch.export.Dim("batch", min=1, max=high[0]) if high[0] > 1 else torch.export.Dim.STATIC
    sides = {
        axis: divisor * torch.export.Dim(name, min=1, max=high[axis] // divisor)
        for axis, name in ((1, "rows"), (2, "columns"))
        if low[axis] < high[axis]
    }
    dynamic = ({0: batches, **sides}, {0: batches}, {0: batches})
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(model, example, dynamic_shapes=dynamic, strict=False)
    return Traced(program, profile, *_count_types(program))


def compile_program(torch_tensorrt: Any, traced: Traced, precision: Precision) -> Any:
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
    cache = user_cache() or Path(tempfile.gettempdir())
    return torch_tensorrt.dynamo.compile(
        traced.program,
        arg_inputs=inputs,
        device=torch_tensorrt.Device("cuda:0"),
        disable_tf32=precision != "tf32",
        min_block_size=LEAST_OPERATORS,
        torch_executed_ops={*(getattr(torch.ops.upsnet, name).default for name in OPERATORS), *SIZES},
        pass_through_build_failures=True,  # else the part would run in PyTorch, and nobody would know
        timing_cache_path=str(cache / f"timing-torch-tensorrt-{torch_tensorrt.__version__}.cache"),
    )


def save(torch_tensorrt: Any, compiled: Any, path: Path) -> None:
    """As an ExportedProgram, its graph as it was compiled."""
    torch_tensorrt.save(compiled, str(path), output_format="exported_program", retrace=False)


def _count_types(program: torch.export.ExportedProgram) -> tuple[Counts, Counts]:
    """Layers with weights by the type that they compute in, our operators by the type of their first input: an engine
    of torch-tensorrt is strongly typed, hence as the program is."""
    layers: dict[str, Counter[str]] = defaultdict(Counter)
    operators: dict[str, Counter[str]] = defaultdict(Counter)
    for node in program.graph.nodes:
        namespace, _, name = str(node.target).partition(".")
        kind = WITH_WEIGHTS.get(name.partition(".")[0])
        if namespace == "aten" and kind:
            layers[kind][_type(node.meta["val"])] += 1
        elif namespace == "upsnet":
            first = node.args[0][0] if isinstance(node.args[0], list | tuple) else node.args[0]
            operators[name.partition(".")[0]][_type(first.meta["val"])] += 1
    return {name: dict(kinds) for name, kinds in layers.items()}, {n: dict(kinds) for n, kinds in operators.items()}


def _type(value: Tensor) -> str:
    return NAMES.get(value.dtype, str(value.dtype).removeprefix("torch."))
