"""TLS and mutual TLS: what is right works, and what is wrong is one line that says so."""

from __future__ import annotations

import asyncio
import ssl
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import upsnet
from tests.conftest import photo_of, scene
from tests.upsnet.client.fake_server import FakeServer, grpc
from tests.upsnet.client.fake_server import server as server
from upsnet.command_line import predict

trustme = pytest.importorskip("trustme", reason="needs trustme")


class Files:
    """An authority, certificates that it signed, and one that another signed."""

    def __init__(self, folder: Path) -> None:
        self.authority, self.stranger = trustme.CA(), trustme.CA()
        self.ca, self.other_ca = folder / "ca.pem", folder / "other_ca.pem"
        self.authority.cert_pem.write_to_path(str(self.ca))
        self.stranger.cert_pem.write_to_path(str(self.other_ca))
        for name, authority in (("client", self.authority), ("unknown", self.stranger)):
            issued = authority.issue_cert(f"{name}@example.org")
            issued.private_key_pem.write_to_path(str(folder / f"{name}.key"))
            issued.cert_chain_pems[0].write_to_path(str(folder / f"{name}.pem"))
        self.folder = folder

    def tls(self, name: str) -> upsnet.Tls:
        return upsnet.Tls(self.ca, self.folder / f"{name}.pem", self.folder / f"{name}.key")

    def serve(self, host: str = "127.0.0.1", mutual: bool = False) -> FakeServer:
        issued = self.authority.issue_cert(host)
        pair = (issued.private_key_pem.bytes(), issued.cert_chain_pems[0].bytes())
        ca = self.authority.cert_pem.bytes() if mutual else None
        return FakeServer(credentials=grpc.ssl_server_credentials([pair], ca, mutual))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return Files(tmp_path_factory.mktemp("tls"))


@pytest.fixture(params=[False, True], ids=["TLS", "mutual TLS"])
def secure(files: Files, request: pytest.FixtureRequest) -> Iterator[tuple[FakeServer, Any]]:
    running = files.serve(mutual=request.param)
    yield running, files.tls("client") if request.param else files.ca
    running.stop()


def test_the_right_files(secure: tuple[FakeServer, Any]) -> None:
    running, tls = secure
    photo = photo_of(scene(0))
    with upsnet.Client(running.url, tls=tls) as client, upsnet.load(running.url, tls=tls) as model:
        assert client.predict(photo).segments == model.predict(photo).segments
        assert client.health().ready

    async def main() -> None:
        async with upsnet.AsyncClient(running.url, tls=tls) as client:
            assert (await client.predict(photo)).segments

    asyncio.run(main())


def test_predict(files: Files, tmp_path: Path) -> None:
    running = files.serve(mutual=True)
    Image.fromarray(photo_of(scene(0))).save(tmp_path / "photo.png")
    ca, cert, key = files.tls("client")
    given, out = [str(tmp_path / "photo.png")], str(tmp_path / "out")
    predict.main(photos=given, out=out, url=running.url, tls_ca=Path(ca), tls_cert=Path(cert), tls_key=Path(key))  # type: ignore[arg-type]
    assert (tmp_path / "out/predictions/photo.png").is_file()
    with pytest.raises(upsnet.InputError, match=r"is refused: unable to get local issuer certificate"):
        predict.main(photos=given, out=out, url=running.url)
    running.stop()


def refused(url: str, message: str, tls: Any = None) -> None:
    for connect in (upsnet.Client, upsnet.load):
        with pytest.raises(upsnet.InputError, match=message) as caught:
            connect(url, tls=tls)
        assert "\n" not in str(caught.value)


def test_wrong_certificates(files: Files) -> None:
    running = files.serve()
    address = f"127.0.0.1:{running.port}"
    refused(running.url, f"^the certificate of the server at {address} is refused: unable to get local issuer .*tls=")
    refused(running.url, f"^the certificate of the server at {address} is refused: unable to get", files.other_ca)
    refused(
        f"grpc://{address}",
        f"^a server with TLS answers at {address}, and is asked without: grpcs://{address} asks with it",
    )
    running.stop()
    running = files.serve("example.org")
    refused(running.url, "is refused: IP address mismatch, certificate is not valid for '127.0.0.1'; .*name", files.ca)
    running.stop()


def test_a_client_without_its_certificate(files: Files) -> None:
    running = files.serve(mutual=True)
    message = (
        f"^the server at 127.0.0.1:{running.port} ends the connection.*: it may want another certificate .*, tls=Tls"
    )
    for tls in (files.ca, files.tls("unknown")):
        refused(running.url, message, tls)
    running.stop()


def test_a_server_without_tls(server: FakeServer) -> None:
    address = f"127.0.0.1:{server.port}"
    refused(f"grpcs://{address}", f"^the server at {address} speaks no TLS .*; without TLS: grpc://{address}$")


def test_the_rest_port_of_a_server_with_tls(files: Files) -> None:
    """It says what it is, and not that it was asked without TLS."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b'{"name":"triton","version":"2.51.0"}' if self.path == "/v2" else b"")

        def log_message(self, *args: object) -> None:
            pass

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    files.authority.issue_cert("127.0.0.1").configure_cert(context)
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        http.socket = context.wrap_socket(http.socket, server_side=True)
        threading.Thread(target=http.serve_forever, daemon=True).start()
        address = f"127.0.0.1:{http.server_port}"
        refused(
            f"grpcs://{address}", f"^{address} is the HTTP port of a Triton server; give host:port of its", files.ca
        )
        refused(f"grpc://{address}", f"^a server with TLS answers at {address}, and it speaks no gRPC; give host:port")
        http.shutdown()


def test_bad_files(files: Files, tmp_path: Path) -> None:
    text = tmp_path / "text.pem"
    text.write_text("words")
    for tls, message in (
        (text, f"^{text}: cannot be read as certificates"),
        (tmp_path / "none.pem", f"^{tmp_path}/none.pem: cannot be read as certificates .*: .*No such file"),
        (upsnet.Tls(files.ca, files.ca, text), f"^{files.ca} and {text}: no certificate and its key"),
        (files.tls("client")._replace(key=files.folder / "unknown.key"), "no certificate and its key .*mismatch"),
        (upsnet.Tls(files.ca, cert=files.ca), "give both, cert and key"),
    ):
        refused("grpcs://127.0.0.1:1", message, tls)
