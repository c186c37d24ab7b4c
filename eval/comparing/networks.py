"""The networks that can be compared, with their inner places: a checkpoint in PyTorch and a file in ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnx
import onnxruntime as ort
import torch

from eval.comparing.boundaries import (
    BLOCK,
    BOX_DELTAS,
    BOX_LOGITS,
    PHOTO,
    PYRAMID,
    SEMANTIC,
    STAGES,
    STEM,
    STEMS,
    Instances,
    Outputs,
    real_proposals,
    split_rpn,
)
from eval.comparing.limits import Rounding, types_on_cpu
from eval.comparing.taps import BOXES, FOUND, RPN_MAPS, Tapped, with_outputs
from training.predictor import PyTorchPredictor
from upsnet.contract import INPUTS, OUTPUTS
from upsnet.errors import InputError, first_line
from upsnet.geometry import NetworkBatch
from upsnet.kernels.choice import find_kernels, wanted_kernels
from upsnet.manifest import Manifest
from upsnet.runtimes.onnx_runtime import CPU, LOAD_ERRORS, OnnxRuntimePredictor, session_options
from upsnet.runtimes.weights import without_weights


class Network(Protocol):
    """One side of a comparison."""

    title: str  # the file, and what runs it
    manifest: Manifest
    types: set[Rounding]  # that it computes features in

    @property
    def note(self) -> str:
        """What is to be known of its inner places, or ""."""
        ...

    def run(self, batch: NetworkBatch) -> Outputs:
        """All places of one photo."""
        ...

    def close(self) -> None: ...


class InPyTorch:
    """A checkpoint. Hooks look at its modules, and two of its methods tell which proposals and detections there are."""

    note = ""

    def __init__(self, checkpoint: Path, threads: int | None, device: str, blocks: bool) -> None:
        self._predictor = PyTorchPredictor(checkpoint, device, threads)
        self.manifest = self._predictor.manifest
        self.types: set[Rounding] = {"fp32"}
        self.title = f"{checkpoint} in PyTorch, {self._predictor.device_name}"
        self._model = self._predictor.model
        self._seen: dict[str, Any] = {}
        modules = dict(self._model.named_modules())
        self._model.backbone.register_forward_pre_hook(lambda _, given: self._keep(PHOTO, given[0]))
        watched = {"backbone": STAGES, "fpn": PYRAMID, "semantic_head": SEMANTIC, "rpn": "rpn"}
        watched |= {"box_head.logits": BOX_LOGITS, "box_head.deltas": BOX_DELTAS}
        watched |= {name: STEM for name in STEMS[::-1] if name in modules}
        watched |= {name: name for name in modules if blocks and BLOCK.fullmatch(name)}
        stems = [name for name in STEMS if name in modules][1:]
        for path, name in watched.items():
            if path in modules and path not in stems:
                modules[path].register_forward_hook(self._keeper(name))
        for method in ("score_proposals", "select", "mask_logits"):
            self._watch(method)

    def run(self, batch: NetworkBatch) -> Outputs:
        self._seen.clear()
        raw = self._predictor.predict(batch)
        seen, proposals, detections = self._seen, None, None
        if "rpn" in seen:
            seen |= split_rpn([each.numpy() for each in seen.pop("rpn").maps])
        heads = [seen.pop(name, None) for name in (BOX_LOGITS, BOX_DELTAS)]
        if (scored := seen.pop("score_proposals", None)) is not None:
            proposals = real_proposals(scored.proposals[0].numpy(), *heads)
        found, masks = seen.pop("select", None), seen.pop("mask_logits")
        if found is not None:
            count = int(found.counts[0])
            boxes = self._model.fused_boxes(found)
            parts = [each[0, :count].numpy() for each in (boxes, found.labels, found.scores, masks)]
            detections = Instances(*parts)
        return Outputs(dict(seen), proposals, detections, *raw)

    def close(self) -> None:
        self._predictor.close()

    def _keeper(self, name: Any) -> Callable[..., None]:
        return lambda module, given, output: self._keep(name, output)

    def _keep(self, name: Any, output: Any) -> None:
        """Copies: what comes next may write into it."""
        if isinstance(name, tuple):
            for each, value in zip(name, output, strict=True):
                self._keep(each, value)
        elif isinstance(output, torch.Tensor):
            self._seen[name] = output.detach().to("cpu", torch.float32, copy=True).numpy()
        else:
            self._seen[name] = _on_cpu(output)

    def _watch(self, method: str) -> None:
        own = getattr(self._model, method)

        def watching(*given: Any) -> Any:
            output = own(*given)
            self._seen[method] = _on_cpu(output)
            return output

        setattr(self._model, method, watching)


def _on_cpu(output: Any) -> Any:
    """A tensor, or a tuple of such, copied."""
    if isinstance(output, torch.Tensor):
        return output.detach().to("cpu", copy=True)
    if isinstance(output, list):
        return [_on_cpu(each) for each in output]
    return type(output)(*(_on_cpu(each) for each in output))


class Inner:
    """What the tensors of a tapped graph are: places, parts of instances, and the graph's outputs."""

    def __init__(self, taps: dict[str, str]) -> None:
        self.taps = taps

    @property
    def tensors(self) -> list[str]:
        return list(dict.fromkeys([*OUTPUTS, *self.taps.values()]))

    def sort(self, values: dict[str, np.ndarray]) -> Outputs:
        """values: of `tensors`, by their names, for one photo."""
        seen = {name: values[tensor] for name, tensor in self.taps.items()}
        raw = [values[name] for name in OUTPUTS]
        maps = [seen.pop(name) for name in RPN_MAPS if name in seen]
        arrays_of_rpn = split_rpn(maps) if maps else {}
        boxes, logits, deltas = (seen.pop(name, None) for name in (BOXES, BOX_LOGITS, BOX_DELTAS))
        proposals = None if boxes is None else real_proposals(boxes[0], logits, deltas)
        *parts, counts = (seen.pop(name, None) for name in FOUND)
        detections = None
        if counts is not None and maps:  # a network without things has a row of padding there
            count = int(counts.ravel()[0])
            detections = Instances(*(part[0, :count] for part in parts if part is not None))
        return Outputs(seen | arrays_of_rpn, proposals, detections, *raw)


class InOnnxRuntime:
    """An exported file; the places are made outputs of its graph, in memory."""

    def __init__(self, model: Path, threads: int | None, kernels: str | None, blocks: bool) -> None:
        self._plain = OnnxRuntimePredictor(model, threads, kernels=kernels)
        self.manifest = self._plain.manifest
        self.types = types_on_cpu(self.manifest, model)
        self.title = f"{model} in ONNX Runtime, {self._plain.kernels}"
        light = without_weights(model.resolve())
        proto = onnx.load_model_from_string(light) if light else onnx.load(str(model))
        self._inner = Inner(Tapped(proto.graph).find(blocks))
        with_outputs(proto, self._inner.tensors)
        options = session_options(threads, find_kernels(wanted_kernels(kernels)).library, model)
        folder = str(model.resolve().parent)
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", folder)
        try:
            self._session = ort.InferenceSession(proto.SerializeToString(), options, providers=[CPU])
        except LOAD_ERRORS as error:
            raise InputError(f"{model}: does not load with its inner places as outputs ({first_line(error)})") from None
        self._untouched: bool | None = None

    @property
    def note(self) -> str:
        """An output in the middle keeps ONNX Runtime from fusing what is around it; that should change nothing."""
        return "" if self._untouched is not False else f"{self.title}: its answer is another without inner outputs"

    def run(self, batch: NetworkBatch) -> Outputs:
        feed = dict(zip(INPUTS, batch, strict=True))
        tensors = self._inner.tensors
        outputs = self._inner.sort(dict(zip(tensors, self._session.run(tensors, feed), strict=True)))
        if self._untouched is None:
            self._untouched = np.array_equal(self._plain.predict(batch).panoptic, outputs.panoptic)
            self._plain.close()
        return outputs

    def close(self) -> None:
        del self._session
