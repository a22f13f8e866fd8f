"""Producing from outside a transaction: for the edges, where an acknowledgement is owed to somebody who waits."""

import threading
import time
from concurrent.futures import Future
from types import TracebackType
from typing import Any, Self

from confluent_kafka import KafkaError, KafkaException, Message, Producer
from hub_events import Event
from hub_events.seal import SEALED_TOPICS, seal

from hub_runtime.errors import BrokerUnavailable, GiveUp
from hub_runtime.records import Outgoing, outgoing
from hub_runtime.settings import ServiceSettings, kafka_config, seal_key

DELIVERY_TIMEOUT_MS = 8000


class EventProducer:
    """An idempotent producer that waits for all in-sync replicas. Safe from many threads; their events share requests."""

    def __init__(self, settings: ServiceSettings, *, delivery_timeout_ms: int = DELIVERY_TIMEOUT_MS) -> None:
        """Connect in the background."""
        self._config = kafka_config(settings) | {
            "acks": "all",
            "enable.idempotence": True,
            "delivery.timeout.ms": delivery_timeout_ms,
            "linger.ms": 0,
        }
        self._seal_key = seal_key(settings)
        self._timeout = delivery_timeout_ms / 1000 + 2
        self._lock = threading.Lock()
        self._producer = Producer(self._config)
        self._closed = threading.Event()
        self._poller = threading.Thread(target=self._serve, name="event-producer", daemon=True)
        self._poller.start()

    def produce(self, *events: Event[Any]) -> None:
        """Return when every event is acknowledged by all in-sync replicas, at most `delivery_timeout_ms` + 2 s later.

        Raises:
            BrokerUnavailable: an acknowledgement did not come in time; any of the events may have been written all the same.
            GiveUp: an event is larger than the broker takes.
            ValueError: an event's topic does not carry its type.
        """
        records = [outgoing(self._sealed(event)) for event in events]
        deadline = time.monotonic() + self._timeout
        producer = self._producer
        waiting = [_send(producer, record) for record in records]
        errors: list[KafkaError] = []
        for future in waiting:
            try:
                error = future.result(timeout=max(0.0, deadline - time.monotonic()))
            except TimeoutError:
                raise BrokerUnavailable(f"no acknowledgement within {self._timeout:.0f} s") from None
            if error is not None:
                errors.append(error)
        if errors:
            self._raise(errors[0], producer)

    def close(self) -> None:
        """Stop; what is not acknowledged by now is the business of those who wait for it."""
        self._closed.set()
        self._poller.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _sealed(self, event: Event[Any]) -> Event[Any]:
        return event if self._seal_key is None or event.topic not in SEALED_TOPICS else seal(event, self._seal_key)

    def _raise(self, error: KafkaError, producer: Producer) -> None:
        if error.code() == KafkaError.MSG_SIZE_TOO_LARGE:
            raise GiveUp("event-too-large", "an event is larger than the broker takes: put the content into an object and refer to it")
        if error.fatal() or error.name() == "_FATAL":
            with self._lock:
                # An idempotent producer that lost its sequence never works again; a new one does.
                if self._producer is producer:
                    self._producer = Producer(self._config)
        raise BrokerUnavailable(f"an event was not acknowledged: {error.name()}")

    def _serve(self) -> None:
        while not self._closed.is_set():
            self._producer.poll(0.1)
        self._producer.poll(0)


def _send(producer: Producer, record: Outgoing) -> "Future[KafkaError | None]":
    future: Future[KafkaError | None] = Future()

    def acknowledged(error: KafkaError | None, _message: Message) -> None:
        future.set_result(error)

    try:
        producer.produce(record.topic, key=record.key, value=record.value, headers=record.headers, on_delivery=acknowledged)
    except KafkaException as error:
        future.set_result(error.args[0])
    except BufferError:
        raise BrokerUnavailable("the producer's queue is full: the broker has not taken anything for a while") from None
    return future
