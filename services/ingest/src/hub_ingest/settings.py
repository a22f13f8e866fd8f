"""What the receiver is told from outside."""

from typing import Annotated

from hub_runtime.settings import ServiceSettings
from pydantic import Field


class ReceiverSettings(ServiceSettings):
    """Environment variables HUB_*, beside those of every service."""

    receiver_host: str = "127.0.0.1"
    """Where it listens; `0.0.0.0` only behind a network policy."""
    receiver_port: Annotated[int, Field(ge=0, le=65535)] = 11112
    """0: any free port, which the log names; not with several workers."""
    receiver_ae_title: Annotated[str, Field(pattern=r"^[!-\[\]-~](?:[ -\[\]-~]{0,14}[!-\[\]-~])?$")] = "REGIONALHUB"
    """What senders must call it."""
    receiver_associations: Annotated[int, Field(ge=1, le=500)] = 50
    """At once, per worker; the next one is asked to come again (A-ASSOCIATE-RJ 2/3/2)."""
    receiver_idle_seconds: Annotated[float, Field(gt=0)] = 60
    """After so long without a message an association is aborted."""
    receiver_memory_bytes: Annotated[int, Field(ge=0)] = 8 * 2**20
    """An instance up to this size waits in memory, a larger one in a file that nobody else sees."""
    receiver_maximum_bytes: Annotated[int, Field(ge=1, le=5 * 2**30)] = 4 * 2**30
    """A larger instance is refused: the store takes no more than 5 GiB in one conditional PUT."""
