"""Which kernels ONNX Runtime gets: the library that was found, or why there is none. Libraries are stand-ins."""

from __future__ import annotations

import logging
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from upsnet.contract import LIBRARY
from upsnet.errors import InputError
from upsnet.kernels import choice
from upsnet.kernels.choice import Kernels, find_kernels, has_operators, kernel_abi, wanted_kernels


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("UPSNET_KERNELS", "UPSNET_OPERATORS", "UPSNET_CPU_LEVEL"):
        monkeypatch.delenv(name, raising=False)
    choice._warn.cache_clear()
    yield
    choice._warn.cache_clear()


def make_library(folder: Path, abi: int | None) -> Path:
    """A library that says this number, or has no such function. It is none that ONNX Runtime takes."""
    folder.mkdir(exist_ok=True)
    text = "int unrelated;" if abi is None else f'extern "C" int upsnet_kernel_abi() {{ return {abi}; }}'
    (folder / "library.cpp").write_text(text)
    command = ["g++", "-shared", "-fPIC", str(folder / "library.cpp"), "-o", str(folder / LIBRARY)]
    environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    subprocess.run(command, check=True, env=environment)
    return folder / LIBRARY


def test_the_environment_chooses_where_the_caller_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [wanted_kernels(), wanted_kernels("off")] == ["auto", "off"]
    monkeypatch.setenv("UPSNET_KERNELS", "off")
    assert [wanted_kernels(), wanted_kernels("auto")] == ["off", "auto"]
    monkeypatch.setenv("UPSNET_KERNELS", "")
    assert wanted_kernels() == "auto"
    monkeypatch.setenv("UPSNET_KERNELS", "on")
    with pytest.raises(InputError, match=r"^UPSNET_KERNELS=on: use auto or off$"):
        wanted_kernels()
    with pytest.raises(InputError, match=r"^kernels=fast: use auto or off$"):
        find_kernels("fast")


def test_off_is_no_fault(caplog: pytest.LogCaptureFixture) -> None:
    kernels = find_kernels("off")
    kernels.warn()
    assert (kernels.library, str(kernels), kernels.is_meant) == (None, "function bodies (UPSNET_KERNELS=off)", True)
    assert not caplog.messages


def test_what_make_plugins_left_is_taken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    library = make_library(tmp_path / "made", kernel_abi())
    monkeypatch.setenv("UPSNET_OPERATORS", str(library.parent))
    assert find_kernels() == Kernels(library)
    assert str(find_kernels()) == LIBRARY


def test_no_library_is_told_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    caplog.set_level(logging.WARNING, "upsnet")
    monkeypatch.setenv("UPSNET_OPERATORS", str(tmp_path))
    for _ in range(3):
        find_kernels().warn()
    (said,) = caplog.messages
    assert f"UPSNET_OPERATORS={tmp_path} holds no {LIBRARY}; run `make plugins`, or unset it" in said
    assert "run from function bodies, which are slower" in said and "\n" not in said


@pytest.mark.parametrize(("abi", "said"), [(99, "99"), (None, "unknown")])
def test_a_library_of_another_version_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, abi: int | None, said: str
) -> None:
    library = make_library(tmp_path / f"other{said}", abi)
    monkeypatch.setenv("UPSNET_OPERATORS", str(library.parent))
    kernels = find_kernels()
    needed = f"its kernel ABI is {said}, and this package's {kernel_abi()}; make it anew"
    assert kernels == Kernels(None, f"{library} is of another version: {needed}")


def test_a_damaged_library_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / LIBRARY).write_bytes(b"\x7fELF, and no more")
    monkeypatch.setenv("UPSNET_OPERATORS", str(tmp_path))
    assert f"{tmp_path / LIBRARY} cannot be loaded (make it anew with `make plugins` or" in find_kernels().reason


def test_a_library_that_is_cut_off_is_told_of_and_ends_no_process(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Mapped, its missing pages would be a SIGBUS."""
    library = make_library(tmp_path / "made", kernel_abi())
    size = library.stat().st_size
    os.truncate(library, size - 1)
    monkeypatch.setenv("UPSNET_OPERATORS", str(library.parent))
    assert f"{library} is cut off: {size - 1} bytes are left of {size}; make it anew with" in find_kernels().reason
    os.truncate(library, 4096)
    assert f"{library} is cut off: 4096 bytes are left of {size}; " in find_kernels().reason


def test_a_relative_folder_is_the_one_below_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """dlopen looks a name without a folder up in the system's folders."""
    library = make_library(tmp_path / "made", kernel_abi())
    monkeypatch.chdir(library.parent)
    monkeypatch.setenv("UPSNET_OPERATORS", ".")
    assert find_kernels() == Kernels(library)


@pytest.mark.parametrize("open_to_all", ["file", "folder", "target", "folder of the target"])
def test_what_others_can_write_to_is_not_loaded(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, open_to_all: str
) -> None:
    library = make_library(tmp_path / "made", kernel_abi())
    monkeypatch.setenv("UPSNET_OPERATORS", str(library.parent))
    library.chmod(0o775)
    library.parent.chmod(0o775)  # as umask 002 has it
    assert find_kernels() == Kernels(library)
    place = library if open_to_all == "file" else library.parent
    if "target" in open_to_all:
        target = tmp_path / "elsewhere" / "target.so"
        target.parent.mkdir()
        library.rename(target)
        library.symlink_to(target)
        place = target.parent if "folder" in open_to_all else library
    (target if open_to_all == "target" else place).chmod(0o777)
    expected = f"{place}: others can write there, so no code is loaded from it; `chmod o-w {place}`"
    assert find_kernels().reason == expected


def test_what_another_user_owns_is_not_loaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give a file away")
    library = make_library(tmp_path / "made", kernel_abi())
    monkeypatch.setenv("UPSNET_OPERATORS", str(library.parent))
    for place in (library, library.parent):
        os.chown(place, 54321, -1)
        expected = f"{place}: it is of another user (54321), so no code is loaded from it; make a copy of your own, and"
        assert find_kernels().reason.startswith(expected)
        os.chown(place, os.geteuid(), -1)
    assert find_kernels() == Kernels(library)


def test_a_level_that_no_cpu_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UPSNET_CPU_LEVEL", "v5")
    with pytest.raises(InputError, match=r"UPSNET_CPU_LEVEL=v5: give v2, v3, v4, or unset it"):
        find_kernels()


def test_a_gpu_that_the_driver_does_not_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("upsnet.device.DRIVER_LIBRARY", "libno-such-driver.so.1")
    assert find_kernels(gpu=1) == Kernels(None, "the NVIDIA driver does not tell what GPU number 1 is")


def test_nodes_are_seen_in_the_file(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    for domain, expected in (("", False), ("upsnet", True)):
        x, y = (onnx.helper.make_tensor_value_info(name, 1, [1]) for name in "xy")
        graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["x"], ["y"], domain=domain)], "g", [x], [y])
        opsets = [onnx.helper.make_opsetid("upsnet", 1), onnx.helper.make_opsetid("", 20)]
        model = onnx.helper.make_model(graph, opset_imports=opsets)
        onnx.helper.set_model_props(model, {"upsnet.manifest": "upsnet"})
        onnx.save(model, tmp_path / "model.onnx")
        assert has_operators(tmp_path / "model.onnx") == expected
    (tmp_path / "empty.onnx").touch()
    assert not has_operators(tmp_path / "empty.onnx")
