"""What is known, and refused, of a request before it waits."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from PIL import ExifTags, Image

from serving.front.refusal import Refused, clean
from serving.front.requests import MOST_HEAD, Asked, Region, assess, read
from serving.record import Outcome
from tests.serving.front.fake import LIMITS, make_request, photo_request

TURNED = Image.Exif()
TURNED[ExifTags.Base.Orientation] = 6


def seen(request: Any, **limits: Any) -> Asked:
    head, data = read(request.SerializeToString())
    assert not head.raw_input_contents
    return assess(head, data, LIMITS._replace(**limits))


def refused(request: Any, **limits: Any) -> Refused:
    with pytest.raises(Refused) as caught:
        seen(request, **limits)
    assert "\n" not in caught.value.message and len(caught.value.message) < 300
    return caught.value


def photo(kind: str, height: int, width: int, **options: Any) -> bytes:
    stream = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(noise).save(stream, kind, **options)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("shape", "large"),
    [((1, 64, 64, 3), False), ((2, 64, 64, 3), True), ((1, 64, 65, 3), True), ((1, 0, 64, 3), False)],
)
def test_tensors_are_counted_and_have_their_lane(shape: tuple[int, ...], large: bool) -> None:
    assert seen(make_request("me", shape)) == Asked("me", shape[0], shape[0] * shape[1] * shape[2], large, ())
    assert not seen(make_request("me", shape), large_pixels=0).large


def test_more_pixels_than_the_limit_are_refused_with_it() -> None:
    error = refused(make_request(shape=(5, 64, 64, 3)))
    assert (error.outcome, error.message) == (Outcome.TOO_LARGE, "images are 5 x 64 x 64: more than 16384 pixels")


@pytest.mark.parametrize(
    "shape", [(-1, 64, 64, 3), (1 << 31, 1, 1, 3), (1 << 16, 1 << 16, 3), (1 << 32, 1 << 32, 0, 3), (1,) * 9]
)
def test_impossible_shapes(shape: tuple[int, ...]) -> None:
    request = make_request()
    request.inputs[0].shape[:] = shape
    error = refused(request)
    assert error.outcome == Outcome.INVALID and "input 'images' has an impossible shape" in error.message


def test_names_that_an_error_would_repeat_at_length() -> None:
    request = make_request()
    for tensor in (request, request.inputs[0], request.outputs.add(name="panoptic")):
        kind = "model_name" if tensor is request else "name"
        usual = getattr(tensor, kind)
        setattr(tensor, kind, "x" * 65)
        error = refused(request)
        assert (error.outcome, "more than 64 characters" in error.message) == (Outcome.INVALID, True)
        setattr(tensor, kind, usual)
    assert seen(request).photos == 1


def test_bytes_that_do_not_fit_the_shape() -> None:
    request = make_request()
    request.raw_input_contents[0] = b"12345"
    assert refused(request).message == "input 'images' is UINT8 [1, 32, 32, 3]: 3072 bytes, and 5 came"
    request.raw_input_contents.append(b"")
    assert refused(request).message == "1 inputs, and 2 raw_input_contents"


def test_data_in_the_tensors_themselves_is_passed_on_up_to_a_megabyte() -> None:
    request = make_request()
    del request.raw_input_contents[:]
    request.inputs[0].contents.uint_contents.extend([0] * 3072)
    assert seen(request).pixels == 1024
    request.inputs[0].contents.uint_contents.extend([0] * MOST_HEAD)
    assert refused(request).outcome == Outcome.TOO_LARGE


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "PPM", "GIF", "BMP", "TIFF"])
def test_photos_are_measured_without_being_decoded(kind: str) -> None:
    data = photo(kind, 200, 300)
    assert seen(photo_request(data, data), max_photo_bytes=1 << 20) == Asked("p", 2, 2 * 200 * 300, False, ())
    assert seen(photo_request(data), max_photo_bytes=1 << 20, large_photo_pixels=59_999).large


@pytest.mark.parametrize("options", [{"lossless": True}, {"exif": b"Exif\0\0MM\0*\0\0\0\x08\0\0\0\0\0\0"}])
def test_the_other_kinds_of_webp(options: dict[str, Any]) -> None:
    assert seen(photo_request(photo("WEBP", 20, 300, **options))).pixels == 6000


@pytest.mark.parametrize("data", [b"", b"nothing", b"RIFF....WEBP", b"\x89PNG\r\n\x1a\n" + bytes(99), b"\xff\xd8\xff"])
def test_what_is_no_photo_is_large_and_goes_to_the_model(data: bytes) -> None:
    assert seen(photo_request(data)) == Asked("p", 1, 0, True, ())


def test_a_header_that_declares_a_giant_is_only_read() -> None:
    data = bytearray(photo("PNG", 2, 2))
    data[16:24] = (65536).to_bytes(4, "big") * 2
    assert seen(photo_request(bytes(data))).large


def test_too_many_and_too_long_photos() -> None:
    error = refused(photo_request(*[b"x"] * 5))
    assert (error.outcome, error.message) == (Outcome.TOO_LARGE, "5 photos: more than 4 in one request")
    error = refused(photo_request(bytes((1 << 16) + 1)))
    assert error.outcome == Outcome.TOO_LARGE
    assert error.message == "a photo of 65537 bytes: more than 65536 are not allowed"


def flat_request(*outputs: str, turned: bool = False) -> Any:
    """Photos of few pixels whose maps, padded to one size, are 7000 x 7000."""
    photos = [photo("JPEG", 1, 7000, exif=TURNED)] * 2 if turned else [photo("JPEG", 7000, 1)] * 2
    request = photo_request(*photos, *[photo("JPEG", 1, 7000)] * 2)
    for name in outputs:
        request.outputs.add(name=name)
    return request


@pytest.mark.parametrize("turned", [False, True])
def test_the_padded_maps_of_an_answer_are_bounded(turned: bool) -> None:
    for outputs, size in (((), 3), (("labels", "labels16"), 3), (("photo_sizes", "labels16"), 2)):
        error = refused(flat_request(*outputs, turned=turned))
        assert error.outcome == Outcome.TOO_LARGE
        assert "of 4 photos of up to 7000 pixels' height and 7000 pixels' width" in error.message
        assert f"take {4 * 7000 * 7000 * size} bytes, over the limit of 200000000; send" in error.message
    assert seen(flat_request("labels", turned=turned)).large, "many bytes of an answer, though few pixels come"
    assert seen(flat_request("segments_json", turned=turned)) == Asked("p", 4, 4 * 7000, False, ())


@pytest.mark.parametrize("raw", [b"\x05\0\0\0abc", b"\xff\xff\xff\xff", b"\x01\0", b"", bytes(4 * 300)])
def test_broken_byte_tensors(raw: bytes) -> None:
    request = photo_request(b"x")
    request.raw_input_contents[0] = raw
    assert refused(request).outcome == Outcome.INVALID


def test_regions_of_inputs_and_outputs_are_told() -> None:
    request = make_request()
    del request.raw_input_contents[:]
    for tensor in (request.inputs[0], request.outputs.add(name="panoptic")):
        tensor.parameters["shared_memory_region"].string_param = "mine"
        tensor.parameters["shared_memory_byte_size"].int64_param = 3072
    request.outputs[0].parameters["shared_memory_offset"].int64_param = 4096
    assert seen(request).regions == (Region("mine", 0, 3072), Region("mine", 4096, 3072))


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("[request id: <id_unknown>] wrong", "wrong"),
        ("a/b and 3/4 stay", "a/b and 3/4 stay"),
        ("x" * 900, "x" * 499 + "…"),
        ("Failed: KeyError: 'a'\n\nAt:\n  /home/me/model.py(12): execute\n", "Failed: KeyError: 'a'"),
        (
            "failed to register shared memory region '" + "a1" * 16 + "'",
            "failed to register shared memory region (a region)",
        ),
        ("unable to open /dev/shm/upsnet-1-2-key", "unable to open (a path)"),
    ],
)
def test_clean(said: str, told: str) -> None:
    assert clean(said) == told
