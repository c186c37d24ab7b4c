"""The real tritonserver, out of its wheel, on sockets in a folder that only this user can enter.

It serves a copy of the model repository, which it can neither load anew nor change: configs/cpu.pbtxt of each model.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import upsnet
from serving.environment import Environment
from serving.probe import Probe, ServerError
from serving.processes import LAUNCHER, PROC, arguments, members, processes, stat
from serving.scratch import Scratch, kill_group
from serving.snapshot import take_snapshot
from upsnet.errors import InputError

LOOK_EVERY = 0.25  # seconds, at the processes
RUNS_ON = r"upsnet: runs on (.*?)[\"\n]"
EXPENDABLE, MOST_OOM = 500, 1000  # of the kernel's oom_score_adj: added where a server is expendable; at most
STARTS = 15.0  # seconds within which a server makes the folder that it keeps in /tmp
TICKS = os.sysconf("SC_CLK_TCK")
TAIL = 1 << 16  # bytes of the log that are looked at for its last words


class TritonProcess:
    """A server that can be launched, watched and ended again and again. InputError, in one line, for what the caller
    can cure.

    scratch holds everything of it. log keeps the output; without it, that goes with scratch. version: the one that is
    served, of a managed repository.
    """

    def __init__(
        self,
        environment: Environment,
        repository: Path,
        scratch: Scratch,
        log: Path | None = None,
        version: int | None = None,
    ) -> None:
        folder = scratch.folder
        self.repository, self.environment = repository, environment
        self.manifest, self.models, self.model_sha256 = take_snapshot(repository, folder / "repository", version)
        self.grpc_target = f"unix:{folder / 'g'}:1"  # Triton appends its --grpc-port to the file's name
        self.http_socket, self.metrics_socket = folder / "h", folder / "m"
        self.log = log or folder / "triton.log"
        self._scratch, self._expendable = scratch, False
        self._process: asyncio.subprocess.Process | None = None
        self._probe: Probe | None = None
        self._stubs: dict[int, str] = {}  # the models of the server's own processes
        self._litter: set[Path] = set()  # that was there before the launch; after the start: what has come since
        (folder / "backends/python").mkdir(parents=True)
        for file in environment.backend_files:
            (folder / "backends/python" / file.name).symlink_to(file)
        (folder / "python").mkdir()  # the library for the models, and nothing else of the checkout
        (folder / "python/upsnet").symlink_to(Path(upsnet.__file__).resolve().parent)
        try:
            self.log.parent.mkdir(parents=True, exist_ok=True)
            if self.log.exists() and not self.log.is_file() and not self.log.is_dir():
                raise InputError(f"{self.log}: a device or a pipe, and the log is read too; give --log a file")
            self.log.open("wb").close()
        except OSError as error:
            raise InputError(f"{self.log}: cannot be written: {error.strerror}; give --log another file") from error

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    @property
    def engine(self) -> str:
        """What the models run on, in the words of the log."""
        found = re.findall(RUNS_ON, self._tail())
        return found[-1] if found else "what the log says"

    async def launch(self) -> None:
        """Returns at once; `probe` returns when the models answer."""
        for socket in (self._scratch.folder / "g:1", self.http_socket, self.metrics_socket):
            socket.unlink(missing_ok=True)
        self._litter = litter()
        launcher = [sys.executable, "-I", "-S", "-c", LAUNCHER, str(os.getpid())]
        with self.log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *launcher,
                str(self.environment.triton / "bin/tritonserver"),
                *self._flags(),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=asyncio.subprocess.STDOUT,
                cwd=self._scratch.folder / "python",  # the stubs' Python is an isolated one, which looks there first
                env=self.environment.variables(self._scratch.folder / "python") | {"TMPDIR": str(self._scratch.folder)},
                start_new_session=True,  # Ctrl-C reaches us alone, and we stop the server; its stubs are in its group
            )
        self._scratch.guard(self._process.pid)
        self._offer(self._process.pid)
        self._probe = Probe(self.grpc_target, self.models)

    async def probe(self) -> None:
        """A test inference of each model. ServerError."""
        if self._probe is None:
            raise ServerError("the Triton server is not running")
        await self._probe.ask()
        self._scratch.tend()
        if self._process is not None and not self._stubs:
            self._litter = litter() - self._litter
            self._stubs = {pid: Path(arguments(pid)[1]).parents[1].name for pid in self._others(self._process.pid)}

    async def answers(self) -> int:
        if self._probe is None:
            raise ServerError("the Triton server is not running")
        return await self._probe.answers()

    async def death(self) -> str:
        """Returns when the server or a model's process has ended: which, and why."""
        process = self._process
        while process is not None and process.returncode is None:
            for pid, model in self._stubs.items():
                found = stat(pid)
                if found is None or found.state in "ZX" or found.group != process.pid:
                    return f"the process of the model {model} has ended"
            await asyncio.sleep(LOOK_EVERY)
        if process is None or process.returncode is None:
            return "Triton is not running"
        if process.returncode < 0:
            name = signal.Signals(-process.returncode).name
            why = "" if name in ("SIGKILL", "SIGTERM") else f"; {self.last_words()}"  # else it may have said something
            return f"Triton was ended by {name}{why}"
        return f"Triton has ended; {self.last_words()}"

    async def end(self, seconds: float) -> None:
        """SIGTERM, at most `seconds` for requests under way, then SIGKILL for what is left of its group."""
        process, self._process = self._process, None
        if self._probe is not None:
            await self._probe.close()
        if not self._stubs:  # it has not answered
            self._litter = litter() - self._litter
        self._probe, self._stubs = None, {}
        if process is None:
            return
        try:
            if seconds > 0 and process.returncode is None:
                process.terminate()
                with suppress(TimeoutError):
                    await asyncio.wait_for(process.wait(), seconds)
        finally:
            kill_group(process.pid)
            await process.wait()
            self._scratch.guard(None)
            self._scratch.remove_regions()
            self._sweep()

    @property
    def expendable(self) -> bool:
        """Whether the kernel, when memory ends, takes these processes before those of other versions."""
        return self._expendable

    @expendable.setter
    def expendable(self, expendable: bool) -> None:
        self._expendable = expendable
        if self._process is not None:
            for pid in members(self._process.pid):
                self._offer(pid)

    def _offer(self, pid: int) -> None:
        """What the process starts later has it from there."""
        with suppress(OSError):  # it has ended, or the system does not know of it
            own = int((PROC / "self/oom_score_adj").read_text())
            (PROC / str(pid) / "oom_score_adj").write_text(str(min(own + EXPENDABLE * self._expendable, MOST_OOM)))

    def memory(self) -> dict[str, int]:
        """Resident bytes of the server and of each model's processes; before the first answer these are "models"."""
        found: Counter[str] = Counter()
        if self._process is not None:
            others = self._stubs or dict.fromkeys(self._others(self._process.pid), "models")
            for pid, name in {self._process.pid: "server", **others}.items():
                if now := stat(pid):
                    found[name] += now.resident
        return dict(found)

    def last_words(self) -> str:
        """The log's last error, else its last line."""
        lines = [line for line in self._tail().splitlines() if line.strip(" ;")]
        # Every machine without a GPU has the CUDA line.
        errors = [line for line in lines if re.match(r"E\d{4} ", line) and "CudaDriverHelper" not in line]
        last = (errors or lines or ["nothing"])[-1]
        last = re.sub(r"^[IWE]\d{4} .*?\] ", "", last).split("\\n")[0].strip('" ')
        return "its log says: " + last.replace(str(self._scratch.folder / "repository"), str(self.repository))

    def _tail(self) -> str:
        try:
            with self.log.open("rb") as stream:
                stream.seek(max(0, self.log.stat().st_size - TAIL))
                return stream.read(TAIL).decode(errors="replace")
        except OSError as error:  # somebody has taken it away
            return f"the log cannot be read: {error.strerror}"

    def _sweep(self) -> None:
        """Takes away what the start has left, where it was killed. Another server that began at that time may own one
        of these folders, and would die in its end of not finding it: then they stay."""
        for folder in self._litter:
            with suppress(OSError):  # not empty: another program's
                made = folder.stat().st_mtime
                if not any(begun - 1 < made < begun + STARTS for begun in self._neighbours()):
                    folder.rmdir()

    def _neighbours(self) -> list[float]:
        """When this user's other servers began, in seconds since the epoch."""
        boot = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
        found = (stat(pid) for pid in processes() if arguments(pid)[:1] and arguments(pid)[0].endswith("/tritonserver"))
        return [boot + each.started / TICKS for each in found if each is not None and each.state not in "ZX"]

    @staticmethod
    def _others(group: int) -> list[int]:
        return [pid for pid in members(group) if pid != group and len(arguments(pid)) > 1]

    def _flags(self) -> list[str]:
        folder = self._scratch.folder
        return [
            f"--model-repository={folder / 'repository'}",
            "--model-control-mode=none",  # all models in it; none is loaded, changed or unloaded later
            "--model-config-name=cpu",
            "--disable-auto-complete-config",
            f"--backend-directory={folder / 'backends'}",
            f"--backend-config=python,shm-region-prefix-name={self._scratch.prefix}",
            f"--cache-directory={self.environment.triton / 'caches'}",
            f"--grpc-address=unix:{folder / 'g'}",
            "--grpc-port=1",
            f"--http-address=unix:{self.http_socket}",
            "--http-port=2",
            f"--metrics-address=unix:{self.metrics_socket}",
            "--metrics-port=3",
            "--allow-gpu-metrics=false",
            "--exit-timeout-secs=30",  # `end` does not wait so long
        ]


def litter() -> set[Path]:
    """This user's folders of the kind that Triton's Python backend makes at each start, whatever TMPDIR says, and never
    uses here."""
    found = set()
    for folder in Path("/tmp").glob("python_env_*"):
        with suppress(FileNotFoundError):  # another server's end
            if folder.lstat().st_uid == os.getuid():
                found.add(folder)
    return found
