"""`upsnet predict --ray` on a real Ray cluster of two nodes, held against the plain command's output."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

import upsnet
from tests.browser.colours import scene, write_network
from tests.upsnet.bulk.two_nodes import Nodes
from upsnet.bulk.command import BulkOptions, Here, predict_listed
from upsnet.bulk.on_ray import TASKS
from upsnet.runtimes.options import RuntimeOptions

BLOCK = 8
LONGEST_S = 300

pytest.importorskip("onnxruntime")


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


def options(out: str, model: Path, block: int = BLOCK) -> list[str]:
    return ["--photos-from", "list.txt", "--out", out, "--block", str(block), "--model", str(model)]


def plain(folder: Path, model: Path, block: int = BLOCK) -> dict[str, bytes]:
    out = str(folder / "plain")
    source = RuntimeOptions(runtime="onnxruntime", model=model, threads=1)
    predict_listed(BulkOptions(str(folder / "list.txt"), out, block=block), Here(source))
    return files(folder / "plain")


def files(out: Path) -> dict[str, bytes]:
    """Without what actors that died left half-written, under hidden names."""
    names = (path for path in out.iterdir() if path.name != "plan.json" and not path.name.startswith("."))
    return {path.name: path.read_bytes() for path in names}


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
    nodes.tell("add")
    assert there < 40
    assert process.returncode == 1, complaint  # a photo was left out
    assert files(tmp_path / "out") == wanted
    assert f"predicted {len(names) - 1} of {len(names)} photos, left out 1" in said
    ids = [prediction.image_id for prediction in upsnet.read_predictions(tmp_path / "out")]
    assert ids == [number for number in range(1, len(names) + 1) if number != 101]
    assert "Traceback" not in complaint and "raylet" not in said + complaint


@pytest.mark.large
def test_a_photo_that_kills_whoever_reads_it_is_left_out_with_the_reason(
    nodes: Nodes, tmp_path: Path, model: Path
) -> None:
    names = [f"{number:03}.png" for number in range(6 * BLOCK)]
    names[20] = "deadly.png"
    write_photos(tmp_path, names)
    wanted = plain(tmp_path, model)  # nothing dies in this process
    process = nodes.start(*options("out", model), "--ray", nodes.address, cwd=tmp_path)
    said, complaint = process.communicate(timeout=LONGEST_S)
    assert process.returncode == 1, complaint
    assert "left out 1" in said
    failed = [json.loads(line) for line in (tmp_path / "out" / "failed.jsonl").read_text().splitlines()]
    assert [(each["image_id"], each["error"]) for each in failed] == [
        (21, "deadly.png: reading it kills the process (SIGSEGV)")
    ]
    assert [each.image_id for each in upsnet.read_predictions(tmp_path / "out")] == [*range(1, 21), *range(22, 49)]
    got = files(tmp_path / "out")
    of_its_block = {"predictions-000002.tar", "report.json", "failed.jsonl"}
    assert {name: got[name] for name in wanted.keys() - of_its_block} == {
        name: wanted[name] for name in wanted.keys() - of_its_block
    }


@pytest.mark.large
def test_actors_that_die_at_their_20th_photo_lose_nothing(nodes: Nodes, tmp_path: Path, model: Path) -> None:
    # More blocks than tasks, so that a task that is run again has blocks that are there.
    names = [f"mortal/{number:03}.png" for number in range(TASKS + 50)]
    write_photos(tmp_path, names)
    wanted = plain(tmp_path, model, block=1)
    process = nodes.start(*options("out", model, block=1), "--ray", nodes.address, cwd=tmp_path)
    said, complaint = process.communicate(timeout=LONGEST_S)
    assert process.returncode == 0, complaint
    assert f" {len(names)} photos in " in said  # each was counted once
    assert files(tmp_path / "out") == wanted


@pytest.mark.large
def test_a_block_whose_actors_always_die_is_named_at_the_end_and_the_others_are_done(
    nodes: Nodes, tmp_path: Path, model: Path
) -> None:
    names = [f"{number:03}.png" for number in range(6 * BLOCK)]
    names[20] = "hopeless.png"
    write_photos(tmp_path, names)
    wanted = plain(tmp_path, model)
    process = nodes.start(*options("out", model), "--ray", nodes.address, cwd=tmp_path)
    _, complaint = process.communicate(timeout=LONGEST_S)
    assert process.returncode == 2
    assert "out: the actors of blocks 2 died at each of 4 attempts" in complaint
    assert "5 of 6 blocks are there; the same command goes on" in complaint
    assert "Traceback" not in complaint
    lacking = {"predictions-000002.tar", "report.json", "failed.jsonl"}
    assert files(tmp_path / "out") == {name: content for name, content in wanted.items() if name not in lacking}


@pytest.mark.large
def test_a_driver_that_is_killed_is_gone_on_with_by_another_and_by_the_plain_command(
    nodes: Nodes, tmp_path: Path, model: Path
) -> None:
    write_photos(tmp_path, [f"{number:03}.png" for number in range(60 * BLOCK)])
    wanted = plain(tmp_path, model)
    first = nodes.start(*options("out", model), "--ray", nodes.address, cwd=tmp_path)
    wait_for_blocks(tmp_path / "out", 5, first)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    second = nodes.start(*options("out", model), "--shard", "1/2", "--ray", nodes.address, cwd=tmp_path)
    _, complaint = second.communicate(timeout=LONGEST_S)
    assert second.returncode == 0, complaint
    assert "of 60 blocks are there" in complaint
    third = nodes.start(*options("out", model), cwd=tmp_path)
    _, complaint = third.communicate(timeout=LONGEST_S)
    assert third.returncode == 0, complaint
    assert files(tmp_path / "out") == wanted


@pytest.mark.large
def test_a_cluster_of_this_machine_alone(nodes: Nodes, tmp_path: Path, model: Path) -> None:
    write_photos(tmp_path, [f"{number:03}.png" for number in range(4 * BLOCK)])
    wanted = plain(tmp_path, model)
    process = nodes.start(*options("out", model), "--ray", "local", "--actors", "1", cwd=tmp_path)
    _, complaint = process.communicate(timeout=LONGEST_S)
    assert process.returncode == 0, complaint
    assert files(tmp_path / "out") == wanted


@pytest.mark.large
def test_what_cannot_be_is_one_line(nodes: Nodes, tmp_path: Path, model: Path) -> None:
    write_photos(tmp_path, ["1.png"])
    for arguments, wanted in [
        ((*options("out", tmp_path / "none.onnx"), "--ray", nodes.address), "node 127.0.0.1: "),
        ((*options("out", model), "--ray", nodes.address, "--actor-cpus", "3"), "no node of the cluster has 3 CPUs"),
        ((*options("out", model), "--ray", nodes.address, "--actor-gpus", "1"), "and 1 GPUs for an actor"),
        ((*options("out", model), "--ray", "127.0.0.1:9"), "--ray 127.0.0.1:9: no cluster there"),
    ]:
        process = nodes.start(*arguments, cwd=tmp_path)
        said, complaint = process.communicate(timeout=LONGEST_S)
        assert process.returncode == 2, complaint
        assert wanted in complaint and len(complaint.splitlines()) == 1, complaint
        assert not said and not (tmp_path / "out").exists()


JOIN = """
import os, subprocess, sys
from upsnet.bulk.ray_cluster import connected
with connected("local"):
    import ray
    address = ray.get_runtime_context().gcs_address
    join = "import sys; from upsnet.bulk.ray_cluster import connected; connected(sys.argv[1]).__enter__()"
    for secret in os.environ["RAY_AUTH_TOKEN"], "0" * 64:
        environment = os.environ | {"RAY_AUTH_TOKEN": secret}
        joined = subprocess.run([sys.executable, "-c", join, address], env=environment, capture_output=True, text=True)
        print(joined.returncode, *joined.stderr.splitlines()[-1:])
"""


@pytest.mark.large
def test_a_cluster_of_this_machine_refuses_who_has_not_its_secret(nodes: Nodes, tmp_path: Path) -> None:
    process = nodes.start_python("-c", JOIN, cwd=tmp_path)
    said, complaint = process.communicate(timeout=LONGEST_S)
    let_in, refused = said.splitlines()
    assert let_in == "0", complaint
    assert refused.startswith("1 ") and "the cluster has a token" in refused
