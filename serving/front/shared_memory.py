"""Who may give a server its tensors in shared memory: a client of this user on this machine.

The answer of ServerMetadata names, in its initial metadata, a file that only this user can read. Whoever sends the
token in it may register regions of its own: POSIX shared memory named `/upsnet-client-` and 32 hexadecimal digits, with
rights for this user alone, registered under those digits. Others can read the name in /dev/shm: a request that uses a
region needs the token, too.
"""

from __future__ import annotations

import hmac
import os
import re
import secrets
import stat
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from tritonclient.grpc import service_pb2 as pb

from serving.backend import Backend
from serving.front.refusal import Refused
from serving.front.requests import Region
from serving.limits import Limits
from serving.record import Outcome
from upsnet.runtimes.shared_memory import FOLDER, TOKEN_FILE

KEY = re.compile(r"/upsnet-client-([0-9a-f]{32})")
IDLE = 60.0  # seconds after which a region gives its place to a new one


class Mapping(NamedTuple):
    """What one version's server has mapped."""

    restarts: int  # of the server when it was told: a new one knows nothing of it
    file: int  # a descriptor of it: its name may go


@dataclass
class Registered:
    """A region that a client has registered. The servers that it is used with are told of it."""

    request: pb.SystemSharedMemoryRegisterRequest
    used: float  # when
    requests: int = 0  # that use it now
    mappings: dict[Backend, Mapping] = field(default_factory=dict)


class SharedMemory:
    """Who may register what, and what is registered. folder: where only this user can look."""

    def __init__(self, folder: Path, limits: Limits) -> None:
        self.place = folder / TOKEN_FILE
        self._limits = limits
        self._token = secrets.token_hex(32)
        self._regions: dict[str, Registered] = {}

    def __len__(self) -> int:
        """Regions that are registered."""
        return len(self._regions)

    def open(self) -> None:
        self.place.unlink(missing_ok=True)
        with open(os.open(self.place, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(self._token)

    def close(self) -> None:
        self.place.unlink(missing_ok=True)
        for name in list(self._regions):
            self.remove(name)

    def may(self, token: str | None) -> bool:
        return token is not None and hmac.compare_digest(token.encode(), self._token.encode())

    def open_new(self, request: pb.SystemSharedMemoryRegisterRequest) -> int:
        """Its descriptor. Refused where the region is not its caller's own, or not what it is said to be."""
        match = KEY.fullmatch(request.key)
        if match is None or request.name.removeprefix("/").removeprefix("upsnet-client-") != match[1]:
            raise Refused(
                Outcome.INVALID, "a region's key is /upsnet-client- and 32 hexadecimal digits; its name is those digits"
            )
        if request.name in self._regions:
            raise Refused(Outcome.INVALID, "that region is registered already")
        if not 0 < request.byte_size <= self._limits.max_region_bytes:
            most = self._limits.max_region_bytes
            raise Refused(Outcome.TOO_LARGE, f"a region of {request.byte_size} bytes: 1 to {most} are allowed")
        return self.open_file(request)

    def open_file(self, request: pb.SystemSharedMemoryRegisterRequest) -> int:
        """Its descriptor. Refused where it is not this user's alone: others may have taken a name that is free."""
        try:
            file = os.open(FOLDER / request.key[1:], os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError:
            raise Refused(Outcome.INVALID, "there is no such shared memory that this user can open") from None
        found = os.fstat(file)
        own = stat.S_ISREG(found.st_mode) and found.st_uid == os.geteuid() and stat.S_IMODE(found.st_mode) == 0o600
        if not own or request.offset + request.byte_size > found.st_size:
            os.close(file)
            raise Refused(
                Outcome.INVALID, "a region is this user's alone (mode 0600) and at least as long as it is said"
            )
        return file

    def check_lengths(self, regions: Iterable[Region], server: Backend) -> None:
        """Refused where a region has been made shorter: Triton would die of touching what has gone."""
        for name in {region.name for region in regions} & self._regions.keys():
            found = self._regions[name]
            mapped = found.mappings.get(server)  # None where it was unregistered meanwhile: Triton says so
            if mapped and os.fstat(mapped.file).st_size < found.request.offset + found.request.byte_size:
                raise Refused(Outcome.INVALID, "a region has become shorter than it was when it was registered")

    def idle(self) -> list[str]:
        """The regions that go before a new one comes. Refused where all are in use and there is no room.

        One whose name has gone is of a client that has gone, or of one that registers another when it is refused.
        """
        before = time.monotonic() - IDLE
        idle = [name for name, each in self._regions.items() if not each.requests and each.used <= before]
        gone = [name for name in idle if not (FOLDER / self._regions[name].request.key[1:]).exists()]
        if gone or len(self._regions) < self._limits.max_regions:
            return gone
        if not idle:
            raise Refused(Outcome.BUSY, f"busy: {len(self._regions)} regions are in use; unregister some", IDLE)
        return [min(idle, key=lambda name: self._regions[name].used)]

    def add(self, request: pb.SystemSharedMemoryRegisterRequest, server: Backend, restarts: int, file: int) -> None:
        """That server has mapped it. The descriptor is kept here from now on."""
        found = self._regions.setdefault(request.name, Registered(request, time.monotonic()))
        if (old := found.mappings.get(server)) is not None:
            os.close(old.file)
        found.mappings[server] = Mapping(restarts, file)

    def remove(self, name: str) -> None:
        if (found := self._regions.pop(name, None)) is not None:
            for mapped in found.mappings.values():
                os.close(mapped.file)

    def forget(self, server: Backend) -> None:
        """It has been ended, or will be: it needs to be told nothing more."""
        for found in self._regions.values():
            if (mapped := found.mappings.pop(server, None)) is not None:
                os.close(mapped.file)

    def servers(self, name: str) -> list[Backend]:
        """Those that have the region mapped now."""
        mappings = self._regions[name].mappings if name in self._regions else {}
        return [server for server, mapped in mappings.items() if mapped.restarts == server.health.restarts]

    @contextmanager
    def in_use(self, regions: Iterable[Region], token: str | None) -> Iterator[None]:
        """Refused where a request without the token names memory, or what was not registered here, or is outside."""
        used = [self._find(region, token) for region in regions]
        for each in used:
            each.requests += 1
        try:
            yield
        finally:
            for each in used:
                each.requests -= 1
                each.used = time.monotonic()

    def check_unused(self, name: str, token: str | None) -> None:
        """Refused where a request is in it."""
        if self._find(Region(name, 0, 0), token).requests:
            raise Refused(Outcome.INVALID, "a request uses that region")

    def _find(self, region: Region, token: str | None) -> Registered:
        found = self._regions.get(region.name) if self.may(token) else None
        if found is None:
            raise Refused(Outcome.FORBIDDEN, "the request names shared memory that is not registered here")
        if region.offset < 0 or region.size < 0 or region.offset + region.size > found.request.byte_size:
            raise Refused(Outcome.INVALID, "a tensor is not inside its region of shared memory")
        return found

    def unknown(self, regions: Iterable[Region], server: Backend) -> list[pb.SystemSharedMemoryRegisterRequest]:
        """What a server must be told before it can answer: it has been restarted, or another version's was told."""
        names = {region.name for region in regions} & self._regions.keys()
        return [self._regions[name].request for name in names if server not in self.servers(name)]
