"""What STOW-RS is told from outside."""

from pathlib import Path
from typing import Annotated

from hub_runtime.settings import ServiceSettings
from pydantic import Field


class StowSettings(ServiceSettings):
    """Of `hub-stow`: environment variables HUB_*, beside those of every service."""

    stow_host: str = "127.0.0.1"
    """Where it listens; `0.0.0.0` only behind a network policy."""
    stow_port: Annotated[int, Field(ge=0, le=65535)] = 8043
    """0: any free port, which the log names; not with several workers."""
    stow_tokens_file: Path | None = None
    """JSON, `{"<trust>": "<SHA-256 of its bearer token, 64 hexadecimal digits>"}`. Without it nobody gets in."""
    stow_proxies: str = ""
    """Addresses of reverse proxies whose X-Forwarded-For is believed, separated by commas; empty: nobody's."""
    stow_requests: Annotated[int, Field(ge=1, le=500)] = 16
    """At once, per worker; the next one is asked to come again (503)."""
    stow_requests_per_trust: Annotated[int, Field(ge=1, le=500)] = 8
    """Of one trust."""
    stow_idle_seconds: Annotated[float, Field(gt=0)] = 30
    """After so long without a byte a request is over."""
    stow_memory_bytes: Annotated[int, Field(ge=0)] = 8 * 2**20
    """A part up to this size waits in memory, a larger one in a file that nobody else sees."""
    stow_maximum_bytes: Annotated[int, Field(ge=1, le=5 * 2**30)] = 4 * 2**30
    """A larger instance is refused; at most 5 GiB, so that a store can copy it in one request."""
