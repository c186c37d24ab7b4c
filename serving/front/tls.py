"""TLS and mutual TLS from files."""

from __future__ import annotations

import ssl
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import grpc

from upsnet.errors import InputError

CERTIFICATE = b"-----BEGIN CERTIFICATE-----"
DATES = {9: "is not valid yet", 10: "has expired"}  # by OpenSSL's number of what is wrong


class Tls(NamedTuple):
    """PEM files: a certificate with its chain, its key, and the authority whose clients are let in (None: all are)."""

    cert: Path
    key: Path
    client_ca: Path | None = None

    def ssl_context(self) -> ssl.SSLContext:
        """For an HTTP server. InputError, in one line, where a file is not what it should be."""
        for path in self.files:
            _read(path)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        try:
            context.load_cert_chain(self.cert, self.key, password=lambda: b"")  # else OpenSSL asks the terminal
        except ssl.SSLError as error:
            if CERTIFICATE in _read(self.key) and CERTIFICATE not in _read(self.cert):
                raise InputError(f"{self.cert} holds no certificate, and {self.key} does; swap them") from error
            if error.reason == "KEY_VALUES_MISMATCH":
                raise InputError(f"{self.key} is not the key of the certificate {self.cert}; give the pair") from error
            raise InputError(
                f"{self.cert} and {self.key} are no certificate and key in PEM, without a password: {_why(error)}"
            ) from error
        if self.client_ca is not None:
            try:
                context.load_verify_locations(self.client_ca)
            except ssl.SSLError as error:
                raise InputError(f"{self.client_ca} holds no certificate in PEM: {_why(error)}") from error
            context.verify_mode = ssl.CERT_REQUIRED
        self._check_dates(context)
        return context

    def _check_dates(self, server: ssl.SSLContext) -> None:
        """By a handshake in memory with a client who trusts this very certificate."""
        client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        client.check_hostname = False
        client.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
        try:
            client.load_verify_locations(self.cert)
            asker = client.wrap_bio(to_client, to_server)
            teller = server.wrap_bio(to_server, to_client, server_side=True)
            for end in (asker, teller, asker):
                with suppress(ssl.SSLWantReadError):
                    end.do_handshake()
        except ssl.SSLError as error:  # whatever else a client may dislike is for its own trust to say
            if told := DATES.get(getattr(error, "verify_code", 0)):
                raise InputError(f"{self.cert} {told}; renew it") from error

    def renewed_context(self) -> ssl.SSLContext:
        """For an HTTP server; files that are renewed in place are taken up by the next connection."""
        context = newest = self.ssl_context()
        renewal = Renewal(self)

        def take_up(connection: ssl.SSLObject, *_: object) -> None:
            nonlocal newest
            newest = connection.context = renewal.take() or newest

        context.sni_callback = take_up  # called by every client's hello, a name in it or none
        return context

    def credentials(self) -> grpc.ServerCredentials:
        """For a gRPC server; files that are renewed in place are taken up by the next connection."""
        self.ssl_context()  # says what is wrong with the files, which gRPC does not
        renewal = Renewal(self)

        def renewed() -> grpc.ServerCertificateConfiguration | None:
            return self._configuration() if renewal.take() is not None else None

        return grpc.dynamic_ssl_server_credentials(self._configuration(), renewed, self.client_ca is not None)

    @property
    def files(self) -> list[Path]:
        return [path for path in self if path is not None]

    def times(self) -> list[int]:
        return [path.stat().st_mtime_ns for path in self.files]

    def _configuration(self) -> grpc.ServerCertificateConfiguration:
        authority = None if self.client_ca is None else _read(self.client_ca)
        return grpc.ssl_server_certificate_configuration([(_read(self.key), _read(self.cert))], authority)


class Renewal:
    """Looks whether the files have been renewed since it was made."""

    def __init__(self, tls: Tls) -> None:
        self._tls, self._loaded = tls, tls.times()

    def take(self) -> ssl.SSLContext | None:
        """Of new files, once. Where half a pair has been renewed, the old one holds until the other comes."""
        try:
            if (times := self._tls.times()) == self._loaded:
                return None
            context = self._tls.ssl_context()
        except (InputError, OSError):
            return None
        self._loaded = times
        return context


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(
            f"{path} cannot be read: {error.strerror}; give a file in PEM that this user can read"
        ) from error


def _why(error: ssl.SSLError) -> str:
    return (error.reason or str(error)).replace("_", " ").lower()
