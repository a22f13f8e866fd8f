"""Read the hub's topics from the beginning, committed records only, and say how far each consumer group is."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Self

from confluent_kafka import Consumer, ConsumerGroupTopicPartitions, IsolationLevel, KafkaError, KafkaException, Message, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.admin._listoffsets import OffsetSpec
from hub_events import TOPICS, UnreadableEvent, decode

from hub_console.ledger import Record

_PATIENCE_SECONDS = 15
_BATCH = 1000
_BEGINNING = -2  # OFFSET_BEGINNING: confluent_kafka exports the name without a type


class BrokerAway(ConnectionError):
    """The broker does not answer: start the hub, or look at its log."""


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A record that is no event of its topic. A reader of it makes a dead letter of it."""

    topic: str
    partition: int
    offset: int
    reason: str


@dataclass(frozen=True, slots=True)
class Lag:
    """How far a consumer group is behind."""

    group: str
    records: int
    partitions: int
    """Partitions that it has not finished."""


class Reader:
    """A read_committed look at topics. It joins no group and commits nothing, so that looking changes nothing."""

    def __init__(self, config: Mapping[str, Any], topics: Iterable[str]) -> None:
        """`config`: the client settings of `hub_runtime.kafka_config`. Topics that do not exist yet are left out."""
        self._consumer = Consumer(
            {
                **{key: value for key, value in config.items() if key.startswith(("bootstrap", "sasl", "security", "ssl"))},
                "group.id": "console.look",
                "enable.auto.commit": False,
                "enable.auto.offset.store": False,
                "isolation.level": "read_committed",
                "enable.partition.eof": True,
                "auto.offset.reset": "earliest",
                "fetch.wait.max.ms": 50,
            }
        )
        try:
            known = self._consumer.list_topics(timeout=_PATIENCE_SECONDS).topics
        except KafkaException as error:
            self._consumer.close()
            raise BrokerAway(f"Kafka does not answer ({error.args[0].name()})") from error
        self._places = [TopicPartition(name, number, _BEGINNING) for name in topics if name in known for number in known[name].partitions]
        self._consumer.assign(self._places)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._consumer.close()

    def to_the_end(self) -> Iterator[Message]:
        """Every record from where the last call ended up to the end at which each partition then stands.

        Raises:
            BrokerAway: the broker stops answering.
        """
        open_places = {(place.topic, place.partition) for place in self._places}
        while open_places:
            batch = self._consumer.consume(_BATCH, timeout=0.1)
            if not batch and not self._alive():
                raise BrokerAway("Kafka has stopped answering")
            for message in batch:
                error = message.error()
                if error is None:
                    yield message
                elif error.code() == KafkaError._PARTITION_EOF:  # noqa: SLF001 # the client's own name for the end of a partition
                    open_places.discard((str(message.topic()), int(message.partition() or 0)))
                elif not error.retriable():
                    raise BrokerAway(f"Kafka refuses to be read ({error.name()})")

    def new(self, seconds: float) -> list[Message]:
        """What has come since, waiting up to `seconds` for the first of it.

        Raises:
            BrokerAway: the broker refuses to be read.
        """
        messages = []
        for message in self._consumer.consume(_BATCH, timeout=seconds):
            error = message.error()
            if error is None:
                messages.append(message)
            elif error.code() != KafkaError._PARTITION_EOF and not error.retriable():  # noqa: SLF001 # as above
                raise BrokerAway(f"Kafka refuses to be read ({error.name()})")
        return messages

    def _alive(self) -> bool:
        try:
            self._consumer.list_topics(timeout=_PATIENCE_SECONDS)
        except KafkaException:
            return False
        return True


def readable(messages: Iterable[Message]) -> Iterator[Record | Unreadable]:
    """The events that records carry; what is none is said to be none."""
    for message in messages:
        topic, partition, offset = str(message.topic()), int(message.partition() or 0), int(message.offset() or 0)
        try:
            event = decode(topic, _bytes(message.key()), _bytes(message.value()), _headers(message))
        except UnreadableEvent as error:
            yield Unreadable(topic, partition, offset, error.reason)
            continue
        _, milliseconds = message.timestamp()
        yield Record(event, partition, offset, datetime.fromtimestamp(milliseconds / 1000, UTC))


def all_topics() -> list[str]:
    """Every topic of the registry, the identifiable zone's first: research events are joined to what they follow from."""
    return sorted(name for name, topic in TOPICS.items() if topic.types)


def lags(config: Mapping[str, Any], groups: Iterable[str]) -> list[Lag]:
    """How far each group is behind, over the topics that the registry gives it.

    Raises:
        BrokerAway: the broker does not answer.
    """
    admin = AdminClient({key: value for key, value in config.items() if key.startswith(("bootstrap", "sasl", "security", "ssl"))})
    wanted = list(groups)
    try:
        known = admin.list_topics(timeout=_PATIENCE_SECONDS).topics
        places = {
            group: [
                TopicPartition(name, number)
                for name, topic in TOPICS.items()
                if group in topic.read_by and name in known
                for number in known[name].partitions
            ]
            for group in wanted
        }
        everything = {(place.topic, place.partition): place for group in wanted for place in places[group]}
        ends = _offsets(admin, everything.values(), OffsetSpec.latest())  # type: ignore[no-untyped-call] # the client leaves it untyped
        starts = _offsets(admin, everything.values(), OffsetSpec.earliest())  # type: ignore[no-untyped-call] # as above
        committed = {
            group: admin.list_consumer_group_offsets([ConsumerGroupTopicPartitions(group, places[group])])[group]
            for group in wanted
            if places[group]
        }
        result = []
        for group in wanted:
            behind = []
            for place in committed[group].result(_PATIENCE_SECONDS).topic_partitions if group in committed else ():
                at = (place.topic, place.partition)
                behind.append(max(0, ends[at] - (place.offset if place.offset >= 0 else starts[at])))
            result.append(Lag(group, sum(behind), sum(1 for lag in behind if lag)))
    except KafkaException as error:
        raise BrokerAway(f"Kafka does not answer ({error.args[0].name()})") from error
    return result


def _offsets(admin: AdminClient, places: Iterable[TopicPartition], spec: OffsetSpec) -> dict[tuple[str, int], int]:
    futures = admin.list_offsets(dict.fromkeys(places, spec), isolation_level=IsolationLevel.READ_COMMITTED)
    return {(place.topic, place.partition): int(future.result(_PATIENCE_SECONDS).offset) for place, future in futures.items()}


def _bytes(content: bytes | str | None) -> bytes | None:
    return content.encode() if isinstance(content, str) else content


def _headers(message: Message) -> list[tuple[str, bytes | str | None]]:
    headers = message.headers() or []
    return list(headers.items()) if isinstance(headers, dict) else list(headers)
