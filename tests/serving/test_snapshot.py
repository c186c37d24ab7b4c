"""The copy that is served: whole, of one model, and without what the embedded server does not read."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from serving.repository import deploy
from serving.snapshot import take_snapshot
from tests.serving.conftest import Exported
from upsnet.contract import LIBRARY
from upsnet.errors import InputError
from upsnet.files import sha256, write_text


def test_what_is_copied(exported: Exported, repository: Path, tmp_path: Path) -> None:
    version = repository / "upsnet/1"
    for name in ("model.plan", "libupsnet_plugins.so", LIBRARY):
        (version / name).touch()
    (version / "__pycache__").mkdir()
    (version / "__pycache__/model.pyc").touch()
    manifest, models, digest = take_snapshot(repository, tmp_path / "copy")
    copied = {str(path.relative_to(tmp_path / "copy")) for path in (tmp_path / "copy").rglob("*")}
    assert manifest == exported.manifest and models == ("upsnet", "upsnet_photo")
    assert digest == sha256(exported.model)
    assert {
        "upsnet/1/model.onnx",
        "upsnet/1/model.py",
        f"upsnet/1/{LIBRARY}",
        "upsnet/configs/cpu.pbtxt",
        "upsnet/warmup/sizes",
        "upsnet_photo/1/model.py",
    } <= copied
    assert not any("plan" in name or "plugins" in name or "pycache" in name for name in copied)


@pytest.mark.parametrize("name", ["model.onnx", "manifest.json"])
def test_missing_model(repository: Path, tmp_path: Path, name: str) -> None:
    (repository / "upsnet/1" / name).unlink()
    with pytest.raises(InputError, match=f"no model to serve: .*{name} is missing; make one with `make engine`"):
        take_snapshot(repository, tmp_path / "copy")


def test_truncated_model(repository: Path, tmp_path: Path) -> None:
    model = repository / "upsnet/1/model.onnx"
    os.truncate(model, model.stat().st_size // 2)
    with pytest.raises(InputError, match=rf"^{model} is damaged, or not the model that .*/1/manifest.json describes; "):
        take_snapshot(repository, tmp_path / "copy")


@pytest.mark.parametrize("name", ["model.onnx", "manifest.json"])
def test_the_cure_where_versions_are_rolled_out(name: str, repository: Path, tmp_path: Path) -> None:
    """`upsnet deploy` writes no model into such a repository."""
    file = repository / "upsnet/1" / name
    file.unlink()
    if name == "model.onnx":
        file.write_bytes(b"damaged")
    with pytest.raises(InputError, match=r"; `upsnet deploy rollback` returns to the version before, and `upsnet dep"):
        take_snapshot(repository, tmp_path / "copy", version=1)


def test_broken_manifest_is_named_where_it_lies(repository: Path, tmp_path: Path) -> None:
    manifest = repository / "upsnet/1/manifest.json"
    manifest.write_text("{")
    with pytest.raises(InputError, match=rf"^{manifest}: not valid JSON"):
        take_snapshot(repository, tmp_path / "copy")


def test_half_of_another_model(exported: Exported, repository: Path, tmp_path: Path) -> None:
    other = exported.manifest.model_copy(update={"onnx_sha256": "0" * 64})
    config = repository / "upsnet/configs/cpu.pbtxt"
    write_text(config, config.read_text().replace(exported.manifest.onnx_sha256, other.onnx_sha256))
    with pytest.raises(
        InputError, match=rf"/model.onnx is damaged, or not the model that {config} describes; deploy it "
    ):
        take_snapshot(repository, tmp_path / "copy")


def test_unreadable_model(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, real = repository / "upsnet/1/model.onnx", Path.open

    def refuse(path: Path, mode: str = "r", **options: object) -> object:
        if path == model:
            raise PermissionError(13, "Permission denied")
        return real(path, mode)

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(InputError, match=f"^{model}: cannot be read: Permission denied; make it readable"):
        take_snapshot(repository, tmp_path / "copy")


def test_no_room_for_the_copy(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"cannot be copied to /dev/full/.*; TMPDIR names another place"):
        take_snapshot(repository, Path("/dev/full"))


def test_a_deploy_does_not_change_the_copy(exported: Exported, repository: Path, tmp_path: Path) -> None:
    take_snapshot(repository, tmp_path / "copy")
    copy = tmp_path / "copy/upsnet/1/model.onnx"
    before = copy.read_bytes()
    os.truncate(repository / "upsnet/1/model.onnx", 3)
    deploy(exported.model, exported.manifest_path, repository)
    assert copy.read_bytes() == before
