"""A connection to a Ray cluster, and how many actors there is room for."""

from __future__ import annotations

import logging
import os
import secrets
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from upsnet.device import AUTO
from upsnet.errors import InputError
from upsnet.runtimes.address import speaks_grpc
from upsnet.runtimes.open import choose
from upsnet.runtimes.options import RUNTIMES, RuntimeOptions
from upsnet.runtimes.tls import Tls
from upsnet.silence import silent
from upsnet.storage import is_url

LOCAL, OURS = "local", "auto"
HEAD_PORT = 6379
REACHABLE_S = 5.0
OBJECT_STORE = 128 << 20  # bytes, of a local cluster: what goes through it are numbers
MOST_TEXT = 300  # characters
SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",  # nothing is sent to Ray's makers
    "RAY_DEDUP_LOGS_SKIP_REGEX": ".*",  # what actors print is in Ray's own logs
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",  # an actor without a GPU sees none
}


class Actors(NamedTuple):
    """The processes on the cluster that hold the model, and what each is given; what nobody said is None."""

    number: int | None = None  # None: as many as there is room for
    cpus: int | None = None  # threads of the network, and as many that read, decode and encode; None: 1
    gpus: float | None = None  # a half: two share one. None: 1 where the runtime can use one and the cluster has any


class Pool(NamedTuple):
    """The same, settled."""

    number: int
    cpus: int
    gpus: float


@contextmanager
def connected(address: str) -> Iterator[None]:
    """address: auto, local or host:port. InputError where Ray is not installed, or no cluster there."""
    settings = SETTINGS | (_secret() if address == LOCAL else {})
    for name, value in settings.items():
        os.environ.setdefault(name, value)
    try:
        import ray
        import ray.data
    except ImportError:
        raise InputError("--ray needs the package ray: pip install 'upsnet-trt[ray]'") from None
    own: dict[str, Any] = {}
    if address == LOCAL:
        own = {"include_dashboard": False, "object_store_memory": OBJECT_STORE}
    else:
        address = _reachable(address)
    try:
        with silent(), _handlers_kept():
            ray.init(address, log_to_driver=False, logging_level=logging.CRITICAL, **own)
    except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        raise InputError(f"--ray {address}: {one_line(error)}{_cure(error)}") from None
    try:
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.target_max_block_size = 1  # byte: an answer comes as soon as it is there, not with those of its task
        for handler in logging.getLogger("ray.data").handlers:
            if isinstance(handler, logging.StreamHandler):
                handler.setLevel(logging.CRITICAL)
        yield
    finally:
        ray.shutdown()


def _cure(error: Exception) -> str:
    """Ray does not say why a gRPC server that listens there is not its head, or refuses this process."""
    if "Failed to connect" not in str(error):
        return ""
    return (
        f"; either that is not the port of `ray start --port` ({HEAD_PORT} where nobody said another, not 10001, which "
        "is for Ray's client), or the cluster has a token (RAY_AUTH_MODE=token) and this machine has not the same"
    )


def _secret() -> dict[str, str]:
    """Ray's processes listen on every interface: who has not this run's secret is refused."""
    return {} if "RAY_AUTH_MODE" in os.environ else {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}


def settled(actors: Actors, source: RuntimeOptions) -> Pool:
    """On the cluster that this process is connected to. InputError where no node has room for one actor."""
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    gpus = actors.gpus
    if gpus is None:
        gpus = 1.0 if any(node.get("GPU") for node in nodes) and _can_use_gpu(source) else 0.0
    cpus = actors.cpus or 1
    wanted = {"CPU": float(cpus), "GPU": gpus}
    room = sum(min(int(node.get(kind, 0) / size) for kind, size in wanted.items() if size) for node in nodes)
    if not room:
        most_cpus, most_gpus = (max((node.get(kind, 0) for node in nodes), default=0) for kind in wanted)
        raise InputError(
            f"no node of the cluster has {cpus} CPUs and {gpus:g} GPUs for an actor (most: {most_cpus:g} CPUs, "
            f"{most_gpus:g} GPUs); give less with --actor-cpus and --actor-gpus"
        )
    return Pool(actors.number or room, cpus, gpus)


def _can_use_gpu(source: RuntimeOptions) -> bool:
    runtime = RUNTIMES[choose(source)[0]]
    return runtime.gpu or ("device" in runtime.takes and (source.device or AUTO) != "cpu")


def absolute(source: RuntimeOptions) -> RuntimeOptions:
    """With absolute paths: the working directory of an actor is Ray's."""
    names = ("run", "checkpoint", "model", "manifest", "engine")
    places: dict[str, Any] = {
        name: absolute_place(os.fspath(place)) for name in names if (place := getattr(source, name)) is not None
    }
    tls = source.tls and Tls.of(source.tls)
    if tls:
        tls = Tls(*(file and absolute_place(os.fspath(file)) for file in tls))
    return source._replace(tls=tls, **places)


def absolute_place(place: str) -> str:
    return place if is_url(place) else os.path.abspath(place)


def _reachable(address: str) -> str:
    """host:port. InputError where no head can listen there; Ray itself would wait for minutes."""
    if address == OURS:
        from ray._private.services import canonicalize_bootstrap_address  # what Ray's own commands ask

        try:
            found = canonicalize_bootstrap_address(address)
        except (ConnectionError, ValueError) as error:
            raise InputError(f"--ray {address}: {one_line(error)}") from None
        if found is None:
            raise InputError(f"--ray {address}: this machine is no node of a cluster; `ray start --head` starts one")
        address = found
    host, _, port = address.rpartition(":")
    if "://" in address or not (host and port.isdecimal()):
        raise InputError(
            f"--ray {address}: give auto, local, or host:port of the cluster's head, on one of its nodes; from "
            "outside, `ray job submit -- upsnet predict ... --ray auto` starts the command on one"
        )
    try:
        with_tls = os.environ.get("RAY_USE_TLS", "0") != "0"  # Ray's own; then it is only seen whether anybody listens
        if with_tls:
            socket.create_connection((host, int(port)), REACHABLE_S).close()
        elif not speaks_grpc(host, int(port), REACHABLE_S):
            raise InputError(
                f"--ray {address}: what listens there is no head of a cluster; its port is that of `ray start --port`, "
                f"{HEAD_PORT} where nobody said another, not the dashboard's"
            )
    except (OSError, OverflowError, UnicodeError) as error:
        raise InputError(
            f"--ray {address}: no cluster there ({one_line(error)}); `ray start --head` starts one"
        ) from None
    return address


@contextmanager
def _handlers_kept() -> Iterator[None]:
    """Ray has a handler for SIGTERM of its own, which exits with 15."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    except SystemExit as end:
        raise SystemExit(128 + signal.SIGTERM if end.code == signal.SIGTERM else end.code) from None
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


def one_line(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= MOST_TEXT else f"{text[:MOST_TEXT]} ..."
