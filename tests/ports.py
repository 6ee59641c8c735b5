"""Ports for servers that have to be told theirs before they are there."""

from __future__ import annotations

import contextlib
import random
import socket
from pathlib import Path

_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")
_given: set[int] = set()


def free_port() -> int:
    """Return a port of loopback that nobody listens at, and that is given to nobody who asks for any."""
    lowest = int(_RANGE.read_text().split()[0]) if _RANGE.exists() else 32768
    last = max(lowest, 20_000)
    while True:
        port = random.randrange(last - 10_000, last)
        if port in _given:
            continue
        with contextlib.suppress(OSError), socket.socket() as one:
            one.bind(("127.0.0.1", port))
            _given.add(port)
            return port
