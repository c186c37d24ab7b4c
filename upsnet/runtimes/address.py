"""The address of a Triton server: what is accepted as one, and whether gRPC answers there, or what else does."""

from __future__ import annotations

import os
import re
import socket
import ssl
import time
from contextlib import ExitStack
from ipaddress import ip_address

from upsnet.errors import InputError, ServerError
from upsnet.runtimes.options import SCHEME, SERVER, TLS_SCHEME
from upsnet.runtimes.tls import ALPN, Tls

GRPC_PORT = SERVER.rpartition(":")[2]
OTHER_PORTS = ("8000", "8002")  # `make serve`'s HTTP and metrics
MOST_PORT = 65535
MOST_BYTES = 2**16  # of an answer
WANTED = f"give host:port of its gRPC ({GRPC_PORT} unless the server was started with another --grpc-port)"
# What every HTTP/2 client says first: the preface and an empty SETTINGS frame. A server's own SETTINGS are the answer.
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
FRAME_HEADER = 9  # bytes
SETTINGS = 4  # fourth byte of such a frame
TLS_ALERT = b"\x15\x03"
CERTIFICATE = "it may want another certificate of this client, tls=Tls(ca, cert, key)"


def parse_address(url: str) -> str:
    """[grpc://]host:port[/] -> host:port. InputError for anything else, with what was probably meant.

    grpcs:// says that the server speaks TLS; see `Server`.
    """
    address = url.removeprefix(SCHEME).removeprefix(TLS_SCHEME).removesuffix("/")
    if _is_address(address):
        return address
    meant = "" if url.startswith("unix:") or os.path.exists(url) else _meant(url)
    cure = f"; write {meant}" if _is_address(meant) else ""
    shown = url if url.strip() and url.isprintable() else repr(url)
    raise InputError(
        f"{shown}: a server is {SCHEME}host:port, with the port of its gRPC (`make serve`: {GRPC_PORT}){cure}"
    )


def _is_address(text: str) -> bool:
    found = re.fullmatch(r"(?:([\w.-]+)|\[([0-9A-Fa-f:.]+)\]):([0-9]{1,5})", text)
    if found is None or not 1 <= int(found[3]) <= MOST_PORT:
        return False
    name, bracketed, _ = found.groups()
    try:  # `127.1` and `0` are addresses to a system, and not to gRPC
        return bool(ip_address(bracketed).version == 6 if bracketed else re.search(r"[^\d.]", name) or ip_address(name))
    except ValueError:
        return False


def _meant(url: str) -> str:
    """Host and port of what is written as for a browser, without a port, or with the port of Triton's HTTP."""
    rest = re.sub(r"^[a-zA-Z+]+://", "", url.strip())
    rest = re.split(r"[/?#]", rest, maxsplit=1)[0].rpartition("@")[2]
    if rest.isdecimal():
        rest = f"127.0.0.1:{rest}"
    if rest.count(":") > 1 and "[" not in rest:
        rest = f"[{rest.removesuffix(f':{GRPC_PORT}')}]"  # IPv6; any other port may as well be its last part
    host, port = re.fullmatch(r"(.*?)(?::(\d*))?", rest, re.DOTALL).groups()  # type: ignore[union-attr]
    return f"{host}:{GRPC_PORT if port in (None, '', '0', *OTHER_PORTS) else port}"


def _split(address: str) -> tuple[str, int]:
    """Of a `parse_address`ed one: the host without brackets, and the port."""
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def check_grpc(address: str, seconds: float = 4.0, tls: Tls | None = None) -> None:
    """ServerError that says what answers at host:port, if it is not gRPC. `seconds` bounds each question to it.

    A client of gRPC calls them all "unavailable", some of them after minutes; a wrong certificate, too.
    """
    context = tls.context() if tls else None
    try:
        answer = _ask(address, PREFACE, seconds, enough=FRAME_HEADER, tls=context)
    except ssl.SSLError as error:
        raise _unavailable(_no_tls(address, error)) from None
    except TimeoutError:
        raise _unavailable(
            f"no Triton server answers at {address}: no connection within {seconds:g} s; is the host right, and does a "
            "firewall let it through?"
        ) from None
    except ConnectionRefusedError:
        raise _unavailable(f"no Triton server answers at {address}; start one with `make serve`") from None
    except (OSError, UnicodeError) as error:  # UnicodeError: a label of the name that is empty or too long
        reason = error.strerror if isinstance(error, OSError) else "no host has such a name"
        raise _unavailable(f"no server can be reached at {address}: {reason}; {WANTED}") from None
    if _is_grpc(answer):
        return
    if context is not None and not answer:  # TLS 1.3 refuses a client after its handshake, with or without a word
        raise _unavailable(f"the server at {address} ends the connection: {CERTIFICATE}")
    raise _unavailable(f"{_description(address, answer, seconds, context)}; {WANTED}")


def speaks_grpc(host: str, port: int, seconds: float) -> bool:
    """Of a server without TLS. OSError where nothing listens there."""
    return _is_grpc(_ask(f"{host}:{port}", PREFACE, seconds, enough=FRAME_HEADER))


def _is_grpc(answer: bytes | None) -> bool:
    return answer is not None and answer[3:4] == bytes([SETTINGS])


def _unavailable(message: str) -> ServerError:
    return ServerError(message, "UNAVAILABLE")


def _no_tls(address: str, error: ssl.SSLError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return (
            f"the certificate of the server at {address} is refused: {error.verify_message.rstrip('.')}; give the file "
            "of the authority that signed it (tls=...), or the name that it is for"
        )
    reason = (error.reason or "it ends the connection").replace("_", " ").lower()
    if "certificate" in reason or "unknown ca" in reason:
        return f"the server at {address} ends the connection ({reason}): {CERTIFICATE}"
    return f"the server at {address} speaks no TLS that this client does ({reason}); without TLS: {SCHEME}{address}"


def _description(address: str, answer: bytes | None, seconds: float, tls: ssl.SSLContext | None) -> str:
    """What listens at an address, where gRPC's preface was answered with `answer`."""
    if answer is None:
        return f"what listens at {address} accepts connections, but says nothing within {seconds:g} s"
    if answer and not answer.startswith((b"HTTP/", b"<", TLS_ALERT)):  # an old HTTP's answer is a page alone
        words = answer.splitlines()[0][:60].decode("ascii", "backslashreplace")
        return f"what answers at {address} is no Triton server (it says {words!r})"
    pages = [_get(address, path, seconds, tls) for path in ("/v2", "/metrics")]
    if b'"triton"' in pages[0]:
        return f"{address} is the HTTP port of a Triton server"
    if b"\nnv_" in pages[1]:
        return f"{address} is the metrics port of a Triton server"
    agreed = _tls_protocol(address, seconds) if tls is None else None
    if agreed == ALPN:
        return f"a server with TLS answers at {address}, and is asked without: {TLS_SCHEME}{address} asks with it"
    if agreed is not None:
        return f"a server with TLS answers at {address}, and it speaks no gRPC"
    if any(page.startswith((b"HTTP/", b"<")) for page in (answer, *pages)):
        return f"an HTTP server that is no Triton answers at {address}"
    return f"what listens at {address} is no Triton server (it ends the connection)"


def _ask(
    address: str, request: bytes, seconds: float, enough: int = MOST_BYTES, tls: ssl.SSLContext | None = None
) -> bytes | None:
    """The first bytes, about `enough`, of the answer; b"": the connection was ended; None: nothing in time.

    OSError where there is no connection; ssl.SSLError, which is one, where there is no TLS.
    """
    deadline = time.monotonic() + seconds
    answer = b""
    with ExitStack() as stack:
        connection = stack.enter_context(socket.create_connection(_split(address), timeout=seconds))
        if tls is not None:
            connection = stack.enter_context(tls.wrap_socket(connection, server_hostname=_split(address)[0]))
        try:
            connection.sendall(request)
            while len(answer) < enough and (rest := deadline - time.monotonic()) > 0:
                connection.settimeout(rest)
                part = connection.recv(MOST_BYTES)
                if not part:
                    return answer
                answer += part
        except TimeoutError:
            pass
        except ssl.SSLError:  # a server of TLS 1.3 refuses the client's certificate only now
            raise
        except OSError:  # it ended the connection while we wrote
            return answer
    return answer or None


def _get(address: str, path: str, seconds: float, tls: ssl.SSLContext | None) -> bytes:
    request = f"GET {path} HTTP/1.0\r\nHost: {address}\r\nConnection: close\r\n\r\n"
    try:
        return _ask(address, request.encode(), seconds, tls=tls) or b""
    except OSError:
        return b""


def _tls_protocol(address: str, seconds: float) -> str | None:
    """What a handshake agrees upon: ALPN of gRPC, else ""; None: there is no TLS.

    Whose certificate it is does not matter: nothing is sent.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols([ALPN])
    try:
        with socket.create_connection(_split(address), timeout=seconds) as plain, context.wrap_socket(plain) as secure:
            return secure.selected_alpn_protocol() or ""
    except OSError:
        return None
