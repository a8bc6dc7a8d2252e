"""What a socket does not tell by itself."""

from __future__ import annotations

import select

_GONE = select.POLLHUP | getattr(select, "POLLRDHUP", 0)


def hung_up(descriptor: int) -> bool:
    """Whether the other end of a connection has closed it."""
    poll = select.poll()
    poll.register(descriptor, _GONE)
    return bool(poll.poll(0))
