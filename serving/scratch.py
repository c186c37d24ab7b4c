"""The folder in which a Triton server lives, and whoever removes it when nobody else can any more."""

from __future__ import annotations

import os
import re
import signal
import stat
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from upsnet.errors import InputError

SAFE = re.compile(r"[A-Za-z0-9/._+-]+")  # Triton starts a model's process through an unquoted shell
LONGEST = 75  # characters, for a socket in it must not pass the system's 107
SHARED_MEMORY = Path("/dev/shm")

# Told the server's process group line by line, an empty line where there is none. Its input ends when its parent ends,
# however that ends; then nothing may be left.
KEEPER = """
trap "" HUP INT TERM
while read -r line; do group=$line; done
[ -z "$group" ] || kill -s KILL -- "-$group" 2>/dev/null
rm -rf -- "$1" "$2"*
"""


class Scratch:
    """A context manager: a folder that this user alone can enter. After it, and after a kill -9 of this process, the
    folder, the server's processes and their regions of shared memory are gone."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="upsnet-triton-", dir=safe_base()))
        self.prefix = f"{self.folder.name}-"  # of the regions
        self._group: int | None = None
        self._keeper = self._hire()

    def __enter__(self) -> Scratch:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self.tend()
        self._keeper.communicate()  # ends its input, and waits for it

    def guard(self, group: int | None) -> None:
        """This process group must end with the folder."""
        self._group = group
        self.tend()
        self._tell()

    def tend(self) -> None:
        """No other user reads the regions, and the keeper lives: somebody may have killed it."""
        for region in self._regions():
            with suppress(FileNotFoundError):  # Triton is ending
                region.chmod(0o600)  # it makes them readable for all, whatever the umask
        if self._keeper.poll() is not None:
            self._keeper.communicate()
            self._keeper = self._hire()
            self._tell()

    def remove_regions(self) -> None:
        for region in self._regions():
            region.unlink(missing_ok=True)

    def _regions(self) -> list[Path]:
        """This user's own: others, who see the folder's name, may put links and files of that name there."""
        found = []
        for region in SHARED_MEMORY.glob(f"{self.prefix}*"):
            with suppress(FileNotFoundError):
                status = region.lstat()
                if stat.S_ISREG(status.st_mode) and status.st_uid == os.getuid():
                    found.append(region)
        return found

    def _hire(self) -> subprocess.Popen[bytes]:
        command = ["/bin/sh", "-c", KEEPER, "sh", str(self.folder), str(SHARED_MEMORY / self.prefix)]
        return subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)

    def _tell(self) -> None:
        assert self._keeper.stdin is not None
        with suppress(BrokenPipeError):  # killed at this moment: the next `tend` sees it
            self._keeper.stdin.write(f"{self._group or ''}\n".encode())
            self._keeper.stdin.flush()


def safe_base() -> Path:
    """Where temporary files go, if Triton can work there, else one of the system's folders for them."""
    wanted = Path(tempfile.gettempdir())
    for base in (wanted, Path("/tmp"), Path("/var/tmp")):
        if SAFE.fullmatch(str(base)) and len(str(base)) <= LONGEST and os.access(base, os.W_OK | os.X_OK):
            return base
    raise InputError(
        f"the server's temporary files cannot lie in {wanted}: give TMPDIR a folder with a short name, without spaces "
        "and letters outside ASCII, that you may write to"
    )


def kill_group(group: int) -> None:
    try:
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        return  # all of it has ended
