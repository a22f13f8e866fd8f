"""Reading a real broker: committed records only, to the end, fast; and how far a group is behind."""

import time
import uuid

from confluent_kafka import Consumer, Producer, TopicPartition
from hub_console.ledger import GROUPS, Record, ledger_of
from hub_console.looks import status, trace
from hub_console.records import Reader, Unreadable, all_topics, lags, readable
from hub_console.running import ConsoleSettings, Running
from hub_events import Event, encode
from hub_events.types import InstanceReceived, ObjectReference, StudyDeidentified, StudyQuiet
from hub_runtime.topics import create_topics
from pydantic import BaseModel

TOPIC, QUIET, RESEARCH = "identifiable.instance.received", "identifiable.study.quiet", "research.study.deidentified"


def test_twenty_thousand_instances_are_counted_in_seconds_and_an_aborted_one_never(kafka: str) -> None:
    config = {"bootstrap.servers": kafka}
    create_topics(config)
    study = f"1.2.{uuid.uuid4().int}"[:60]
    producer = Producer(config | {"partitioner": "murmur2_random", "linger.ms": 20})
    first = instance(study, 0)
    for number in range(20_000):
        send(producer, first.follow(TOPIC, study, instance(study, number).data, source="ingest.receiver"))
        if number % 5000 == 0:
            producer.flush()
    producer.flush()
    aborting = Producer(config | {"transactional.id": f"console-test-{uuid.uuid4()}", "partitioner": "murmur2_random"})
    aborting.init_transactions()
    aborting.begin_transaction()
    send(aborting, instance(study, 99_999))
    aborting.flush()
    aborting.abort_transaction()
    began = time.monotonic()
    with Reader(config, all_topics()) as reader:
        ledger = ledger_of(record for record in readable(reader.to_the_end()) if isinstance(record, Record))
    seconds = time.monotonic() - began
    found = ledger.studies["northgate", study]
    assert (found.arrivals, len(found.objects)) == (20_000, 20_000)
    assert found.state("assembled") == "waiting"
    assert seconds < 30, f"{seconds:.1f} s for 20,000 events, on a machine that may be busy"


def test_a_reader_follows_what_comes_and_names_what_is_no_event(kafka: str) -> None:
    config = {"bootstrap.servers": kafka}
    create_topics(config)
    producer = Producer(config | {"partitioner": "murmur2_random"})
    with Reader(config, [QUIET]) as reader:
        for _ in reader.to_the_end():
            pass
        assert reader.new(0.2) == []
        producer.produce(QUIET, key=b"1.2", value=b"no event")
        producer.flush()
        deadline = time.monotonic() + 20
        found: list[Record | Unreadable] = []
        while not found and time.monotonic() < deadline:
            found = list(readable(reader.new(1.0)))
    assert [type(one) for one in found] == [Unreadable]


def test_a_study_is_traced_by_either_uid_and_status_tells_the_lag_of_each_group(kafka: str) -> None:
    config = {"bootstrap.servers": kafka}
    create_topics(config)
    running = Running(
        ConsoleSettings(kafka_bootstrap_servers=kafka, s3_endpoint="http://127.0.0.1:1", s3_access_key="a", s3_secret_key="s"), {}
    )
    study, other = (f"1.2.{uuid.uuid4().int}"[:60] for _ in range(2))
    research = f"2.25.{uuid.uuid4().int}"
    producer = Producer(config | {"partitioner": "murmur2_random"})
    received = instance(study, 1)
    quiet = received.follow(
        QUIET, study, StudyQuiet(trust="northgate", study_instance_uid=study, instances=1, last_seen=received.time), source="t"
    )
    released = StudyDeidentified(
        research_study_uid=research, source="abcdefghij", subject="S" * 16, revision=1, instances=1, held_back=0, profile="basic", key_version=1,
        manifest=ObjectReference(bucket="research", key="m", sha256="b" * 64, size=1),
    )  # fmt: skip
    for event in (received, quiet, quiet.follow(RESEARCH, research, released, source="t"), instance(other, 2)):
        send(producer, event)
    producer.flush()
    for uid in (study, research):
        lines = trace(running, uid)
        assert [line.topic for line in lines] == [TOPIC, QUIET, RESEARCH]
        assert [line.zone for line in lines] == ["identifiable", "identifiable", "research"]
        assert {line.trace_id for line in lines} == {received.trace_id}
    assert trace(running, "9.9.9") == []

    before = {lag.group: lag.records for lag in status(running).lags}
    assert before["ingest.closer"] >= 1
    assert set(before) == {*GROUPS.values(), "export"}
    commit_everything(config, "ingest.closer", QUIET)
    after = {lag.group: lag.records for lag in lags(config, ["ingest.closer", "deidentification"])}
    assert after["ingest.closer"] == 0


def commit_everything(config: dict[str, str], group: str, topic: str) -> None:
    consumer = Consumer(config | {"group.id": group, "enable.auto.commit": "false"})
    partitions = consumer.list_topics(topic, timeout=10).topics[topic].partitions
    ends = [
        TopicPartition(topic, number, consumer.get_watermark_offsets(TopicPartition(topic, number), timeout=10)[1]) for number in partitions
    ]
    consumer.commit(offsets=ends, asynchronous=False)
    consumer.close()


def instance(study: str, number: int) -> Event[InstanceReceived]:
    data = InstanceReceived(
        trust="northgate",
        study_instance_uid=study,
        series_instance_uid="1.2.1",
        sop_instance_uid=f"1.2.1.{number}",
        object=ObjectReference(bucket="identifiable", key=f"k{number}", sha256=f"{number:064x}", size=1),
        origin="c-store",
    )
    return Event.first(TOPIC, study, data, source="ingest.receiver")


def send(producer: Producer, event: Event[BaseModel] | Event[InstanceReceived]) -> None:
    key, value, headers = encode(event)  # type: ignore[arg-type]  # an event of one payload is an event
    producer.produce(event.topic, key=key, value=value, headers=headers)  # type: ignore[arg-type]  # the stub wants str or bytes values in a union
