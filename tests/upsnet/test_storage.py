"""Places, held against a real S3 that answers badly at times."""

from __future__ import annotations

import io
import logging
import multiprocessing
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.bucket import Bucket
from tests.bucket_server import Fault
from tests.small_disk import small_disk
from upsnet import buckets, photos, storage
from upsnet.errors import InputError, ServerError
from upsnet.files import WriteError
from upsnet.storage import Stored

CONTENT = bytes(range(256)) * 40


@pytest.fixture(params=["path", "file://", "memory://", "s3://"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """One of each kind of place."""
    if request.param == "s3://":
        return request.getfixturevalue("bucket").at("folder")
    if request.param == "memory://":
        pytest.importorskip("fsspec", reason="needs fsspec of the extra remote")
        return f"memory://{tmp_path}"
    return str(tmp_path) if request.param == "path" else tmp_path.as_uri()


def test_what_is_written_is_read(folder: str) -> None:
    place = storage.join(folder, "1.bin")
    assert not storage.exists(place) and storage.names(folder) == set()
    storage.write(place, CONTENT)
    assert storage.exists(place) and storage.size(place) == len(CONTENT)
    assert storage.read(place) == CONTENT
    assert storage.read(place, 5) == CONTENT[5:]
    assert storage.read(place, 0, 7) == CONTENT[:7]
    assert storage.read(place, 300, 7) == CONTENT[300:307]
    assert storage.read(place, 300, 0) == b""
    storage.write(place, b"other")
    assert storage.read(place) == b"other"


def test_names_are_of_the_folder_alone(folder: str) -> None:
    for name in ("a b.txt", "ä%20+#?.txt", "a::b[1].txt", "below/c.txt", "empty"):
        storage.write(storage.join(folder, name), b"" if name == "empty" else name.encode())
    storage.write(f"{folder}x", b"a neighbour")
    expected = {"a b.txt": 7, "ä%20+#?.txt": 12, "a::b[1].txt": 11, "empty": 0}
    assert storage.sizes(folder) == storage.sizes(f"{folder}/") == expected
    for name in storage.names(folder) - {"empty"}:
        assert storage.read(storage.join(folder, name)).decode() == name
    assert storage.read(storage.join(folder, "empty")) == b""
    assert storage.names(storage.join(folder, "a b.txt")) == set()


def test_what_ends_early_is_said(folder: str) -> None:
    place = storage.join(folder, "1.bin")
    storage.write(place, b"0123456789")
    for start, size in ((4, 7), (10, 1), (50, 5)):
        with pytest.raises(InputError, match=rf"1\.bin: ends before byte {start + size}: it is not whole"):
            storage.read(place, start, size)
    with pytest.raises(InputError, match="over the limit of 9 bytes"):
        storage.read(place, most=9)
    assert storage.read(place, most=10) == b"0123456789"


@pytest.mark.parametrize("read", [storage.read, storage.size, lambda place: storage.read(place, 3, 4)])
def test_what_is_not_there(folder: str, read: object) -> None:
    with pytest.raises(InputError, match=r"none\.bin: no such file") as raised:
        read(storage.join(folder, "none.bin"))  # type: ignore[operator]
    assert not isinstance(raised.value, ServerError)


def test_files_come_and_go(folder: str, tmp_path: Path) -> None:
    here, place = tmp_path / "here", storage.join(folder, "1.tar")
    with storage.writing_file(place) as path, tarfile.open(path, "w") as tar:
        for name in ("a", "b"):
            info = tarfile.TarInfo(name)
            info.size = len(CONTENT)
            tar.addfile(info, io.BytesIO(CONTENT))
    with storage.reading_file(place) as stream, tarfile.open(fileobj=stream) as tar:
        assert tar.getnames() == ["a", "b"]
        member = tar.extractfile("b")
        assert member and member.read() == CONTENT
        first, second = (Stored(place, each.offset_data, each.size, each.name) for each in tar)
    one, other = storage.read_together(first, second)
    assert (one.content, other.content) == (CONTENT, CONTENT) and one.read() is one.content
    storage.download(place, here)
    assert here.read_bytes() == storage.read(place)
    storage.upload(here, storage.join(folder, "2.tar"))
    assert storage.read(storage.join(folder, "2.tar")) == here.read_bytes()
    with pytest.raises(ZeroDivisionError), storage.writing_file(storage.join(folder, "3.tar")) as path:
        path.write_bytes(b"half of it")
        raise ZeroDivisionError
    assert not storage.exists(storage.join(folder, "3.tar"))


def test_a_file_of_another_machine() -> None:
    with pytest.raises(InputError, match="with three /"):
        storage.read("file://there/1.jpg")


# What fails for a moment


@pytest.mark.parametrize("kind", ["busy", "broken", "cut", "reset"])
def test_a_fault_now_and_then_changes_nothing(bucket: Bucket, kind: str, tmp_path: Path) -> None:
    bucket.faults(Fault(kind, every=2))
    repeated = buckets.repeats.counts[bucket.url]
    for number in range(6):
        storage.write(bucket.at(f"out/{number}"), CONTENT)
    assert storage.sizes(bucket.at("out")) == {str(number): len(CONTENT) for number in range(6)}
    assert all(storage.read(bucket.at(f"out/{number}"), 100, 50) == CONTENT[100:150] for number in range(6))
    assert storage.read(bucket.at("out/0")) == CONTENT and storage.exists(bucket.at("out/5"))
    storage.download(bucket.at("out/0"), tmp_path / "0")
    assert (tmp_path / "0").read_bytes() == CONTENT
    # aiohttp itself sends again what met a closed connection, once.
    assert buckets.repeats.counts[bucket.url] > repeated or kind == "reset"


def test_repeats_are_counted_exactly_and_logged_seldom(bucket: Bucket, caplog: pytest.LogCaptureFixture) -> None:
    storage.write(bucket.at("1"), CONTENT)
    bucket.faults(Fault("busy", every=2, method="GET"))
    for _ in range(12):
        assert storage.read(bucket.at("1"), 0, 10) == CONTENT[:10]
    assert buckets.repeats.counts[bucket.url] == 12
    assert len(bucket.seen()) == 24
    said = [record.message for record in caplog.records if record.name == "upsnet"]
    assert said == [
        f"{bucket.url}: the server says 503 (SlowDown); tried again",
        f"{bucket.url}: the server says 503 (SlowDown); tried again, for the 10th time",
    ]


def test_what_botocore_repeats_is_counted_too(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    storage.write(bucket.at("1"), CONTENT)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "3")
    monkeypatch.setenv("AWS_RETRY_MODE", "standard")
    monkeypatch.setattr(buckets, "ATTEMPTS", 1)
    with fresh_connections():
        bucket.faults(Fault("busy", times=1))
        assert storage.read(bucket.at("1"), 0, 10) == CONTENT[:10]
    assert buckets.repeats.counts[bucket.url] == 1


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("busy", r"the server says 503 \(SlowDown\)"),
        ("broken", "the server says 500"),
        ("cut", "the answer broke off"),
        ("reset", "Connection was closed"),
    ],
)
def test_a_bucket_that_is_away_is_said_after_some_attempts(bucket: Bucket, kind: str, words: str) -> None:
    storage.write(bucket.at("1"), CONTENT)
    bucket.faults(Fault(kind, method="GET"))
    with pytest.raises(ServerError, match=rf"{bucket.url}/1: cannot be read: .*{words}.* \(6 attempts in \d+ s\)$"):
        storage.read(bucket.at("1"), 0, 1000)
    assert len(bucket.seen()) == buckets.ATTEMPTS * (2 if kind == "reset" else 1)  # aiohttp's own, see above
    if kind != "cut":
        bucket.faults(Fault(kind))
        with pytest.raises(ServerError, match=r"/2: cannot be written: .* \(6 attempts in \d+ s\)$"):
            storage.write(bucket.at("2"), CONTENT)
        for question in (storage.exists, storage.names):
            with pytest.raises(ServerError):
                question(bucket.at("1"))  # type: ignore[operator]
        bucket.faults()
        assert not storage.exists(bucket.at("2"))


def test_a_server_that_is_not_there(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with fresh_connections(), pytest.raises(ServerError, match=r"connect to the endpoint URL.* \(6 attempts in"):
        storage.read(bucket.at("1"))


def test_a_slow_answer_is_waited_for_and_none_is_not(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    storage.write(bucket.at("1"), CONTENT)
    bucket.faults(Fault("slow", seconds=0.3))
    assert storage.read(bucket.at("1")) == CONTENT
    monkeypatch.setattr("s3fs.S3FileSystem.read_timeout", 0.1)
    monkeypatch.setattr(buckets, "ATTEMPTS", 2)
    with fresh_connections(), pytest.raises(ServerError, match=r"[Tt]imeout.* \(2 attempts in"):
        storage.read(bucket.at("1"))


def test_no_attempt_begins_when_patience_is_over(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buckets, "PATIENCE", -1.0)
    bucket.faults(Fault("busy"))
    with pytest.raises(ServerError, match=r"1 attempt in \d+ s"):
        storage.read(bucket.at("1"))
    assert len(bucket.seen()) == 1


# What does not pass


@pytest.mark.parametrize(
    ("code", "words", "of_server"),
    [
        ("AccessDenied", "the credentials do not allow it, or it is not there and they do not allow to list it", False),
        ("InvalidAccessKeyId", "the credentials are refused: no such key; set AWS_PROFILE", True),
        ("SignatureDoesNotMatch", "the credentials are refused: the secret is not this key's", True),
        ("ExpiredToken", "the credentials are refused: they have expired", True),
        ("RequestTimeTooSkewed", "this machine's clock is wrong", True),
    ],
)
def test_refusals_are_plain_and_not_repeated(
    bucket: Bucket, code: str, words: str, of_server: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "upsnet")
    bucket.faults(Fault("refused", code=code))
    with pytest.raises(InputError) as raised:
        storage.read(bucket.at("1"), 0, 5)
    assert str(raised.value).startswith(f"{bucket.at('1')}: cannot be read: ") and words in str(raised.value)
    assert isinstance(raised.value, ServerError) == of_server
    assert len(bucket.seen()) == 1
    with pytest.raises(InputError, match="cannot be written: the credentials"):
        storage.write(bucket.at("1"), b"x")
    for question in (storage.exists, storage.size):  # by HEAD, whose answer does not say why
        with pytest.raises(InputError) as raised:
            question(bucket.at("1"))
        assert words in str(raised.value) and isinstance(raised.value, ServerError) == of_server
    assert "hidden" not in caplog.text + str(raised.value)


def test_no_credentials(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    storage.write(bucket.at("1"), CONTENT)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    with fresh_connections(), pytest.raises(ServerError, match=r"no credentials were found; set AWS_PROFILE.*S3_ANON"):
        storage.read(bucket.at("1"))
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    with fresh_connections(), pytest.raises(ServerError, match=r"no credentials were found"):
        storage.read(bucket.at("1"))


def test_a_bucket_is_no_file(bucket: Bucket) -> None:
    for place in (bucket.url, "s3://", "s3:///1.jpg"):
        with pytest.raises(
            InputError, match=f"^{place}: cannot be read: no bucket, or no name in it, by this address$"
        ):
            storage.read(place)


def test_no_such_bucket(bucket: Bucket) -> None:
    for question in (
        lambda: storage.read("s3://nobody-has-this/1"),
        lambda: storage.write("s3://nobody-has-this/1", b""),
        lambda: storage.names("s3://nobody-has-this/1"),
    ):
        with pytest.raises(InputError, match="s3://nobody-has-this/1: no such bucket"):
            question()


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("nonsense://b/1", "Protocol not known: nonsense; give a path, s3:// or gs://"),
        ("ftp://user:secret@host/1", "ftp://: a password in a URL would end up in logs"),
        ("zip://1.jpg", "zip://1.jpg: cannot be read: "),
        ("S3://b/1.jpg", "S3://b/1.jpg: write s3:// in small letters"),
    ],
)
def test_urls_that_are_none(place: str, words: str) -> None:
    pytest.importorskip("fsspec", reason="needs fsspec of the extra remote")
    with pytest.raises(InputError) as raised:
        storage.read(place)
    assert words in str(raised.value) and "secret" not in str(raised.value)


def test_only_buckets_are_written() -> None:
    with pytest.raises(WriteError, match="sftp://host/1: cannot be written: what breaks off would stay there"):
        storage.write("sftp://host/1", b"")


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("memory://out", "it ends with this process; give a path, or a bucket"),
        ("sftp://host/out", "what breaks off would stay there"),
        ("https://host/out", "what breaks off would stay there"),
        ("", ""), ("out", ""), ("file:///out", ""), ("s3://bucket/out", ""),
    ],
)  # fmt: skip
def test_what_is_no_output_is_said_before_long_work(place: str, words: str) -> None:
    if words:
        with pytest.raises(WriteError, match=f"^{place}: cannot be written: {words}"):
            buckets.check_output(place)
    else:
        buckets.check_output(place)


def test_a_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    fsspec = pytest.importorskip("fsspec", reason="needs fsspec of the extra remote")

    def missing(kind: str) -> None:
        raise ImportError(f"{kind} needs a package that nobody has")

    monkeypatch.setattr(fsspec, "get_filesystem_class", missing)
    with pytest.raises(InputError, match=r"^sftp://h/1: needs a package \(sftp needs .*\)$"):
        storage.read("sftp://h/1")
    with pytest.raises(InputError, match=r"^gs://h/1: needs a package \(.*\): pip install 'upsnet-trt\[remote\]'$"):
        storage.read("gs://h/1")


def test_a_signature_is_not_shown() -> None:
    assert storage.shown("https://host/1.jpg?X-Amz-Signature=abc") == "https://host/1.jpg"
    assert storage.shown("s3://b/what?.jpg") == "s3://b/what?.jpg"
    assert photos.photo_path("https://host/1.jpg?sig=abc") == "https://host/1.jpg"


# Large files, many threads, processes that fork


def test_a_large_file_goes_in_parts(bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "PART", 5 << 20)  # the smallest that S3 takes
    content = np.random.default_rng(0).bytes(23 << 20)
    (tmp_path / "large").write_bytes(content)
    bucket.faults(Fault("busy", every=4, method="PUT"))
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "3")  # of each part
    with fresh_connections():
        storage.upload(tmp_path / "large", bucket.at("large"))
    assert sum(each.startswith("PUT") for each in bucket.seen()) == 5 + 2
    storage.download(bucket.at("large"), tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == content
    with storage.reading_file(bucket.at("large")) as stream:
        stream.seek(-5, io.SEEK_END)
        assert stream.read(100) == content[-5:] and stream.seek(7 << 20) and stream.read(4) == content[7 << 20 :][:4]


def test_a_full_disk_is_no_fault_of_the_bucket(bucket: Bucket, tmp_path: Path) -> None:
    storage.write(bucket.at("1"), b"x" * 300_000)
    with small_disk(100_000), pytest.raises(WriteError, match="there: cannot be written: File too large"):
        storage.download(bucket.at("1"), tmp_path / "there")
    assert list(tmp_path.iterdir()) == []


def test_threads_share_one_client(bucket: Bucket) -> None:
    for number in range(20):
        storage.write(bucket.at(str(number)), bytes([number]) * 1000)
    bucket.faults(Fault("busy", every=5), Fault("cut", every=7))
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda number: storage.read(bucket.at(str(number % 20)), 10, 500), range(60)))
    assert found == [bytes([number % 20]) * 500 for number in range(60)]


def read_in_child(places: list[str], answers: multiprocessing.Queue[list[bytes]]) -> None:
    answers.put([storage.read(place, 1, 50) for place in places])


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_children_of_a_process_that_has_read(bucket: Bucket, method: str) -> None:
    """While its threads go on reading: what they hold at the moment of the fork is not what the child waits for."""
    places = [bucket.at(str(number)) for number in range(10)]
    for number, place in enumerate(places):
        storage.write(place, bytes([number]) * 100)
    bucket.faults(Fault("busy", every=6))
    context: Any = multiprocessing.get_context(method)
    answers = context.Queue()
    with ThreadPoolExecutor(4) as pool:
        reading = [pool.submit(storage.read, places[number % 10]) for number in range(100 if method == "fork" else 10)]
        children = [context.Process(target=read_in_child, args=(places, answers)) for _ in range(2)]
        for child in children:
            child.start()
        found = [answers.get(timeout=60) for _ in children]
        for child in children:
            child.join(60)
    assert all(each.result() for each in reading)
    assert found == [[bytes([number]) * 50 for number in range(10)]] * 2
    assert [child.exitcode for child in children] == [0, 0]


# Photos


def test_a_photo_in_a_bucket(bucket: Bucket, tmp_path: Path) -> None:
    array = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    Image.fromarray(array).save(tmp_path / "1.png")
    content = (tmp_path / "1.png").read_bytes()
    storage.write(bucket.at("1.png"), content)
    bucket.faults()
    assert (photos.read_photo(bucket.at("1.png")) == array).all()
    assert len(bucket.seen()) == 1, "one request a photo"
    assert photos.encoded_photo(bucket.at("1.png")) == content
    storage.write(bucket.at("bad.png"), content[:50])
    with pytest.raises(InputError, match=rf"^{bucket.at('bad.png')}: not a readable image"):
        photos.read_photo(bucket.at("bad.png"))
    storage.write(bucket.at("empty.png"), b"")
    with pytest.raises(InputError, match=rf"^{bucket.at('empty.png')}: not a readable image"):
        photos.read_photo(bucket.at("empty.png"))


def test_a_photo_that_is_none_does_not_fill_the_memory(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(photos, "MOST_BYTES", 1000)
    storage.write(bucket.at("film.jpg"), bytes(100_000))
    bucket.faults()
    with pytest.raises(InputError, match=r"film\.jpg: over the limit of 1000 bytes"):
        photos.read_photo(bucket.at("film.jpg"))
    assert bucket.seen()[0].endswith("bytes=0-1000")


class fresh_connections:
    """As in a process that has not asked any bucket yet: what its packages read of the environment is read again."""

    def __enter__(self) -> None:
        self._clear()

    def __exit__(self, *_: object) -> None:
        self._clear()

    def _clear(self) -> None:
        from s3fs import S3FileSystem

        buckets._opened.cache_clear()
        S3FileSystem.clear_instance_cache()
