"""A record as it was read, and one to be written."""

from dataclasses import dataclass
from typing import Any

from hub_events import Event, encode

Headers = tuple[tuple[str, bytes | None], ...]
Place = tuple[str, int]
"""A topic and a partition of it."""


@dataclass(frozen=True, slots=True)
class Record:
    """One record of a partition."""

    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    headers: Headers
    timestamp_ms: int

    @property
    def place(self) -> Place:
        """The partition it stands in."""
        return self.topic, self.partition


@dataclass(frozen=True, slots=True)
class Outgoing:
    """One record to be produced."""

    topic: str
    key: bytes
    value: bytes
    headers: list[tuple[str, str | bytes | None]]


def outgoing(event: Event[Any]) -> Outgoing:
    """The record that carries `event`."""
    key, value, headers = encode(event)
    return Outgoing(event.topic, key, value, [*headers])
