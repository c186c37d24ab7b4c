"""A bucket: real S3 by moto in a process of its own, on 127.0.0.1, which answers badly where a test says so."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.bucket_server import Fault
from upsnet import buckets, storage

SERVER = Path(__file__).with_name("bucket_server.py")


class Bucket:
    """`url` is s3://NAME, and `environment` what another process needs to find it."""

    def __init__(self, address: str, name: str) -> None:
        self.address, self.url = address, f"s3://{name}"
        self.environment = {
            "AWS_ENDPOINT_URL": address,
            "AWS_ACCESS_KEY_ID": "testing",
            "AWS_SECRET_ACCESS_KEY": "hidden-from-all-logs",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_MAX_ATTEMPTS": "1",  # upsnet.buckets alone repeats: a test can count
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
        }

    def at(self, name: str) -> str:
        return f"{self.url}/{name}"

    def faults(self, *faults: Fault) -> None:
        """From now on these, and no others; what was seen is forgotten."""
        self._ask("PUT", "/-/faults", json.dumps([vars(each) for each in faults]).encode())

    def seen(self) -> list[str]:
        """Requests as `GET /bucket/name bytes=0-99`, since the faults were ordered."""
        return json.loads(self._ask("GET", "/-/seen"))

    def put_folder(self, folder: Path, name: str) -> str:
        """A folder's files as they are; returns its URL."""
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            storage.write(self.at(f"{name}/{path.relative_to(folder)}"), path.read_bytes())
        return self.at(name)

    def make(self) -> None:
        self._ask("PUT", f"/{self.url.removeprefix('s3://')}")

    def _ask(self, method: str, path: str, content: bytes | None = None) -> bytes:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        request = urllib.request.Request(self.address + path, content, method=method)
        with opener.open(request, timeout=30) as answer:
            body: bytes = answer.read()
        return body


@pytest.fixture(scope="session")
def bucket_server() -> Iterator[str]:
    for package in ("moto", "flask", "s3fs"):
        pytest.importorskip(package, reason=f"needs {package} of the extra dev: S3 on this machine")
    command = [sys.executable, str(SERVER)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout and process.stdin
        port = process.stdout.readline().strip()
        assert port.isdecimal(), "moto's server did not start"
        yield f"http://127.0.0.1:{port}"
        process.stdin.close()
        process.terminate()


@pytest.fixture
def bucket(bucket_server: str, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    """An empty one. Attempts follow each other without delay."""
    bucket = Bucket(bucket_server, f"test-{uuid.uuid4().hex[:12]}")
    for name, value in bucket.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(buckets, "WAIT", 0.001)
    bucket.faults()
    bucket.make()
    return bucket
