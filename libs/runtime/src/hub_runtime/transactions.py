"""One short Kafka transaction: outputs and offsets, together or not at all."""

import queue
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from typing import Any

from confluent_kafka import KafkaException, Producer, TopicPartition

from hub_runtime.errors import StopProcess
from hub_runtime.logs import logger
from hub_runtime.records import Outgoing

EXIT_FENCED = 75
_STEP_SECONDS = 2.0
STUCK_SECONDS = 12.0
"""A call of the client that has not returned by then never will, and by then the broker has ended the transaction (10 s)."""
log = logger()


class Aborted(Exception):
    """The transaction was rolled back and nothing of it can be seen; it may be done again. The text is the error's name."""


class OutOfTime(Exception):
    """The broker did not answer before the caller's patience ended; its successor, or 10 s, ends the transaction."""


class _Hung(Exception):
    """A call of the client does not return."""


class Transactions:
    """The producer of one replica. Its transactional id is stable, so that a successor ends what it left open."""

    def __init__(self, config: dict[str, Any], transactional_id: str, waiting: Callable[[str], bool]) -> None:
        """`waiting` is called with the error's name whenever the broker makes us wait; it says whether to go on waiting."""
        self._config = config | {
            "transactional.id": transactional_id,
            "transaction.timeout.ms": 10_000,
            "enable.idempotence": True,
            "linger.ms": 0,
        }
        self._waiting = waiting
        self._client = _Client(self._config)

    def start(self) -> None:
        """Take over the transactional id: a predecessor's open transaction ends, and it can commit nothing more.

        Raises:
            OutOfTime: the caller did not want to wait any longer.
            StopProcess: the broker refuses this client for good.
        """
        while True:
            try:
                return self._until_done(lambda producer: producer.init_transactions(_STEP_SECONDS))
            except _Hung:
                self._leave_client()

    def commit(self, outputs: Iterable[Outgoing], offsets: list[TopicPartition], group: object) -> None:
        """Make the outputs visible and the offsets committed; `group` is the consumer's group metadata.

        Raises:
            Aborted: nothing happened; do it again, unless the partitions have gone meanwhile.
            OutOfTime: the caller did not want to wait any longer.
            StopProcess: another process has this transactional id, or the producer cannot go on.
        """
        try:
            self._begin_to_commit(outputs, offsets, group)
        except _Hung:
            # Before the commit was asked for, so nothing of it can be seen: a new client takes the id over, which aborts what is open.
            self._leave_client()
            self.start()
            raise Aborted("_HUNG") from None

    def close(self) -> None:
        """Call the client no more; what it has open is ended by its successor or by time."""
        self._client.leave()

    def _begin_to_commit(self, outputs: Iterable[Outgoing], offsets: list[TopicPartition], group: object) -> None:
        producer = self._client.producer
        try:
            producer.begin_transaction()
            for output in outputs:
                _produce(producer, output)
            self._until_done(lambda producer: producer.send_offsets_to_transaction(offsets, group, _STEP_SECONDS))
            try:
                self._until_done(lambda producer: producer.commit_transaction(_STEP_SECONDS))
            except _Hung:
                raise StopProcess(
                    "whether a transaction is committed cannot be learnt here: the client hangs; a new process asks"
                ) from None
        except KafkaException as error:
            _stop_if_fatal(error)
            self._until_done(lambda producer: producer.abort_transaction(_STEP_SECONDS))
            raise Aborted(_name(error)) from error

    def _until_done(self, step: Callable[[Producer], None]) -> None:
        """Repeat a step while it fails in a way that passes."""
        while True:
            try:
                return self._call(step)
            except KafkaException as error:
                _stop_if_fatal(error)
                if error.args[0].txn_requires_abort():
                    raise
                if not error.args[0].retriable():
                    raise StopProcess(f"the transactional producer cannot go on: {_name(error)}") from error
                if not self._waiting(_name(error)):
                    raise OutOfTime(_name(error)) from error

    def _call(self, step: Callable[[Producer], None]) -> None:
        future = self._client.call(step)
        deadline = time.monotonic() + STUCK_SECONDS
        while True:
            try:
                return future.result(timeout=_STEP_SECONDS + 0.5)
            except TimeoutError:
                if not self._waiting("the client does not return"):
                    raise OutOfTime("the client does not return") from None
                if time.monotonic() > deadline:
                    raise _Hung from None

    def _leave_client(self) -> None:
        log.warning("a call of the Kafka client hangs; a new client takes its place")
        self._client.leave()
        self._client = _Client(self._config)


class _Client:
    """A producer whose blocking calls are made in a thread that can be left behind.

    librdkafka's send_offsets_to_transaction ignores its timeout and may hang for ever when the group's coordinator was away for a moment:
    a restart of the broker is enough (confluentinc/librdkafka#5456, #5511).
    """

    def __init__(self, config: dict[str, Any]) -> None:
        self.producer = Producer(config)
        self._calls: queue.SimpleQueue[tuple[Callable[[Producer], None], Future[None]] | None] = queue.SimpleQueue()
        threading.Thread(target=self._serve, name="transactions", daemon=True).start()

    def call(self, step: Callable[[Producer], None]) -> "Future[None]":
        future: Future[None] = Future()
        self._calls.put((step, future))
        return future

    def leave(self) -> None:
        """Nobody calls it any more; its thread ends when the call that it is in returns, if ever."""
        self._calls.put(None)

    def _serve(self) -> None:
        while (call := self._calls.get()) is not None:
            step, future = call
            try:
                future.set_result(step(self.producer))
            except BaseException as error:  # noqa: BLE001 - it belongs to the caller
                future.set_exception(error)


def _produce(producer: Producer, output: Outgoing) -> None:
    while True:
        try:
            return producer.produce(output.topic, key=output.key, value=output.value, headers=output.headers)
        except BufferError:
            # More outputs than the client's queue holds: let some go. A broker that takes none fails them within 10 s.
            producer.poll(0.05)


def _name(error: Exception) -> str:
    return str(error.args[0].name()) if isinstance(error, KafkaException) else type(error).__name__


def _stop_if_fatal(error: Exception) -> None:
    if isinstance(error, KafkaException) and error.args[0].fatal():
        fenced = _name(error) in ("_FENCED", "INVALID_PRODUCER_EPOCH", "PRODUCER_FENCED")
        why = (
            "another process has taken over this replica's transactional id" if fenced else f"the producer failed for good: {_name(error)}"
        )
        raise StopProcess(why, EXIT_FENCED if fenced else 70) from error
