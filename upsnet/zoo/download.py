"""One large file over HTTP. What has come of it stays, and the next call goes on from there.

requests has the transfer: proxies and certificates from the environment (HTTPS_PROXY, NO_PROXY, REQUESTS_CA_BUNDLE).
What it leaves to its users, as pooch on top of it does, is here: to go on after a break, and to know whether what has
come is still the beginning of what the server has.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urljoin, urlsplit

import requests
from filelock import FileLock, Timeout
from pydantic import BaseModel, ValidationError
from tqdm import tqdm

import upsnet
from upsnet.errors import InputError, first_line
from upsnet.files import existing_folder, read_json, write_json, writing

BLOCK = 1 << 16  # bytes; of a break, what has come of a block is lost
TIMEOUTS = (10.0, 60.0)  # seconds: for a connection, and between two pieces of an answer
ATTEMPTS = 4  # that bring nothing new
WAIT = 0.5  # seconds before the second attempt; twice as long before each further one
MOST_WAIT = 30.0
REDIRECTS = 5
BUSY = (408, 425, 429, 500, 502, 503, 504)  # another attempt may help


class DownloadError(InputError):
    """A file that did not come. Another copy of it, fetched in another way, would do."""


class _Broken(Exception):
    """One attempt failed, and another one may not. `wait`: seconds, where the server says how many."""

    def __init__(self, why: str, wait: float = 0.0) -> None:
        super().__init__(why)
        self.wait = wait


class Begun(BaseModel):
    """What the server said of the file whose beginning has come. validator: for If-Range; "" where it gives none."""

    address: str
    validator: str = ""
    length: int | None = None


class Partial:
    """The beginning of a file, and beside it, as JSON, what it is the beginning of."""

    def __init__(self, target: Path) -> None:
        self.path, self.note = (target.with_name(f"{target.name}.partial{end}") for end in ("", ".json"))

    @property
    def size(self) -> int:
        return self.path.stat().st_size if self.path.is_file() else 0

    def begun(self, address: str) -> Begun | None:
        """None where nothing has come yet of what lies at that address, as far as anybody knows."""
        if not self.size or not self.note.is_file():
            return None
        try:
            begun = Begun.model_validate(read_json(self.note))
        except (InputError, ValidationError):
            return None
        return begun if begun.address == address and (begun.validator or begun.length) else None

    def start(self, begun: Begun) -> None:
        self.path.unlink(missing_ok=True)
        write_json(self.note, begun.model_dump())

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)
        self.note.unlink(missing_ok=True)


@contextmanager
def alone(lock: Path) -> Iterator[None]:
    """Of all processes one is inside; the others wait. The lock is the kernel's, and ends with its process.

    InputError, which names the lock's folder: it cannot be made, or not written to.
    """
    with writing(lock.parent):
        existing_folder(lock.parent)
        lock.parent.mkdir(parents=True, exist_ok=True)
        held = FileLock(lock, fallback_to_soft=False)
        try:
            held.acquire(blocking=False)
        except Timeout:
            print(f"another process is at work there and holds {lock}; waiting for it", file=sys.stderr)
            held.acquire()
    try:
        yield
    finally:
        held.release()


def download(address: str, target: Path) -> None:
    """`target` appears when all of it is there; until then what has come is in `target`.partial.

    DownloadError: no connection, a refusal, an answer that breaks off again and again. WriteError: no room on the disk.
    """
    partial = Partial(target)
    best, failures = partial.size, 0
    with requests.Session() as session:
        session.headers["User-Agent"] = f"{upsnet.DISTRIBUTION}/{upsnet.__version__}"
        session.headers["Accept-Encoding"] = "identity"  # a range is of the bytes that are sent
        while True:
            try:
                _attempt(session, address, partial)
                break
            except _Broken as error:
                failures = 0 if partial.size > best else failures + 1
                best = max(best, partial.size)
                if failures == ATTEMPTS:
                    raise DownloadError(f"{address}: {error}{_kept(partial)}") from None
                time.sleep(min(error.wait or WAIT * 2 ** max(0, failures - 1), MOST_WAIT))
    with writing(target):
        os.replace(partial.path, target)
    partial.remove()


def _kept(partial: Partial) -> str:
    return f"; {partial.size / 1e6:.1f} MB have come, and the same command goes on from there" if partial.size else ""


def _attempt(session: requests.Session, address: str, partial: Partial) -> None:
    """All of it is in the partial file at the end, or _Broken."""
    begun = partial.begun(address)
    if begun is not None and partial.size == begun.length:
        return
    headers = {}
    if begun is not None:
        headers = {"Range": f"bytes={partial.size}-"} | ({"If-Range": begun.validator} if begun.validator else {})
    try:
        with _open(session, address, headers) as response:
            start, length = _place(response, partial, begun)
            if start == 0:
                partial.start(Begun(address=address, validator=_validator(response), length=length))
            _copy(response, partial, start, length)
    except requests.exceptions.SSLError as error:
        cure = "REQUESTS_CA_BUNDLE names the file of another authority"
        raise DownloadError(f"{address}: the server's certificate is refused ({_reason(error)}); {cure}") from None
    except requests.Timeout:
        raise _Broken("no answer in time") from None
    except (requests.ConnectionError, requests.exceptions.ChunkedEncodingError) as error:
        raise _Broken(f"no connection, or it broke ({_reason(error)})") from None
    except requests.RequestException as error:  # no address, for one
        raise DownloadError(f"{address}: {first_line(error)}") from None
    if length is not None and partial.size != length:
        raise _Broken(f"it ended after {partial.size} of {length} bytes")


def _open(session: requests.Session, address: str, headers: dict[str, str]) -> requests.Response:
    """The answer 200 or 206, after redirects, which may lead to https alone."""
    place = address
    for _ in range(REDIRECTS + 1):
        response = session.get(place, headers=headers, stream=True, timeout=TIMEOUTS, allow_redirects=False)
        try:
            _check_status(response, address)
            target = session.get_redirect_target(response)
        except Exception:
            response.close()
            raise
        if target is None:
            return response
        response.close()
        place = urljoin(place, target)
        if urlsplit(place).scheme != "https":
            raise DownloadError(f"{address}: it leads on to {place}, which is not https, and is not followed")
    raise DownloadError(f"{address}: it leads on to other addresses more than {REDIRECTS} times")


def _check_status(response: requests.Response, address: str) -> None:
    status = response.status_code
    said = f"the server says {status} {response.reason or ''}".rstrip()
    if status in BUSY:
        wait = response.headers.get("Retry-After", "")
        raise _Broken(said, float(wait) if wait.isdecimal() else 0.0)
    if not (status in (200, 206, 416) or response.is_redirect):
        raise DownloadError(f"{address}: {said}")


def _place(response: requests.Response, partial: Partial, begun: Begun | None) -> tuple[int, int | None]:
    """Where in the file the answer begins, and how long the file is. _Broken, and what has come goes, where they do not
    fit together: the file is another one by now, or the server has no idea of ranges."""
    if response.status_code == 200:
        length = response.headers.get("Content-Length", "")
        return 0, int(length) if length.isdecimal() else None
    unit, _, rest = response.headers.get("Content-Range", "").partition(" ")
    span, _, whole = rest.partition("/")
    first = span.partition("-")[0]
    total = int(whole) if whole.isdecimal() else None
    fits = begun is not None and unit == "bytes" and first == str(partial.size) and begun.length in (None, total)
    if response.status_code != 206 or not fits:
        partial.remove()
        raise _Broken("the server's file is not the one that had begun to come")
    return partial.size, total


def _validator(response: requests.Response) -> str:
    """What If-Range takes: a strong ETag, else the date."""
    tag = response.headers.get("ETag", "")
    return tag if tag.startswith('"') else response.headers.get("Last-Modified", "")


def _copy(response: requests.Response, partial: Partial, start: int, length: int | None) -> None:
    """Appends to what has come. WriteError before the first byte where the disk has no room for the last."""
    with writing(partial.path):
        room = shutil.disk_usage(partial.path.parent).free
        if length is not None and length - start > room:
            raise OSError(
                None, f"{(length - start) / 1e6:.0f} MB are missing, and the disk has room for {room / 1e6:.0f}"
            )
        stream = open(partial.path, "ab")  # noqa: SIM115
    name = partial.path.name.removesuffix(".partial")
    with stream, tqdm(desc=name, total=length, initial=start, unit="B", unit_scale=True, disable=None) as bar:
        for block in response.iter_content(BLOCK):
            with writing(partial.path):
                stream.write(block)
                stream.flush()
            bar.update(len(block))


def _reason(error: Exception) -> str:
    """The innermost cause, without the objects that requests puts around it."""
    inner: BaseException = error
    while (cause := getattr(inner, "reason", None) or next(iter(getattr(inner, "args", ())), None)) is not None:
        if not isinstance(cause, BaseException):
            break
        inner = cause
    return first_line(inner).rpartition(": ")[2] if inner is not error else type(error).__name__
