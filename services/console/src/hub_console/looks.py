"""Look at a hub: status and trace, read from its topics."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from confluent_kafka import Message

from hub_console.ledger import GROUPS, Ledger, Record
from hub_console.records import Lag, Reader, Unreadable, all_topics, lags, readable
from hub_console.running import Running
from hub_console.trace import Line, Threads, lines_of
from hub_console.up import ready


@dataclass(frozen=True, slots=True)
class Status:
    """How the hub stands."""

    ledger: Ledger
    lags: list[Lag]
    unreadable: list[Unreadable]


def status(running: Running) -> Status:
    """Read every topic once, to its present end.

    Raises:
        BrokerAway: Kafka does not answer.
    """
    ledger, unreadable = Ledger(), []
    with Reader(running.kafka, all_topics()) as reader:
        for record in readable(reader.to_the_end()):
            if isinstance(record, Record):
                ledger.add(record)
            else:
                unreadable.append(record)
    ledger.finish()
    return Status(ledger, lags(running.kafka, [*GROUPS.values(), "export"]), unreadable)


def trace(running: Running, study: str) -> list[Line]:
    """Every event of one study, by its UID in either zone; empty when no event knows it.

    Keys and trace ids are read first, then only this study's events are decoded, so that a busy hub costs little.

    Raises:
        BrokerAway: Kafka does not answer.
    """
    threads = Threads()
    with Reader(running.kafka, all_topics()) as reader:
        for key, trace_id, _ in _threads(reader.to_the_end()):
            threads.learn(key, trace_id)
    keys = threads.of(study)
    if not keys:
        return []
    records: list[Record] = []
    with Reader(running.kafka, all_topics()) as reader:
        wanted = (message for key, _, message in _threads(reader.to_the_end()) if key in keys)
        records = [record for record in readable(wanted) if isinstance(record, Record)]
    return lines_of(records)


def _threads(messages: Iterator[Message]) -> Iterator[tuple[str, str, Message]]:
    """Key and trace id of each record, without decoding the rest of it."""
    for message in messages:
        key = message.key()
        headers = message.headers() or []
        pairs = headers.items() if isinstance(headers, dict) else headers
        parent = next((value for name, value in pairs if name == "traceparent"), b"")
        text = parent.decode(errors="replace") if isinstance(parent, bytes) else str(parent or "")
        trace_id = text.split("-")[1] if text.count("-") == 3 else text
        yield (key.decode(errors="replace") if isinstance(key, bytes) else str(key)), trace_id, message


def services(running: Running) -> dict[str, dict[str, Any]]:
    """Each service of a local hub: its process id, and whether it says that it is ready. Empty for a hub elsewhere."""
    found: dict[str, dict[str, Any]] = {}
    for name, entry in running.endpoints.get("services", {}).items():
        port = int(str(entry["health"]).rsplit(":", 1)[1])
        found[name] = {"pid": entry["pid"], "ready": all(ready(port + worker) for worker in range(entry["workers"]))}
    return found
