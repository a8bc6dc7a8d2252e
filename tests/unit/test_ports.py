"""Ports that are free, and stay so until they are listened on."""

from __future__ import annotations

import socket
from contextlib import closing
from pathlib import Path

import pytest

from handlergen.server.ports import free_ports


def test_free_ports_are_different_and_none_that_an_outgoing_connection_may_get() -> None:
    found = free_ports(20)
    assert len(set(found)) == 20
    for port in found:
        with closing(socket.socket()) as listener:
            listener.bind(("127.0.0.1", port))
            listener.listen()
    outgoing = Path("/proc/sys/net/ipv4/ip_local_port_range")
    if outgoing.exists() and (first := int(outgoing.read_text().split()[0])) >= 20_000:
        assert max(found) < first


def test_a_port_that_is_listened_on_is_not_free(monkeypatch: pytest.MonkeyPatch) -> None:
    with closing(socket.socket()) as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        other = free_ports(1)[0]

        class Offered:
            def sample(self, _range: range, _count: int) -> list[int]:
                return [port, other]

        monkeypatch.setattr("handlergen.server.ports.random.SystemRandom", Offered)
        assert free_ports(1) == [other]
        with pytest.raises(OSError, match="fewer than 2 ports"):
            free_ports(2)
