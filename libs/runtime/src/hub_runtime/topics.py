"""Create the topics of the registry (schemas/asyncapi.yaml) on a broker."""

import time
from collections.abc import Iterable
from concurrent.futures import Future
from typing import Any

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import (  # type: ignore[attr-defined]  # the package re-exports them without saying so
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    NewTopic,
    ResourceType,
)
from hub_events import TOPICS, Topic

from hub_runtime.errors import BrokerUnavailable

_CLIENT_KEYS = ("partitioner", "retry.backoff.max.ms")


class TopicMismatch(Exception):
    """A topic exists in another shape than the registry's, and changing it in place would part its keys."""


def create_topics(
    config: dict[str, Any], *, topics: Iterable[Topic] | None = None, replication_factor: int = 1, timeout_seconds: float = 30.0
) -> list[str]:
    """Make every topic of the registry that is missing and give all of them their retention; say which were made.

    Repeating it changes nothing. `config` is `kafka_config(settings)` of an identity that may create topics.

    Raises:
        TopicMismatch: a topic has another number of partitions than the registry says.
        BrokerUnavailable: the broker does not answer within `timeout_seconds`.
    """
    wanted = {topic.name: topic for topic in (TOPICS.values() if topics is None else topics)}
    admin = AdminClient({name: value for name, value in config.items() if name not in _CLIENT_KEYS})
    try:
        existing = admin.list_topics(timeout=timeout_seconds).topics
        found = {name: len(existing[name].partitions) for name in wanted if name in existing}
        wrong = [
            f"{name} has {count} partitions instead of {wanted[name].partitions}"
            for name, count in found.items()
            if count != wanted[name].partitions
        ]
        if wrong:
            raise TopicMismatch(
                f"{'; '.join(wrong)}. A keyed topic is never repartitioned in place: make a topic of a new name in schemas/asyncapi.yaml and move its "
                "readers, or, where nothing in it is needed, delete the topic and run this again"
            )
        new = [
            NewTopic(topic.name, num_partitions=topic.partitions, replication_factor=replication_factor, config=_config(topic))
            for topic in wanted.values()
            if topic.name not in found
        ]
        made: list[str] = []
        if new:
            futures = admin.create_topics(new, operation_timeout=timeout_seconds, request_timeout=timeout_seconds)
            made = [name for name, future in futures.items() if _created(future)]
            _wait_for(admin, set(futures), timeout_seconds)
        if found:
            _align(admin, [wanted[name] for name in found], timeout_seconds)
    except KafkaException as error:
        raise BrokerUnavailable(f"the topics could not be created: {error.args[0].name()}: {error.args[0].str()}") from error
    return made


def _config(topic: Topic) -> dict[str, str]:
    return {"cleanup.policy": topic.cleanup_policy, "retention.ms": str(topic.retention_ms), **topic.broker_settings}


def _created(future: "Future[None]") -> bool:
    try:
        future.result()
    except KafkaException as error:
        # Somebody else made it in the same moment.
        if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
            raise
        return False
    return True


def _wait_for(admin: AdminClient, names: set[str], timeout_seconds: float) -> None:
    """A broker hears of a topic a moment after the controller has made it; who comes after us shall find it."""
    deadline = time.monotonic() + timeout_seconds
    while missing := names - set(admin.list_topics(timeout=timeout_seconds).topics):
        if time.monotonic() > deadline:
            raise BrokerUnavailable(
                f"the broker has made {', '.join(sorted(missing))} but does not list them after {timeout_seconds:.0f} s"
            )
        time.sleep(0.05)


def _align(admin: AdminClient, topics: list[Topic], timeout_seconds: float) -> None:
    resources = [
        ConfigResource(
            ResourceType.TOPIC,
            topic.name,
            incremental_configs=[
                ConfigEntry(name, value, incremental_operation=AlterConfigOpType.SET) for name, value in _config(topic).items()
            ],
        )
        for topic in topics
    ]
    for future in admin.incremental_alter_configs(resources, request_timeout=timeout_seconds).values():
        future.result()
