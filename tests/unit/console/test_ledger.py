"""Status from events: what is done, what waits, what failed."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import count

from hub_console.ledger import UNKNOWN, Ledger, Record, Study, ledger_of
from hub_events import Event
from hub_events.types import (
    DatasetExported,
    DatasetRequested,
    DeadLettered,
    InstanceReceived,
    ObjectReference,
    QuarantineReason,
    StudyDeidentified,
    StudyIndexed,
    StudyQuarantined,
    StudyQuiet,
    StudyReceived,
    StudyTick,
)
from pydantic import BaseModel

START = datetime(2026, 11, 25, 12, 0, tzinfo=UTC)
SHA = "a" * 64


class Hub:
    """Says what the services say, one second after the other."""

    def __init__(self) -> None:
        self.now = START
        self.numbers: Iterator[int] = count()
        self.records: list[Record] = []

    def say(self, topic: str, key: str, data: BaseModel, after: Event[BaseModel] | None = None) -> Event[BaseModel]:
        self.now += timedelta(seconds=1)
        made = Event.first(topic, key, data, source="test") if after is None else after.follow(topic, key, data, source="test")
        event = Event(topic, key, data, made.id, "test", self.now, made.traceparent)
        self.records.append(Record(event, 0, next(self.numbers), self.now))
        return event

    def instance(
        self, study: str = "1.2", trust: str = "northgate", sha: str = SHA, after: Event[BaseModel] | None = None
    ) -> Event[BaseModel]:
        data = InstanceReceived(
            trust=trust,
            study_instance_uid=study,
            series_instance_uid="1.2.1",
            sop_instance_uid="1.2.1.1",
            object=reference(sha),
            origin="c-store",
        )
        return self.say("identifiable.instance.received", study, data, after)

    def quiet(
        self, after: Event[BaseModel], study: str = "1.2", trust: str = "northgate", last_seen: datetime | None = None
    ) -> Event[BaseModel]:
        data = StudyQuiet(trust=trust, study_instance_uid=study, instances=1, last_seen=last_seen or self.now)
        return self.say("identifiable.study.quiet", study, data, after)

    def received(
        self, after: Event[BaseModel], study: str = "1.2", trust: str = "northgate", revision: int = 1, instances: int = 1
    ) -> Event[BaseModel]:
        data = StudyReceived(
            trust=trust,
            study_instance_uid=study,
            revision=revision,
            instances=instances,
            variants=0,
            bytes=10,
            digest=SHA,
            manifest=reference(),
        )
        return self.say("identifiable.study.received", study, data, after)

    def quarantined(
        self, after: Event[BaseModel], stage: str = "deidentification", scope: str = "study", revision: int = 1
    ) -> Event[BaseModel]:
        data = StudyQuarantined.model_validate(
            {
                "trust": "northgate",
                "study_instance_uid": "1.2",
                "revision": revision,
                "stage": stage,
                "scope": scope,
                "reasons": [QuarantineReason(code="structured-report", instances=1)],
                "report": reference(),
            }
        )
        return self.say("identifiable.study.quarantined", "1.2", data, after)

    def deidentified(
        self, after: Event[BaseModel], research: str = "2.25.7", revision: int = 1, instances: int = 1, held_back: int = 0
    ) -> Event[BaseModel]:
        data = StudyDeidentified(
            research_study_uid=research,
            source="abcdefghij",
            subject="S" * 16 if instances else None,
            revision=revision,
            instances=instances,
            held_back=held_back,
            profile="basic",
            key_version=1,
            manifest=reference(),
        )
        return self.say("research.study.deidentified", research, data, after)

    def indexed(self, after: Event[BaseModel], research: str = "2.25.7", revision: int = 1, instances: int = 1) -> Event[BaseModel]:
        data = StudyIndexed(
            research_study_uid=research,
            source="abcdefghij",
            subject="S" * 16 if instances else None,
            revision=revision,
            instances=instances,
            modalities=["CT"],
            manifest=reference(),
        )
        return self.say("research.study.indexed", research, data, after)

    def dead(self, after: Event[BaseModel], group: str, topic: str, key: str = "1.2") -> Event[BaseModel]:
        data = DeadLettered(
            topic=topic, partition=0, offset=0, group=group, reason="handler-died", error="ProcessDied", attempts=3, object=reference()
        )
        return self.say(f"{topic}.dlq", key, data, after)

    def ledger(self) -> Ledger:
        return ledger_of(self.records)

    def study(self) -> Study:
        (study,) = self.ledger().studies.values()
        return study


def reference(sha: str = SHA) -> ObjectReference:
    return ObjectReference(bucket="identifiable", key="k", sha256=sha, size=10)


def test_a_study_that_went_all_the_way_is_done_everywhere_and_counted_at_its_trust() -> None:
    hub = Hub()
    hub.indexed(hub.deidentified(hub.received(hub.quiet(hub.instance()))))
    counts = hub.ledger().counts()
    assert list(counts) == ["northgate"]
    assert [(stage, count.done, count.waiting, count.failed) for stage, count in counts["northgate"].items()] == [
        (stage, 1, 0, 0) for stage in ("received", "assembled", "closed", "deidentified", "indexed")
    ]
    assert hub.study().settled()
    assert hub.study().subject == "S" * 16


def test_each_stage_waits_until_it_has_answered() -> None:
    hub = Hub()
    seen = []
    event = hub.instance()
    seen.append(waiting(hub))
    for step in (hub.quiet, hub.received, hub.deidentified, hub.indexed):
        event = step(event)
        seen.append(waiting(hub))
    assert seen == [["assembled"], ["closed"], ["deidentified"], ["indexed"], []]


def test_a_late_instance_makes_the_assembler_wait_again_and_the_new_revision_every_stage_after_it() -> None:
    hub = Hub()
    hub.indexed(hub.deidentified(hub.received(hub.quiet(hub.instance()))))
    late = hub.instance(sha="b" * 64)
    assert waiting(hub) == ["assembled"]
    assert not hub.study().settled()
    second = hub.received(hub.quiet(late), revision=2, instances=2)
    assert waiting(hub) == ["deidentified"]
    hub.indexed(hub.deidentified(second, revision=2, instances=2), revision=2, instances=2)
    assert hub.study().settled()
    assert (hub.study().indexed_instances, len(hub.study().objects)) == (2, 2)


def test_a_repeat_of_the_same_object_is_one_instance_and_an_old_revision_never_replaces_a_new_one() -> None:
    hub = Hub()
    first = hub.received(hub.quiet(hub.instance()))
    second = hub.received(hub.quiet(hub.instance()), revision=2, instances=5)
    hub.deidentified(second, revision=2, instances=5)
    hub.deidentified(first, revision=1, instances=1)
    assert len(hub.study().objects) == 1
    assert (hub.study().deidentified_revision, hub.study().deidentified_instances) == (2, 5)


def test_a_quiet_event_that_does_not_cover_the_last_instance_leaves_it_waiting() -> None:
    hub = Hub()
    first = hub.instance()
    covered = hub.now
    hub.instance(sha="b" * 64)
    hub.quiet(first, last_seen=covered)
    assert "assembled" in waiting(hub)


def test_what_is_held_back_as_a_whole_is_failed_and_settled_with_its_reason() -> None:
    hub = Hub()
    received = hub.received(hub.quiet(hub.instance()))
    hub.quarantined(received)
    hub.indexed(hub.deidentified(received, instances=0, held_back=1), instances=0)
    assert states(hub) == ["done", "done", "done", "failed", "absent"]
    assert hub.study().settled()
    assert hub.ledger().quarantine() == {("northgate", "deidentification", "structured-report"): {"instances": 1, "studies": 1}}


def test_some_instances_held_back_leave_the_study_done_and_a_clean_revision_clears_the_reason() -> None:
    hub = Hub()
    received = hub.received(hub.quiet(hub.instance()))
    hub.quarantined(received, scope="instances")
    hub.indexed(hub.deidentified(received, held_back=1))
    assert states(hub)[3:] == ["done", "done"]
    assert hub.study().reasons() == {"structured-report": 1}
    hub.received(hub.quiet(hub.instance(sha="b" * 64)), revision=2)
    assert not hub.study().reasons()
    assert not hub.ledger().quarantine()


def test_a_dead_letter_is_a_failure_of_its_stage_until_the_study_comes_again() -> None:
    hub = Hub()
    received = hub.received(hub.quiet(hub.instance()))
    hub.dead(received, "deidentification", "identifiable.study.received")
    assert states(hub)[3] == "failed"
    assert hub.study().settled()
    assert [trust for _, trust in hub.ledger().dead_letters] == ["northgate"]
    again = hub.received(hub.quiet(hub.instance(sha="b" * 64)), revision=2)
    assert states(hub)[3] == "waiting"
    hub.deidentified(again, revision=2)
    assert states(hub)[3] == "done"


def test_research_events_are_joined_to_their_trust_by_trace_even_when_they_are_read_first() -> None:
    hub = Hub()
    hub.indexed(hub.deidentified(hub.received(hub.quiet(hub.instance(trust="southmoor"), trust="southmoor"), trust="southmoor")))
    ledger = Ledger()
    for record in reversed(hub.records):
        ledger.add(record)
    ledger.finish()
    assert [(study.trust, study.indexed_instances) for study in ledger.studies.values()] == [("southmoor", 1)]


def test_research_events_whose_origin_is_forgotten_stand_under_no_trust() -> None:
    hub = Hub()
    hub.indexed(hub.deidentified(hub.received(hub.quiet(hub.instance()))))
    kept = [record for record in hub.records if record.event.topic.startswith("research.")]
    assert [study.trust for study in ledger_of(kept).studies.values()] == [UNKNOWN]


def test_the_same_study_from_two_trusts_is_two() -> None:
    hub = Hub()
    hub.received(hub.quiet(hub.instance()))
    hub.received(hub.quiet(hub.instance(trust="southmoor"), trust="southmoor"), trust="southmoor")
    assert sorted(trust for trust, _ in hub.ledger().studies) == ["northgate", "southmoor"]


def test_datasets_are_exported_refused_waiting_or_given_up() -> None:
    hub = Hub()
    events = [
        hub.say("research.dataset.requested", f"d{number}", DatasetRequested(dataset=f"d{number}", where=[], training_percent=80))
        for number in range(4)
    ]
    for event, outcome in zip(events, ("exported", "refused"), strict=False):
        answer = DatasetExported.model_validate({"dataset": event.key, "request": event.id, "outcome": outcome})
        hub.say("research.dataset.exported", event.key, answer, event)
    hub.dead(events[2], "export", "research.dataset.requested", key="d2")
    assert hub.ledger().datasets() == {"exported": 1, "refused": 1, "waiting": 1, "failed": 1}


def test_a_tick_changes_nothing() -> None:
    hub = Hub()
    hub.say("identifiable.instance.received", "1.2", StudyTick(trust="northgate", study_instance_uid="1.2"))
    assert not hub.ledger().studies


def states(hub: Hub) -> list[str]:
    return [hub.study().state(stage) for stage in ("received", "assembled", "closed", "deidentified", "indexed")]


def waiting(hub: Hub) -> list[str]:
    return [stage for stage in ("assembled", "closed", "deidentified", "indexed") if hub.study().state(stage) == "waiting"]
