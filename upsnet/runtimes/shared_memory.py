"""Tensors by shared memory, to a server on this machine that runs as this user; docs/clients.md has how it is offered.

A region has no name any more once the server has it: whatever becomes of either, nothing stays in /dev/shm. Where
anything goes wrong, the request goes as a message, and that answer counts.
"""

from __future__ import annotations

import errno
import mmap
import os
import re
import secrets
import stat
import threading
import time
from collections.abc import Sequence
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import numpy as np

from upsnet.contract import INPUTS, OUTPUTS
from upsnet.errors import InputError, ServerError, first_line
from upsnet.runtimes.kserve import (
    VERSION_HEADER,
    Ask,
    CallError,
    Inputs,
    OtherVersion,
    Outputs,
    Served,
    Server,
    Steps,
    check_version,
    explain,
    infer,
    infer_request,
    read_outputs,
)  # fmt: skip

FOLDER = Path("/dev/shm")
PLACE, TOKEN = "upsnet-shared-memory", "upsnet-shared-memory-token"  # metadata: the token's file, and the token
TOKEN_FILE = "shared-memory-token"
LEAST = 256 << 10  # bytes of images for which it is worth it
STEP, MOST = 1 << 20, 32 << 20  # bytes of a region
SPARE = 64 << 20  # bytes of FOLDER that are left to others: the server's models work there
MOST_REGIONS = 8  # of a client: as many requests may be on their way in them
PATIENCE = 5.0  # seconds for a call about regions
PAUSE = 60.0  # seconds without, after a server has refused one
IMAGES, PANOPTIC = INPUTS[0], OUTPUTS[0]  # the tensors that are worth it


class Region:
    """Memory that this process and the server share. OSError where there is no room for it."""

    def __init__(self, size: int) -> None:
        self.name = secrets.token_hex(16)
        self.key, self.token = f"/upsnet-client-{self.name}", ""
        self._path = FOLDER / self.key[1:]
        room = os.statvfs(FOLDER)
        if room.f_bavail * room.f_frsize < size + SPARE:
            raise OSError(errno.ENOSPC, f"{FOLDER} has too little room")
        file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            os.posix_fallocate(file, 0, size)  # else the first write, where there is no room, would be SIGBUS
            self.memory = mmap.mmap(file, size)
        except BaseException:
            self.unlink()
            raise
        finally:
            os.close(file)

    def unlink(self) -> None:
        self._path.unlink(missing_ok=True)

    def array(self, start: int, shape: Sequence[int]) -> np.ndarray:
        """A view of bytes."""
        return np.frombuffer(self.memory, np.uint8, int(np.prod(shape)), start).reshape(shape)

    def part(self, start: int, size: int) -> dict[str, Any]:
        """The parameters of a tensor that is there."""
        return {
            "shared_memory_region": {"string_param": self.name},
            "shared_memory_offset": {"int64_param": start},
            "shared_memory_byte_size": {"int64_param": size},
        }


class Regions:
    """Those of one client. A region belongs to one request at a time, and to nobody after one that failed: the server
    may still write there. Several threads may use this.
    """

    def __init__(self, server: Server) -> None:
        self._server, self._patience = server, min(PATIENCE, server.timeout)
        self._free: list[Region] = []
        self._more = threading.Semaphore(MOST_REGIONS)  # how many there may be beside those that are free or in use
        self._not_before = 0.0
        self._possible = is_here(server.address) and FOLDER.is_dir() and server.shared_memory is not False
        self._owner = os.getpid()  # a forked process would write into the same regions

    def open(self) -> Steps[None]:
        """InputError where shared memory must be used, and cannot be."""
        if self._server.shared_memory:
            if not self._possible:
                raise InputError(f"{self._server} is on another machine, or this one has no {FOLDER}: no shared memory")
            self._more.acquire()
            self._free.append((yield from self._registered(STEP)))

    def infer(self, served: Served, inputs: Inputs, outputs: Sequence[str]) -> Steps[Outputs]:
        """See kserve's `infer`, whose answer is the same."""
        end = time.monotonic() + served.server.timeout
        images = inputs[IMAGES]
        assert isinstance(images, np.ndarray)
        region = yield from self._take(images.nbytes + images.nbytes // 3)
        if region is not None:
            try:
                found = yield from self._infer(region, served, inputs, outputs, max(0.0, end - time.monotonic()))
            except OtherVersion:  # the server is done with it, too
                self._free.append(region)
                region = None
                raise
            except CallError as error:
                if error.status == "INVALID_ARGUMENT":  # the server is done with it
                    yield from self._unregister(region)
                if error.status in ("CANCELLED", "DEADLINE_EXCEEDED"):
                    raise (yield from explain(served.server, error)) from error
            else:
                self._free.append(region)
                region = None
                return found
            finally:
                if region is not None:
                    self._more.release()
        return (yield from infer(served, inputs, outputs, max(0.0, end - time.monotonic())))

    def _infer(
        self, region: Region, served: Served, inputs: Inputs, outputs: Sequence[str], timeout: float
    ) -> Steps[Outputs]:
        images = inputs[IMAGES]
        assert isinstance(images, np.ndarray)
        shape, start = images.shape[:3], images.nbytes
        region.array(0, images.shape)[:] = images
        elsewhere = {IMAGES: region.part(0, start), PANOPTIC: region.part(start, start // 3)}
        request = infer_request(served.server, served.model, inputs, outputs, elsewhere)
        answer = yield Ask("ModelInfer", request, ((TOKEN, region.token),), timeout)
        check_version(served, answer)
        found = read_outputs(answer, elsewhere)
        if (PANOPTIC, "UINT8", list(shape)) not in [
            (each.name, each.datatype, list(each.shape)) for each in answer.outputs
        ]:
            raise CallError("INTERNAL", f"{PANOPTIC} is not what was asked for")
        return found if PANOPTIC in found else found | {PANOPTIC: region.array(start, shape).copy()}

    def _take(self, size: int) -> Steps[Region | None]:
        """None: this request goes without."""
        wanted = LEAST if self._server.shared_memory is None else 1
        usable = self._possible and os.getpid() == self._owner and time.monotonic() >= self._not_before
        if not usable or not wanted <= size <= MOST:
            return None
        try:
            region = self._free.pop()
        except IndexError:
            pass
        else:
            if len(region.memory) >= size:
                return region
            yield from self._unregister(region)
            self._more.release()
        if not self._more.acquire(blocking=False):
            return None
        try:
            return (yield from self._registered(-(-size // STEP) * STEP))
        except InputError:
            self._not_before = time.monotonic() + PAUSE
            return None

    def _registered(self, size: int) -> Steps[Region]:
        """A new one, for which there is room. InputError where there is none to be had."""
        try:
            told: dict[str, Any] = {}
            yield Ask("ServerMetadata", {}, timeout=self._patience, told=told)
            token = read_token(told.get(PLACE))
            region = Region(size)
            try:
                region.token = token
                fields = {"name": region.name, "key": region.key, "byte_size": size}
                meant = ((VERSION_HEADER, self._server.version),) if self._server.version else ()
                yield Ask("SystemSharedMemoryRegister", fields, ((TOKEN, token), *meant), self._patience)
            finally:
                region.unlink()
        except BaseException as error:
            self._more.release()
            if isinstance(error, CallError | OSError | InputError):
                reason = error.text if isinstance(error, CallError) else first_line(error)
                raise ServerError(f"{self._server} cannot share memory with this client: {reason}") from error
            raise
        return region

    def _unregister(self, region: Region) -> Steps[bool]:
        """False where the server does not listen: it forgets what nobody uses by itself."""
        try:
            yield Ask("SystemSharedMemoryUnregister", {"name": region.name}, ((TOKEN, region.token),), self._patience)
        except (CallError, InputError):
            return False
        return True

    def close(self) -> Steps[None]:
        """Tells the server that those which are free have gone."""
        listens = os.getpid() == self._owner
        while self._free:
            region = self._free.pop()
            self._more.release()
            listens = listens and (yield from self._unregister(region))


def is_here(address: str) -> bool:
    """A server that listens for this machine alone."""
    host = address.rpartition(":")[0].strip("[]")
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def read_token(place: Any) -> str:
    """InputError for what is no token of a server of this user: nothing else must be sent to whoever asks for it."""
    if place is None or Path(place).name != TOKEN_FILE:
        raise InputError("it offers no shared memory")
    file = os.open(place, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        found = os.fstat(file)
        own = stat.S_ISREG(found.st_mode) and found.st_uid == os.geteuid() and not found.st_mode & 0o077
        token = os.read(file, 65) if own else b""
    finally:
        os.close(file)
    if not re.fullmatch(rb"[0-9a-f]{64}", token):
        raise InputError("it runs as another user")
    return token.decode()
