"""A roll-out in containers that run: another version is taken up without a restart, and without a failed request.

A container that serve.sh has started with CONTROL_SECRET_FILE loads and unloads models for whoever knows the secret
(Triton's own repository calls, explicit control mode). The old version of `upsnet_photo` asks the old one of `upsnet`
until its last request is answered, so the order is: both versions of `upsnet`; then the other `upsnet_photo`; and when
the old one has gone, the other `upsnet` alone.

Each load brings its configuration along. Triton reads the one in the repository only where some file is younger than
the last load, by whatever clock: after a rollback none may be, and then the call succeeds and does nothing.

Triton has one configuration of a model, for all of its versions, and one library of plugins for as long as it runs.
Versions whose callers or plans would notice are refused here; for these there is the restart (docs/operating.md).
"""

from __future__ import annotations

import re
import stat
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import Any

from serving.layout import CONFIGS, config_name, version_configs
from serving.repository import CODE, PLAN
from serving.rollouts.record import read_record
from upsnet.contract import METADATA_KEY, MODEL, PHOTO_MODEL, PLUGINS
from upsnet.errors import InputError, ServerError
from upsnet.files import sha256
from upsnet.manifest import Manifest
from upsnet.runtimes.connection import Connection
from upsnet.runtimes.kserve import Ask, Server, call
from upsnet.runtimes.tls import Tls

HEADER = "triton-grpc-protocol-upsnet-control"  # Triton's prefix, then the name in serve.sh
SECRET = re.compile(r"[A-Za-z0-9_-]{32,}")
LOADING = 300.0  # seconds for a version to load, its warm-up included
DRAINING = 120.0  # seconds for the requests of the version that goes
POLL = 0.1  # seconds
PLAN_PLATFORM = "tensorrt_plan"
NAMES_ITS_NETWORK = "model_version"  # in the code of a photo model that asks the network of its own version
GONE = ("", "UNAVAILABLE")  # Triton's words for a version that is not there
RESTART = "a restart takes it up (docs/operating.md); leave --server out, and restart the containers"


def read_secret(file: Path) -> str:
    """InputError where others can read it, or it is none that serve.sh takes."""
    try:
        mode, text = file.stat().st_mode, file.read_text(encoding="ascii").strip()
    except (OSError, UnicodeError) as error:
        raise InputError(f"{file}: the secret cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if stat.S_IMODE(mode) & 0o077:
        raise InputError(f"{file}: others can read the secret; `chmod 600` it")
    if not SECRET.fullmatch(text):
        raise InputError(f"{file}: a secret is 32 letters, digits, - or _, or more; `openssl rand -hex 32` makes one")
    return text


class Container:
    """A running one, and the models in it.

    address: of its gRPC. ServerError in one line for whatever it refuses.
    """

    def __init__(self, address: str, secret: str, tls: Tls | None = None) -> None:
        self.server = Server.of(address, tls, LOADING, retries=0)
        self._metadata = ((HEADER, secret),)
        self._connection = Connection(self.server)

    def close(self) -> None:
        self._connection.close()

    def running(self) -> Any:
        """The ModelConfig of `upsnet`, as it runs."""
        return self._connection.run(call(self.server, Ask("ModelConfig", {"name": MODEL}, timeout=30.0))).config

    def config_of(self, repository: Path, model: str, version: int) -> Any:
        """The ModelConfig of a version, for what this container runs: the plan, or the ONNX file."""
        kind = CONFIGS[self.running().platform != PLAN_PLATFORM]
        return _read_config(version_configs(repository, version) / config_name(model, kind))

    def states(self, model: str) -> dict[int, str]:
        """Triton's word for each version's: READY, LOADING, UNLOADING, UNAVAILABLE."""
        models = self._ask("RepositoryIndex", {}, 30.0).models
        return {int(each.version): each.state for each in models if each.name == model and each.version}

    def ready(self, model: str) -> list[int]:
        """The versions that answer."""
        return sorted(version for version, state in self.states(model).items() if state == "READY")

    def load(self, model: str, config: Any) -> None:
        """By this ModelConfig. A version that it does not name goes, but only when the rest has loaded; where something
        does not load, what has served serves on."""
        from google.protobuf.json_format import MessageToJson

        text = MessageToJson(config, preserving_proto_field_name=True)
        self._ask(
            "RepositoryModelLoad", {"model_name": model, "parameters": {"config": {"string_param": text}}}, LOADING
        )

    def wait_until_alone(self, model: str, version: int) -> None:
        """Until the requests of the others have been answered."""
        deadline = time.monotonic() + DRAINING
        while others := [
            number for number, state in self.states(model).items() if number != version and state not in GONE
        ]:
            if time.monotonic() > deadline:
                raise ServerError(
                    f"{self.server} still answers requests of {model} {others[0]} after {DRAINING:g} s; when they are "
                    "over, or are given up by a restart, version "
                    f"{version} is the only one"
                )
            time.sleep(POLL)

    def _ask(self, method: str, fields: Mapping[str, Any], timeout: float) -> Any:
        try:
            return self._connection.run(call(self.server, Ask(method, fields, self._metadata, timeout)))
        except InputError as error:
            if "protocol is restricted" in str(error):
                raise ServerError(
                    f"{self.server} does not let this secret change its models; start it with CONTROL_SECRET_FILE, and "
                    "the same secret in it"
                ) from error
            words = str(error).partition(" At: ")[0]  # a Python model's traceback follows
            raise ServerError(words, getattr(error, "status", "")) from error


def check_containers(
    servers: Sequence[str], secret_file: Path | None, repository: Path, version: int, tls: Tls | None = None
) -> None:
    """InputError where `taking_up` would raise one before it loads anything: before a gate that takes minutes."""
    old = read_record(repository).serving
    with _containers(servers, secret_file, tls) as containers:
        for container in containers:
            container.states(MODEL)  # the secret is right
            _plan(container, repository, old, version)


@contextmanager
def taking_up(
    servers: Sequence[str], secret_file: Path | None, repository: Path, version: int, tls: Tls | None = None
) -> Iterator[None]:
    """Around the step (`promote`, `rollback`) that makes `version` serve: before it the containers with these addresses
    load the version beside the one that serves, and after it they let that one go. Without any it does nothing.

    InputError before the step where they must not or cannot: nothing has changed then. What goes wrong after the step
    is a ServerError that says what to do; that container serves on with the version that it had.
    """
    old = read_record(repository).serving
    with _containers(servers, secret_file, tls) as containers:
        plans = [_plan(container, repository, old, version) for container in containers]
        try:
            for container, both in zip(containers, plans, strict=True):
                container.load(MODEL, both)
            yield
        except BaseException:
            with suppress(InputError):  # what it was about is told
                _settle_all(containers, repository)
            raise
        _settle_all(containers, repository)


def take_up(servers: Sequence[str], secret_file: Path | None, repository: Path, tls: Tls | None = None) -> None:
    """Lets the containers serve what the repository says, whatever came between: a `taking_up` that was killed, say.

    InputError where one cannot; it serves on with the version that it had.
    """
    version = read_record(repository).serving
    with _containers(servers, secret_file, tls) as containers:
        for container in containers:
            answers = container.ready(PHOTO_MODEL)
            if answers and not {*answers, version} <= {*container.ready(MODEL)}:
                if not version_configs(repository, answers[-1]).is_dir():
                    raise InputError(
                        f"{container.server} serves version {answers[-1]}, whose files have gone: restart it"
                    )
                container.load(MODEL, _plan(container, repository, answers[-1], version))
        _settle_all(containers, repository)


@contextmanager
def _containers(servers: Sequence[str], secret_file: Path | None, tls: Tls | None) -> Iterator[list[Container]]:
    if bool(servers) != (secret_file is not None):
        raise InputError("--server and --secret-file go together: a server's models change for its secret alone")
    secret = read_secret(secret_file) if secret_file is not None else ""
    with ExitStack() as stack:
        yield [stack.enter_context(closing(Container(each, secret, tls))) for each in servers]


def _settle_all(containers: Sequence[Container], repository: Path) -> None:
    """Each, whatever the others do; then the first error."""
    errors: list[InputError] = []
    for container in containers:
        try:
            _settle(container, repository)
        except InputError as error:
            errors.append(error)
    if errors:
        raise errors[0]


def _settle(container: Container, repository: Path) -> None:
    """From both versions of `upsnet` to the one that serves by the repository, of both models."""
    version = read_record(repository).serving
    try:
        if container.ready(PHOTO_MODEL) != [version]:
            container.load(PHOTO_MODEL, container.config_of(repository, PHOTO_MODEL, version))
            container.wait_until_alone(PHOTO_MODEL, version)
        if container.ready(MODEL) != [version]:  # the other's last requests end while it goes
            container.load(MODEL, container.config_of(repository, MODEL, version))
    except ServerError as error:
        raise ServerError(
            f"{error}; version {version} serves by the repository: restart this container", error.status
        ) from error


def _plan(container: Container, repository: Path, old: int, new: int) -> Any:
    """The ModelConfig of `upsnet` by which a container serves both versions. InputError: it must not."""
    running = container.running()
    before, after = (container.config_of(repository, MODEL, version) for version in (old, new))
    if _manifest(running).onnx_sha256 != _manifest(before).onnx_sha256:
        raise InputError(
            f"{container.server} serves another model than version {old} of {repository}; if it is this one's server, "
            f"`upsnet deploy rollback --to {old}` with the same --server and --secret-file lets it follow"
        )
    check_alike(repository, running.platform == PLAN_PLATFORM, {old: before, new: after})
    after.version_policy.specific.versions[:] = sorted({old, new})
    return after


def check_alike(repository: Path, plan: bool, configs: Mapping[int, Any]) -> None:
    """InputError that names what differs between two versions that cannot run in one Triton at a time.

    plan: whether it runs the plan. configs: the ModelConfig of each version of `upsnet`.
    """
    (old, before), (new, after) = configs.items()
    ways = [f"{what} of versions {old} and {new} differ" for what, differ in _differences(before, after) if differ]
    if len({(repository / MODEL / str(version) / PLAN).is_file() for version in configs}) == 2:
        ways.append(f"one of versions {old} and {new} has a TensorRT plan, and one has none")
    ways += [
        f"the photo model of version {version} is an older program's, which asks whichever network is the latest"
        for version in configs
        if NAMES_ITS_NETWORK not in (repository / PHOTO_MODEL / str(version) / CODE).read_text(encoding="utf-8")
    ]
    if plan:
        files = [repository / MODEL / str(version) / PLUGINS for version in (old, new)]
        hashes = [sha256(file) if file.is_file() else "" for file in files]
        if hashes[0] != hashes[1]:
            ways.append(f"the plugins ({PLUGINS}) of versions {old} and {new} differ, and a server loads them once")
    if ways:
        raise InputError(f"{repository}: {'; '.join(ways)}; {RESTART}")


def _differences(before: Any, after: Any) -> Iterator[tuple[str, bool]]:
    """What callers or the server would notice where two configurations have to be one."""
    ours, theirs = _manifest(before), _manifest(after)
    yield "the class tables", ours.categories != theirs.categories
    yield "the network's sizes", ours.resize != theirs.resize
    yield "the most detections", ours.max_detections != theirs.max_detections
    rest = [type(config).FromString(config.SerializeToString()) for config in (before, after)]
    for config in rest:
        config.ClearField("version_policy")
        config.parameters[METADATA_KEY].string_value = ""
    yield "the configurations (batch, limits, warm-up, instances)", rest[0] != rest[1]


def _read_config(file: Path) -> Any:
    from google.protobuf import text_format
    from tritonclient.grpc import model_config_pb2

    try:
        return text_format.Parse(file.read_text(encoding="utf-8"), model_config_pb2.ModelConfig())
    except (OSError, text_format.ParseError) as error:
        raise InputError(f"{file}: the version's configuration cannot be read: {error}") from None


def _manifest(config: Any) -> Manifest:
    """As `upsnet deploy` has put it there."""
    return Manifest.model_validate_json(config.parameters[METADATA_KEY].string_value)
