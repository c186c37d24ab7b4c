"""A TensorRT plan's inner places: it has no inner outputs, so another one is built with them, of the same ONNX file."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

from eval.comparing.boundaries import Outputs
from eval.comparing.limits import types_of
from eval.comparing.networks import Inner
from eval.comparing.taps import Tapped, with_outputs
from eval.plans import Plan, libraries_of, source_of
from export.backends.tensorrt_builder import Request
from export.backends.tensorrt_engine import rtx_environment, run_builder
from export.options import EngineOptions
from upsnet.contract import OUTPUTS
from upsnet.engines.check import check_engine
from upsnet.engines.manifest import EngineManifest
from upsnet.geometry import NetworkBatch

WHOLE = ("labels", "counts")  # taps that are no floating-point numbers


class InTensorRT:
    """A plan; `package` of its manifest."""

    def __init__(self, plan: Path, device: str | None, blocks: bool) -> None:
        self._path, self._device = plan, device
        described = check_engine(plan)
        assert described.backend in ("tensorrt", "tensorrt-rtx")
        self._package = described.backend
        self.manifest = described.network
        self.types = types_of(self.manifest)
        self.note, self._inner = "", Inner({})
        self._plain = Plan(plan, self._package, libraries_of(plan, described), described.version_compatible, device)
        self.title = f"{plan} in {self._package}, {self._plain.device_name}"
        self._tapped: Plan | None = None
        self._folder = tempfile.TemporaryDirectory()
        try:
            self._build(described, blocks)
        except BaseException:
            self.close()
            raise
        self._same: bool | None = None

    def _build(self, described: EngineManifest, blocks: bool) -> None:
        """The plan with inner outputs; where it cannot be, `note` says why."""
        source = source_of(self._path, described)
        if source is None:
            self.note = (
                f"{self._path}: its outputs alone: {described.model.file}, which it was built from, is not there"
            )
            return
        model = onnx.load(str(source))
        taps = Tapped(model.graph).find(blocks)
        self._inner = Inner(add_outputs(model, taps))
        tapped, plan = (Path(self._folder.name) / name for name in ("tapped.onnx", "tapped.plan"))
        onnx.save(model, str(tapped))
        plugins = libraries_of(self._path, described)
        request = Request(
            package=self._package,
            model=tapped,
            manifest=described.network,
            plan=plan,
            plugins=plugins,
            profiles=described.profiles,
            options=EngineOptions(),
        )
        with ExitStack() as stack:
            environment = stack.enter_context(rtx_environment()) if self._package == "tensorrt-rtx" else {}
            outcome = run_builder(request, environment)
        if outcome.status != "built":
            self._inner = Inner({})
            self.note = f"{self._path}: its outputs alone: with inner ones it cannot be built: {outcome}"
            return
        self._tapped = Plan(plan, self._package, plugins, device=self._device)
        self.note = (
            f"{self._path}: its inner places are those of a second plan, built of {source.name} with them as outputs, "
            "which may fuse and choose otherwise"
        )

    def run(self, batch: NetworkBatch) -> Outputs:
        values = (self._tapped or self._plain).run(batch)
        if self._tapped is not None and self._same is None:
            plain = self._plain.run(batch)
            self._same = all(np.array_equal(plain[name], values[name]) for name in OUTPUTS)
            self.note += "; its answer is the same" if self._same else "; its answer is ANOTHER than the plan's own"
        return self._inner.sort(values)

    def close(self) -> None:
        for plan in (self._tapped, self._plain):
            if plan is not None:
                plan.close()
        self._folder.cleanup()


def add_outputs(model: onnx.ModelProto, taps: dict[str, str]) -> dict[str, str]:
    """Make the tapped tensors outputs, floating-point ones as float32, which every runtime can hand out. Returns the
    outputs by their place."""
    outputs = {}
    for name, tensor in taps.items():
        outputs[name] = tensor if name in WHOLE else f"{tensor}:float32"
    made = {output for node in model.graph.node for output in node.output}
    known = {each.name: each.type.tensor_type.shape for each in model.graph.value_info}
    for tensor in dict.fromkeys(tensor for name, tensor in taps.items() if name not in WHOLE):
        if f"{tensor}:float32" not in made:
            node = helper.make_node("Cast", [tensor], [f"{tensor}:float32"], f"tap {tensor}", to=TensorProto.FLOAT)
            model.graph.node.append(node)
            described = helper.make_tensor_value_info(node.output[0], TensorProto.FLOAT, None)
            if tensor in known:
                described.type.tensor_type.shape.CopyFrom(known[tensor])
            model.graph.value_info.append(described)
    with_outputs(model, list(outputs.values()))
    return outputs
