"""fsspec's file systems, asked so that what fails for a moment is asked again, and what fails is said in one line.

The only file that imports fsspec. `upsnet.storage` is what others use.
"""

from __future__ import annotations

import functools
import logging
import os
import random
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, TypeVar

from upsnet.errors import InputError, ServerError, first_line
from upsnet.files import FULL, WriteError

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem as System

T = TypeVar("T")

URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
S3, GCS = ("s3", "s3a"), ("gs", "gcs")
# A file there appears whole or not at all.
WRITTEN = (*S3, *GCS, "az", "abfs", "abfss", "oss", "oci", "memory")

ATTEMPTS = 6
WAIT = 0.5  # seconds before the second attempt, more or less; twice as long before each further one
PATIENCE = 180.0  # seconds after which no further attempt begins

BUSY = (408, 425, 429, 500, 502, 503, 504)  # HTTP; another attempt may help
REFUSED = (401, 403)
BUSY_CODES = ("RequestTimeout", "OperationAborted")  # S3's, with a status that says otherwise
# What is raised where a connection or an answer breaks, by name: no package is imported to ask for its own.
BROKEN = {
    *("TimeoutError", "ConnectionError"),  # Python
    *("HTTPClientError", "IncompleteReadError", "ResponseParserError"),  # botocore
    *("ClientConnectionError", "ClientPayloadError", "IncompleteRead", "ProtocolError"),  # aiohttp, http, urllib3
}
CUT = ("ClientPayloadError", "IncompleteRead", "IncompleteReadError", "ResponseStreamingError")
CERTIFICATE = {"SSLError", "ClientSSLError", "ClientConnectorCertificateError", "SSLCertVerificationError"}
NO_KEYS = {
    *("NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError", "ProfileNotFound"),
    *("TokenRetrievalError", "SSOTokenLoadError", "UnauthorizedSSOTokenError", "DefaultCredentialsError"),
    *("RefreshError",),
}
# S3's words for keys that would be refused for any file.
BAD_KEYS = {
    "InvalidAccessKeyId": "no such key",
    "SignatureDoesNotMatch": "the secret is not this key's",
    "ExpiredToken": "they have expired",
    "InvalidToken": "the session token is not valid",
    "TokenRefreshRequired": "they have expired",
    "RequestTimeTooSkewed": "this machine's clock is wrong",
}
CURES = {
    "s3": "set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (a public bucket: FSSPEC_S3_ANON=true)",
    "gs": "gcloud auth application-default login, or set GOOGLE_APPLICATION_CREDENTIALS (public: FSSPEC_GS_TOKEN=anon)",
}

logger = logging.getLogger("upsnet")


def is_url(place: object) -> bool:
    """Whether it is text with a scheme, as s3://bucket/name."""
    return isinstance(place, str) and URL.match(place) is not None


def shown(place: str) -> str:
    """A place as messages have it: of http:// and https:// without what follows the ?, which may be a signature."""
    return place.partition("?")[0] if place[:4].lower() == "http" and is_url(place) else place


def check_output(place: str) -> None:
    """Before long work: WriteError for a URL that is not written, or that ends with the process. Asks nobody."""
    if is_url(place) and _kind(place) not in ("file", "local"):
        _check(place, writing=True)
        if _kind(place) == "memory":
            raise WriteError(place, "it ends with this process; give a path, or a bucket (s3://, gs://, az://)")


def is_s3(place: str) -> bool:
    return _kind(place) in S3


def information(system: System, place: str) -> dict[str, Any]:
    """Of a file. Where the answer to a HEAD is a refusal, it has no body that says why; that to a GET has."""
    try:
        found: dict[str, Any] = system.info(place)
    except Exception as error:
        if status_of(error) in REFUSED and not _code(error):
            system.cat_file(place, start=0, end=1)
        raise
    return found


def ask(place: str, question: Callable[[System], T], writing: bool = False) -> T:
    """What fsspec's file system for this kind of URL answers; again where it failed for a moment.

    Raises InputError (WriteError) where it never would, ServerError where the bucket or the way to it is the reason.
    """
    _check(place, writing)
    begun = time.monotonic()
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return question(_system(place))
        except InputError:
            raise
        except Exception as error:  # each file system has its own
            seconds = time.monotonic() - begun
            if not is_passing(error):
                raise _failure(place, error, writing) from error
            if attempt == ATTEMPTS or seconds > PATIENCE:
                tried = f"{attempt} attempt{'s' * (attempt != 1)} in {seconds:.0f} s"
                raise ServerError(f"{_cannot(place, writing)}: {_reason(error)} ({tried})", "UNAVAILABLE") from error
            repeats.count(place, _reason(error))
        time.sleep(WAIT * 2 ** (attempt - 1) * random.uniform(0.5, 1))  # many workers do not come back at once
    raise AssertionError


def is_passing(error: BaseException) -> bool:
    """Whether another attempt may help: a connection or an answer that broke, a timeout, a server that is busy."""
    kinds = {kind.__name__ for each in _chain(error) for kind in type(each).__mro__}
    if kinds & (CERTIFICATE | NO_KEYS):
        return False
    return bool(kinds & BROKEN) or status_of(error) in BUSY or _code(error) in BUSY_CODES


def status_of(error: BaseException) -> int | None:
    """HTTP's, where a server answered."""
    for each in _chain(error):
        response = getattr(each, "response", None)
        if isinstance(response, dict):  # botocore
            code = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        else:  # aiohttp, gcsfs
            code = getattr(each, "status", None) or getattr(each, "code", None)
        if str(code).isdecimal() and 300 <= int(str(code)) < 600:
            return int(str(code))
    return None


def is_no_bucket(error: BaseException) -> bool:
    return _code(error) == "NoSuchBucket"


class Repeats:
    """How many requests were sent again, by bucket. The log has the first, the tenth, the hundredth and so on."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._renew_lock()
        os.register_at_fork(after_in_child=self._renew_lock)

    def count(self, place: str, why: str) -> None:
        bucket = "/".join(place.split("/")[:3])
        with self._lock:
            self.counts[bucket] += 1
            count = self.counts[bucket]
        if str(count).strip("0") == "1":
            times = "" if count == 1 else f", for the {count}th time"
            logger.warning("%s: %s; tried again%s", bucket, why, times)

    def _renew_lock(self) -> None:
        self._lock = threading.Lock()


repeats = Repeats()


def has_password(place: str) -> bool:
    """Of a URL, as ftp://user:password@host."""
    user, at, _ = place.partition("://")[2].partition("/")[0].rpartition("@")
    return is_url(place) and bool(at) and ":" in user


def _check(place: str, writing: bool) -> None:
    kind = _kind(place)
    if has_password(place):
        raise InputError(
            f"{kind}://: a password in a URL would end up in logs; give it as the package for {kind} takes it"
        )
    if not place.startswith(f"{kind}://"):
        raise InputError(f"{shown(place)}: write {kind}:// in small letters")
    if writing and kind not in WRITTEN:
        reason = "what breaks off would stay there; give a path, or a bucket (s3://, gs://, az://)"
        raise WriteError(shown(place), reason)


def _kind(place: str) -> str:
    return place.partition("://")[0].lower()


def _failure(place: str, error: Exception, writing: bool) -> InputError:
    """What no other attempt would help."""
    kinds = {kind.__name__ for each in _chain(error) for kind in type(each).__mro__}
    keys = BAD_KEYS.get(_code(error), "")
    kind = _kind(place).replace("s3a", "s3").replace("gcs", "gs")
    cure = f"; {CURES[kind]}" if kind in CURES else ""
    if keys or kinds & NO_KEYS:
        why = f"the credentials are refused: {keys}" if keys else "no credentials were found"
        return ServerError(f"{_cannot(place, writing)}: {why}{cure}", "UNAUTHENTICATED")
    if kinds & CERTIFICATE:
        return ServerError(
            f"{_cannot(place, writing)}: the server's certificate is refused ({_reason(error)})", "UNAVAILABLE"
        )
    if isinstance(error, FileNotFoundError):
        return InputError(f"{shown(place)}: no such {'bucket' if is_no_bucket(error) else 'file'}")
    if isinstance(error, OSError) and error.errno in FULL:
        raise error  # this machine's disk
    if isinstance(error, PermissionError) or status_of(error) in REFUSED:
        reason = "the credentials do not allow it"
        if not writing:
            reason += ", or it is not there and they do not allow to list it"
        if not _code(error):  # an answer without words
            reason += f", or they are wrong{cure}"
        return InputError(f"{_cannot(place, writing)}: {reason}")
    return (
        WriteError(shown(place), _reason(error))
        if writing
        else InputError(f"{_cannot(place, False)}: {_reason(error)}")
    )


def _cannot(place: str, writing: bool) -> str:
    return f"{shown(place)}: cannot be {'written' if writing else 'read'}"


def _reason(error: BaseException) -> str:
    if any(type(each).__name__ in CUT for each in _chain(error)):
        return "the answer broke off"
    status = status_of(error)
    if status is not None and (status in BUSY):
        return f"the server says {status}" + (f" ({_code(error)})" if _code(error) else "")
    if any(type(each).__name__ == "ParamValidationError" for each in _chain(error)):  # before anybody was asked
        return "no bucket, or no name in it, by this address"
    return first_line(error).removeprefix(f"[Errno {getattr(error, 'errno', None)}] ")


def _code(error: BaseException) -> str:
    """S3's word for what is wrong; '' where there is none."""
    for each in _chain(error):
        response = getattr(each, "response", None)
        if isinstance(response, dict) and not str(code := response.get("Error", {}).get("Code", "")).isdecimal():
            return str(code)
    return ""


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An exception and those that it was made of."""
    while error is not None:
        yield error
        error = error.__cause__


def _system(place: str) -> System:
    """One for all threads of a process. Raises InputError where the package for this kind of URL is not installed."""
    kind = _kind(place)
    try:
        from fsspec import get_filesystem_class

        options = get_filesystem_class(kind)._get_kwargs_from_urls(place)
    except ImportError as error:
        ours = find_spec("fsspec") is None or kind in (*S3, *GCS)
        cure = ": pip install 'upsnet-trt[remote]'" if ours else ""
        raise InputError(f"{shown(place)}: needs a package ({first_line(error)}){cure}") from None
    except ValueError as error:
        raise InputError(f"{place}: {first_line(error)}; give a path, s3:// or gs://") from None
    return _opened(os.getpid(), kind, tuple(sorted(options.items())))


@functools.lru_cache(maxsize=64)
def _opened(process: int, kind: str, options: tuple[tuple[str, Any], ...]) -> System:
    """process: connections of the process that this one was forked from are not used. Listings are asked for anew."""
    from fsspec import filesystem

    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # it logs the traceback of what it raises
    # One request for a file, rather than one for its size and then parts of it; parts are for what is written.
    more = {"max_concurrency": 1} if kind in S3 else {}
    system: Any = filesystem(kind, use_listings_cache=False, **more, **dict(options))
    if kind in S3:
        system.retries = 1  # `ask` has its own; below it botocore repeats single requests, as AWS_MAX_ATTEMPTS says
        system.s3.meta.events.register("needs-retry.s3", _count_repeated)
    return system


def _count_repeated(attempts: int, request_dict: dict[str, Any], **_: Any) -> None:
    """botocore tells of each attempt at a request, here of those that were not the first."""
    if attempts > 1:
        bucket = request_dict.get("context", {}).get("s3_redirect", {}).get("bucket", "")
        repeats.count(f"s3://{bucket}", "a request failed for a moment")
