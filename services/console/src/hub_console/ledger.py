"""What became of every study, worked out from the events alone: plain functions over events, no I/O.

Events of the identifiable zone name the trust; those of the research zone know it only by a pseudonym. They are joined by trace id, which
goes from the first instance to the last event. A stage waits for a study when what the stage before said last has no answer yet.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Literal

from hub_events import Event
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

Stage = Literal["received", "assembled", "closed", "deidentified", "indexed"]
STAGES: tuple[Stage, ...] = ("received", "assembled", "closed", "deidentified", "indexed")
STAGE_TITLES: dict[Stage, str] = {
    "received": "received",
    "assembled": "complete",
    "closed": "numbered",
    "deidentified": "de-identified",
    "indexed": "indexed",
}
GROUPS: dict[Stage, str] = {
    "assembled": "ingest.assembler",
    "closed": "ingest.closer",
    "deidentified": "deidentification",
    "indexed": "indexing",
}
"""The consumer group that does a stage's work."""
_QUARANTINED_BY: dict[Stage, str] = {"closed": "ingest", "deidentified": "deidentification", "indexed": "indexing"}
UNKNOWN = "(unknown)"
"""The trust of what can be joined to none: its identifiable events are gone after seven days."""

_NEVER = datetime.min.replace(tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Record:
    """An event and where it stands."""

    event: Event[BaseModel]
    partition: int
    offset: int
    timestamp: datetime
    """The broker's time of the record."""


@dataclass(slots=True)
class Study:
    """One study of one trust: what each stage said of it last."""

    trust: str
    study_instance_uid: str
    objects: set[str] = field(default_factory=set)
    """SHA-256 of each object announced: a repeat is the same object."""
    arrivals: int = 0
    traces: set[str] = field(default_factory=set)
    last_arrival: datetime = _NEVER
    last_quiet: datetime = _NEVER
    quiet_covers: datetime = _NEVER
    last_closed: datetime = _NEVER
    last_deidentified: datetime = _NEVER
    revision: int = 0
    revision_instances: int = 0
    deidentified_revision: int = 0
    deidentified_instances: int = 0
    held_back: int = 0
    indexed_revision: int = 0
    indexed_instances: int = 0
    modalities: set[str] = field(default_factory=set)
    research_study_uid: str | None = None
    source: str | None = None
    subject: str | None = None
    manifest: tuple[str, str] | None = None
    """Bucket and key of the research manifest."""
    quarantined: dict[str, StudyQuarantined] = field(default_factory=dict)
    """By stage, the last one said."""
    dead: dict[str, datetime] = field(default_factory=dict)
    """By consumer group, when it gave up a record of this study last."""

    def reasons(self) -> Counter[str]:
        """Why instances of the latest revision are held back, by reason code."""
        counts: Counter[str] = Counter()
        for said in self.quarantined.values():
            if said.revision >= self.revision:
                counts.update({reason.code: reason.instances for reason in said.reasons})
        return counts

    def held_whole(self, stage: str) -> bool:
        """Whether the stage holds back all of the latest revision."""
        said = self.quarantined.get(stage)
        return said is not None and said.scope == "study" and said.revision >= self.revision

    def state(self, stage: Stage) -> Literal["done", "waiting", "failed", "absent"]:
        """How the stage stands with this study; `absent` when the stage before has nothing for it yet."""
        held, answered, said, since = {
            "received": (False, True, self.arrivals > 0, _NEVER),
            "assembled": (False, self.last_arrival <= self.quiet_covers, self.last_quiet > _NEVER, self.last_arrival),
            "closed": (self.held_whole("ingest"), self.last_closed >= self.last_quiet, self.revision > 0, self.last_quiet),
            "deidentified": (
                self.held_whole("deidentification"),
                self.deidentified_revision >= self.revision,
                self.deidentified_revision > 0,
                self.last_closed,
            ),
            "indexed": (
                self.held_whole("indexing"),
                self.indexed_revision >= self.deidentified_revision or self.held_whole("deidentification"),
                self.indexed_revision > 0 and not self.held_whole("deidentification"),
                self.last_deidentified,
            ),
        }[stage]
        if held:
            return "failed"
        if answered:
            return "done" if said else "absent"
        return "failed" if self.dead.get(GROUPS[stage], _NEVER) > since else "waiting"

    def settled(self) -> bool:
        """Nothing of this study waits any more: it is indexed, or held back, or a dead letter."""
        states = [self.state(stage) for stage in STAGES]
        return "waiting" not in states and ("failed" in states or self.state("indexed") == "done")


@dataclass(slots=True)
class Count:
    """One stage of one trust."""

    done: int = 0
    waiting: int = 0
    failed: int = 0
    """Held back or dead letters."""
    held_back: int = 0
    """Those of `failed` that are quarantined as a whole, for a reason of the domain."""
    instances: int = 0
    """Instances in what is done."""


@dataclass(slots=True)
class Ledger:
    """Every study that the events speak of. Feed it records in any order of topics; order within a topic's partition is what counts."""

    studies: dict[tuple[str, str], Study] = field(default_factory=dict)
    requests: dict[str, DatasetRequested] = field(default_factory=dict)
    """Datasets asked for, by event id."""
    answers: dict[str, DatasetExported] = field(default_factory=dict)
    """What became of them, by the id of the request."""
    dead_letters: list[tuple[DeadLettered, str]] = field(default_factory=list)
    """Every dead letter and the trust it is of."""
    dead_requests: set[str] = field(default_factory=set)
    events: Counter[str] = field(default_factory=Counter)
    """Events read, by topic."""
    _by_trace: dict[str, tuple[str, str]] = field(default_factory=dict)
    _by_uid: dict[str, tuple[str, str]] = field(default_factory=dict)
    _request_traces: dict[str, str] = field(default_factory=dict)
    _pending: dict[str, list[Record]] = field(default_factory=dict)

    def add(self, record: Record) -> None:
        """Take one event in. A research event that comes before the identifiable one it follows from waits for it."""
        event = record.event
        self.events[event.topic] += 1
        match event.data:
            case DatasetRequested() as request:
                self.requests[event.id] = request
                self._request_traces[event.trace_id] = event.id
            case DatasetExported() as answer:
                self.answers[answer.request] = answer
            case StudyTick():
                pass
            case InstanceReceived() | StudyQuiet() | StudyReceived() | StudyQuarantined() as data:
                study = self._study(data.trust, data.study_instance_uid)
                _identifiable(study, record)
                self._learn(study, event.trace_id)
            case _:
                self._place(record)

    def finish(self) -> None:
        """Give what found no study a place of its own, by its research study UID. Call it when all topics are read to their end."""
        waiting, self._pending = self._pending, {}
        for records in waiting.values():
            for record in records:
                self._place(record, guess=True)

    def counts(self) -> dict[str, dict[Stage, Count]]:
        """For each trust, in alphabetical order, each stage's studies."""
        table: dict[str, dict[Stage, Count]] = {}
        for study in sorted(self.studies.values(), key=lambda study: study.trust):
            row = table.setdefault(study.trust, {stage: Count() for stage in STAGES})
            for stage in STAGES:
                state = study.state(stage)
                if state != "absent":
                    setattr(row[stage], state, getattr(row[stage], state) + 1)
                if state == "failed" and study.held_whole(_QUARANTINED_BY.get(stage, "")):
                    row[stage].held_back += 1
            row["received"].instances += len(study.objects)
            row["closed"].instances += study.revision_instances
            row["deidentified"].instances += study.deidentified_instances
            row["indexed"].instances += study.indexed_instances
        return table

    def quarantine(self) -> dict[tuple[str, str, str], Counter[str]]:
        """Instances and studies held back in latest revisions, by trust, stage and reason code: keys `instances` and `studies`."""
        held: dict[tuple[str, str, str], Counter[str]] = {}
        for study in self.studies.values():
            for stage, said in study.quarantined.items():
                if said.revision < study.revision:
                    continue
                for reason in said.reasons:
                    held.setdefault((study.trust, stage, reason.code), Counter()).update({"instances": reason.instances, "studies": 1})
        return dict(sorted(held.items()))

    def datasets(self) -> dict[str, int]:
        """Datasets exported, refused, waiting and given up."""
        outcomes = Counter(answer.outcome for answer in self.answers.values())
        unanswered = self.requests.keys() - self.answers.keys()
        failed = len(unanswered & self.dead_requests)
        return {
            "exported": outcomes["exported"],
            "refused": outcomes["refused"],
            "waiting": len(unanswered) - failed,
            "failed": failed,
        }

    def _study(self, trust: str, study_instance_uid: str) -> Study:
        place = (trust, study_instance_uid)
        return self.studies.setdefault(place, Study(*place))

    def _learn(self, study: Study, trace: str) -> None:
        """From now on this trace is this study's; what waited for that is placed."""
        if trace in study.traces:
            return
        place = (study.trust, study.study_instance_uid)
        study.traces.add(trace)
        self._by_trace[trace] = self._by_uid[study.study_instance_uid] = place
        for record in self._pending.pop(trace, ()):
            self._place(record)

    def _place(self, record: Record, *, guess: bool = False) -> None:
        """Add a record that names no trust to the study it belongs to."""
        event = record.event
        if isinstance(event.data, DeadLettered) and event.topic.startswith("research.dataset."):
            self.dead_letters.append((event.data, UNKNOWN))
            self.dead_requests.add(self._request_traces.get(event.trace_id, ""))
            return
        place = self._by_trace.get(event.trace_id)
        if place is None and not guess:
            self._pending.setdefault(event.trace_id, []).append(record)
            return
        study = self._study(*(place or self._by_uid.get(event.key) or (UNKNOWN, event.key)))
        match event.data:
            case StudyDeidentified() as data:
                study.last_deidentified = max(study.last_deidentified, event.time)
                self._by_uid[data.research_study_uid] = (study.trust, study.study_instance_uid)
                if data.revision >= study.deidentified_revision:
                    study.deidentified_revision, study.deidentified_instances = data.revision, data.instances
                    study.held_back, study.source, study.subject = data.held_back, data.source, data.subject
                    study.research_study_uid = data.research_study_uid
                    study.manifest = (data.manifest.bucket, data.manifest.key)
            case StudyIndexed() as data:
                if data.revision >= study.indexed_revision:
                    study.indexed_revision, study.indexed_instances = data.revision, data.instances
                    study.modalities = set(data.modalities)
                    study.research_study_uid, study.subject = data.research_study_uid, data.subject
            case DeadLettered() as data:
                self.dead_letters.append((data, study.trust))
                study.dead[data.group] = max(event.time, study.dead.get(data.group, _NEVER))
            case _:
                raise TypeError(f"{event.topic} carries a type that the ledger does not know: add it to ledger.py")


def ledger_of(records: Iterable[Record]) -> Ledger:
    """The ledger of these records, finished."""
    ledger = Ledger()
    for record in records:
        ledger.add(record)
    ledger.finish()
    return ledger


def _identifiable(study: Study, record: Record) -> None:
    event = record.event
    match event.data:
        case InstanceReceived() as data:
            study.arrivals += 1
            study.objects.add(data.object.sha256)
            study.last_arrival = max(study.last_arrival, record.timestamp)
        case StudyQuiet() as data:
            study.last_quiet = max(study.last_quiet, event.time)
            study.quiet_covers = max(study.quiet_covers, data.last_seen)
        case StudyReceived() as data:
            study.last_closed = max(study.last_closed, event.time)
            if data.revision >= study.revision:
                study.revision, study.revision_instances = data.revision, data.instances
        case StudyQuarantined() as data:
            if data.stage == "ingest":
                study.last_closed = max(study.last_closed, event.time)
            before = study.quarantined.get(data.stage)
            if before is None or data.revision >= before.revision:
                study.quarantined[data.stage] = data
        case _:
            raise TypeError(f"{event.topic} carries a type that the ledger does not know: add it to ledger.py")
