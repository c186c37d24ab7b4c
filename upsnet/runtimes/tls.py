"""TLS to a server, from PEM files."""

from __future__ import annotations

import os
import ssl
from typing import Any, NamedTuple

from upsnet.errors import InputError, first_line
from upsnet.files import PathLike

ALPN = "h2"  # gRPC's protocol, in the handshake


class Tls(NamedTuple):
    """Whom a client trusts, and who it is. PEM files."""

    ca: PathLike | None = None  # the authority of the server's certificate; None: those that this system trusts
    cert: PathLike | None = None  # the client's own, where the server wants one (mutual TLS)
    key: PathLike | None = None  # of that certificate

    @classmethod
    def of(cls, given: Tls | PathLike | bool | None) -> Tls | None:
        """`True` is TLS with the system's authorities, a path is that of the authority."""
        if given is None or given is False:
            return None
        if isinstance(given, cls):
            return given
        return cls() if given is True else cls(ca=given)  # type: ignore[arg-type]

    @classmethod
    def of_files(cls, ca: PathLike | None, cert: PathLike | None, key: PathLike | None) -> Tls | None:
        """Of a command's three options; None where none of them is given."""
        return None if (ca, cert, key) == (None, None, None) else cls(ca, cert, key)

    def context(self) -> ssl.SSLContext:
        """For a socket of Python's own. InputError for a file that is missing, or is not what it should be."""
        if (self.cert is None) != (self.key is None):
            raise InputError("a client's certificate and its key go together: give both, cert and key")
        try:
            context = ssl.create_default_context(cafile=self.ca and os.fspath(self.ca))
        except (OSError, ssl.SSLError) as error:
            raise InputError(f"{self.ca}: cannot be read as certificates (PEM): {first_line(error)}") from None
        if self.cert is not None:
            try:
                context.load_cert_chain(self.cert, self.key, password="")  # never asks at the terminal
            except (OSError, ssl.SSLError) as error:
                reason = first_line(error)
                raise InputError(f"{self.cert} and {self.key}: no certificate and its key (PEM): {reason}") from None
        context.set_alpn_protocols([ALPN])
        return context

    def credentials(self, grpc: Any) -> Any:
        """For a channel of the package grpc, whose own words on a bad file are few."""
        self.context()
        ca = self.ca or ssl.get_default_verify_paths().cafile
        return grpc.ssl_channel_credentials(*(_content(file) for file in (ca, self.key, self.cert)))


def _content(path: PathLike | None) -> bytes | None:
    if path is None:
        return None
    with open(path, "rb") as file:
        return file.read()
