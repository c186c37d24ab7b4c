"""A `Predictor` that asks a running Triton server over gRPC."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import ValidationError

from upsnet import DISTRIBUTION
from upsnet.contract import METADATA_KEY, MODEL
from upsnet.errors import InputError, one_line
from upsnet.files import PathLike
from upsnet.geometry import NetworkBatch
from upsnet.manifest import Manifest
from upsnet.runtimes.address import WANTED, check_grpc, parse_address
from upsnet.runtimes.options import SERVER
from upsnet.runtimes.predictor import RawPrediction

if TYPE_CHECKING:
    from tritonclient.grpc import InferResult

# Triton's limit (2 GiB - 1) instead of gRPC's own 4 MiB, which one batch of photos passes.
# A proxy set for the web must not be asked for a server on this machine.
CHANNEL_OPTIONS = [
    ("grpc.max_send_message_length", 2**31 - 1),
    ("grpc.max_receive_message_length", 2**31 - 1),
    ("grpc.enable_http_proxy", 0),
]


class TritonPredictor:
    """The model as a live Triton server runs it.

    url: see `parse_address`. manifest describes the model (default: the one in the served model's configuration).
    timeout bounds every call, in seconds. InputError, in one line, when no gRPC answers at the url, when the model is
    not ready, when the server refuses a request, and when an answer does not fit the manifest.
    """

    name = "triton"

    def __init__(
        self,
        url: str = SERVER,
        model: str = MODEL,
        manifest: PathLike | Manifest | None = None,
        timeout: float = 120.0,
    ) -> None:
        self.url, self.model, self.timeout = parse_address(url), model, timeout
        try:
            from tritonclient import grpc
        except (ImportError, RuntimeError) as error:  # RuntimeError: tritonclient without its [grpc]
            raise InputError(
                f"tritonclient is not installed ({error}); install it with `pip install '{DISTRIBUTION}[triton]'`"
            ) from error
        check_grpc(self.url)
        self._grpc = grpc
        self._client = grpc.InferenceServerClient(self.url, channel_args=CHANNEL_OPTIONS)
        try:
            config = self._config()
            self.max_batch = max(1, config.max_batch_size)
            if manifest is None:
                manifest = self._manifest(config)
            self.manifest = manifest if isinstance(manifest, Manifest) else Manifest.load(manifest)
        except BaseException:
            self.close()
            raise

    def predict(self, batch: NetworkBatch) -> RawPrediction:
        """A batch that is larger than the server's becomes several requests."""
        check_inputs(batch)
        slices = [slice(start, start + self.max_batch) for start in range(0, len(batch.images), self.max_batch)]
        parts = [self._request(NetworkBatch(*(array[each] for array in batch))) for each in slices]
        if len(parts) == 1:
            return parts[0]
        return RawPrediction(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))

    def close(self) -> None:
        self._client.close()

    def _config(self) -> Any:  # a protobuf message, whose class has no type
        with self._one_line_errors():
            if not self._client.is_model_ready(self.model, client_timeout=self.timeout):
                models = self._client.get_model_repository_index(client_timeout=self.timeout).models
                raise InputError(f"the Triton server at {self.url} {self._not_ready(models)}")
            return self._client.get_model_config(self.model, client_timeout=self.timeout).config

    def _not_ready(self, models: Any) -> str:
        ready = sorted({each.name for each in models if each.state == "READY"})
        if reason := next((each.reason or "it is not loaded" for each in models if each.name == self.model), ""):
            return f"has a model {self.model} that is not ready ({' '.join(reason.split())}); see its log"
        return f"runs without the model {self.model}: it serves {' and '.join(ready) or 'none'}; see its log"

    def _manifest(self, config: Any) -> Manifest:
        """Categories and sizes, as `upsnet deploy` and `upsnet serve` write them into the model's configuration."""
        if METADATA_KEY not in config.parameters:
            raise InputError(
                f"the Triton server at {self.url} does not tell the categories of {self.model} (its configuration has "
                f"no parameter {METADATA_KEY}); serve it with `upsnet serve` or `upsnet deploy`, or give its manifest"
            )
        try:
            return Manifest.model_validate_json(config.parameters[METADATA_KEY].string_value)
        except ValidationError as error:
            raise InputError(
                f"the Triton server at {self.url}: the manifest of {self.model} is damaged ({one_line(error)}); "
                "deploy the model again"
            ) from None

    def _request(self, batch: NetworkBatch) -> RawPrediction:
        images, sizes, scales = batch
        # scales are B x 1 on the wire: Triton has no tensor without a dimension after the batch.
        arrays = {"images": (images, "UINT8"), "sizes": (sizes, "INT32"), "scales": (scales[:, None], "FP32")}
        inputs = []
        for name, (array, kind) in arrays.items():
            inputs.append(self._grpc.InferInput(name, list(array.shape), kind))
            inputs[-1].set_data_from_numpy(np.ascontiguousarray(array))
        with self._one_line_errors():
            result = self._client.infer(self.model, inputs, client_timeout=self.timeout)
        return self._answer(result, images.shape[:3])

    def _answer(self, result: InferResult, shape: tuple[int, ...]) -> RawPrediction:
        panoptic, segments, count = (result.as_numpy(name) for name in ("panoptic", "segments", "segment_count"))
        batch = shape[0]
        self._expect("panoptic", panoptic, np.uint8, shape)
        self._expect("segment_count", count, np.int32, (batch, 1))
        self._expect("segments", segments, np.float32, (batch, self.manifest.max_segments, 7))
        return RawPrediction(panoptic, segments, count[:, 0])

    def _expect(self, name: str, array: np.ndarray | None, dtype: type[np.generic], shape: tuple[int, ...]) -> None:
        if array is None or array.dtype != dtype or array.shape != shape:
            got = "missing" if array is None else f"{array.dtype} {array.shape}"
            raise InputError(
                f"the answer of the Triton server at {self.url} does not fit the manifest of {self.manifest.name}: "
                f"{name} should be {np.dtype(dtype)} {shape}, and is {got}"
            )

    @contextmanager
    def _one_line_errors(self) -> Iterator[None]:
        from tritonclient.utils import InferenceServerException

        try:
            yield
        except InferenceServerException as error:
            status = error.status()
            # Triton puts a request id that nobody gave in front of its own messages.
            text = " ".join(error.message().removeprefix("[request id: <id_unknown>] ").split())
            if status == "StatusCode.UNAVAILABLE":
                check_grpc(self.url)  # says why, where the server has gone; else these are Triton's own words
            if status == "StatusCode.UNIMPLEMENTED":
                message = f"a gRPC server that is no Triton answers at {self.url}; {WANTED}"
            elif status == "StatusCode.DEADLINE_EXCEEDED":
                message = f"the Triton server at {self.url} did not answer within {self.timeout:g} s"
            elif "is not healthy" in text:
                message = f"the model in the Triton server at {self.url} has died; restart the server (`make serve`)"
            else:
                message = f"the Triton server at {self.url} refused the request: {text}"
            raise InputError(message) from error


def check_inputs(request: NetworkBatch) -> None:
    """InputError naming the first tensor whose type or shape is not the graph's."""
    images, sizes, scales = request
    batch = len(images) if images.ndim else 0
    photos = images.ndim == 4 and images.shape[3] == 3 and images.size > 0
    for name, array, dtype, expected, fits in (
        ("images", images, np.uint8, "B x H x W x 3, all non-zero", photos),
        ("sizes", sizes, np.int32, f"{batch} x 2", sizes.shape == (batch, 2)),
        ("scales", scales, np.float32, f"{batch}", scales.shape == (batch,)),
    ):
        if array.dtype != dtype or not fits:
            got = " x ".join(map(str, array.shape))
            raise InputError(f"{name} should be {np.dtype(dtype)} {expected}, and is {array.dtype} {got}")
