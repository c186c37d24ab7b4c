from __future__ import annotations

import io
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image

from tests.upsnet.pngs import png
from upsnet import photos as images
from upsnet.errors import InputError
from upsnet.photos import read_photo, write_png

RED, GREEN, BLUE, GREY = (255, 0, 0), (0, 255, 0), (0, 0, 255), (90, 90, 90)
UPRIGHT = np.array([[RED, GREEN, BLUE], [GREY, GREY, RED]], np.uint8)  # no symmetry

# What a camera stores under each EXIF orientation so that the viewer sees UPRIGHT (EXIF 2.32, tag 0x0112).
STORED = {
    1: UPRIGHT,
    2: UPRIGHT[:, ::-1],
    3: UPRIGHT[::-1, ::-1],
    4: UPRIGHT[::-1],
    5: UPRIGHT.transpose(1, 0, 2),
    6: np.rot90(UPRIGHT, 1),
    7: UPRIGHT[::-1, ::-1].transpose(1, 0, 2),
    8: np.rot90(UPRIGHT, -1),
}


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n"


def iptc(content: bytes) -> bytes:
    """An IPTC/NAA file of 10 x 10 pixels, which Pillow reads from an image inside."""
    fields = [
        ((3, 20), bytes([0, 10])),
        ((3, 30), bytes([0, 10])),
        ((3, 60), bytes([3, 1])),
        ((3, 120), bytes([0, 5])),
        ((8, 10), content),
    ]
    return b"".join(bytes([0x1C, *tag]) + len(data).to_bytes(2, "big") + data for tag, data in fields)


@pytest.mark.parametrize("content", [EPS, iptc(EPS)], ids=["EPS", "EPS in IPTC"])
def test_postscript_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    """Although there is a Ghostscript, which Pillow has found."""
    ghostscript = tmp_path / "gs"
    ghostscript.write_text("#!/bin/sh\ntouch ran\n")
    ghostscript.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)
    assert EpsImagePlugin.has_ghostscript() and EpsImagePlugin.gs_binary == "gs"
    Path("ran").unlink(missing_ok=True)
    Path("a.eps").write_bytes(content)
    message = "^a.eps: not a readable image: .* PostScript, .* is not run; convert it to PNG or JPEG$"
    with Image.open("a.eps") as opened:
        for photo in ("a.eps", content, opened):
            with pytest.raises(InputError, match=message):
                read_photo(photo, "a.eps")
    assert not Path("ran").exists()


def test_the_size_of_what_a_file_holds_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """An icon says 8 x 8, and holds a PNG of 20 x 20."""
    inside = io.BytesIO()
    Image.new("RGB", (20, 20)).save(inside, "PNG")
    content = inside.getvalue()
    icon = struct.pack("<HHHBBBBHHII", 0, 1, 1, 8, 8, 0, 0, 1, 24, len(content), 22) + content
    assert read_photo(icon).shape == (20, 20, 3)
    monkeypatch.setattr(images, "MAX_PIXELS", 100)
    with pytest.raises(InputError, match=r"^the photo: 20 x 20 pixels is over the limit of 100; make it smaller$"):
        read_photo(icon)


def test_exif_of_a_jpeg(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 20)).save(tmp_path / "x.jpg", exif=exif)
    assert read_photo(tmp_path / "x.jpg").shape == (40, 20, 3)


@pytest.mark.parametrize(
    ("mode", "color", "expected"),
    [
        ("RGB", (1, 2, 3), (1, 2, 3)),
        ("L", 77, (77, 77, 77)),
        ("1", 1, (255, 255, 255)),
        ("LA", (0, 0), (255, 255, 255)),
        ("LA", (40, 255), (40, 40, 40)),
        ("RGBA", (9, 9, 9, 0), (255, 255, 255)),
        ("RGBA", (9, 8, 7, 255), (9, 8, 7)),
        ("RGBA", (0, 0, 0, 51), (204, 204, 204)),
        ("I;16", 0x8012, (0x80, 0x80, 0x80)),
        ("I;16", 65535, (255, 255, 255)),
    ],
)
def test_png_modes(tmp_path: Path, mode: str, color: Any, expected: Any) -> None:
    Image.new(mode, (3, 2), color).save(tmp_path / "x.png")
    photo = read_photo(tmp_path / "x.png")
    assert photo.shape == (2, 3, 3) and photo.dtype == np.uint8
    assert (photo == expected).all()


def test_palette_with_and_without_transparency(tmp_path: Path) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putpixel((1, 0), 1)
    image.save(tmp_path / "opaque.png")
    image.save(tmp_path / "clear.png", transparency=1)
    assert read_photo(tmp_path / "opaque.png").tolist() == [[[255, 0, 0], [0, 0, 255]]]
    assert read_photo(tmp_path / "clear.png").tolist() == [[[255, 0, 0], [255, 255, 255]]]


def test_cmyk_jpeg_and_gif_and_tiff(tmp_path: Path) -> None:
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(tmp_path / "x.jpg")
    assert abs(read_photo(tmp_path / "x.jpg").astype(int) - (255, 0, 0)).max() < 6
    Image.new("RGB", (4, 4), RED).save(
        tmp_path / "x.gif", save_all=True, append_images=[Image.new("RGB", (4, 4), BLUE)]
    )
    assert (read_photo(tmp_path / "x.gif") == RED).all()
    Image.new("F", (4, 4), 0.5).save(tmp_path / "x.tiff")
    with pytest.raises(InputError, match="floating-point"):
        read_photo(tmp_path / "x.tiff")


def test_damaged_files_are_named_in_one_line(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    for suffix in ("png", "jpg", "bmp", "gif"):
        buffer = io.BytesIO()
        Image.fromarray(noise).save(buffer, {"jpg": "jpeg"}.get(suffix, suffix))
        whole = buffer.getvalue()
        for length in (0, 1, 10, len(whole) // 2):
            path = tmp_path / f"cut{length}.{suffix}"
            path.write_bytes(whole[:length])
            with pytest.raises(InputError, match=path.name) as caught:
                read_photo(path)
            assert "\n" not in str(caught.value)


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("suffix", ["png", "jpeg", "gif", "tiff", "bmp", "webp"])
def test_flipped_bytes_either_read_or_are_refused(tmp_path: Path, suffix: str) -> None:
    rng = np.random.default_rng(0)
    buffer = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(rng.integers(0, 256, (9, 7, 3), dtype=np.uint8)).save(buffer, suffix, exif=exif)
    whole = np.frombuffer(buffer.getvalue(), np.uint8)
    for _ in range(60):
        damaged = whole.copy()
        damaged[rng.integers(0, len(whole), 4)] = rng.integers(0, 256, 4)
        (tmp_path / "x").write_bytes(damaged.tobytes())
        try:
            assert read_photo(tmp_path / "x").dtype == np.uint8
        except InputError as error:
            assert "\n" not in str(error)


def test_missing_folder_and_text(tmp_path: Path) -> None:
    (tmp_path / "x.jpg").write_text("no photo")
    (tmp_path / "loop.jpg").symlink_to("loop.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")
    for path, message in (
        (tmp_path / "none.jpg", "no such file"),
        (tmp_path / "loop.jpg", "cannot be read: Too many levels of symbolic links"),
        (tmp_path / "pipe.jpg", "a device or a pipe, not a photo"),
        (tmp_path, "a folder, not a photo"),
        (tmp_path / "x.jpg", "not a readable image"),
        (tmp_path / ("n" * 300), ""),
    ):
        with pytest.raises(InputError, match=f"{path.name}: {message}"):
            read_photo(path)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_too_many_pixels_are_refused_before_decoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for width in (8000, 12_000, 100_000):  # over ours, over Pillow's warning, over Pillow's error
        path = tmp_path / "bomb.png"
        path.write_bytes(png(width, 8000, 8, 2, b""))
        with pytest.raises(InputError, match=r"bomb\.png.* limit of 50000000"):
            read_photo(path)
    write_png(tmp_path / "x.png", np.zeros((5, 5, 3), np.uint8))
    monkeypatch.setattr(images, "MAX_PIXELS", 25)
    assert read_photo(tmp_path / "x.png").shape == (5, 5, 3)
    monkeypatch.setattr(images, "MAX_PIXELS", 24)
    with pytest.raises(InputError, match="limit of 24"):
        read_photo(tmp_path / "x.png")


def test_write_png_round_trip_and_refusals(tmp_path: Path) -> None:
    write_png(tmp_path / "x.png", UPRIGHT)
    assert np.array_equal(read_photo(tmp_path / "x.png"), UPRIGHT)
    write_png(tmp_path / "grey.png", UPRIGHT[..., 0])
    assert np.array_equal(read_photo(tmp_path / "grey.png")[..., 1], UPRIGHT[..., 0])
    for bad in (UPRIGHT.astype(np.int32), UPRIGHT[..., :2], UPRIGHT[0, 0]):
        with pytest.raises(InputError, match=r"bad\.png"):
            write_png(tmp_path / "bad.png", bad)
    assert not (tmp_path / "bad.png").exists()


def test_real_photos(shared_data: Path) -> None:
    photos = list((shared_data / "coco_sample" / "val2017").glob("*.jpg"))
    assert len(photos) == 4
    for path in photos:
        with Image.open(path) as image:
            assert np.array_equal(read_photo(path), np.array(image.convert("RGB")))


@pytest.mark.parametrize("orientation", STORED)
def test_bytes_and_pil_images_take_the_road_of_files(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(STORED[orientation])).save(tmp_path / "x.png", exif=exif)
    content = (tmp_path / "x.png").read_bytes()
    with Image.open(tmp_path / "x.png") as image:
        for photo in (tmp_path / "x.png", str(tmp_path / "x.png"), content, bytearray(content), image):
            assert np.array_equal(read_photo(photo), UPRIGHT)
        assert image.size == STORED[orientation].shape[1::-1], "the caller's image stays open, and as it was"
        image.load()


def test_a_pil_image_of_any_mode() -> None:
    for mode, color, expected in (("CMYK", (0, 0, 0, 255), 0), ("I;16", 0x8012, 0x80), ("RGBA", (0, 0, 0, 51), 204)):
        assert (read_photo(Image.new(mode, (3, 2), color)) == expected).all()


def test_an_array_is_copied() -> None:
    array = UPRIGHT.copy()
    photo = read_photo(array[:, ::-1])
    array[:] = 0
    assert np.array_equal(photo, UPRIGHT[:, ::-1]) and photo.flags.c_contiguous


@pytest.mark.parametrize(
    ("photo", "message"),
    [
        (b"", "the photo: not a readable image: in no format that Pillow knows"),
        (b"\x89PNG\r\n\x1a\n" + bytes(30), "the photo: not a readable image"),
        (np.zeros((4, 4, 3), np.float32), r"the photo: an array must be uint8 H x W x 3 RGB, not float32 \[4, 4, 3\]"),
        (np.zeros((4, 4), np.uint8), r"not uint8 \[4, 4\]"),
        (np.zeros((2, 4, 4, 3), np.uint8), r"not uint8 \[2, 4, 4, 3\]"),
        (np.zeros((0, 4, 3), np.uint8), "the photo: the image has no pixels"),
        (Image.new("RGB", (0, 3)), "the photo: the image has no pixels"),
        (Image.new("F", (3, 3)), "the photo: a floating-point image"),
        (17, "the photo: a photo is a path, the bytes of an image, .* not int"),
        (None, "the photo: a photo is .* not NoneType"),
    ],
)
def test_what_is_no_photo_is_refused_in_one_line(photo: Any, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        read_photo(photo)
    assert "\n" not in str(caught.value) and " at 0x" not in str(caught.value)


def test_the_limit_holds_for_every_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "MAX_PIXELS", 5)
    for photo in (UPRIGHT, Image.fromarray(UPRIGHT)):
        with pytest.raises(InputError, match="3 x 2 pixels is over the limit of 5"):
            read_photo(photo)


def test_an_open_file_is_a_photo(tmp_path: Path) -> None:
    Image.fromarray(UPRIGHT).save(tmp_path / "photo.png")
    with open(tmp_path / "photo.png", "rb") as stream:
        assert np.array_equal(read_photo(stream), UPRIGHT)
    assert np.array_equal(read_photo(io.BytesIO((tmp_path / "photo.png").read_bytes())), UPRIGHT)
    with pytest.raises(InputError, match="upload: not a readable image"):
        read_photo(io.BytesIO(b"junk"), "upload")
