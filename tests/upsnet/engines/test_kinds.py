"""What a file is by its first bytes: whatever is in it, there is an answer, and it is short."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.upsnet.engines.engine_folders import plan
from upsnet.engines.kinds import RTX, TENSORRT, elf_machine, identify

STARTS = [b"", b"PK\x03\x04", b"\x7fELF\x02\x01", b"\x08\x0a", b"\x80", b"{", TENSORRT, RTX, b"version https://git-lfs"]


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(STARTS), st.binary(max_size=120))
@example(b"\x08", b"")
@example(b"\x08\x0a", b"")
def test_any_bytes_have_an_answer(tmp_path: Path, start: bytes, rest: bytes) -> None:
    file = tmp_path / "model.plan"
    file.write_bytes(start + rest)
    kind = identify(file)
    assert kind.title and "\n" not in kind.title + kind.cure and (kind.backend or kind.cure)


def test_half_an_archive_at_every_length(tmp_path: Path) -> None:
    import zipfile

    file = tmp_path / "model.pt2"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("x/models/model.json", "{}")
    content = file.read_bytes()
    assert identify(file).backend == "torch-tensorrt"
    for size in range(4, len(content)):
        file.write_bytes(content[:size])
        assert identify(file).backend is None


@pytest.mark.parametrize(("backend", "size"), [("tensorrt", 28), ("tensorrt-rtx", 28), ("tensorrt-rtx", 40)])
def test_as_little_of_a_plan_as_says_its_version(backend: str, size: int, tmp_path: Path) -> None:
    file = tmp_path / "x"
    file.write_bytes(plan(backend)[:size])  # type: ignore[arg-type]
    kind = identify(file)
    assert kind.backend == backend and kind.version in ("10.13.3.9", "1.7.1.116")
    assert kind.compute_capabilities == (("86", "89") if size == 40 else ())


def test_processors_of_libraries() -> None:
    def header(order: int, number: int) -> bytes:
        return b"\x7fELF\x02" + bytes([order]) + bytes(12) + number.to_bytes(2, "little" if order == 1 else "big")

    assert [elf_machine(header(1, 62)), elf_machine(header(1, 183)), elf_machine(header(2, 62))] == [
        "x86_64",
        "aarch64",
        "x86_64",
    ]
    assert elf_machine(header(1, 8)) == "" and elf_machine(b"\x7fELF") == "" and elf_machine(b"text") == ""
