"""`upsnet engine explain`: each way in which an engine fails is named with its cure; a right one is fine."""

from __future__ import annotations

import json
import os
import pickle
import platform
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import pytest
from typer.testing import CliRunner, Result

from tests.upsnet.engines.engine_folders import (
    GPU,
    NO_GPU,
    PROFILE,
    abi_of,
    compile_library,
    make_engine,
    plan,
    rewrite,
    snapshot,
)
from upsnet.command_line.command import make_app
from upsnet.command_line.explain import main
from upsnet.contract import PLUGINS
from upsnet.driver import Driver
from upsnet.engines import check, here, packages
from upsnet.engines import explain as explaining
from upsnet.engines.check import check_engine
from upsnet.engines.explain import Explanation, explain
from upsnet.engines.findings import Cause
from upsnet.engines.manifest import Part, engine_manifest_path
from upsnet.engines.refusals import refusal
from upsnet.errors import InputError

Break = Callable[[Path], object]


def ask(*arguments: str | Path) -> Result:
    return CliRunner().invoke(make_app(main), [str(each) for each in arguments])


def cut(file: Path, size: int) -> None:
    os.truncate(file, size)


def change_byte(file: Path, place: int) -> None:
    content = bytearray(file.read_bytes())
    content[place] ^= 1
    file.write_bytes(content)


def edit(file: Path, **changes: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def replace_by_pipe(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


def replace_by_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


def replace_by_link(file: Path) -> None:
    file.unlink()
    file.symlink_to("elsewhere.plan")


def archive(file: Path, *names: str) -> None:
    with zipfile.ZipFile(file, "w") as written:
        for name in names:
            written.writestr(name, b"")


def other_library(
    engine: Path, abi: int | None, *, known: bool = False, text: str = "", options: tuple[str, ...] = ()
) -> None:
    """known: the manifest says that it is the one."""
    path = compile_library(engine.parent / PLUGINS, (abi_of(abi) if abi else "int x;") + text, *options)
    if known:
        rewrite(engine, libraries=(Part.of(path),))


def make_foreign(engine: Path) -> None:
    described(engine).unlink()
    engine.write_bytes(engine.read_bytes().replace(b"Panoptic", b"Pancakes"))


def described(engine: Path) -> Path:
    return engine_manifest_path(engine)


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:{}\nsize 4096\n".format("0" * 64)
SAFETENSORS = (64).to_bytes(8, "little") + b'{"__metadata__":{}}'.ljust(64) + bytes(64)

# name: what is done to the engine, the cause, words of the line, words of the cure
WAYS: dict[str, tuple[Break, str, str, str]] = {
    "gone": (lambda e: e.unlink(), "no engine", "no such file", "make engine"),
    "a link to nothing": (
        replace_by_link,
        "no engine",
        "a link to elsewhere.plan, which is not there",
        "make engine",
    ),
    "a folder": (replace_by_folder, "no engine", "a folder without an engine", "make engine"),
    "a pipe": (replace_by_pipe, "no engine", "a pipe, not a file", "make engine"),
    "empty": (lambda e: cut(e, 0), "no engine", "an empty file", "copy it again"),
    "one byte": (lambda e: cut(e, 1), "no engine", "it is a text file", "make engine"),
    "a header cut off": (lambda e: cut(e, 20), "no engine", "the first 20 bytes of a TensorRT plan", "copy it again"),
    "a Git LFS pointer": (lambda e: e.write_text(POINTER), "no engine", "a Git LFS pointer", "git lfs pull"),
    "JSON": (lambda e: e.write_text('{"a": 1}'), "no engine", "a JSON file", "make engine"),
    "a checkpoint": (lambda e: e.write_bytes(SAFETENSORS), "no engine", "a checkpoint (safetensors)", "upsnet export"),
    "an old checkpoint": (lambda e: e.write_bytes(pickle.dumps({})), "no engine", "a pickle", "upsnet import"),
    "PyTorch's checkpoint": (lambda e: archive(e, "a/data.pkl"), "no engine", "a PyTorch checkpoint", "upsnet import"),
    "TorchScript": (lambda e: archive(e, "a/code/x.py"), "no engine", "a TorchScript program", "make engine"),
    "half an archive": (lambda e: e.write_bytes(b"PK\x03\x04" + bytes(99)), "no engine", "cut off or damaged", "again"),
    "a web page": (lambda e: e.write_text("<!DOCTYPE html><html>"), "no engine", "a web page", "download it again"),
    "zeros": (lambda e: e.write_bytes(bytes(4096)), "no engine", "begins with zeros", "copy it again"),
    "noise": (lambda e: e.write_bytes(b"\xfe\x01\xfa" * 99), "no engine", "of a kind that is known", "make engine"),
    "a shared library": (
        lambda e: e.write_bytes((e.parent / PLUGINS).read_bytes()),
        "no engine",
        f"a shared library for {platform.machine()}",
        "name the engine beside it",
    ),
    "Ultralytics' engine": (
        lambda e: e.write_bytes((20).to_bytes(4, "little") + b'{"description": "x"}' + plan("tensorrt")),
        "no engine",
        "an engine of Ultralytics",
        "make engine",
    ),
    "a plan of TensorRT-RTX": (
        lambda e: e.write_bytes(plan("tensorrt-rtx")),
        "wrong name",
        "a TensorRT-RTX plan, and by its name TensorRT's",
        "rename it",
    ),
    "an ONNX file": (lambda e: e.write_bytes(b"\x08\x0a\x12\x07pytorch"), "wrong name", "an ONNX file", "make engine"),
    "cut off": (lambda e: cut(e, 3000), "truncated", "3000 bytes are left of the 4096", "copy it again"),
    "too long": (lambda e: e.write_bytes(e.read_bytes() + b"x"), "altered", "4097 bytes and not 4096", "copy it again"),
    "one bit": (lambda e: change_byte(e, 2000), "altered", "its sha256 differs", "copy it again"),
    "no manifest": (lambda e: described(e).unlink(), "no manifest", "no model.plan.json beside it", "make engine"),
    "of another program": (
        make_foreign,
        "no manifest",
        "another program built it, as trtexec does",
        "make engine",
    ),
    "half a manifest": (lambda e: cut(described(e), 100), "manifest damaged", "not valid JSON", "make engine"),
    "a manifest of the future": (lambda e: edit(described(e), version=2), "manifest damaged", "version", "make engine"),
    "a manifest without sizes": (lambda e: edit(described(e), bytes="?"), "manifest damaged", "bytes: ", "make engine"),
    "a list for a manifest": (lambda e: described(e).write_text("[]"), "manifest damaged", "model.plan.json", "make"),
    "a large file for a manifest": (
        lambda e: cut(described(e), 2**27),
        "manifest damaged",
        "134217728 bytes",
        "make engine",
    ),
    "a pipe for a manifest": (
        lambda e: replace_by_pipe(described(e)),
        "no manifest",
        "no model.plan.json",
        "make engine",
    ),
    "another backend's manifest": (
        lambda e: edit(described(e), backend="tensorrt-rtx"),
        "another engine's manifest",
        "TensorRT-RTX",
        "put both back together",
    ),
    "another engine's manifest": (
        lambda e: rewrite(e, engine=Part(file="large.plan", sha256="1" * 64)),
        "another engine's manifest",
        "describes another engine, large.plan",
        "put both back together",
    ),
    "another platform": (
        lambda e: rewrite(e, platform="linux-riscv64"),
        "platform",
        "built for linux-riscv64",
        "on a machine of this kind",
    ),
    "no library": (lambda e: (e.parent / PLUGINS).unlink(), "library missing", f"{PLUGINS} of its", "copy libupsnet"),
    "a library of another build": (
        lambda e: other_library(e, 2, text="int more = 1;"),
        "library altered",
        "of another build than the one",
        f"copy {PLUGINS}",
    ),
    "a library's pointer": (
        lambda e: (e.parent / PLUGINS).write_text(POINTER),
        "library altered",
        "a Git LFS pointer",
        "git lfs pull",
    ),
    "half a library": (
        lambda e: cut(e.parent / PLUGINS, 5000),
        "truncated",
        "is cut off: 5000 bytes",
        "copy libupsnet",
    ),
    "a library for another processor": (
        lambda e: change_byte(e.parent / PLUGINS, 19),
        "platform",
        "is for another processor",
        "on a machine of this kind",
    ),
    "a library in another folder": (
        lambda e: rewrite(e, libraries=(Part(file=f"../{PLUGINS}", sha256="0" * 64),)),
        "manifest damaged",
        "a library in another folder",
        "make engine",
    ),
    "a library that others may write": (
        lambda e: (e.parent / PLUGINS).chmod(0o777),
        "library open to others",
        "others can write there",
        "chmod o-w",
    ),
    "a folder that others may write": (
        lambda e: e.parent.chmod(0o777),
        "library open to others",
        "others can write there",
        "chmod o-w",
    ),
    "a library of another ABI": (
        lambda e: other_library(e, 9, known=True),
        "kernel ABI",
        "has the kernel ABI 9, and the engine needs 3",
        "make engine",
    ),
    "a library without an ABI": (
        lambda e: other_library(e, None, known=True),
        "kernel ABI",
        "the kernel ABI unknown",
        "make engine",
    ),
    "a library that ends the process": (
        lambda e: other_library(e, 2, known=True, text="struct A { A() { __builtin_trap(); } } a;"),
        "library does not load",
        "ends the process",
        "make engine",
    ),
    "a profile that is too small": (
        lambda e: rewrite(e, profiles=(PROFILE | {"images": ((1, 32, 32, 3), (1, 32, 32, 3), (4, 32, 32, 3))},)),
        "profile",
        "no photo fits: the network takes a short side of 48",
        "make engine",
    ),
    "a profile in disorder": (
        lambda e: rewrite(e, profiles=(PROFILE | {"images": PROFILE["images"][::-1]},)),
        "profile",
        "'images' in this order",
        "make engine",
    ),
    "a profile without sizes": (
        lambda e: rewrite(e, profiles=({"images": PROFILE["images"]},)),
        "profile",
        "'sizes'",
        "make engine",
    ),
}
# What only the loading itself shows, which a runtime does after the check.
WHEN_LOADED = ("kernel ABI", "library does not load", "refused")


@pytest.mark.parametrize("way", WAYS)
def test_each_way_to_break_it_is_explained(way: str, engine: Path) -> None:
    breaking, cause, words, cure = WAYS[way]
    breaking(engine)
    before = snapshot(engine.parent)
    found = explain(engine)
    assert {each.cause for each in found.findings if each.status == "failed"} == {cause}
    (finding,) = [each for each in found.findings if each.cause == cause]
    assert words in finding.text and cure in finding.cure and "\n" not in finding.text + finding.cure
    answer = ask(engine)
    assert answer.exit_code == 2 and answer.stderr == "".join(f"error: {each}\n" for each in found.errors)
    assert answer.stderr.startswith(f"error: {engine}: ") and "It does not load here: 1 cause." in answer.stdout
    if cause not in WHEN_LOADED:
        with pytest.raises(InputError) as error:
            check_engine(engine)
        assert str(error.value) == found.errors[0]
    assert snapshot(engine.parent) == before


MACHINES: dict[str, tuple[Driver, str, str, str]] = {
    "no driver": (
        Driver("there is an NVIDIA GPU, and no driver for it", "install NVIDIA's driver", True),
        "driver",
        "no driver for it",
        "install NVIDIA's driver",
    ),
    "an old driver": (
        GPU._replace(cuda=(12, 8)),
        "driver too old",
        "CUDA 12.8, and the package needs CUDA 13",
        "driver",
    ),
    "a hidden GPU": (GPU._replace(gpus=()), "GPU", "there is no GPU number 0", "--device"),
    "another GPU": (
        GPU._replace(gpus=(GPU.gpus[0]._replace(name="NVIDIA H200", compute_capability="90"),)),
        "compute capability",
        "it runs on compute capability 8.6, and GPU 0 is NVIDIA H200, compute capability 9.0",
        "make engine",
    ),
}


@pytest.mark.parametrize("machine", MACHINES)
def test_a_machine_that_is_not_the_right_one(machine: str, engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    driver, cause, words, cure = MACHINES[machine]
    monkeypatch.setattr(check, "find_driver", lambda: driver)
    found = explain(engine)
    (finding,) = [each for each in found.findings if each.status == "failed"]
    assert finding.cause == cause and words in finding.text and cure in finding.cure
    with pytest.raises(InputError) as error:
        check_engine(engine)
    assert [str(error.value)] == found.errors


def test_the_package(engine: Path, tmp_path: Path, library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rtx = make_engine(tmp_path / "rtx", library, "tensorrt-rtx")
    assert not explain(rtx).errors

    def missing(name: str) -> None:
        raise InputError(f"the package {name} is not installed: pip install 'upsnet-trt[gpu]'")

    monkeypatch.setattr(packages, "open_api", missing)
    (line,) = explain(engine).errors
    assert "the package tensorrt is not installed, and the engine needs TensorRT 10.13.3.9; `pip install " in line
    assert line.endswith("`pip install 'tensorrt==10.13.3.9'`")
    (line,) = explain(rtx).errors
    assert line.endswith("`pip install tensorrt-rtx-cu13-libs==1.7.1.116 tensorrt-rtx-cu13-bindings==1.7.1.116`")
    for plan_version, ours, forward, loads in (
        ("10.13.3.9", "10.13.3.11", False, True),
        ("10.13.3.9", "10.13.2.6", False, False),
        ("10.13.3.9", "10.14.1.48", False, False),
        ("10.13.3.9", "10.14.1.48", True, True),
        ("10.13.3.9", "10.12.0.36", True, False),
        ("10.13.3.9", "11.1.0.106", True, True),
        ("", "11.1.0.106", False, None),
    ):
        found = packages.compare("tensorrt", plan_version, ours, forward)
        assert found.status == {True: "ok", False: "failed", None: "not checked"}[loads], (plan_version, ours, forward)
    assert (
        "built by TensorRT 10.13.3.9, which that version alone can load"
        in packages.compare("tensorrt", "10.13.3.9", "11.0.0.1", False).text
    )


def test_a_cpu_without_what_the_library_needs(engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(here, "cpu_level", lambda: 1)
    (line,) = explain(engine).errors
    assert "this CPU has no SSE4.2 (x86-64-v2)" in line
    monkeypatch.setattr(here, "cpu_level", lambda: None)
    assert not explain(engine).errors


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_somebody_elses_library(engine: Path) -> None:
    os.chown(engine.parent / PLUGINS, 12345, -1)
    (line,) = explain(engine).errors
    assert "it is of another user (12345), so no code is loaded from it" in line
    assert f"`cp -rL {engine.parent} COPY`" in line and "UPSNET_OPERATORS" not in line
    with pytest.raises(InputError, match="cp -rL"):
        check_engine(engine)


def test_what_a_library_links_to(engine: Path) -> None:
    folder = engine.parent
    needed = compile_library(folder / "libneeded.so.1", "int needed() { return 1; }", "-Wl,-soname,libneeded.so.1")
    options = (str(needed), "-Wl,--no-as-needed")
    other_library(engine, 2, known=True, text="int needed(); int more = needed();", options=options)
    needed.unlink()
    (line,) = explain(engine).errors
    assert f"{PLUGINS} does not load: libneeded.so.1: cannot open" in line
    assert "; install libneeded.so.1, or put its folder into LD_LIBRARY_PATH" in line


def test_two_causes_are_two_lines(engine: Path) -> None:
    cut(engine, 3000)
    (engine.parent / PLUGINS).unlink()
    found = explain(engine)
    assert [each.cause for each in found.findings if each.status == "failed"] == ["truncated", "library missing"]
    assert found.verdict == "It does not load here: 2 causes."
    assert [each.text for each in found.findings if each.what == "loading"] == ["first mend what is above"]


def test_what_the_runtime_refuses_is_said_in_its_words(engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # the real attempt
    script = engine.parent.parent / "python"
    monkeypatch.setattr("upsnet.engines.explain.sys.executable", str(script))

    def tried(text: str) -> tuple[str, str, str]:
        script.write_text(f"#!/bin/sh\n{text}\n")
        script.chmod(0o755)
        found = explaining.attempt(engine, "tensorrt")
        return found.status, found.text, found.cure

    answer = json.dumps({"error": f"{engine}: no memory is left on the GPU; take a smaller profile"})
    assert tried(f"echo noise; echo '{answer}'") == (
        "failed",
        "no memory is left on the GPU",
        "take a smaller profile",
    )
    status, text, cure = tried("echo 'terminate called' >&2; kill -ABRT $$")
    assert (status, cure) == ("failed", "build the engine again with `make engine`")
    assert text == "the process that loads it ends with status -6: terminate called"
    oom = json.dumps({"error": f"{engine}: Error Code 2: OutOfMemory", "diagnostics": ""})
    assert tried(f"echo '{oom}'")[1:] == (
        "Error Code 2: OutOfMemory",
        "see in `nvidia-smi` who holds the GPU's memory, or build the engine with a smaller profile",
    )
    assert tried("""echo '{"opened": "cuda:0, kernels: x"}'""") == ("ok", "loads, on cuda:0, kernels: x", "")


class TestAnEngineThatIsRight:
    def test_on_its_machine(self, engine: Path) -> None:
        before = snapshot(engine.parent)
        answer = ask(engine)
        assert answer.exit_code == 0 and not answer.stderr and "It loads here." in answer.stdout
        for words in (
            "fake: 4 categories (2 things, 2 stuff), at most 8 things in a photo",
            "fp16: CONVOLUTION 53 HALF, 2 FLOAT",
            "1 to 4 photos of 32 x 32 to 64 x 64, best 1 of 64 x 64",
            "2026-11-29T22:00:00+00:00, by TensorRT 10.13.3.9, with cuda 13.0, on NVIDIA A10, in 312 s",
            "kernel ABI 3",
            "not measured: `make parity` does",
            "TensorRT 10.13.3, no other",
            "8.6 (A10, A40, A2, RTX 30, RTX A6000)",
            "NVIDIA 580 or newer (CUDA 13)",
        ):
            assert words in answer.stdout, words
        assert check_engine(engine).network.name == "fake"
        assert snapshot(engine.parent) == before

    def test_without_a_gpu_nobody_says_that_it_loads(self, engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(check, "find_driver", lambda: NO_GPU)
        answer = ask(engine)
        assert answer.exit_code == 0 and not answer.stderr and "It loads here" not in answer.stdout
        assert "needs one of compute capability 8.6" in answer.stdout
        assert "not checked: GPU, loading. Whether it loads is not known." in answer.stdout
        (line,) = explain(engine, device="cuda").errors  # which somebody asks for
        assert line == f"{engine}: there is no NVIDIA GPU; take a machine with one"
        assert check_engine(engine).backend == "tensorrt"  # the runtime itself says that there is no GPU

    def test_on_newer_gpus(self, engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        rewrite(engine, hardware_compatible="ampere+", compute_capabilities=())
        for capability, loads in (("75", False), ("80", True), ("90", True), ("120", True)):
            gpu = GPU.gpus[0]._replace(compute_capability=capability)
            monkeypatch.setattr(check, "find_driver", lambda gpu=gpu: GPU._replace(gpus=(gpu,)))
            found = explain(engine)
            assert bool(found.errors) != loads, capability
        assert found.requirements["GPU"] == "8.0 (A100, A30) and newer"

    def test_a_plan_of_tensorrt_rtx_says_its_gpus_itself(
        self, tmp_path: Path, library: Path, gpu_machine: None
    ) -> None:
        engine = make_engine(tmp_path / "engine", library, "tensorrt-rtx", compute_capabilities=())
        found = explain(engine)
        assert found.requirements["GPU"].startswith("8.6 (A10") and "8.9 (L4" in found.requirements["GPU"]
        assert not found.errors and found.requirements["package"] == "TensorRT-RTX 1.7.1, no other"
        engine_manifest_path(engine).unlink()
        cut(engine, 4000)
        assert any("cut off: it has 4000 bytes, and says that it has 4096" in each for each in explain(engine).errors)

    def test_an_engine_for_one_photo_at_a_time(self, engine: Path) -> None:
        """Which its network's manifest does not know."""
        rewrite(engine, profiles=(PROFILE | {"images": ((1, 32, 32, 3), (1, 64, 64, 3), (1, 64, 64, 3))},))
        found = check_engine(engine)
        assert not explain(engine).errors and (found.network.max_batch, found.served.max_batch) == (4, 1)

    def test_a_photo_that_it_must_hold(self, engine: Path) -> None:
        assert not explain(engine, photo=(480, 640)).errors
        rewrite(engine, profiles=(PROFILE | {"images": ((1, 64, 64, 3), (1, 64, 64, 3), (4, 64, 64, 3))},))
        assert ask(engine, "--size", "480x640").exit_code == 0
        answer = ask(engine, "--size", "640x100")
        assert answer.exit_code == 2 and "a photo of 640 x 100 is 64 x 32 in the network" in answer.stderr
        assert ask(engine).exit_code == 0  # most photos fit, and those that do not are named
        for wrong in ("640", "0x5", "axb", "-1x5"):
            answer = ask(engine, "--size", wrong)
            assert answer.exit_code == 2 and answer.stderr.count("\n") == 1 and f"--size {wrong}: give" in answer.stderr

    def test_json_there_and_back(self, engine: Path) -> None:
        answer = ask(engine, "--json")
        assert answer.exit_code == 0
        found = Explanation.model_validate_json(answer.stdout)
        assert found == explain(engine) and found.engine is not None and found.engine.backend == "tensorrt"
        cut(engine, 3000)
        answer = ask(engine, "--json")
        assert answer.exit_code == 2 and Explanation.model_validate_json(answer.stdout) == explain(engine)

    def test_without_loading_no_code_of_it_runs(self, engine: Path) -> None:
        other_library(engine, 2, known=True, text="struct A { A() { __builtin_trap(); } } a;")
        answer = ask(engine, "--no-load")
        assert answer.exit_code == 0 and "It loads here" not in answer.stdout


class TestFolders:
    def test_the_engine_that_is_opened(self, engine: Path, library: Path) -> None:
        folder = engine.parent
        (folder / "model.rtx.plan").write_bytes(plan("tensorrt-rtx"))
        assert explain(folder).file == str(engine) and explain(folder).others == ("model.rtx.plan",)
        (folder / "engine.json").write_text('{"chosen": "tensorrt-rtx"}')
        assert explain(folder).file == str(folder / "model.rtx.plan")
        assert "Also there: model.plan; name one to have it explained." in ask(folder).stdout

    def test_a_runs_folder(self, engine: Path) -> None:
        run = engine.parent.parent
        (run / "model.onnx").write_bytes(b"\x08\x0a\x12\x07pytorch")
        assert explain(run).file == str(engine)

    def test_a_folder_where_nothing_was_built_says_why(self, tmp_path: Path) -> None:
        outcome = {"status": "refused", "errors": ["no plugin RoiAlignFpn"]}
        (tmp_path / "engine.json").write_text(json.dumps({"tensorrt": outcome}))
        (line,) = explain(tmp_path).errors
        assert "a folder without an engine" in line and "; TensorRT: no plugin RoiAlignFpn" in line


def test_the_graph_for_tensorrts_builders(tmp_path: Path) -> None:
    graph = tmp_path / "model.tensorrt.onnx"
    graph.write_bytes(b"\x08\x0a\x12\x07pytorch")
    (line,) = explain(graph).errors
    assert line.endswith(
        "no engine: it is the ONNX file that TensorRT's builders read; `make engine` builds one; "
        "ONNX Runtime's is model.onnx"
    )


class TestHostileInput:
    def test_a_large_sparse_file_is_not_read(self, engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        cut(engine, 5 * 2**30)
        monkeypatch.setattr(check, "hash_of", lambda path: pytest.fail("it was read"))
        (line,) = explain(engine).errors
        assert f"{5 * 2**30} bytes and not 4096" in line

    @pytest.mark.parametrize("name", ["two\nlines.plan", "[red]x.plan", "-x.plan"])
    def test_odd_names(self, name: str, engine: Path) -> None:
        odd = engine.with_name(name)
        os.link(engine, odd)
        os.link(engine_manifest_path(engine), engine_manifest_path(odd))
        assert explain(odd).verdict == "It loads here."
        assert json.loads(ask("--json", "--", odd).stdout)["file"] == str(odd)
        (engine.parent / PLUGINS).unlink()
        answer = ask("--", odd)
        assert answer.exit_code == 2 and answer.stderr.count("\n") == 1

    def test_a_name_that_is_no_text(self, tmp_path: Path) -> None:
        odd = tmp_path / "\udcff.plan"
        odd.write_bytes(plan("tensorrt"))
        assert explain(odd).file == str(odd)
        for options in ([], ["--json"]):
            command = [sys.executable, "-m", "upsnet", "engine", "explain", *options, str(odd)]
            answer = subprocess.run(command, capture_output=True, text=True)
            assert (
                answer.returncode == 2 and "Traceback" not in answer.stderr and "no \\udcff.plan.json" in answer.stderr
            )

    def test_pipes_in_the_place_of_small_files(self, engine: Path) -> None:
        """Nothing waits for somebody to write into them."""
        os.mkfifo(engine.with_name("model.manifest.json"))
        assert explain(engine.parent).verdict == "It loads here."
        os.mkfifo(engine.with_name("engine.json"))
        assert "engine.json: says not which engine is opened: a pipe, not a file" in explain(engine.parent).errors[0]
        assert explain(engine).verdict == "It loads here."
        engine.with_name("engine.json").unlink()
        engine_manifest_path(engine).unlink()
        assert "no manifest" in [each.cause for each in explain(engine).findings]
        engine.unlink()
        assert "a folder without an engine" in explain(engine.parent).errors[0]

    def test_a_file_that_may_not_be_read(self, engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(self: Path, *arguments: object) -> None:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(Path, "open", refuse)
        (line,) = explain(engine, load=False).errors
        assert line.startswith(f"{engine}: cannot be read: Permission denied")

    def test_another_engine_of_the_same_size_is_seen_after_the_first_was_right(self, engine: Path) -> None:
        check_engine(engine)
        change_byte(engine, 2000)
        with pytest.raises(InputError, match="its sha256 differs"):
            check_engine(engine)


@pytest.mark.parametrize(
    "words, cause",
    [
        (
            "Error Code 1: Serialization (Serialization assertion stdVersionRead == kSERIALIZATION_VERSION failed."
            "Version tag does not match. Note: Current Version: 237, Serialized Engine Version: 239)",
            "package version",
        ),
        ("The engine plan file is not compatible with this version of TensorRT, expecting", "package version"),
        ("The engine plan file is generated on an incompatible device, expecting compute 8.6", "compute capability"),
        ("Serialization assertion magicTagRead == kMAGIC_TAG failed.Magic tag does not match", "altered"),
        ("cudaError 35: CUDA driver version is insufficient for CUDA runtime version", "driver too old"),
        ("it cannot be loaded (UNSUPPORTED_CC, OLD_CUDA_DRIVER)", "driver too old"),
        ("Could not find plugin, plugin name: RoiAlignFpn", "library missing"),
        ("the engine was built for kernel ABI 1, these plugins have kernel ABI 3", "kernel ABI"),
        ("Error Code 1: Cuda Runtime (out of memory)", "memory"),
        ("something new", "refused"),
    ],
)
def test_causes_in_the_words_of_runtimes(words: str, cause: str) -> None:
    found = refusal(words, "")
    assert (found.cause, found.text) == (cause, words) and found.cure
    assert refusal(words, "its own cure").cure == "its own cure"


def test_the_page_has_every_cause(project_root: Path) -> None:
    page = (project_root / "docs/engines.md").read_text()
    assert [cause for cause in get_args(Cause) if f"`{cause}`" not in page] == []
