"""Ports on loopback."""

import json
import random
import socket
from pathlib import Path

from hub_parts.errors import StartAborted
from hub_parts.files import write_private

FIRST, LAST = 20_000, 32_000
"""Below the range from which Linux takes the ports of outgoing connections, so that none of those gets in the way."""

_given: set[int] = set()


def is_free(port: int) -> bool:
    """Whether a server could listen on this port of 127.0.0.1 now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def free_port() -> int:
    """A free port that this process has not given out before."""
    for _ in range(1000):
        port = random.SystemRandom().randint(FIRST, LAST)
        if port not in _given and is_free(port):
            _given.add(port)
            return port
    raise StartAborted(f"no port between {FIRST} and {LAST} of 127.0.0.1 is free: stop what uses them")


def choose_ports(path: Path, wanted: dict[str, int | None]) -> dict[str, int]:
    """A port for each name: the configured one, else that of the last run if it is free, else a free one. Remembers them in `path`.

    Raises:
        StartAborted: A configured port is taken.
    """
    earlier: dict[str, int] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    ports = dict(earlier)
    for name, configured in wanted.items():
        if configured:
            if not is_free(configured):
                raise StartAborted(
                    f"port {configured} of 127.0.0.1 is taken, but {name} is to listen there: stop what uses it or configure another port"
                )
            ports[name] = configured
        elif name not in earlier or not is_free(earlier[name]):
            ports[name] = free_port()
        _given.add(ports[name])
    write_private(path, json.dumps(ports, indent=1, sort_keys=True))
    return {name: ports[name] for name in wanted}
