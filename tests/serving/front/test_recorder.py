"""`upsnet serve --record`: photos that pass by, in a folder that is its user's alone."""

from __future__ import annotations

import asyncio
import io
import json
import os
import stat
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from prometheus_client import CollectorRegistry
from tritonclient.grpc import service_pb2 as pb

from serving.front import recorder as module
from serving.front.recorder import Recorder, RecorderSettings, private_folder
from serving.front.requests import Asked
from serving.front.sampling import Sampling
from serving.record import Record
from tests.serving.front.fake import photo_request, until
from upsnet.errors import InputError

ASKED = Asked("", 1, 1, False, ())


def photo(seed: int, kind: str = "jpeg") -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(stream, kind)
    return stream.getvalue()


async def record(
    recorder: Recorder, body: bytes, header_length: int | None = None, model: str = "upsnet_photo"
) -> None:
    sampling = Sampling(recorder)
    protocol: Any = "grpc" if header_length is None else "http"
    sampling.answered(1, Record(protocol, "ModelInfer", model=model), ASKED, body, header_length)
    await until(lambda: recorder._recording is None)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def contents(folder: Path) -> set[bytes]:
    return {path.read_bytes() for path in folder.iterdir()}


def test_photos_as_they_came_for_their_user_alone_and_each_once(tmp_path: Path) -> None:
    folder, registry = tmp_path / "deep" / "photos", CollectorRegistry()
    recorder = Recorder(RecorderSettings(folder, 1.0), registry)

    async def main() -> None:
        await recorder.start()
        body = photo_request(photo(1), photo(2, "png"), photo(3, "webp")).SerializeToString()
        for _ in range(2):
            await record(recorder, body)
        await recorder.stop()

    asyncio.run(main())
    assert contents(folder) == {photo(1), photo(2, "png"), photo(3, "webp")}
    assert sorted(path.suffix for path in folder.iterdir()) == [".jpg", ".png", ".webp"]
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}
    assert registry.get_sample_value("upsnet_recorded_photos_total") == 3


def test_the_newest_are_kept_after_a_restart_too(tmp_path: Path) -> None:
    folder = tmp_path / "photos"

    async def main(*seeds: int) -> None:
        recorder = Recorder(RecorderSettings(folder, 1.0, 2), CollectorRegistry())
        for seed in seeds:
            await record(recorder, photo_request(photo(seed)).SerializeToString())

    asyncio.run(main(1, 2, 3))
    assert contents(folder) == {photo(2), photo(3)}
    (kept,) = (path for path in folder.iterdir() if path.read_bytes() == photo(2))
    os.utime(kept, (1, 1))
    asyncio.run(main(4))
    assert contents(folder) == {photo(3), photo(4)}


def test_bytes_are_bounded_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "photos"
    monkeypatch.setattr(module, "MOST_BYTES", len(photo(1)) + len(photo(2)) - 1)

    async def main() -> None:
        recorder = Recorder(RecorderSettings(folder, 1.0), CollectorRegistry())
        for seed in (1, 2):
            await record(recorder, photo_request(photo(seed)).SerializeToString())

    asyncio.run(main())
    assert contents(folder) == {photo(2)}


def test_the_share_tensors_shared_memory_and_what_is_no_photo(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    chances = iter([0.2, 0.1, 0.0, 0.0])
    recorder = Recorder(RecorderSettings(folder, 0.2), CollectorRegistry(), chance=lambda: next(chances))
    elsewhere = pb.ModelInferRequest(model_name="upsnet_photo")
    tensor = elsewhere.inputs.add(name="photo", datatype="BYTES", shape=[1, 1])
    tensor.parameters["shared_memory_region"].string_param = "r"

    async def main() -> None:
        await record(recorder, photo_request(photo(1)).SerializeToString(), model="upsnet")
        await record(recorder, photo_request(photo(2)).SerializeToString())  # the chance is against it
        await record(recorder, photo_request(photo(3)).SerializeToString())
        await record(recorder, elsewhere.SerializeToString())
        await record(recorder, photo_request(b"no photo").SerializeToString())

    asyncio.run(main())
    assert contents(folder) == {photo(3)}


def test_rest(tmp_path: Path) -> None:
    raw = struct.pack("<I", len(photo(1))) + photo(1)
    tensor = {"name": "photo", "datatype": "BYTES", "shape": [1, 1], "parameters": {"binary_data_size": len(raw)}}
    head = json.dumps({"inputs": [tensor]}).encode()
    recorder = Recorder(RecorderSettings(tmp_path / "photos", 1.0), CollectorRegistry())
    asyncio.run(record(recorder, head + raw, len(head)))
    assert contents(tmp_path / "photos") == {photo(1)}


def test_a_disk_that_takes_nothing_is_said_once_and_leaves_no_half_a_photo(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "photos"
    recorder = Recorder(RecorderSettings(folder, 1.0), CollectorRegistry())

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    async def main() -> None:
        monkeypatch.setattr(module.os, "replace", full)
        for seed in (1, 2):
            await record(recorder, photo_request(photo(seed)).SerializeToString())
        assert names(folder) == [] and caplog.text.count("No space left") == 1
        monkeypatch.undo()
        await record(recorder, photo_request(photo(3)).SerializeToString())

    asyncio.run(main())
    assert contents(folder) == {photo(3)}


def test_what_a_killed_service_left_goes(tmp_path: Path) -> None:
    folder = private_folder(tmp_path / "photos")
    (folder / ".photo-half.jpg").write_bytes(b"half")
    asyncio.run(Recorder(RecorderSettings(folder, 1.0), CollectorRegistry()).start())
    assert names(folder) == []


def test_a_folder_that_others_may_read_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    with pytest.raises(InputError, match="others could read them; `chmod 700` it"):
        private_folder(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="give another folder"):
        private_folder(tmp_path / "file")
