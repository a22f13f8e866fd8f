"""Which events belong to one study, and in which order they are told."""

import random
from datetime import UTC, datetime, timedelta

from hub_console.ledger import Record
from hub_console.trace import Threads, lines_of
from hub_events import Event
from hub_events.types import DeadLettered, ObjectReference, StudyQuiet, StudyTick

START = datetime(2026, 11, 25, 12, 0, tzinfo=UTC)


def test_one_study_is_found_by_its_uid_of_either_zone_and_no_other_comes_with_it() -> None:
    threads = Threads()
    for key, trace in (("1.2", "t1"), ("2.25.7", "t1"), ("1.2", "t2"), ("2.25.7", "t2"), ("1.3", "t3"), ("2.25.8", "t3")):
        threads.learn(key, trace)
    assert threads.of("1.2") == {"1.2", "2.25.7"}
    assert threads.of("2.25.7") == {"1.2", "2.25.7"}
    assert threads.of("9.9") == frozenset()


def test_events_are_told_in_order_of_time_and_stages_and_ticks_are_not_told() -> None:
    quiet = StudyQuiet(trust="northgate", study_instance_uid="1.2", instances=3, last_seen=START)
    reference = ObjectReference(bucket="identifiable", key="k", sha256="a" * 64, size=1)
    dead = DeadLettered(
        topic="identifiable.study.received",
        partition=3,
        offset=9,
        group="deidentification",
        reason="handler-died",
        error="E",
        attempts=3,
        object=reference,
    )
    records = [
        record("identifiable.instance.received", StudyTick(trust="northgate", study_instance_uid="1.2"), 0),
        record("identifiable.study.quiet", quiet, 1),
        record("identifiable.study.received.dlq", dead, 1),
        record("identifiable.study.quiet", quiet, 0),
    ]
    random.Random(1).shuffle(records)
    lines = lines_of(records)
    assert [line.topic for line in lines] == ["identifiable.study.quiet", "identifiable.study.quiet", "identifiable.study.received.dlq"]
    assert [line.failed for line in lines] == [False, False, True]
    assert lines[-1].text == "deidentification gave up identifiable.study.received partition 3 offset 9 after 3 attempts: handler-died (E)"
    assert lines[-1].as_json()["data"]["reason"] == "handler-died"


def record(topic: str, data: object, seconds: int) -> Record:
    event: Event = Event.first(topic, "1.2", data, source="test")  # type: ignore[type-arg]  # any payload will do
    return Record(Event(topic, "1.2", event.data, event.id, "test", START + timedelta(seconds=seconds), event.traceparent), 0, 0, START)
