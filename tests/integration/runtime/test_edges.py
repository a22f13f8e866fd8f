"""Topics, partitions, producers and transactions against the real broker."""

import secrets
import threading
import time

import pytest
from aiokafka.partitioner import DefaultPartitioner  # type: ignore[import-untyped]  # faust's client ships no types
from confluent_kafka import Consumer, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, ConfigResource, ResourceType  # type: ignore[attr-defined]  # exported without saying so
from hub_events import TOPICS, Event, Topic
from hub_runtime import BrokerUnavailable, EventProducer, GiveUp, TopicMismatch, create_topics, kafka_config
from hub_runtime.records import outgoing
from hub_runtime.transactions import Aborted, Transactions
from support.runtime import Bench, free_port, numbers, read, settings_for, until, work_of
from support.runtime_service import SOURCE, Work, register


def test_an_aborted_record_is_never_seen_by_a_read_committed_reader(made: Bench) -> None:
    transactions = Transactions(kafka_config(settings_for(made.kafka)), made.group, lambda _: True)
    transactions.start()

    def records(first: int, last: int) -> list[Event[Work]]:
        return [Event.first(made.out, f"2.25.{n}", Work(n=n), source=SOURCE) for n in range(first, last)]

    producer = transactions._client.producer
    producer.begin_transaction()
    for event in records(0, 20):
        record = outgoing(event)
        producer.produce(record.topic, key=record.key, value=record.value, headers=record.headers)
    producer.flush(10)
    producer.abort_transaction(10)
    transactions.commit(map(outgoing, records(20, 40)), [TopicPartition(made.topic, 0, 0)], _no_group(made))

    assert numbers(made.outputs(20)) == list(range(20, 40))
    # The same reader without isolation does see them: it is the isolation that is tested here.
    dirty = read(made.kafka, made.out, 40, isolation="read_uncommitted")
    assert numbers(map(work_of, dirty)) == list(range(40))


def test_a_transaction_of_a_member_that_the_group_does_not_know_is_aborted_whole(made: Bench) -> None:
    consumer = Consumer({"bootstrap.servers": made.kafka, "group.id": made.group, "session.timeout.ms": 6000})
    consumer.subscribe([made.topic])
    while not consumer.assignment():
        consumer.poll(0.2)
    stale = consumer.consumer_group_metadata()
    consumer.close()
    transactions = Transactions(kafka_config(settings_for(made.kafka)), made.group, lambda _: True)
    transactions.start()

    with pytest.raises(Aborted):
        transactions.commit(
            [outgoing(Event.first(made.out, "2.25.1", Work(n=1), source=SOURCE))], [TopicPartition(made.topic, 0, 5)], stale
        )
    assert made.outputs(0) == []
    transactions.commit(
        [outgoing(Event.first(made.out, "2.25.1", Work(n=2), source=SOURCE))], [TopicPartition(made.topic, 0, 0)], _no_group(made)
    )
    assert numbers(made.outputs(1)) == [2]


def _no_group(made: Bench) -> object:
    """Metadata of a group without members, as a program has that commits from outside."""
    consumer = Consumer({"bootstrap.servers": made.kafka, "group.id": f"{made.group}.outside"})
    try:
        # On a fresh broker this makes the topic that groups are kept in, which takes a moment.
        until(lambda: _coordinated(consumer, made.topic), 20)
        return consumer.consumer_group_metadata()
    finally:
        consumer.close()


def _coordinated(consumer: Consumer, topic: str) -> bool:
    try:
        consumer.committed([TopicPartition(topic, 0)], timeout=5)
    except KafkaException:
        return False
    return True


def test_a_thousand_keys_land_where_faust_and_java_put_them(kafka: str) -> None:
    name = f"identifiable.test.{secrets.token_hex(4)}"
    create_topics(kafka_config(settings_for(kafka)), topics=register(name, 12)[:1])
    keys = [f"1.2.826.0.1.3680043.8.498.{number * 7919}" for number in range(1000)]
    with EventProducer(settings_for(kafka)) as producer:
        producer.produce(*(Event.first(name, key, Work(n=n), source=SOURCE) for n, key in enumerate(keys)))

    landed = {message.key(): message.partition() for message in read(kafka, name, 1000)}
    faust = DefaultPartitioner()
    everywhere = list(range(12))
    assert landed == {key.encode(): faust(key.encode(), everywhere, everywhere) for key in keys}
    assert set(landed.values()) == set(everywhere)


def test_topics_are_made_once_with_partitions_and_retention(kafka: str) -> None:
    name = f"identifiable.test.{secrets.token_hex(4)}"
    topics, config = register(name, 6), kafka_config(settings_for(kafka))

    assert create_topics(config, topics=topics) == [name, f"{name}.dlq", f"{name}.out"]
    assert create_topics(config, topics=topics) == []
    assert _partitions(kafka, name) == 6
    assert _config(kafka, name) == ("delete", "604800000")

    shorter = Topic(name, TOPICS[name].types, 6, "delete", 3_600_000, (), ())
    assert create_topics(config, topics=[shorter]) == []
    until(lambda: _config(kafka, name) == ("delete", "3600000"), 10)

    wider = Topic(name, TOPICS[name].types, 12, "delete", 604_800_000, (), ())
    with pytest.raises(TopicMismatch, match=r"has 6 partitions instead of 12.*never repartitioned in place"):
        create_topics(config, topics=[wider])
    assert _partitions(kafka, name) == 6


def test_the_registry_s_topics_can_be_made(kafka: str) -> None:
    config = kafka_config(settings_for(kafka))
    real = [topic for name, topic in TOPICS.items() if ".test." not in name]
    create_topics(config, topics=real)
    assert create_topics(config, topics=real) == []
    for topic in real:
        assert _partitions(kafka, topic.name) == topic.partitions
        assert _config(kafka, topic.name) == (topic.cleanup_policy, str(topic.retention_ms))


def test_no_broker_is_said_so_in_time() -> None:
    settings = settings_for(f"127.0.0.1:{free_port()}")
    began = time.monotonic()
    with EventProducer(settings, delivery_timeout_ms=1500) as producer, pytest.raises(BrokerUnavailable) as error:
        producer.produce(_quiet(1))
    assert time.monotonic() - began < 10
    assert error.value.reason == "broker-unavailable"
    with pytest.raises(BrokerUnavailable):
        create_topics(kafka_config(settings), timeout_seconds=1)


def test_a_producer_serves_many_threads_and_refuses_what_is_too_large(made: Bench) -> None:
    with EventProducer(settings_for(made.kafka)) as producer:

        def some(first: int) -> None:
            for n in range(first, first + 25):
                producer.produce(Event.first(made.out, f"2.25.{n}", Work(n=n), source=SOURCE))

        threads = [threading.Thread(target=some, args=(first,)) for first in range(0, 200, 25)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        with pytest.raises(GiveUp):
            producer.produce(Event.first(made.out, "2.25.1", Work(n=0, path="x" * 2_000_000), source=SOURCE))
        producer.produce(Event.first(made.out, "2.25.1", Work(n=200), source=SOURCE))

    assert numbers(made.outputs(201)) == list(range(201))


def _quiet(n: int) -> Event[Work]:
    name = f"identifiable.test.{secrets.token_hex(4)}"
    register(name, 1)
    return Event.first(name, "2.25.1", Work(n=n), source=SOURCE)


def _partitions(kafka: str, topic: str) -> int:
    admin = AdminClient({"bootstrap.servers": kafka})
    return len(admin.list_topics(topic, timeout=10).topics[topic].partitions)


def _config(kafka: str, topic: str) -> tuple[str, str]:
    resource = ConfigResource(ResourceType.TOPIC, topic)
    admin = AdminClient({"bootstrap.servers": kafka})
    found = admin.describe_configs([resource])[resource].result()
    return found["cleanup.policy"].value, found["retention.ms"].value
