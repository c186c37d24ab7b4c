"""`upsnet golden`, and its old words, which are options of `upsnet import`: what is written, hostile images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from typer.testing import Result

from tests.training.importers.original import HEIGHT, WIDTH, call, truth, write_files
from training.importers.command import main as import_main
from training.importers.golden import main
from training.init import main as init_main


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """An imported checkpoint beside the original's, an image, and its truth."""
    write_files(tmp_path)
    names = ["--categories", tmp_path / "categories.json", "--out", tmp_path / "last.safetensors"]
    assert call(import_main, tmp_path / "original.pth", "--config", tmp_path / "config.yaml", *names).exit_code == 0
    pixels = np.random.default_rng(0).normal(0, 50, (3, HEIGHT, WIDTH)).astype(np.float32)
    np.savez(tmp_path / "image.npz", net_input=pixels, im_info=np.array([[60.0, 90.0, 1.5]]))
    np.savez(tmp_path / "truth.npz", allow_pickle=False, **truth())
    return tmp_path


def golden(folder: Path, *options: object, image: str = "image.npz") -> Result:
    out = folder / "dump.npz"
    return call(main, folder / "last.safetensors", "--net-input", folder / image, "--out", out, *options)


def test_shapes(files: Path) -> None:
    result = golden(files)
    assert result.exit_code == 0, result.output
    arrays = np.load(files / "dump.npz")
    assert arrays["rpn_cls_logit_P2"].shape == (3, 16, 24) and arrays["fcn_score"].shape == (1, 8, 12)
    assert arrays["sem_argmax"].shape == (64, 96) and arrays["pan_orig_after"].shape == (40, 60, 2)
    assert len(arrays["pan_keep"]) == len(arrays["pan_det_scores"]) == 0, "an untrained network finds nothing"
    assert "roi_level" not in arrays and "all_cls_score" not in arrays


def test_stages_start_from_given_arrays(files: Path) -> None:
    golden(files, "--full")
    given = dict(np.load(files / "dump.npz"))
    assert given["fcn_score"].shape == (4, 16, 24)
    given["fcn_score"][:] = 0
    given["fcn_score"][1] = 7
    given["roi_boxes"] = np.array([[0, 0, 223, 223], [0, 0, 9.5, 9]], np.float32)
    np.savez(files / "given.npz", allow_pickle=False, **given)
    assert golden(files, "--inputs", files / "given.npz").exit_code == 0
    arrays = np.load(files / "dump.npz")
    assert (arrays["pan_argmax_net"] == 1).all() and not (arrays["fcn_score"] == 7).any()
    assert arrays["roi_level"].tolist() == [4, 2] and arrays["roi_pool7"].shape == (2, 1, 7, 7)


def test_the_old_words(files: Path) -> None:
    """`upsnet import --dump` writes the same, and says on stderr which command does it now."""
    result = golden(files, "--full", "--truth", files / "truth.npz")
    assert result.exit_code == 0 and "losses" in result.output, result.output
    wanted = np.load(files / "dump.npz")
    options = ["--dump", files / "old.npz", "--net-input", files / "image.npz", "--truth", files / "truth.npz"]
    weights = [files / "original.pth", "--config", files / "config.yaml"]
    result = call(import_main, *weights, *options, "--full", "--im-info", "60,90,1.5")
    assert result.exit_code == 0 and "upsnet golden" in result.stderr and "losses" in result.stdout
    found = np.load(files / "old.npz")
    assert {"loss_total", "all_cls_score", "pan_argmax_net"} <= set(found) == set(wanted)
    assert all(np.array_equal(found[name], wanted[name]) for name in wanted)
    assert "--truth is for the image of --dump" in call(import_main, *weights, *options[4:], "--out", "x").stderr
    assert "--net-input" in call(import_main, *weights, *options[:2]).stderr


def test_a_modern_network_is_refused(files: Path) -> None:
    """Its boxes are not those of the arrays."""
    config = files / "config.yaml"
    config.write_text(config.read_text().replace("conventions: upsnet", "conventions: ours"))
    out = files / "last.safetensors"
    assert call(init_main, "--config", config, "--categories", files / "categories.json", "--out", out).exit_code == 0
    assert "not a network of the original" in golden(files).stderr


def test_bad_images(files: Path) -> None:
    np.save(files / "image.npy", np.zeros((3, 64, 90), np.float32))
    assert "multiples of 32" in golden(files, image="image.npy").stderr
    np.save(files / "image.npy", np.zeros((3, 64, 96), np.float32))
    assert "--im-info" in golden(files, image="image.npy").stderr
    for text in ("1,2", "100,90,1", "a,b,c"):
        assert "im" in golden(files, "--im-info", text).stderr
    (files / "image.npz").write_bytes(b"no archive")
    assert "image.npz" in golden(files).stderr
    assert not (files / "dump.npz").exists()
