"""`upsnet pull` up to the file: the table, the licence, and what is said where a file does not come.

tests/export/test_published.py goes on from there.
"""

from __future__ import annotations

import hashlib
import io
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from tests.upsnet.zoo.conftest import files as files
from tests.upsnet.zoo.server import CONTENT, Files
from upsnet.command_line import pull
from upsnet.command_line.command import make_app
from upsnet.command_line.main import COMMANDS
from upsnet.zoo.networks import NETWORKS

NAME = "panoptic_fpn_r50_3x"
MD5 = hashlib.md5(CONTENT).hexdigest()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("UPSNET_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "cache"


@pytest.fixture
def published(files: Files, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Files:
    """The table, with the local server's file in it."""
    monkeypatch.setitem(NETWORKS, NAME, NETWORKS[NAME]._replace(address=files.address, md5=MD5[:6]))
    return files


def call(*arguments: str) -> Result:
    return CliRunner(env={"COLUMNS": "200"}).invoke(make_app(pull.main), list(arguments))


def fetch(*arguments: str) -> Result:
    return call(NAME, "--until", "download", *arguments)


def test_without_a_name_it_lists_them() -> None:
    result = call()
    assert result.exit_code == 0 and COMMANDS["pull"].module == pull.__name__
    for name, each in NETWORKS.items():
        (line,) = [line for line in result.output.splitlines() if line.split()[:1] == [name]]
        assert each.pq in line and each.licence.name in line and each.source in line


def test_an_unknown_name() -> None:
    result = call("nosuch")
    assert result.exit_code == 2 and result.stderr.startswith("error: nosuch: no network of that name; there are ")


def test_licence_first_then_the_file(published: Files, cache: Path) -> None:
    result = fetch("--accept-license")
    assert result.exit_code == 0, result.output
    place = cache / NAME / NETWORKS[NAME].file
    assert place.read_bytes() == CONTENT
    sha256 = hashlib.sha256(CONTENT).hexdigest()
    assert result.stdout.index("CC BY-SA 3.0, https://creativecommons.org") < result.stdout.index(sha256)
    assert f"from {published.address}, about 184 MB, to {place}" in result.stdout
    assert f"its MD5 begins with {MD5[:6]}, as published; SHA-256 {sha256}" in result.stdout

    again = fetch()  # nothing to agree to: it is here
    assert again.exit_code == 0 and len(published.asked) == 1 and "licence of the weights: CC BY-SA" in again.stdout


def test_nothing_is_fetched_before_somebody_agrees(published: Files, cache: Path) -> None:
    result = fetch()
    assert result.exit_code == 2 and not published.asked
    assert result.stderr.startswith("error: nothing is done before you agree to the licence CC BY-SA 3.0 (https://")
    assert result.stderr.endswith("--accept-license does\n")


@pytest.mark.parametrize("by_hand", [False, True])
@pytest.mark.parametrize(("answer", "code"), [("y", 0), ("YES", 0), ("n", 2), ("", 2), (None, 2)])
def test_the_question(
    published: Files,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    answer: str | None,
    code: int,
    by_hand: bool,
) -> None:
    file = None
    if by_hand:
        file = tmp_path / "mine.pkl"
        file.write_bytes(CONTENT)
    terminal = io.StringIO("" if answer is None else f"{answer}\n")
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stdin", terminal)
    if code:
        with pytest.raises(pull.InputError, match="before you agree"):
            pull.main(NAME, until="download", file=file)
    else:
        pull.main(NAME, until="download", file=file)
    said = capsys.readouterr().out
    assert len(published.asked) == (code == 0 and not by_hand) and said.index("licence of") < said.index(
        "Do you agree?"
    )


def test_a_mirror(published: Files, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(NETWORKS, NAME, NETWORKS[NAME]._replace(address="https://weights.invalid/model.pkl"))
    result = fetch("--yes", "--url", published.address)
    assert result.exit_code == 0 and (cache / NAME / NETWORKS[NAME].file).is_file()


def test_without_a_network(cache: Path, monkeypatch: pytest.MonkeyPatch, files: Files) -> None:
    monkeypatch.setitem(NETWORKS, NAME, NETWORKS[NAME]._replace(address="http://127.0.0.1:1/model.pkl"))
    result = fetch("--yes")
    place = cache / NAME / NETWORKS[NAME].file
    assert result.exit_code == 2 and result.stderr.count("\n") == 1
    assert "http://127.0.0.1:1/model.pkl: no connection, or it broke (" in result.stderr
    assert result.stderr.endswith(
        "; fetch http://127.0.0.1:1/model.pkl by hand instead, with a browser or on another machine, and put it at "
        f"{place}, or give it with --file FILE\n"
    )
    place.write_bytes(CONTENT)  # as it says
    monkeypatch.setitem(NETWORKS, NAME, NETWORKS[NAME]._replace(md5=MD5[:6]))
    assert fetch().exit_code == 0


def test_what_is_given_by_hand(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.pkl").write_bytes(CONTENT)
    result = fetch("--file", "mine.pkl")
    assert result.exit_code == 2 and "before you agree to the licence CC BY-SA 3.0" in result.stderr
    result = fetch("--file", "mine.pkl", "--yes")
    assert result.exit_code == 2 and "mine.pkl: its MD5 begins with" in result.stderr
    monkeypatch.setitem(NETWORKS, NAME, NETWORKS[NAME]._replace(md5=MD5[:6]))
    result = fetch("--file", "mine.pkl", "--yes")
    assert result.exit_code == 0 and "CC BY-SA 3.0" in result.stdout and not cache.exists()
    assert (tmp_path / "mine.pkl").read_bytes() == CONTENT
    assert "neither --url nor --cache" in fetch("--file", "mine.pkl", "--url", "http://x/y").stderr


def test_a_damaged_file(published: Files, cache: Path) -> None:
    published.content = CONTENT[:-1]
    result = fetch("--yes")
    assert result.exit_code == 2 and "damaged, or another file; it is set aside as" in result.stderr
    published.content = CONTENT
    assert fetch("--yes").exit_code == 0


def test_the_original_s_weights_are_fetched_by_hand(cache: Path) -> None:
    result = call("upsnet_r50_coco", "--until", "download", "--yes")
    place = cache / "upsnet_r50_coco/upsnet_resnet_50_coco_90000.pth"
    assert result.exit_code == 2 and f"put it at {place}, or give it with --file FILE" in result.stderr
    assert (
        "Uber Non-Commercial: get upsnet_resnet_50_coco_90000.pth as https://github.com/uber-research" in result.stderr
    )
    place.write_bytes(CONTENT)
    result = call("upsnet_r50_coco", "--until", "download")
    assert result.exit_code == 0 and "no checksum of it is published; SHA-256 " in result.stdout


def test_without_the_workshop(published: Files, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It is missed before the download."""
    monkeypatch.setattr("upsnet.workshop.ROOT", tmp_path)
    result = call(NAME, "--yes")
    assert result.exit_code == 2 and not published.asked
    assert result.stderr.startswith("error: upsnet pull, but for --until download, needs the project's checkout")


@pytest.mark.parametrize(("package", "extra"), [("requests", "pull"), ("onnx", "export")])
def test_without_a_package(published: Files, monkeypatch: pytest.MonkeyPatch, package: str, extra: str) -> None:
    def load(module: str, what: str) -> None:
        if (package == "onnx") == module.startswith("export"):
            raise ModuleNotFoundError(name=package)

    monkeypatch.setattr(pull, "load_module", load)
    result = call(NAME, "--yes")
    assert result.exit_code == 2 and not published.asked
    assert result.stderr == f"error: upsnet pull needs the package {package}: pip install 'upsnet-trt[{extra}]'\n"


def test_the_list_needs_no_package_and_no_network() -> None:
    code = (
        "import sys; sys.argv = ['upsnet', 'pull']\n"
        "import atexit, upsnet; atexit.register(lambda: print({'requests', 'torch', 'numpy'} & set(sys.modules)))\n"
        "upsnet.main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert NAME in done.stdout and done.stdout.splitlines()[-1] == "set()"


BY_HAND = "upsnet_r50_coco"  # of which no checksum is known: any file will do


def start(address: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "upsnet", "pull", BY_HAND, "--until", "download", "--yes", "--url", address]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(files: Files) -> None:
    deadline = time.monotonic() + 60
    while not files.asked and time.monotonic() < deadline:
        time.sleep(0.01)


def test_two_at_once_fetch_one_file(
    files: Files, cache: Path, project_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(project_root))
    files.pause = 0.02
    processes = [start(files.address), start(files.address)]
    said = [process.communicate(timeout=60) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    assert len(files.asked) == 1 and (cache / BY_HAND / NETWORKS[BY_HAND].file).read_bytes() == CONTENT


def test_ctrl_c(files: Files, cache: Path, project_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(project_root))
    files.silence = 60.0
    process = start(files.address)
    wait_for(files)
    process.send_signal(signal.SIGINT)
    stderr = process.communicate(timeout=60)[1]
    place = cache / BY_HAND / NETWORKS[BY_HAND].file
    assert process.returncode == 130
    assert stderr == f"what has come is kept beside {place}; the same command goes on from there\ninterrupted\n"
