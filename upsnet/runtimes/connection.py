"""A gRPC channel to a server, and conversations over it."""

from __future__ import annotations

import json
import threading
from types import ModuleType
from typing import Any

from upsnet import DISTRIBUTION
from upsnet.errors import InputError, ServerError
from upsnet.runtimes.kserve import Answer, Ask, CallError, Server, Step, Steps, hold_here
from upsnet.runtimes.shared_memory import Regions

SERVICE = "inference.GRPCInferenceService"
MOST = 2**31 - 1  # bytes
# Triton's limit instead of gRPC's own 4 MiB, which one batch of photos passes.
# A proxy set for the web must not be asked for a server on this machine.
CHANNEL_OPTIONS = [
    ("grpc.max_send_message_length", MOST),
    ("grpc.max_receive_message_length", MOST),
    ("grpc.enable_http_proxy", 0),
]


def load_packages() -> tuple[Any, Any, Any]:
    """grpc, the protocol's messages and its stub. InputError, with the cure, where they are not installed."""
    try:
        import grpc
        from tritonclient.grpc import service_pb2, service_pb2_grpc
    except (ImportError, RuntimeError) as error:  # RuntimeError: tritonclient without its [grpc]
        raise InputError(
            f"tritonclient is not installed ({error}); install it with `pip install '{DISTRIBUTION}[triton]'`"
        ) from error
    return grpc, service_pb2, service_pb2_grpc.GRPCInferenceServiceStub


def open_channel(server: Server, grpc: Any, channels: ModuleType | Any) -> Any:
    """channels: grpc, or grpc.aio."""
    if server.tls is None:
        return channels.insecure_channel(server.address, options=_options(server))
    return channels.secure_channel(server.address, server.tls.credentials(grpc), options=_options(server))


def _options(server: Server) -> list[tuple[str, int | str]]:
    return [
        *CHANNEL_OPTIONS,
        ("grpc.service_config", json.dumps({"methodConfig": [_retry_policy(server)]} if server.retries else {})),
        ("grpc.per_rpc_retry_buffer_size", MOST),  # a larger request would not be sent again
        ("grpc.min_reconnect_backoff_ms", 200),
        ("grpc.initial_reconnect_backoff_ms", 200),
        ("grpc.max_reconnect_backoff_ms", 1000),
    ]


def _retry_policy(server: Server) -> dict[str, Any]:
    """gRPC's own retries (gRFC A6): with jitter, within the deadline, and after the time that a busy server says.

    An inference changes nothing, so that it may be asked for again. 0.5 + 1.5 + 4.5 + 10 s outlast a restart.
    """
    return {
        "name": [{"service": SERVICE, "method": method} for method in ("ModelInfer", "ModelConfig")],
        "retryPolicy": {
            "maxAttempts": 1 + server.retries,
            "initialBackoff": "0.5s",
            "backoffMultiplier": 3,
            "maxBackoff": "10s",
            "retryableStatusCodes": ["UNAVAILABLE", "RESOURCE_EXHAUSTED"],
        },
    }


class Calls:
    """Calls that can be ended together, from any thread."""

    def __init__(self) -> None:
        self._lock, self._open, self._ended = threading.Lock(), set[Any](), False

    def result_of(self, future: Any) -> Any:
        """The answer, once it is there."""
        with self._lock:
            self._open.add(future)
            if self._ended:
                future.cancel()
        try:
            return future.result()
        except BaseException:  # Ctrl-C, for one
            future.cancel()
            raise
        finally:
            with self._lock:
                self._open.discard(future)

    def end(self) -> None:
        """Cancels those that are open, and those that are begun from now on."""
        with self._lock:
            self._ended = True
            for future in self._open:
                future.cancel()


class Connection:
    """A channel that waits for its answers. Several threads may use it."""

    def __init__(self, server: Server) -> None:
        self.server, self.regions = server, Regions(server)
        self._grpc, self._messages, stub = load_packages()
        self._channel = open_channel(server, self._grpc, self._grpc)
        self._stub: Any = stub(self._channel)

    def run(self, steps: Steps[Answer], calls: Calls | None = None) -> Answer:
        """Holds a conversation. Its calls are among `calls`."""

        def take(step: Step) -> Any:
            return self._call(step, calls or Calls()) if isinstance(step, Ask) else step()

        return hold_here(steps, take)

    def _call(self, ask: Ask, calls: Calls) -> Any:
        if self._stub is None:
            raise ServerError(f"the connection to {self.server} is closed; open another")
        request = getattr(self._messages, f"{ask.method}Request")(**ask.fields)
        timeout = self.server.timeout if ask.timeout is None else ask.timeout
        future = getattr(self._stub, ask.method).future(request, timeout=timeout, metadata=ask.metadata)
        try:
            answer = calls.result_of(future)
            if ask.told is not None:
                ask.told.update(future.initial_metadata())
            return answer
        except self._grpc.RpcError as error:
            raise call_error(error) from None

    def close(self) -> None:
        """A second call does nothing."""
        try:
            if self._stub is not None:
                self.run(self.regions.close())
        finally:
            self._stub = None
            self._channel.close()


def call_error(error: Any) -> CallError:
    """Of an exception of grpc."""
    return CallError(error.code().name, error.details() or "")
