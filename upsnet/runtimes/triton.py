"""A `Predictor` that asks a running Triton server over gRPC."""

from __future__ import annotations

from upsnet.contract import MODEL
from upsnet.files import PathLike
from upsnet.geometry import NetworkBatch
from upsnet.manifest import Manifest
from upsnet.runtimes.address import check_grpc
from upsnet.runtimes.connection import CHANNEL_OPTIONS as CHANNEL_OPTIONS
from upsnet.runtimes.connection import Connection, load_packages
from upsnet.runtimes.kserve import (
    RETRIES,
    SIZES,
    SWITCHES,
    OtherVersion,
    Served,
    Server,
    Steps,
    describe,
    describe_again,
    predict_tensors,
)  # fmt: skip
from upsnet.runtimes.kserve import check_inputs as check_inputs
from upsnet.runtimes.options import SERVER
from upsnet.runtimes.predictor import RawPrediction
from upsnet.runtimes.tls import Tls


class TritonPredictor:
    """The model as a live Triton server runs it.

    url: see `parse_address`. manifest describes the model (default: the one in the served model's configuration).
    version: of the model, a number (default: the one in service). timeout bounds every call, in seconds. tls, retries,
    shared_memory: see `upsnet.Client`. ServerError, an InputError in one line, when no gRPC answers at the url, when
    the model is not ready, when the server fails, when an answer does not fit the manifest, and when another version
    comes into service that has other classes or another network size; any other takes its place unnoticed.
    """

    name = "triton"
    device_name = kernels = "the server's"

    def __init__(
        self,
        url: str = SERVER,
        model: str = MODEL,
        manifest: PathLike | Manifest | None = None,
        timeout: float = 120.0,
        *,
        tls: Tls | PathLike | bool | None = None,
        retries: int = RETRIES,
        shared_memory: bool | None = None,
        version: int | str | None = None,
    ) -> None:
        server = Server.of(url, tls, timeout, retries, shared_memory, version)
        load_packages()
        check_grpc(server.address, tls=server.tls)
        given = manifest if isinstance(manifest, Manifest | None) else Manifest.load(manifest)
        self.connection = Connection(server)
        try:
            self._take(self.connection.run(describe(server, model, given)))
            self.connection.run(self.connection.regions.open())
        except BaseException:
            self.close()
            raise
        self.url, self.model, self.timeout = server.address, model, timeout

    def _take(self, served: Served) -> None:
        self.served, self.manifest, self.max_batch = served, served.manifest, served.max_batch

    def predict(self, batch: NetworkBatch) -> RawPrediction:
        """A batch that is larger than the server's becomes several requests."""
        return self.connection.run(self._predict(batch))

    def _predict(self, batch: NetworkBatch) -> Steps[RawPrediction]:
        for _ in range(SWITCHES):
            try:
                return (yield from predict_tensors(self.served, batch, self.connection.regions.infer))
            except OtherVersion as error:
                self._take((yield from describe_again(self.served, error, SIZES)))
        return (yield from predict_tensors(self.served, batch, self.connection.regions.infer))

    def close(self) -> None:
        self.connection.close()
