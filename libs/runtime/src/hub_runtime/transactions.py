"""One short Kafka transaction: outputs and offsets, together or not at all."""

import queue
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from typing import Any

from confluent_kafka import KafkaException, Producer, TopicPartition

from hub_runtime.errors import StopProcess
from hub_runtime.records import Outgoing

EXIT_FENCED = 75
_STEP_SECONDS = 2.0
STUCK_SECONDS = 15.0
"""A call of the client that has not returned by then never will, and by then the broker has ended the transaction (10 s)."""


class Aborted(Exception):
    """The transaction was rolled back and nothing of it can be seen; it may be done again. The text is the error's name."""


class OutOfTime(Exception):
    """The broker did not answer before the caller's patience ended; its successor, or 10 s, ends the transaction."""


class Transactions:
    """The producer of one replica. Its transactional id is stable, so that a successor ends what it left open."""

    def __init__(self, config: dict[str, Any], transactional_id: str, waiting: Callable[[str], bool]) -> None:
        """`waiting` is called with the error's name whenever the broker makes us wait; it says whether to go on waiting."""
        self._producer = Producer(
            config | {"transactional.id": transactional_id, "transaction.timeout.ms": 10_000, "enable.idempotence": True, "linger.ms": 0}
        )
        self._waiting = waiting
        self._calls: queue.SimpleQueue[tuple[Callable[[], None], Future[None]] | None] = queue.SimpleQueue()
        # librdkafka's send_offsets_to_transaction may ignore its timeout and hang for ever while the group has no coordinator
        # (confluentinc/librdkafka#5456): so the calls are made in a thread that can be left behind.
        threading.Thread(target=self._serve, name="transactions", daemon=True).start()

    def start(self) -> None:
        """Take over the transactional id: a predecessor's open transaction ends, and it can commit nothing more.

        Raises:
            OutOfTime, StopProcess.
        """
        self._until_done(lambda: self._producer.init_transactions(_STEP_SECONDS))

    def commit(self, outputs: Iterable[Outgoing], offsets: list[TopicPartition], group: object) -> None:
        """Make the outputs visible and the offsets committed; `group` is the consumer's group metadata.

        Raises:
            Aborted: nothing happened; do it again, unless the partitions have gone meanwhile.
            OutOfTime: the caller did not want to wait any longer.
            StopProcess: another process has this transactional id, or the producer cannot go on.
        """
        try:
            self._producer.begin_transaction()
            for output in outputs:
                self._produce(output)
            self._until_done(lambda: self._producer.send_offsets_to_transaction(offsets, group, _STEP_SECONDS))
            self._until_done(lambda: self._producer.commit_transaction(_STEP_SECONDS))
        except KafkaException as error:
            _stop_if_fatal(error)
            self._until_done(lambda: self._producer.abort_transaction(_STEP_SECONDS))
            raise Aborted(_name(error)) from error

    def close(self) -> None:
        """Call the client no more; what it has open is ended by its successor or by time."""
        self._calls.put(None)

    def _produce(self, output: Outgoing) -> None:
        while True:
            try:
                return self._producer.produce(output.topic, key=output.key, value=output.value, headers=output.headers)
            except BufferError:
                # More outputs than the client's queue holds: let some go. A broker that takes none fails them within 10 s.
                self._producer.poll(0.05)

    def _until_done(self, step: Callable[[], None]) -> None:
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

    def _call(self, step: Callable[[], None]) -> None:
        future: Future[None] = Future()
        self._calls.put((step, future))
        deadline = time.monotonic() + STUCK_SECONDS
        while True:
            try:
                return future.result(timeout=_STEP_SECONDS + 0.5)
            except TimeoutError:
                if not self._waiting("the client does not return"):
                    raise OutOfTime("the client does not return") from None
                if time.monotonic() > deadline:
                    raise StopProcess("a call of the Kafka client hangs; a new process starts afresh") from None

    def _serve(self) -> None:
        while (call := self._calls.get()) is not None:
            step, future = call
            try:
                future.set_result(step())
            except BaseException as error:  # noqa: BLE001 - it belongs to the caller
                future.set_exception(error)


def _name(error: Exception) -> str:
    return str(error.args[0].name()) if isinstance(error, KafkaException) else type(error).__name__


def _stop_if_fatal(error: Exception) -> None:
    if isinstance(error, KafkaException) and error.args[0].fatal():
        fenced = _name(error) in ("_FENCED", "INVALID_PRODUCER_EPOCH", "PRODUCER_FENCED")
        why = (
            "another process has taken over this replica's transactional id" if fenced else f"the producer failed for good: {_name(error)}"
        )
        raise StopProcess(why, EXIT_FENCED if fenced else 70) from error
