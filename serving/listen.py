"""Where a service may listen: on this machine alone, on ports that it can have."""

from __future__ import annotations

import errno
import ipaddress
import socket
from collections.abc import Mapping

from serving.bulletins import EMBEDDED, needed
from upsnet.errors import InputError


def loopback(host: str) -> str:
    """The address that a --host means. InputError for one that others can reach."""
    if not host.strip() or not host.isprintable():  # an empty one would be every address of this machine
        raise InputError(f"{host!r} is no address to listen on; 127.0.0.1 is this machine alone")
    host = host.strip()
    if host.lower() == "localhost":
        return "127.0.0.1"
    try:
        mine = ipaddress.ip_address(host).is_loopback
    except ValueError:
        mine = False
    if not mine:
        raise InputError(
            f"--host {host}: the embedded Triton is release {EMBEDDED}, which has published faults, and serves this "
            f"machine alone (127.0.0.1, ::1); serve others with NVIDIA's container, {needed()} or newer "
            "(docs/operating.md)"
        )
    return host


def check_ports(host: str, wanted: Mapping[str, int]) -> None:
    """InputError where a port is taken, wanted twice, or not to be had. 0 is any free one."""
    seen: dict[int, str] = {}
    for name, port in wanted.items():
        if port and (other := seen.setdefault(port, name)) != name:
            raise InputError(f"port {port} is wanted for {other} and for {name}; give another {name} port")
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as attempt:
            attempt.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                attempt.bind((host, port))
            except (OSError, OverflowError) as error:
                raise InputError(f"cannot listen on {host}:{port} for {name}: {_why(error, name)}") from error


def _why(error: Exception, name: str) -> str:
    """Why a port cannot be bound, and the cure."""
    if isinstance(error, PermissionError):
        return f"ports below 1024 are the system's; give another {name} port"
    reason = getattr(error, "strerror", None) or error
    if isinstance(error, OverflowError) or getattr(error, "errno", None) == errno.EADDRINUSE:
        return f"{reason}; give another {name} port"
    return f"{reason}; --host is a loopback address of this machine"
