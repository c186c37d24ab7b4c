"""One run in a folder at a time.

The lock is the kernel's (flock, by filelock): it ends with the process that holds it, however that process ends, and
no forked loader worker keeps it. NFS carries it between machines (version 4, or 3 with its lock daemon). Some file
systems keep locks within one machine (NFS's local_lock, Lustre's localflock); two machines do not see each other there.
"""

from __future__ import annotations

import errno
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from training.distributed import Process, gather, restarted
from training.heartbeat import LONGEST_SILENCE
from upsnet.errors import InputError

NAME = ".lock"
NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)
OLD_RUN = 2 * LONGEST_SILENCE  # seconds until a machine that was cut off has seen that it was
NEW_FILE = 60  # seconds until every machine must see a file that another one wrote (NFS remembers what was not there)


@contextmanager
def only_run(out: Path, process: Process) -> Iterator[None]:
    """Inside it this is the only run in `out`. The first process holds the lock for all processes of the run. One that
    its launcher has started again waits until those from before have ended, on whichever machine.

    InputError, on every process, that names the folder and the process that trains there, or says that the machines
    do not share the folder.
    """
    with ExitStack() as stack:
        refusal = held = ""
        if process.first:
            try:
                stack.enter_context(locked(out, OLD_RUN if restarted() else 0))
                held = holder(out / NAME)
            except InputError as error:
                refusal = str(error)
        refusal, held = gather((refusal, held), process)[0]
        if refusal:
            raise InputError(refusal)
        if not all(gather(seen(out / NAME, held), process)):
            raise InputError(
                f"{out}: another folder on another machine; give an --out on a disk that all of them share"
            )
        yield


@contextmanager
def locked(folder: Path, patience: float = 0) -> Iterator[None]:
    """Locks `folder` against all other processes; makes it if it is absent, and removes it again if it stayed empty.

    InputError when another process holds it, after `patience` seconds too, or when it cannot be written to.
    """
    made = [each for each in (folder, *folder.parents) if not each.exists()]
    path = folder / NAME
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path, blocking=False, fallback_to_soft=False)
        try:
            lock.acquire()
        except Timeout:
            if not patience:
                raise
            print(f"{folder}: {holder(path)} trains there; waiting up to {patience:.0f} s for its end", file=sys.stderr)
            lock.acquire(timeout=patience, blocking=True)
        path.write_text(f"process {os.getpid()} on {socket.gethostname()}")
    except Timeout:
        raise InputError(f"{folder}: {holder(path)} trains there; stop it, or give another folder with --out") from None
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise InputError(f"{folder}: cannot be written: {error.strerror}") from None
        print(f"{folder}: its file system has no locks; see that no other run writes there", file=sys.stderr)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        lock.release()
        with suppress(OSError):  # no longer empty
            for each in made:
                each.rmdir()


def holder(path: Path) -> str:
    """Who holds the lock file, as it wrote there."""
    try:
        return path.read_text() or "another process"
    except OSError:  # it has ended just now
        return "another process"


def seen(path: Path, text: str) -> bool:
    """Whether the lock file holds `text` here too, or comes to within NEW_FILE seconds."""
    until = time.monotonic() + NEW_FILE
    while holder(path) != text:
        if time.monotonic() > until:
            return False
        time.sleep(0.1)
    return True
