"""The envelope: CloudEvents 1.0 in Kafka's binary content mode, with W3C Trace Context.

Sources: CloudEvents Kafka Protocol Binding 1.0.2, section 3.2; Trace Context, section 3.2.
"""

import re
import secrets
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Generic, TypeVar

from pydantic import BaseModel, ValidationError

from hub_events.registry import TOPICS

Headers = list[tuple[str, bytes]]
Data = TypeVar("Data", bound=BaseModel)

_TRACEPARENT = re.compile(r"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
_FOLLOWS = uuid.UUID("6f1c9a52-6d0e-5a0b-8f5d-1f0a2b7c3d4e")


class UnreadableEvent(ValueError):
    """The record is not an event of its topic; reading it again will not help. The text names the rule broken, never the record's data."""

    def __init__(self, reason: str, text: str) -> None:
        """`reason` is a code of the dead letter: lower-case words joined by hyphens."""
        super().__init__(text)
        self.reason = reason


def new_traceparent() -> str:
    """A `traceparent` that starts a new, sampled trace."""
    return f"00-{secrets.token_hex(16)}-{secrets.token_hex(8)}-01"


def child_traceparent(traceparent: str) -> str:
    """The same trace, a new span."""
    version, trace, _, flags = traceparent.split("-")
    return f"{version}-{trace}-{secrets.token_hex(8)}-{flags}"


@dataclass(frozen=True, slots=True)
class Event(Generic[Data]):
    """One event of one topic. Build a first one with `Event.first`, one that follows from another with `follow`."""

    topic: str
    key: str
    data: Data
    id: str
    source: str
    """The service that made it, as the registry names it: `ingest.closer`."""
    time: datetime
    traceparent: str
    seal: str = ""
    """See hub_events.seal; empty where nobody sealed it."""

    @classmethod
    def first(cls, topic: str, key: str, data: Data, *, source: str, traceparent: str | None = None) -> "Event[Data]":
        """An event that nothing in the hub caused, or one of a trace that has begun elsewhere."""
        return cls(topic, key, data, str(uuid.uuid4()), source, datetime.now(UTC), traceparent or new_traceparent())

    def follow(self, topic: str, key: str, data: BaseModel, *, source: str) -> "Event[BaseModel]":
        """An event that this one caused. Its id follows from this one's, so that a repeat is recognised as such."""
        identity = str(uuid.uuid5(_FOLLOWS, f"{self.id}\n{topic}\n{type(data).__name__}\n{key}"))
        return Event(topic, key, data, identity, source, datetime.now(UTC), child_traceparent(self.traceparent))

    @property
    def trace_id(self) -> str:
        """The trace's id: 32 hexadecimal digits, the same from the first event to the last."""
        return self.traceparent.split("-")[1]

    @property
    def type(self) -> str:
        """The CloudEvents type, `hub.study.quiet.v1`."""
        return _type_of(self.topic, type(self.data))


def encode(event: Event[BaseModel]) -> tuple[bytes, bytes, Headers]:
    """Key, value and headers of the record that carries `event`.

    Raises:
        ValueError: the topic's registry entry does not list the type of the event's data.
    """
    headers = {
        "ce_specversion": "1.0",
        "ce_id": event.id,
        "ce_source": event.source,
        "ce_type": event.type,
        "ce_time": event.time.isoformat().replace("+00:00", "Z"),
        "content-type": "application/json",
        "traceparent": event.traceparent,
        **({"ce_seal": event.seal} if event.seal else {}),
    }
    value = event.data.model_dump_json(exclude_unset=True).encode()
    return event.key.encode(), value, [(name, text.encode()) for name, text in headers.items()]


def decode(
    topic: str, key: bytes | None, value: bytes | None, headers: Iterable[tuple[str, bytes | str | None]] | None
) -> Event[BaseModel]:
    """The event that a record carries, checked against the schema of its type.

    Raises:
        UnreadableEvent: a header is missing or malformed, the type does not belong to the topic, or the value is not the type's schema.
    """
    if key is None or value is None:
        raise UnreadableEvent("no-key-or-value", f"a record of {topic} has no key or no value")
    attributes = {name: _text(content) for name, content in headers or ()}
    try:
        identity, source, kind, moment = (attributes[f"ce_{name}"] for name in ("id", "source", "type", "time"))
        time = datetime.fromisoformat(moment)
        text_key = key.decode()
    except KeyError as error:
        raise UnreadableEvent("no-cloudevent", f"a record of {topic} lacks the header {error}") from None
    except ValueError:
        raise UnreadableEvent("no-cloudevent", f"a record of {topic} has a malformed ce_time or key") from None
    if attributes.get("ce_specversion") != "1.0" or time.tzinfo is None or not identity:
        raise UnreadableEvent("no-cloudevent", f"a record of {topic} is no CloudEvent 1.0 with id and time zone")
    model = TOPICS[topic].types.get(kind)
    if model is None:
        raise UnreadableEvent("unknown-type", f"a record of {topic} has a ce_type that the topic does not carry")
    try:
        data = model.model_validate_json(value)
    except ValidationError as error:
        where = ", ".join(sorted({".".join(str(part) for part in item["loc"]) + ": " + item["type"] for item in error.errors()})[:5])
        raise UnreadableEvent("not-the-schema", f"a record of {topic} does not meet the schema of {kind} ({where})") from None
    traceparent = attributes.get("traceparent", "")
    if not _TRACEPARENT.fullmatch(traceparent):
        traceparent = new_traceparent()
    return Event(topic, text_key, data, identity, source, time, traceparent, attributes.get("ce_seal", ""))


def _text(content: bytes | str | None) -> str:
    return content if isinstance(content, str) else (content or b"").decode(errors="replace")


def _type_of(topic: str, model: type[BaseModel]) -> str:
    for kind, candidate in TOPICS[topic].types.items():
        if candidate is model:
            return kind
    raise ValueError(f"{topic} does not carry {model.__name__}: schemas/asyncapi.yaml says what it carries")
