"""`upsnet predict --ray` on a real Ray cluster of two nodes, which is held against the plain command's output."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

import upsnet
from tests.browser.colours import scene, write_network
from upsnet.bulk.command import BulkOptions, Here, predict_listed
from upsnet.runtimes.options import RuntimeOptions

ROOT = Path(__file__).resolve().parents[3]
HERE = Path(__file__).resolve().parent
BLOCK = 8
LONGEST_S = 120


class Nodes:
    """The cluster, and commands that are started beside it."""

    def __init__(self, folder: Path) -> None:
        self._enter = _own_network()
        os.environ.pop("RAY_ADDRESS", None)
        self.folder = Path(tempfile.mkdtemp(prefix="ray-"))  # Ray's sockets lie in it: a path of at most 107 characters
        self._host = subprocess.Popen(
            [*self._enter, sys.executable, str(HERE / "ray_nodes.py"), str(self.folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=open(folder / "nodes.log", "w"),
            text=True,
            env=_environment(),
        )
        self.address = self._line()

    def _line(self) -> str:
        assert self._host.stdout is not None
        while line := self._host.stdout.readline():  # Ray says this and that
            if line.startswith("upsnet: "):
                return line.split()[-1]
        raise AssertionError("the cluster has ended")

    def tell(self, word: str) -> None:
        """`kill` or `add` a node."""
        assert self._host.stdin is not None
        self._host.stdin.write(f"{word}\n")
        self._host.stdin.flush()
        assert self._line() == "done"

    def start(self, *arguments: str, cwd: Path) -> subprocess.Popen[str]:
        enter = ["nsenter", f"--target={self._host.pid}", "--net"]
        if "-r" in self._enter:
            enter += ["--user", "--preserve-credentials"]
        command = [*enter, sys.executable, "-m", "upsnet", "predict", *arguments]
        return subprocess.Popen(
            command, cwd=cwd, env=_environment(), text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )

    def close(self) -> None:
        self._host.terminate()
        self._host.wait()
        shutil.rmtree(self.folder, ignore_errors=True)


def _environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{HERE / 'deadly'}"}


def _own_network() -> list[str]:
    for command in (["unshare", "-n"], ["unshare", "-r", "-n"]):
        try:
            subprocess.run([*command, "true"], check=True, capture_output=True)
            return command
        except (OSError, subprocess.CalledProcessError):
            continue
    pytest.skip("no network namespace can be made here (unshare -n), and Ray listens on every interface")


@pytest.fixture(scope="session")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    pytest.importorskip("ray")
    cluster = Nodes(tmp_path_factory.mktemp("ray"))
    yield cluster
    cluster.close()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_network(tmp_path_factory.mktemp("model") / "model.onnx")


def write_photos(folder: Path, names: Sequence[str]) -> None:
    """The network's scene, on photos of different sizes."""
    contents = [scene(120 + 8 * size, 160 + 8 * size) for size in range(4)]
    for number, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(contents[number % len(contents)])
    (folder / "list.txt").write_text("".join(f"{name}\n" for name in names))


def options(out: str, model: Path) -> list[str]:
    return ["--photos-from", "list.txt", "--out", out, "--block", str(BLOCK), "--model", str(model)]


def plain(folder: Path, model: Path) -> dict[str, bytes]:
    out = str(folder / "plain")
    source = RuntimeOptions(runtime="onnxruntime", model=model, threads=1)
    predict_listed(BulkOptions(str(folder / "list.txt"), out, block=BLOCK), Here(source))
    return files(folder / "plain")


def files(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(out.iterdir()) if path.name != "plan.json"}


def wait_for_blocks(out: Path, least: int, process: subprocess.Popen[str]) -> int:
    began = time.monotonic()
    while (there := len(list(out.glob("predictions-*")))) < least:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() - began < LONGEST_S
        time.sleep(0.02)
    return there


def test_a_node_that_is_killed_loses_nothing_and_doubles_nothing(nodes: Nodes, tmp_path: Path, model: Path) -> None:
    names = [f"{number:03}.png" for number in range(40 * BLOCK - 3)]
    write_photos(tmp_path, names)
    (tmp_path / names[100]).write_bytes(b"no photo")
    wanted = plain(tmp_path, model)
    process = nodes.start(*options("out", model), "--ray", nodes.address, cwd=tmp_path)
    there = wait_for_blocks(tmp_path / "out", 4, process)
    nodes.tell("kill")
    said, complaint = process.communicate(timeout=LONGEST_S)
    assert there < 40
    assert process.returncode == 1, complaint  # a photo was left out
    assert files(tmp_path / "out") == wanted
    assert f"predicted {len(names) - 1} of {len(names)} photos, left out 1" in said
    ids = [prediction.image_id for prediction in upsnet.read_predictions(tmp_path / "out")]
    assert ids == [number for number in range(1, len(names) + 1) if number != 101]
    assert "Traceback" not in complaint and "raylet" not in said + complaint
