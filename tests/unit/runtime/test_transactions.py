"""What becomes of a transaction when the client or the broker does not answer."""

import threading
import time
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException
from hub_runtime import StopProcess, transactions
from hub_runtime.records import Outgoing
from hub_runtime.transactions import EXIT_FENCED, Aborted, OutOfTime, Transactions


class FakeProducer:
    """A producer whose calls do what a test says: an error to raise, or a call that never returns."""

    fates: dict[str, list[KafkaError | threading.Event]]

    def __init__(self, config: dict[str, Any]) -> None:
        self.config, self.calls = config, list[str]()

    def _do(self, name: str) -> None:
        self.calls.append(name)
        fates = self.fates.get(name, [])
        fate = fates.pop(0) if fates else None
        if isinstance(fate, threading.Event):
            fate.wait(20)
        elif fate is not None:
            raise KafkaException(fate)

    def init_transactions(self, _timeout: float) -> None:
        self._do("init")

    def begin_transaction(self) -> None:
        self._do("begin")

    def produce(self, topic: str, **_: object) -> None:
        self._do(f"produce {topic}")

    def send_offsets_to_transaction(self, *_: object) -> None:
        self._do("offsets")

    def commit_transaction(self, _timeout: float) -> None:
        self._do("commit")

    def abort_transaction(self, _timeout: float) -> None:
        self._do("abort")


def made(monkeypatch: pytest.MonkeyPatch, *, patience: bool = True, **fates: Any) -> tuple[Transactions, list[str]]:
    monkeypatch.setattr(transactions, "Producer", FakeProducer)
    monkeypatch.setattr(transactions, "_STEP_SECONDS", -0.4)
    monkeypatch.setattr(transactions, "STUCK_SECONDS", 0.3)
    FakeProducer.fates = fates
    one = Transactions({}, "group-0", lambda _: patience)
    return one, one._client.producer.calls  # type: ignore[attr-defined]


def commit(one: Transactions) -> None:
    one.commit([Outgoing("out", b"k", b"v", [])], [], None)


RETRIABLE = KafkaError(KafkaError._TIMED_OUT, "", False, True, False)
ABORTABLE = KafkaError(KafkaError.ILLEGAL_GENERATION, "", False, False, True)
FENCED = KafkaError(KafkaError._FENCED, "", True, False, False)


def test_the_id_is_stable_and_the_broker_ends_what_is_left_after_ten_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    one, _ = made(monkeypatch)
    config = one._client.producer.config  # type: ignore[attr-defined]
    assert (config["transactional.id"], config["transaction.timeout.ms"], config["enable.idempotence"]) == ("group-0", 10_000, True)


def test_what_passes_is_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    one, calls = made(monkeypatch, offsets=[RETRIABLE], commit=[RETRIABLE, RETRIABLE])
    commit(one)
    assert calls == ["begin", "produce out", "offsets", "offsets", "commit", "commit", "commit"]


def test_what_cannot_be_committed_is_aborted_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    one, calls = made(monkeypatch, offsets=[ABORTABLE], abort=[RETRIABLE])
    with pytest.raises(Aborted, match="ILLEGAL_GENERATION"):
        commit(one)
    assert calls == ["begin", "produce out", "offsets", "abort", "abort"]


def test_a_fenced_process_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    one, calls = made(monkeypatch, commit=[FENCED])
    with pytest.raises(StopProcess) as error:
        commit(one)
    assert error.value.exit_code == EXIT_FENCED
    assert "abort" not in calls


def test_whoever_has_no_patience_left_need_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    one, _ = made(monkeypatch, patience=False, init=[RETRIABLE])
    with pytest.raises(OutOfTime):
        one.start()


def test_a_client_that_never_returns_is_replaced_and_the_transaction_done_again(monkeypatch: pytest.MonkeyPatch) -> None:
    never = threading.Event()
    try:
        one, calls = made(monkeypatch, offsets=[never])
        began = time.monotonic()
        with pytest.raises(Aborted, match="_HUNG"):
            commit(one)
        assert time.monotonic() - began < 5
        commit(one)
    finally:
        never.set()
    assert calls == ["begin", "produce out", "offsets"]
    again = one._client.producer.calls  # type: ignore[attr-defined]
    assert again == ["init", "begin", "produce out", "offsets", "commit"]


def test_a_commit_of_unknown_outcome_is_never_done_again(monkeypatch: pytest.MonkeyPatch) -> None:
    never = threading.Event()
    try:
        one, calls = made(monkeypatch, commit=[never])
        with pytest.raises(StopProcess, match="cannot be learnt"):
            commit(one)
    finally:
        never.set()
    assert calls == ["begin", "produce out", "offsets", "commit"]


def test_a_client_that_never_returns_does_not_hold_up_the_end_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    never = threading.Event()
    try:
        one, _ = made(monkeypatch, patience=False, offsets=[never])
        with pytest.raises(OutOfTime):
            commit(one)
    finally:
        never.set()
