"""A topic, as schemas/asyncapi.yaml declares it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from pydantic import BaseModel

Zone = Literal["identifiable", "research", "audit"]


@dataclass(frozen=True, slots=True)
class Topic:
    """One topic: what it carries, who makes it, who reads it, how it is kept."""

    name: str
    types: Mapping[str, type[BaseModel]]
    """CloudEvents type to the model of its payload. Empty: a service's own topic (a table's changelog), whose records are no events."""
    partitions: int
    """Never increased in place: the key decides the partition."""
    cleanup_policy: str
    retention_ms: int
    made_by: tuple[str, ...]
    read_by: tuple[str, ...]
    broker_settings: Mapping[str, str] = field(default_factory=dict)
    """Further settings of the topic, as the broker names them."""

    @property
    def zone(self) -> str:
        """`identifiable` or `research`: the first part of the name, on which access rules stand."""
        return self.name.split(".", 1)[0]

    @property
    def dead_letter_topic(self) -> str:
        """Where records go that a reader gives up."""
        return f"{self.name}.dlq"
