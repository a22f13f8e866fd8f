"""What the assembler knows of a study that is not quiet yet, and when it calls it quiet. Plain functions; no I/O, no clock.

A row holds counters and times only, never a list: its size does not grow with the study. What the study consists of is the closer's
question to the store. Times are the broker's, milliseconds since 1970, as the records of `identifiable.instance.received` carry them.
"""

import json
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta

from hub_events import Event, child_traceparent
from hub_events.types import InstanceReceived, StudyQuiet, StudyTick

SERVICE = "ingest.assembler"
INSTANCES = "identifiable.instance.received"
QUIET = "identifiable.study.quiet"

_SAID = uuid.UUID("0d2a6c1e-8f43-5b7e-9b52-6a3f1c9e7d10")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_LONGEST_PAUSE = 32_000
_SETTLED_SECONDS = 5.0
"""Without an arrival, after as many as were expected: one of them may have been a repeat."""


@dataclass(frozen=True, slots=True)
class Row:
    """One study of one trust between its first instance and the moment it is quiet."""

    instances: int
    """Arrivals, repeats included: a hint, never the truth."""
    first_seen: int
    last_seen: int
    partition: int
    """Where its instances came; its ticks go there too, behind them."""
    traceparent: str
    """Of the last instance."""
    expected: int = 0
    """As many as the study has where it comes from, by the largest figure announced; 0: nobody said."""

    def pack(self) -> bytes:
        """The row as the table keeps it."""
        return json.dumps(asdict(self), separators=(",", ":")).encode()

    @classmethod
    def unpack(cls, value: bytes) -> "Row":
        """The row that `pack` wrote."""
        return cls(**json.loads(value))


def row_key(trust: str, study_instance_uid: str) -> bytes:
    """The table's key of a study: `trust|study`. Neither part can hold the bar."""
    return f"{trust}|{study_instance_uid}".encode()


def study_of(key: bytes) -> tuple[str, str]:
    """Trust and Study Instance UID of a row's key."""
    trust, _, study = key.decode().partition("|")
    return trust, study


def take_in(row: Row | None, event: Event[InstanceReceived], *, moment: int, partition: int) -> Row:
    """The study's row after one more arrival.

    The sweep's announcement of an old object opens a row but does not touch one that is open: it says nothing about a sender at work.
    """
    expected = event.data.expected_instances or 0
    if row is None:
        return Row(1, moment, moment, partition, event.traceparent, expected)
    if event.data.origin == "sweep":
        return row
    expected = max(row.expected, expected)
    return Row(row.instances + 1, row.first_seen, max(row.last_seen, moment), partition, event.traceparent, expected)


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a trust's studies are waited for."""

    quiet_seconds: float
    """Without an arrival."""
    limit_seconds: float
    """Since the first arrival, with or without further ones."""


def is_due(row: Row, *, tick: int, held_since: int, patience: Patience) -> bool:
    """Whether a tick with this time closes the study: it is quiet, or has gone on for longer than the limit.

    A study of the second kind goes on: its next arrival opens a row, and another revision.
    """
    over = tick - row.first_seen >= patience.limit_seconds * 1000
    return over or is_quiet(row, tick=tick, held_since=held_since, quiet_seconds=patience.quiet_seconds)


def is_quiet(row: Row, *, tick: int, held_since: int, quiet_seconds: float) -> bool:
    """Whether a tick with this time finds the study quiet.

    `held_since` is when this worker got the partition, or got its broker back: silence during an outage is not the sender's, so the
    quiet time has to pass after it too. Where as many have come as were expected, five seconds are enough.
    """
    if row.expected and row.instances >= row.expected:
        quiet_seconds = min(quiet_seconds, _SETTLED_SECONDS)
    return tick - max(row.last_seen, held_since) >= quiet_seconds * 1000


def quiet_event(key: bytes, row: Row) -> Event[StudyQuiet]:
    """That the study is quiet. Said twice of the same silence, it is the same event: its id follows from trust, study and last arrival."""
    trust, study = study_of(key)
    return Event(
        QUIET,
        study,
        StudyQuiet(
            trust=trust, study_instance_uid=study, instances=row.instances, last_seen=_EPOCH + timedelta(milliseconds=row.last_seen)
        ),
        str(uuid.uuid5(_SAID, f"{trust}\n{study}\n{row.last_seen}")),
        SERVICE,
        datetime.now(UTC),
        child_traceparent(row.traceparent),
    )


def tick_event(key: bytes, row: Row) -> Event[StudyTick]:
    """A look at one study, to be sent through the partition of its instances."""
    trust, study = study_of(key)
    data = StudyTick(trust=trust, study_instance_uid=study)
    return Event.first(INSTANCES, study, data, source=SERVICE, traceparent=child_traceparent(row.traceparent))


class Ticks:
    """Which studies look quiet by the wall clock and get a tick now.

    A tick waits behind the backlog of its partition, so the same look is repeated with growing pauses only, to half a minute.
    """

    def __init__(self) -> None:
        """Nothing is on its way."""
        self._sent: dict[bytes, tuple[int, int, int]] = {}

    def due(
        self, rows: Iterable[tuple[bytes, bytes]], *, now: int, held_since: Mapping[int, int], patience: Callable[[str], Patience]
    ) -> list[tuple[bytes, Row]]:
        """The studies to look at. `held_since`: partition to time; a row of a partition that is not held gets no tick."""
        due: list[tuple[bytes, Row]] = []
        sent: dict[bytes, tuple[int, int, int]] = {}
        for key, value in rows:
            row = Row.unpack(value)
            since = held_since.get(row.partition)
            if since is None or not is_due(row, tick=now, held_since=since, patience=patience(study_of(key)[0])):
                continue
            last_seen, again, pause = self._sent.get(key, (row.last_seen, now, 500))
            if last_seen != row.last_seen:
                again, pause = now, 500
            if now >= again:
                due.append((key, row))
                pause = min(2 * pause, _LONGEST_PAUSE)
                again = now + pause
            sent[key] = (row.last_seen, again, pause)
        self._sent = sent
        return due
