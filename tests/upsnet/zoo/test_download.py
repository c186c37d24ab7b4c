"""Downloads that break, from servers that help and servers that do not."""

from __future__ import annotations

import signal
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.small_disk import small_disk
from tests.upsnet.zoo.server import CONTENT, Files, serving
from upsnet.errors import InputError
from upsnet.files import WriteError
from upsnet.zoo import download as downloads
from upsnet.zoo.download import DownloadError, Partial, alone, download

trustme = pytest.importorskip("trustme", reason="needs trustme")


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "model.pkl"


def ranges(files: Files) -> list[str | None]:
    return [headers.get("Range") for headers in files.asked]


def cut(files: Files, target: Path, *cuts: int) -> None:
    """A download that ends in an error after that many bytes each time."""
    files.cuts = [*cuts]
    while len(files.cuts) < downloads.ATTEMPTS + len(cuts):
        files.cuts.append(0)
    with pytest.raises(DownloadError, match="MB have come, and the same command goes on from there"):
        download(files.address, target)
    files.cuts.clear()
    files.asked.clear()
    assert not target.exists()


def test_a_whole_file(files: Files, target: Path) -> None:
    download(files.address, target)
    assert target.read_bytes() == CONTENT and list(target.parent.iterdir()) == [target]
    assert ranges(files) == [None] and files.asked[0]["Accept-Encoding"] == "identity"


def test_a_file_of_unknown_length(files: Files, target: Path) -> None:
    files.lengthless = True
    download(files.address, target)
    assert target.read_bytes() == CONTENT


def test_it_goes_on_where_it_broke(files: Files, target: Path) -> None:
    files.cuts = [1_000_000, 500_000]
    download(files.address, target)
    assert target.read_bytes() == CONTENT and list(target.parent.iterdir()) == [target]
    assert ranges(files) == [None, "bytes=1000000-", "bytes=1500000-"]
    assert files.asked[2]["If-Range"] == '"one"'


def test_another_call_goes_on_where_the_last_one_ended(files: Files, target: Path) -> None:
    cut(files, target, 700_000)
    download(files.address, target)
    assert target.read_bytes() == CONTENT and ranges(files) == ["bytes=700000-"]


def test_a_file_that_has_changed_starts_anew(files: Files, target: Path) -> None:
    cut(files, target, 700_000)
    files.etag, files.content = '"two"', CONTENT[::-1]
    download(files.address, target)
    assert target.read_bytes() == CONTENT[::-1]


@pytest.mark.parametrize("etag", ["", 'W/"weak"'])
def test_without_a_strong_etag_the_length_tells(files: Files, target: Path, etag: str) -> None:
    files.etag = etag
    cut(files, target, 700_000)
    files.content = CONTENT[:-1]
    download(files.address, target)
    assert target.read_bytes() == CONTENT[:-1] and ranges(files) == ["bytes=700000-", None]


def test_a_server_without_ranges_starts_anew(files: Files, target: Path) -> None:
    files.ranges = False
    files.cuts = [1_000_000, 2_000_000]
    download(files.address, target)
    assert target.read_bytes() == CONTENT


def test_a_server_without_ranges_that_always_breaks_off(files: Files, target: Path) -> None:
    files.ranges = False
    files.cuts = [1_000_000] * 20
    with pytest.raises(DownloadError, match=r"IncompleteRead|ended after"):
        download(files.address, target)
    assert len(files.asked) == downloads.ATTEMPTS + 1 and not target.exists()


def test_what_came_from_another_address_is_not_gone_on_from(files: Files, target: Path) -> None:
    cut(files, target, 700_000)
    with serving(Files(content=CONTENT[::-1])) as other:
        download(other.address, target)
    assert target.read_bytes() == CONTENT[::-1]


def test_more_than_the_file_has_come(files: Files, target: Path) -> None:
    """416: somebody's file, or half of a longer one."""
    partial = Partial(target)
    partial.start(downloads.Begun(address=files.address, validator='"one"', length=9_000_000))
    partial.path.write_bytes(b"x" * 4_000_000)
    download(files.address, target)
    assert target.read_bytes() == CONTENT and ranges(files) == ["bytes=4000000-", None]


def test_all_of_it_had_come(files: Files, target: Path) -> None:
    partial = Partial(target)
    partial.start(downloads.Begun(address=files.address, length=len(CONTENT)))
    partial.path.write_bytes(CONTENT)
    download(files.address, target)
    assert target.read_bytes() == CONTENT and not files.asked and list(target.parent.iterdir()) == [target]


@pytest.mark.parametrize("note", ["", "{", '{"address": 1}', "[]"])
def test_a_broken_note_starts_anew(files: Files, target: Path, note: str) -> None:
    cut(files, target, 700_000)
    Partial(target).note.write_text(note)
    download(files.address, target)
    assert target.read_bytes() == CONTENT and ranges(files) == [None]


@pytest.mark.parametrize("status", [401, 403, 404, 410])
def test_a_refusal_is_final(files: Files, target: Path, status: int) -> None:
    files.statuses = [status] * 9
    with pytest.raises(DownloadError, match=rf"model_final_abc123\.pkl: the server says {status} \w+"):
        download(files.address, target)
    assert len(files.asked) == 1 and not list(target.parent.iterdir())


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_busy_server_is_asked_again(files: Files, target: Path, status: int) -> None:
    files.statuses, files.headers = [status] * 2, {"Retry-After": "0"}
    download(files.address, target)
    assert target.read_bytes() == CONTENT and len(files.asked) == 3
    files.statuses = [status] * 9
    with pytest.raises(DownloadError, match=f"the server says {status}"):
        download(files.address, target.with_name("other"))


def test_no_connection(target: Path, files: Files) -> None:
    with pytest.raises(DownloadError, match=r"127\.0\.0\.1:1/x: no connection, or it broke \(.*refused"):
        download("http://127.0.0.1:1/x", target)


@pytest.mark.parametrize("address", ["gopher://x/y", "x", "", "http://", "http://[1/x"])
def test_what_is_no_address(target: Path, address: str) -> None:
    with pytest.raises(DownloadError):
        download(address, target)


def test_a_server_that_falls_silent(files: Files, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(downloads, "TIMEOUTS", (1.0, 0.1))
    files.silence = 0.3
    with pytest.raises(DownloadError, match=r"no answer in time|timed out"):
        download(files.address, target)


def test_a_full_disk_keeps_what_has_come(files: Files, target: Path) -> None:
    with (
        small_disk(1_500_000),
        pytest.raises(WriteError, match=r"model\.pkl\.partial: cannot be written: File too large"),
    ):
        download(files.address, target)
    assert 0 < Partial(target).size <= 1_500_000
    download(files.address, target)
    assert target.read_bytes() == CONTENT and ranges(files)[1] is not None


def test_a_disk_without_room_is_found_before_the_first_byte(
    files: Files, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(downloads.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1_000_000}))
    with pytest.raises(WriteError, match=r"3 MB are missing, and the disk has room for 1$"):
        download(files.address, target)
    assert Partial(target).size == 0


def test_through_a_proxy(files: Files, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", files.address.rpartition("/")[0])
    download("http://weights.invalid/of/model.pkl", target)
    assert target.read_bytes() == CONTENT and files.paths == ["http://weights.invalid/of/model.pkl"]


def test_it_follows_to_https_alone(files: Files, target: Path) -> None:
    for place in ("http://127.0.0.1:1/other", "/other", "ftp://127.0.0.1/x"):
        files.statuses, files.headers = [302], {"Location": place}
        with pytest.raises(DownloadError, match=r"it leads on to .*, which is not https, and is not followed"):
            download(files.address, target)


@pytest.fixture
def secure(files: Files, tmp_path: Path) -> Iterator[tuple[Files, Path]]:
    """The same over https, and the authority of its certificate."""
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    authority.cert_pem.write_to_path(tmp_path / "authority.pem")
    with serving(Files(), context) as found:
        yield found, tmp_path / "authority.pem"


def test_https_after_a_redirect(
    files: Files, secure: tuple[Files, Path], target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there, authority = secure
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(authority))
    there.cuts = [1_000_000]
    files.statuses, files.headers = [302, 302], {"Location": there.address}
    download(files.address, target)
    assert target.read_bytes() == CONTENT and ranges(there) == [None, "bytes=1000000-"]


def test_a_certificate_of_nobody(secure: tuple[Files, Path], target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("REQUESTS_CA_BUNDLE", raising=False)
    monkeypatch.delenv("CURL_CA_BUNDLE", raising=False)
    with pytest.raises(DownloadError, match=r"certificate is refused .*; REQUESTS_CA_BUNDLE names"):
        download(secure[0].address, target)


def test_round_in_circles(secure: tuple[Files, Path], target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there, authority = secure
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(authority))
    there.statuses, there.headers = [307] * 9, {"Location": "/again"}
    with pytest.raises(DownloadError, match="more than 5 times"):
        download(there.address, target)


def test_ctrl_c_keeps_what_has_come(files: Files, target: Path) -> None:
    files.pause = 0.05
    code = (
        "import sys, upsnet.zoo.download as downloads; downloads.BLOCK = 100_000\n"
        f"downloads.download({files.address!r}, __import__('pathlib').Path({str(target)!r}))"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 30
    while Partial(target).size < 200_000 and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == -signal.SIGINT
    came = Partial(target).size
    assert 200_000 <= came < len(CONTENT) and not target.exists()
    files.pause = 0.0
    files.asked.clear()
    download(files.address, target)
    assert target.read_bytes() == CONTENT and ranges(files) == [f"bytes={came}-"]


def test_one_at_a_time(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    inside: list[str] = []

    def work(name: str) -> None:
        with alone(tmp_path / "there/lock"):
            inside.append(name)
            time.sleep(0.1)
            inside.append(name)

    threads = [threading.Thread(target=work, args=[name]) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert inside in (["a", "a", "b", "b"], ["b", "b", "a", "a"])
    assert capfd.readouterr().err.count("waiting for it") == 1


def test_a_place_that_cannot_be(files: Files, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file/deeper"):
        with pytest.raises(InputError) as error, alone(folder / "lock"):
            pass
        assert str(error.value) == f"{folder}: {tmp_path / 'file'} is a file, not a folder"
    with pytest.raises(InputError, match=r"^/proc/none: cannot be written: "), alone(Path("/proc/none/lock")):
        pass
