"""The address of a server: what is accepted, what is meant, and who answers at a wrong one."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from upsnet.errors import InputError
from upsnet.runtimes.address import check_grpc, parse_address

SETTINGS = bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
WANTED = r"; give host:port of its gRPC \(8001 unless the server was started with another --grpc-port\)$"
Listen = Callable[[bytes | None], str]


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("127.0.0.1:8001", "127.0.0.1:8001"),
        ("grpc://127.0.0.1:8001", "127.0.0.1:8001"),
        ("grpc://gpu-3.lab:9001/", "gpu-3.lab:9001"),
        ("localhost:65535/", "localhost:65535"),
        ("[::1]:8001", "[::1]:8001"),
        ("grpc://[fe80::1]:1", "[fe80::1]:1"),
    ],
)
def test_what_is_accepted(url: str, address: str) -> None:
    assert parse_address(url) == address


@pytest.mark.parametrize(
    ("url", "cure"),
    [
        ("http://host:9001", "; write host:9001"),
        ("https://host:9001/", "; write host:9001"),
        ("HTTP://host:8000/v2/health/ready?x=1", "; write host:8001"),
        ("http://host:8002/metrics", "; write host:8001"),
        ("http://host", "; write host:8001"),
        ("host", "; write host:8001"),
        ("host:", "; write host:8001"),
        ("host:0", "; write host:8001"),
        ("host:9001//", "; write host:9001"),
        ("host:9001/upsnet", "; write host:9001"),
        ("grpc://me:secret@host:9001", "; write host:9001"),
        (" host:9001\n", "; write host:9001"),
        ("9001", "; write 127.0.0.1:9001"),
        ("::1", "; write [::1]:8001"),
        ("::1:8001", "; write [::1]:8001"),
        ("[::1]", "; write [::1]:8001"),
        ("host:65536", ""),
        ("0:8001", ""),
        ("127.1:8001", ""),
        ("[127.0.0.1]:8001", ""),
        ("127.0.0.1:8001:8001", ""),
        ("unix:/tmp/triton.sock", ""),
        ("tests/upsnet", ""),  # a folder that is there
        ("host:-1", ""),
        ("host:port", ""),
        ("ho st:8001", ""),
        ("host:8001\0", ""),
        ("host:٨٠٠١", ""),
        ("grpc://", ""),
        (" ", ""),
        ("", ""),
    ],
)
def test_what_is_refused_with_the_cure(url: str, cure: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_address(url)
    message = str(caught.value)
    shown = url if url.isprintable() and url.strip() else repr(url)
    assert message == f"{shown}: a server is grpc://host:port, with the port of its gRPC (`make serve`: 8001){cure}"
    assert message.isprintable()


@pytest.fixture
def listen() -> Iterator[Listen]:
    """Starts a server that says the same to everybody and hangs up; None: that says nothing and does not hang up."""
    sockets: list[socket.socket] = []

    def start(words: bytes | None) -> str:
        server = socket.create_server(("127.0.0.1", 0))
        sockets.append(server)

        def answer() -> None:
            with suppress(OSError):  # the test is over
                while True:
                    connection, _ = server.accept()
                    sockets.append(connection)
                    if words is not None:
                        connection.sendall(words)
                        connection.shutdown(socket.SHUT_WR)

        threading.Thread(target=answer, daemon=True).start()
        return f"127.0.0.1:{server.getsockname()[1]}"

    yield start
    for each in sockets:
        each.close()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            b"SSH-2.0-OpenSSH_9.2\r\n\xff",
            r"^what answers at ADDRESS is no Triton server \(it says 'SSH-2.0-OpenSSH_9.2'\)",
        ),
        (b"\xff\x00\x01\nno", r"^what answers at ADDRESS is no Triton server \(it says '.{1,30}'\)"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "^an HTTP server that is no Triton answers at ADDRESS"),
        (b"<html>505</html>", "^an HTTP server that is no Triton answers at ADDRESS"),
        (b"", r"^what listens at ADDRESS is no Triton server \(it ends the connection\)"),
        (None, "^what listens at ADDRESS accepts connections, but says nothing within 0.2 s"),
    ],
)
def test_who_answers(listen: Listen, words: bytes | None, message: str) -> None:
    address = listen(words)
    with pytest.raises(InputError, match=message.replace("ADDRESS", address) + WANTED) as caught:
        check_grpc(address, seconds=0.2 if words is None else 10)
    assert str(caught.value).isprintable()


def test_grpc_is_let_in(listen: Listen) -> None:
    check_grpc(listen(SETTINGS))


@pytest.mark.parametrize(
    ("pages", "message"),
    [
        ({"/v2": b'{"name":"triton","version":"2.51.0"}'}, "ADDRESS is the HTTP port of a Triton server"),
        ({"/metrics": b"# HELP nv_x\nnv_x 1"}, "ADDRESS is the metrics port of a Triton server"),
        ({"/": b"hello"}, "an HTTP server that is no Triton answers at ADDRESS"),
    ],
)
def test_http_is_told_apart_by_its_pages(pages: dict[str, bytes], message: str) -> None:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path in pages else 404)
            self.end_headers()
            self.wfile.write(pages.get(self.path, b""))

        def log_message(self, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"127.0.0.1:{server.server_port}"
        with pytest.raises(InputError, match=f"^{message.replace('ADDRESS', address)}{WANTED}"):
            check_grpc(address)
        server.shutdown()


def test_a_server_with_tls(listen: Listen, monkeypatch: pytest.MonkeyPatch) -> None:
    """What OpenSSL says to a client without TLS is an alert; the handshake itself needs a certificate."""
    monkeypatch.setattr("upsnet.runtimes.address._tls_protocol", lambda *_: "h2")
    address = listen(b"\x15\x03\x01\x00\x02\x02\x46")
    with pytest.raises(
        InputError,
        match=f"^a server with TLS answers at {address}, and is asked without: grpcs://{address} asks .*{WANTED}",
    ):
        check_grpc(address)


def test_nobody_there() -> None:
    with closing(socket.socket()) as bound:  # and not listening: nobody else takes it
        bound.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{bound.getsockname()[1]}"
        with pytest.raises(InputError, match=f"^no Triton server answers at {address}; start one with `make serve`$"):
            check_grpc(address)


@pytest.mark.parametrize("host", ["no.such.host.invalid", "a..b", "x" * 300])
def test_no_host_of_that_name(host: str) -> None:
    with pytest.raises(InputError, match=f"^no server can be reached at {host}:8001: .*{WANTED}"):
        check_grpc(f"{host}:8001")
