"""TCP ports: which are in use, by which process, and which are free."""

from __future__ import annotations

import errno
import random
import socket
from collections.abc import Mapping
from contextlib import ExitStack, closing, suppress
from pathlib import Path

import psutil

_FIRST_PORT = 10_000  # lower ports belong to well-known services and TorchServe's workers


def unavailable(addresses: Mapping[str, tuple[str, int]]) -> list[str]:
    """Return one line for each address that is unavailable: its port, its purpose, and the process that uses it."""
    problems = []
    for purpose, (host, port) in addresses.items():
        error = _bind_error(host, port)
        if error is None:
            continue
        if error.errno == errno.EADDRINUSE:
            held = listeners()
            pid = held.get(port)
            who = f" by {command_of(pid)}" if pid else ", by another user's process" if port in held else ""
            problems.append(f"port {port} ({purpose}) is in use{who}")
        else:
            problems.append(f"cannot listen on {host}:{port} ({purpose}): {error.strerror or error}")
    return problems


def why_not_listen(host: str) -> str:
    """Return why no program on this machine can listen on this address; "" when one can."""
    error = _bind_error(host, 0)
    return (error.strerror or str(error)) if error else ""


def free_ports(count: int) -> list[int]:
    """Return `count` different free ports of 127.0.0.1.

    They lie below the range for outgoing connections: the system could assign a port in that range before the caller
    listens on it.
    """
    candidates = random.SystemRandom().sample(range(_FIRST_PORT, _first_outgoing_port()), 200 * count)
    with ExitStack() as probes:
        found: list[int] = []
        for port in candidates:
            probe = probes.enter_context(closing(socket.socket()))
            with suppress(OSError):
                probe.bind(("127.0.0.1", port))
                found.append(port)
            if len(found) == count:
                return found
    raise OSError(errno.EADDRINUSE, f"fewer than {count} ports of 127.0.0.1 are free")


def free_port_settings() -> dict[str, int]:
    """Return a free port for each address of a server, by parameter name of `properties.server_settings`."""
    names = ("inference", "management", "metrics", "grpc_inference", "grpc_management")
    return dict(zip((f"{name}_port" for name in names), free_ports(len(names)), strict=True))


def _first_outgoing_port() -> int:
    """Return the first port of the range for outgoing connections (ip(7), ip_local_port_range)."""
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
        # The server sets this too: connections in TIME_WAIT do not prevent listening.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            return error
    return None


def listeners() -> dict[int, int | None]:
    """Return port -> pid of the process that listens on it; None for another user's process."""
    found: dict[int, int | None] = {}
    with suppress(psutil.Error, OSError):
        for connection in psutil.net_connections("tcp"):
            if connection.status == psutil.CONN_LISTEN and connection.laddr:
                found[connection.laddr.port] = connection.pid
    return found


def command_of(pid: int) -> str:
    """Return `pid 123 (java …)`, with up to 100 characters of the command line."""
    with suppress(psutil.Error, OSError):
        return f"pid {pid} ({' '.join(psutil.Process(pid).cmdline())[:100]})"
    return f"pid {pid}"
