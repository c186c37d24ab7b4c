"""The ONNX file in process, by ONNX Runtime."""

from __future__ import annotations

from pathlib import Path

import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as state
from pydantic import ValidationError

from upsnet.contract import INPUTS, METADATA_KEY, OUTPUTS
from upsnet.errors import InputError, one_line
from upsnet.files import WriteError, check_utf8
from upsnet.geometry import NetworkBatch
from upsnet.manifest import Manifest
from upsnet.runtimes.predictor import RawPrediction

LOAD_ERRORS = (
    state.Fail,
    state.InvalidArgument,
    state.InvalidGraph,
    state.InvalidProtobuf,
    state.NoModel,
    state.NoSuchFile,
    state.NotImplemented,
    state.RuntimeException,
    UnicodeDecodeError,  # a name that is damaged
)


class OnnxRuntimePredictor:
    """Runs an exported model on the CPU. The manifest comes out of the ONNX file itself."""

    name = "onnxruntime"

    def __init__(self, model: Path, threads: int | None = None) -> None:
        self.session = open_session(Path(model), threads)
        try:
            metadata = self.session.get_modelmeta().custom_metadata_map
            names = [[each.name for each in of()] for of in (self.session.get_inputs, self.session.get_outputs)]
        except UnicodeDecodeError:
            raise InputError(f"{model}: damaged: a name in it is no text; export it again with `make onnx`") from None
        if METADATA_KEY not in metadata:
            raise InputError(f"{model}: not an upsnet model (no {METADATA_KEY} metadata); export it with `make onnx`")
        if names != [INPUTS, OUTPUTS]:
            raise InputError(
                f"{model}: not a graph of this version ({' '.join(names[0])} -> {' '.join(names[1])}); export it again "
                "with `make onnx`"
            )
        try:
            self.manifest = Manifest.model_validate_json(metadata[METADATA_KEY])
        except ValidationError as error:
            raise InputError(f"{model}: its manifest is damaged ({one_line(error)}); export it again") from None

    def predict(self, batch: NetworkBatch) -> RawPrediction:
        return RawPrediction(*self.session.run(OUTPUTS, dict(zip(INPUTS, batch, strict=True))))

    def close(self) -> None:
        del self.session


def open_session(model: Path, threads: int | None = None, optimized: Path | None = None) -> ort.InferenceSession:
    """An ONNX Runtime session; with `optimized` the optimised graph is written there too.

    InputError when the file is missing, truncated or not a valid graph.
    """
    if not model.is_file():
        raise InputError(f"{model}: no such model; export it with `make onnx`")
    for path in filter(None, (model, optimized)):
        check_utf8(path, "ONNX Runtime")
    ort.disable_telemetry_events()
    options = ort.SessionOptions()
    options.log_severity_level = 3
    if threads is not None:
        options.intra_op_num_threads = threads
    if optimized is not None:
        # Extended, not all: the layout optimisations depend on this processor, and are done again at loading.
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        options.optimized_model_filepath = str(optimized)
    try:
        return ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    except LOAD_ERRORS as error:
        reason = " ".join(str(error).split())[:300]
        if optimized is not None and "serialization failed" in reason:  # the system's own word is lost
            raise WriteError(optimized, f"the disk may be full (ONNX Runtime: {reason})") from None
        raise InputError(f"{model}: ONNX Runtime cannot load it ({reason}); export it again with `make onnx`") from None
