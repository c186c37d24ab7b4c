"""TLS and mutual TLS from files."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import NamedTuple

import grpc

from upsnet.errors import InputError


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
        return context

    def credentials(self) -> grpc.ServerCredentials:
        """For a gRPC server; files that are renewed in place are taken up by the next connection."""
        self.ssl_context()  # says what is wrong with the files, which gRPC does not
        loaded = self._times()

        def renewed() -> grpc.ServerCertificateConfiguration | None:
            nonlocal loaded
            try:
                if (times := self._times()) == loaded:
                    return None
                self.ssl_context()
                loaded = times
                return self._configuration()
            except (InputError, OSError):  # half a pair has been renewed: the old one holds until the other comes
                return None

        return grpc.dynamic_ssl_server_credentials(self._configuration(), renewed, self.client_ca is not None)

    @property
    def files(self) -> list[Path]:
        return [path for path in self if path is not None]

    def _times(self) -> list[int]:
        return [path.stat().st_mtime_ns for path in self.files]

    def _configuration(self) -> grpc.ServerCertificateConfiguration:
        authority = None if self.client_ca is None else _read(self.client_ca)
        return grpc.ssl_server_certificate_configuration([(_read(self.key), _read(self.cert))], authority)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(
            f"{path} cannot be read: {error.strerror}; give a file in PEM that this user can read"
        ) from error


def _why(error: ssl.SSLError) -> str:
    return (error.reason or str(error)).replace("_", " ").lower()
