"""`pip install upsnet-trt`: small, quick to import, helpful about what it has not."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from tests.deploy.test_container import copied_into_the_image, left_out_of_the_image
from tests.install.conftest import ROOT, Installed
from upsnet import __version__
from upsnet.command_line.main import COMMANDS
from upsnet.workshop import FOLDERS

IMPORT_SECONDS = 0.3
TIMED_IMPORT = """
import sys, time
start = time.perf_counter()
import upsnet
seconds = time.perf_counter() - start
print(upsnet.__file__, seconds, *({"torch", "onnxruntime", "tritonclient", "fsspec", "ray"} & set(sys.modules)))
"""
# As bash asks when TAB is pressed after the words that follow; prints what it would offer.
PRESS_TAB = """
eval "$(upsnet --show-completion bash)"
COMP_WORDS=("$@") COMP_CWORD=$(($# - 1))
_upsnet_completion upsnet
echo "${COMPREPLY[@]}"
"""


def test_wheel_holds_the_library_alone(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    metadata = f"upsnet_trt-{__version__}.dist-info"
    assert {name.partition("/")[0] for name in names} == {"upsnet", metadata}
    assert {"upsnet/py.typed", f"{metadata}/licenses/LICENSE"} <= set(names)


def test_wheel_carries_what_the_kernels_are_made_from(wheel: Path) -> None:
    """As the checkout has it, and nothing of plugins_cuda/ besides."""
    sources, kinds = ROOT / "plugins_cuda", {".h", ".cuh", ".cu", ".cpp"}
    text = {"CMakeLists.txt", "generate.py", "schema.py"}
    expected = {path for path in sources.rglob("*") if path.suffix in kinds or path.name in text}
    place = "upsnet/kernels/sources/"
    carried = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith(place)}
    assert carried == {f"{place}{path.relative_to(sources)}" for path in expected}
    assert wheel.stat().st_size < 1_000_000


def test_the_image_builds_the_same_of_what_it_copies(wheel: Path, tmp_path: Path) -> None:
    sources = [source for source in copied_into_the_image() if not source.startswith("deploy/")]
    for source in sources:
        if (ROOT / source).is_dir():
            ignore = shutil.ignore_patterns(*left_out_of_the_image())
            shutil.copytree(ROOT / source, tmp_path / source, ignore=ignore)
        else:
            shutil.copy(ROOT / source, tmp_path)
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir"]
    subprocess.run([*pip, tmp_path / "wheel", tmp_path], check=True)
    (built,) = (tmp_path / "wheel").glob("*.whl")
    assert sorted(zipfile.ZipFile(built).namelist()) == sorted(zipfile.ZipFile(wheel).namelist())


def test_import_is_quick_and_light(base: Installed) -> None:
    seconds = []
    for _ in range(5):
        file, duration, *heavy = base.run("python", "-c", TIMED_IMPORT)[0].split()
        assert Path(file).is_relative_to(base.folder) and not heavy
        seconds.append(float(duration))
    assert min(seconds) < IMPORT_SECONDS


def test_version_and_help(base: Installed) -> None:
    assert base.upsnet("--version") == (f"upsnet-trt {__version__}\n", "")
    overview, _ = base.upsnet("--help")
    assert all(f" {name.split()[0]} " in overview for name in COMMANDS)


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (("par",), ["parity"]),
        (("data", "c"), ["check", "coco", "cityscapes"]),
        (("shapes", "--tr"), ["--train"]),
        (("train", "--conf"), []),  # its options are in the checkout
    ],
)
def test_tab_completes_without_the_workshop(base: Installed, words: tuple[str, ...], offered: list[str]) -> None:
    script = base.work / "press_tab.sh"
    script.write_text(PRESS_TAB)
    bash = "import os, sys; os.execvp('bash', sys.argv[1:])"
    output, errors = base.run("python", "-c", bash, "bash", script, "upsnet", *words)
    assert (output.split(), errors) == (offered, "")


def test_data_sets(base: Installed) -> None:
    base.upsnet("shapes", "--out", "shapes", "--train", "3", "--val", "2")
    checked, _ = base.upsnet("data", "check", "shapes")
    assert "0 errors" in checked


@pytest.mark.parametrize("command", [name for name in COMMANDS if name.startswith("data from-")])
def test_converters_name_their_extra(base: Installed, command: str) -> None:
    output, error = base.upsnet(*command.split(), "labels", "--out", "out", code=2)
    assert not output and error.count("\n") == 1 and error.startswith("error: ")
    assert error.endswith(": pip install 'upsnet-trt[data]'\n")


def test_pull_lists_and_says_what_it_needs(base: Installed) -> None:
    listed, errors = base.upsnet("pull")
    assert "panoptic_fpn_r50_3x" in listed and not errors
    error = base.upsnet("pull", "panoptic_fpn_r50_3x", "--until", "download", code=2)[1]
    assert error == "error: upsnet pull needs the package requests: pip install 'upsnet-trt[pull]'\n"
    error = base.upsnet("pull", "panoptic_fpn_r50_3x", code=2)[1]
    assert error.startswith("error: upsnet pull, but for --until download, needs the project's checkout")
    _, error = base.run(
        "python", "-c", "from upsnet.datasets import coco_categories; assert len(coco_categories()) == 133"
    )
    assert not error


@pytest.mark.parametrize("command", [name for name, entry in COMMANDS.items() if entry.module.startswith(FOLDERS)])
def test_workshop_commands_name_the_checkout(base: Installed, command: str) -> None:
    output, error = base.upsnet(*command.split(), "--help", code=2)
    assert not output and error.count("\n") == 1
    assert error.startswith(f"error: upsnet {command} needs the project's checkout") and "make setup" in error


def test_runtime_that_is_not_installed_names_its_extra(base: Installed) -> None:
    Image.new("RGB", (60, 40)).save(base.work / "photo.png")
    (base.work / "model.onnx").touch()
    for extra, place in (("onnxruntime", ["--model", "model.onnx"]), ("triton", ["--url", "127.0.0.1:1"])):
        _, error = base.upsnet("predict", "photo.png", "--out", "out", "--runtime", extra, *place, code=2)
        assert error.count("\n") == 1 and f"pip install 'upsnet-trt[{extra}]'" in error
