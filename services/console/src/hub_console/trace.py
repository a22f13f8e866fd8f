"""Every event of one study, in order, across both zones."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from hub_events.types import (
    DatasetExported,
    DatasetRequested,
    DeadLettered,
    InstanceReceived,
    StudyDeidentified,
    StudyIndexed,
    StudyQuarantined,
    StudyQuiet,
    StudyReceived,
    StudyTick,
)
from pydantic import BaseModel

from hub_console.ledger import Record

_FLOW = ("instance.received", "study.quiet", "study.received", "study.quarantined", "study.deidentified", "study.indexed")


@dataclass(slots=True)
class Threads:
    """Which keys and traces belong together, learnt from keys and trace ids alone: small, however many instances there are."""

    _keys: dict[str, set[str]] = field(default_factory=dict)
    _traces: dict[str, set[str]] = field(default_factory=dict)

    def learn(self, key: str, trace: str) -> None:
        """A record with this key has this trace id."""
        self._traces.setdefault(key, set()).add(trace)
        self._keys.setdefault(trace, set()).add(key)

    def of(self, study: str) -> frozenset[str]:
        """The keys of one study in both zones: its own UID and those that share a trace with it. Empty when no record has it as key."""
        traces = self._traces.get(study, set())
        return frozenset(key for trace in traces for key in self._keys[trace])


@dataclass(frozen=True, slots=True)
class Line:
    """One event as the operator reads it."""

    time: datetime
    zone: str
    topic: str
    type: str
    source: str
    key: str
    trace_id: str
    event_id: str
    partition: int
    offset: int
    text: str
    failed: bool
    data: BaseModel

    def as_json(self) -> dict[str, Any]:
        """The line for `--json`: the whole event."""
        fields = ("zone", "topic", "type", "source", "key", "trace_id", "event_id", "partition", "offset")
        return {
            "time": self.time.isoformat(),
            **{name: getattr(self, name) for name in fields},
            "data": self.data.model_dump(mode="json", exclude_unset=True),
        }


def lines_of(records: Iterable[Record]) -> list[Line]:
    """The events in order of time; those of one moment in the order in which the stages follow each other."""
    lines = [
        Line(
            time=record.event.time,
            zone=record.event.topic.split(".", 1)[0],
            topic=record.event.topic,
            type=record.event.type,
            source=record.event.source,
            key=record.event.key,
            trace_id=record.event.trace_id,
            event_id=record.event.id,
            partition=record.partition,
            offset=record.offset,
            text=describe(record.event.data),
            failed=isinstance(record.event.data, DeadLettered | StudyQuarantined),
            data=record.event.data,
        )
        for record in records
        if not isinstance(record.event.data, StudyTick)
    ]
    return sorted(lines, key=lambda line: (line.time, _stage(line.topic), line.partition, line.offset))


def describe(data: BaseModel) -> str:  # noqa: PLR0911 # one line an event type
    """What an event says, in a few words: counts, numbers and reason codes."""
    match data:
        case InstanceReceived():
            how = "found by the sweep" if data.origin == "sweep" else f"from {data.trust} by {data.origin}"
            return f"instance {how}, {data.object.size:,} bytes"
        case StudyQuiet():
            return f"{data.trust} has been quiet, {data.instances} arrivals, the last {data.last_seen:%H:%M:%S}"
        case StudyReceived():
            variants = f", {data.variants} variants" if data.variants else ""
            return f"revision {data.revision} from {data.trust}: {data.instances} instances{variants}, {data.bytes:,} bytes"
        case StudyQuarantined():
            reasons = ", ".join(f"{reason.code} x {reason.instances}" for reason in data.reasons)
            return f"revision {data.revision}: {data.scope} held back by {data.stage}: {reasons}"
        case StudyDeidentified():
            held = f", {data.held_back} held back" if data.held_back else ""
            return f"revision {data.revision} of source {data.source}: {data.instances} instances released{held}, subject {data.subject or 'none'}"
        case StudyIndexed():
            return f"revision {data.revision}: {data.instances} instances can be found ({', '.join(data.modalities) or 'none'})"
        case DeadLettered():
            return (
                f"{data.group} gave up {data.topic} partition {data.partition} offset {data.offset} "
                f"after {data.attempts} attempts: {data.reason} ({data.error})"
            )
        case DatasetRequested():
            return f"dataset {data.dataset} asked for: {' and '.join(data.where) or 'everything'}, {data.training_percent} % training"
        case DatasetExported():
            return f"dataset {data.dataset}: {data.outcome}" + (f" as version {data.version}" if data.version else f": {data.reason}")
        case _:
            return type(data).__name__


def _stage(topic: str) -> int:
    name = topic.split(".", 1)[1].removesuffix(".dlq")
    return _FLOW.index(name) if name in _FLOW else len(_FLOW)
