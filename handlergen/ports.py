"""Who holds the ports that a server wants."""

from __future__ import annotations

import errno
import random
import socket
from collections.abc import Mapping
from contextlib import ExitStack, closing, suppress
from pathlib import Path

import psutil

_FIRST_PORT = 10_000  # below are those of well-known services, and the numbers of TorchServe's workers


def taken(addresses: Mapping[str, tuple[str, int]]) -> list[str]:
    """One line for each address that cannot be listened on: what for, which port, who holds it."""
    problems = []
    for purpose, (host, port) in addresses.items():
        error = _bind_error(host, port)
        if error is None:
            continue
        if error.errno == errno.EADDRINUSE:
            problems.append(f"port {port} ({purpose}) is in use{_by_whom(port)}")
        else:
            problems.append(f"cannot listen on {host}:{port} ({purpose}): {error.strerror or error}")
    return problems


def why_not_listen(host: str) -> str:
    """Why no program here can listen on this address; "" when one can."""
    error = _bind_error(host, 0)
    return (error.strerror or str(error)) if error else ""


def free_ports(count: int, host: str = "127.0.0.1") -> list[int]:
    """That many different ports that nobody listens on right now.

    They are none that the system gives to outgoing connections: one of those may be gone before it is listened on.
    """
    candidates = random.SystemRandom().sample(range(_FIRST_PORT, _first_outgoing_port()), 200 * count)
    with ExitStack() as open_until_all_are_found:
        found: list[int] = []
        for port in candidates:
            probe = open_until_all_are_found.enter_context(closing(socket.socket()))
            with suppress(OSError):
                probe.bind((host, port))
                found.append(port)
            if len(found) == count:
                return found
    raise OSError(errno.EADDRINUSE, f"fewer than {count} ports of {host} are free")


def free_port_settings() -> dict[str, int]:
    """One for each address of a server, by the names of `server_settings`."""
    names = ("inference", "management", "metrics", "grpc_inference", "grpc_management")
    return dict(zip((f"{name}_port" for name in names), free_ports(len(names)), strict=True))


def _first_outgoing_port() -> int:
    """The first port that the system gives to outgoing connections (ip(7), ip_local_port_range)."""
    with suppress(OSError, ValueError, IndexError):
        first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text("ascii").split()[0])
        return max(first, 2 * _FIRST_PORT)
    return 32768


def _bind_error(host: str, port: int) -> OSError | None:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
    except OSError as error:
        return error
    with closing(socket.socket(family)) as probe:
        # As the server itself does: connections in TIME_WAIT don't keep it from listening.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            return error
    return None


def listeners() -> dict[int, int | None]:
    """Port -> pid of who listens on it on this machine; None where the system does not tell (another user's)."""
    found: dict[int, int | None] = {}
    with suppress(psutil.Error, OSError):
        for connection in psutil.net_connections("tcp"):
            if connection.status == psutil.CONN_LISTEN and connection.laddr:
                found[connection.laddr.port] = connection.pid
    return found


def command_of(pid: int) -> str:
    """`pid 123 (java …)`, as much of the command line as fits."""
    with suppress(psutil.Error, OSError):
        return f"pid {pid} ({' '.join(psutil.Process(pid).cmdline())[:100]})"
    return f"pid {pid}"


def _by_whom(port: int) -> str:
    """`` by pid 123 (java …)``, or nothing where the system does not tell."""
    found = listeners()
    if port not in found:
        return ""
    pid = found[port]
    return ", by another user's process" if pid is None else f" by {command_of(pid)}"
