"""A record that cannot be handled: its bytes become an erasable object in its zone, an event says where and why."""

import base64
import hashlib
import json
import uuid
from datetime import UTC, datetime

from hub_events import TOPICS, Event, UnreadableEvent, decode, new_traceparent
from hub_events.types import DeadLettered, ObjectReference
from hub_objectstore import ObjectStore

from hub_runtime.records import Record

BUCKET_OF_ZONE = {"identifiable": "identifiable", "research": "research"}
_DEAD_LETTERS = uuid.UUID("0f6d1c5e-54b8-5c39-9d0e-0a5d1a7c8f21")


def dead_letter_key(record: Record, group: str) -> str:
    """Where the bytes of a record go that `group` gave up."""
    return f"dead-letters/{record.topic}/{group}/{record.partition}/{record.offset}"


def bury(store: ObjectStore, record: Record, *, group: str, source: str, reason: str, error: str, attempts: int) -> Event[DeadLettered]:
    """Write the record's bytes to the store; the event to produce, in one transaction with the record's offset.

    `error` is an exception's class name. Burying the same record again writes the same object and makes the same event id.

    Raises:
        StoreUnavailable: the object is not written; keep the record and try again.
    """
    body = json.dumps(
        {
            "topic": record.topic,
            "partition": record.partition,
            "offset": record.offset,
            "timestamp_ms": record.timestamp_ms,
            "key": _text(record.key),
            "headers": [[name, _text(value)] for name, value in record.headers],
            "value": _text(record.value),
        }
    ).encode()
    bucket, key, sha256 = BUCKET_OF_ZONE[TOPICS[record.topic].zone], dead_letter_key(record, group), hashlib.sha256(body).hexdigest()
    store.put(bucket, key, body, sha256=sha256, content_type="application/json")
    data = DeadLettered(
        topic=record.topic,
        partition=record.partition,
        offset=record.offset,
        group=group,
        reason=reason,
        error=error[:200],
        attempts=attempts,
        object=ObjectReference(bucket=bucket, key=key, sha256=sha256, size=len(body)),
    )
    identity = uuid.uuid5(_DEAD_LETTERS, f"{group}\n{record.topic}\n{record.partition}\n{record.offset}")
    text_key = (record.key or b"").decode(errors="replace")
    return Event(TOPICS[record.topic].dead_letter_topic, text_key, data, str(identity), source, datetime.now(UTC), _trace(record))


def unbury(body: bytes) -> Record:
    """The record whose dead letter's object is `body`, as it was read: for a replay."""
    content = json.loads(body)
    return Record(
        content["topic"],
        content["partition"],
        content["offset"],
        _bytes(content["key"]),
        _bytes(content["value"]),
        tuple((name, _bytes(value)) for name, value in content["headers"]),
        content["timestamp_ms"],
    )


def _trace(record: Record) -> str:
    try:
        return decode(record.topic, record.key, record.value, record.headers).traceparent
    except UnreadableEvent:
        return new_traceparent()


def _text(content: bytes | None) -> str | None:
    return None if content is None else base64.b64encode(content).decode()


def _bytes(text: str | None) -> bytes | None:
    return None if text is None else base64.b64decode(text)
