"""A real Ray cluster of two nodes for tests, and commands beside it: all in a network namespace of their own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
HERE = Path(__file__).resolve().parent


class Nodes:
    """The cluster, and commands that are started beside it."""

    def __init__(self, folder: Path) -> None:
        self._enter = _own_network()
        self.folder = Path(tempfile.mkdtemp(prefix="ray-"))  # Ray's sockets lie in it: a path of at most 107 characters
        self._log = (folder / "nodes.log").open("w+")
        self._host = subprocess.Popen(
            [*self._enter, sys.executable, str(HERE / "ray_nodes.py"), str(self.folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env=_environment(),
        )
        self.address = self._line()

    def _line(self) -> str:
        assert self._host.stdout is not None
        while line := self._host.stdout.readline():  # Ray says this and that
            if line.startswith("upsnet: "):
                return line.split()[-1]
        self._log.seek(0)
        raise AssertionError(f"the cluster has ended:\n{self._log.read()}")

    def tell(self, word: str) -> None:
        """`kill` or `add` a node."""
        assert self._host.stdin is not None
        self._host.stdin.write(f"{word}\n")
        self._host.stdin.flush()
        assert self._line() == "done"

    def start(self, *arguments: str, cwd: Path) -> subprocess.Popen[str]:
        """`upsnet predict` with these arguments."""
        return self.start_python("-m", "upsnet", "predict", *arguments, cwd=cwd)

    def start_python(self, *arguments: str, cwd: Path) -> subprocess.Popen[str]:
        enter = ["nsenter", f"--target={self._host.pid}", "--net"]
        if "-r" in self._enter:
            enter += ["--user", "--preserve-credentials"]
        return subprocess.Popen(
            [*enter, sys.executable, *arguments],
            cwd=cwd,
            env=_environment(),
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def close(self) -> None:
        self._host.terminate()
        self._host.wait()
        self._log.close()
        shutil.rmtree(self.folder, ignore_errors=True)


def _environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return kept | {"PYTHONPATH": f"{ROOT}{os.pathsep}{HERE / 'deadly'}"}


def _own_network() -> list[str]:
    for command in (["unshare", "-n"], ["unshare", "-r", "-n"]):
        try:
            subprocess.run([*command, "true"], check=True, capture_output=True)
            return command
        except (OSError, subprocess.CalledProcessError):
            continue
    pytest.skip("no network namespace can be made here (unshare -n), and Ray listens on every interface")
