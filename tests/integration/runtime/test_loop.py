"""The loop's promises to a handler, with a real broker and real processes."""

import contextlib
import json
import socket
import threading
import time
import urllib.parse

from confluent_kafka import Producer
from confluent_kafka.cimpl import murmur2
from hub_events import Event, new_traceparent
from hub_events.types import DeadLettered
from hub_runtime import kafka_config, unbury
from hub_runtime.records import outgoing
from support.runtime import Bench, event_of, free_port, keys, numbers, overlaps, read, settings_for, until
from support.runtime_service import Work


def test_records_of_one_key_go_one_after_the_other_and_different_keys_in_parallel(made: Bench) -> None:
    process = made.start(test_concurrency=8)
    key = keys(12)
    made.put([(next(key), Work(n=n, seconds=0.03)) for n in range(120)])

    assert numbers(made.outputs(120)) == list(range(120))

    doubled, most = overlaps(made.journal())
    assert not doubled
    assert most > 4
    order: dict[str, list[int]] = {}
    for line in made.journal():
        if line["what"] == "begin":
            order.setdefault(line["key"], []).append(line["n"])
    assert all(ns == sorted(ns) for ns in order.values())
    messages = read(made.kafka, made.out, 120)
    sent: dict[bytes | None, list[int]] = {}
    for message in messages:
        sent.setdefault(message.key(), []).append(event_of(message).data.n)
    assert all(ns == sorted(ns) for ns in sent.values())
    until(lambda: process.metric("hub_records_handled_total", topic=made.topic) == 120, 5, made.logs)


def test_outputs_wait_until_every_earlier_record_of_the_partition_is_done(made: Bench) -> None:
    made.start()
    # The same key's partition, then a second key that lands there too.
    same = _keys_of_one_partition(made, 2)
    made.put([(same[0], Work(n=0, seconds=3)), (same[1], Work(n=1))])
    until(lambda: any(line["what"] == "end" and line["n"] == 1 for line in made.journal()), 10, made.logs)
    time.sleep(0.5)

    assert made.outputs(0) == []
    assert [work.n for work in made.outputs(2)] == [0, 1]


def test_the_lag_reaches_zero_behind_control_records(made: Bench) -> None:
    config = kafka_config(settings_for(made.kafka)) | {"transactional.id": made.topic}
    producer = Producer(config)
    producer.init_transactions(20)
    for commit in (True, False):
        producer.begin_transaction()
        for number in range(made.partitions):
            record = outgoing(Event.first(made.topic, f"2.25.{number}", Work(n=number), source="test.service"))
            producer.produce(made.topic, key=record.key, value=record.value, headers=record.headers, partition=number)
        producer.flush(10)
        producer.commit_transaction(10) if commit else producer.abort_transaction(10)
    process = made.start()

    assert numbers(made.outputs(made.partitions)) == list(range(made.partitions))
    until(lambda: made.lag() == 0, 15, made.logs)
    until(lambda: "hub_consumer_lag{" in process.get("/metrics")[1] and process.metric("hub_consumer_lag") == 0, 10, made.logs)


def test_a_trace_goes_on_and_is_bound_to_the_log(made: Bench) -> None:
    process = made.start()
    traceparent = new_traceparent()
    [event] = made.put([("2.25.1", Work(n=1))], traceparent=traceparent)
    [message] = read(made.kafka, made.out, 1, why=made.logs)
    following = event_of(message)

    assert following.trace_id == event.trace_id == traceparent.split("-")[1]
    assert following.traceparent != traceparent
    line = next(line for line in map(json.loads, process.log_text().splitlines()) if line["event"] == "handling")
    assert (line["trace_id"], line["event_id"], line["topic"]) == (event.trace_id, event.id, made.topic)


def test_a_handler_longer_than_the_poll_interval_keeps_its_partition(made: Bench) -> None:
    first = made.start(kafka_max_poll_interval_ms=6000)
    second = made.start(kafka_max_poll_interval_ms=6000)
    until(lambda: first.metric("hub_partitions_assigned") == 2 == second.metric("hub_partitions_assigned"), 20, made.logs)
    rebalances = made.logs().count("partitions assigned")
    same = _keys_of_one_partition(made, 1)
    made.put([(same[0], Work(n=0, seconds=9)), *((f"2.25.{n}", Work(n=n)) for n in range(1, 20))])

    assert numbers(made.outputs(20)) == list(range(20))
    assert made.begun(0) == 1
    assert made.logs().count("partitions assigned") == rebalances
    assert "partitions lost" not in made.logs()


def test_poison_becomes_a_dead_letter_with_its_bytes_in_the_store_and_stops_nobody(made: Bench) -> None:
    process = made.start()
    same = _keys_of_one_partition(made, 4)
    bad, refused, *good = (key for key in same)
    [poisoned, given_up, *_] = made.put(
        [
            (bad, Work(n=0, do="poison")),
            (refused, Work(n=1, do="give-up")),
            (good[0], Work(n=2)),
            (bad, Work(n=3)),
        ]
    )
    made.put_raw([(same[0].encode(), b"JOHN SMITH", [("ce_id", b"\xff")]), (None, b"no key", None)])
    made.put([(good[1], Work(n=4))])

    assert numbers(made.outputs(3)) == [2, 3, 4]
    letters = {}
    for message in read(made.kafka, made.dlq, 4, why=made.logs):
        letter = event_of(message)
        assert isinstance(letter.data, DeadLettered)
        letters[letter.data.reason, letter.data.error] = (message, letter)
    assert set(letters) == {
        ("unexpected-error", "ValueError"),
        ("test-reason", "GiveUp"),
        ("no-cloudevent", "UnreadableEvent"),
        ("no-key-or-value", "UnreadableEvent"),
    }
    message, letter = letters["unexpected-error", "ValueError"]
    assert (message.key(), letter.trace_id) == (bad.encode(), poisoned.trace_id)
    assert letters["test-reason", "GiveUp"][1].trace_id == given_up.trace_id
    for _, letter in letters.values():
        place, where = letter.data, letter.data.object
        assert where.bucket == "identifiable"
        assert where.key == f"dead-letters/{made.topic}/{made.group}/{place.partition}/{place.offset}"
        assert len(made.s3.store().get(where.bucket, where.key)) == where.size
    sent = outgoing(poisoned)
    record = unbury(made.s3.store().get("identifiable", letters["unexpected-error", "ValueError"][1].data.object.key))
    assert (record.key, record.value, record.headers) == (sent.key, sent.value, tuple(sent.headers))
    raw = letters["no-cloudevent", "UnreadableEvent"][1].data.object
    assert unbury(made.s3.store().get(raw.bucket, raw.key)).value == b"JOHN SMITH"

    assert b"SMITH" not in b"".join(message.value() or b"" for message, _ in letters.values())
    assert "SMITH" not in process.log_text()
    until(lambda: process.metric("hub_records_dead_lettered_total") == 4, 5, made.logs)
    until(lambda: made.lag() == 0, 10, made.logs)


def test_a_dead_letter_that_cannot_be_written_waits_and_is_not_dropped(made: Bench) -> None:
    port = free_port()
    process = made.start(s3_endpoint=f"http://127.0.0.1:{port}")
    made.put([("2.25.1", Work(n=1, do="poison")), ("2.25.1", Work(n=2))])
    until(lambda: "dead-letter-store-unavailable" in process.get("/readyz")[1], 20, made.logs)
    assert made.outputs(0) == []
    assert made.lag() == 2

    forward(port, made.s3.endpoint)

    [letter] = read(made.kafka, made.dlq, 1, why=made.logs)
    assert event_of(letter).data.reason == "unexpected-error"
    assert numbers(made.outputs(1)) == [2]
    until(process.ready, 10, made.logs)


def test_a_passing_fault_pauses_the_consumer_says_so_and_passes(made: Bench) -> None:
    process = made.start(test_concurrency=1)
    gate = made.folder / "gate"
    made.put([("2.25.1", Work(n=1, do="later", path=str(gate))), *((f"2.25.{n}", Work(n=n, seconds=0.2)) for n in range(100, 120))])
    until(lambda: process.get("/readyz") == (503, json.dumps({"ready": False, "reasons": {"fault": "gate-closed"}})), 10, made.logs)
    before = sum(made.begun(n) for n in range(100, 120))
    made.put([(f"2.25.{n}", Work(n=n)) for n in range(2, 10)])
    time.sleep(1.5)

    # One may have been on its way when the fault was told; the next waits, whether it was read before the fault or after.
    assert sum(made.begun(n) for n in (*range(2, 10), *range(100, 120))) <= before + 1
    assert before < 20
    assert made.begun(1) >= 2
    assert process.get("/livez")[0] == 200
    assert process.metric("hub_paused_by_fault") == 1

    gate.touch()
    assert numbers(made.outputs(29)) == [*range(1, 10), *range(100, 120)]
    until(process.ready, 5, made.logs)
    assert process.metric("hub_records_retried_total", reason="gate-closed") >= 2
    assert "SMITH" not in process.log_text()


def _keys_of_one_partition(made: Bench, count: int) -> list[str]:
    """Keys that land in partition 0."""
    wanted = [f"2.25.{n}" for n in range(1000) if murmur2(f"2.25.{n}".encode(), made.partitions) == 0]
    return wanted[:count]


def forward(port: int, endpoint: str) -> None:
    """Listen on `port` and pass everything on to `endpoint`, as a store that has come back would."""
    target = urllib.parse.urlsplit(endpoint)
    server = socket.create_server(("127.0.0.1", port))

    def pump(source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError), source, sink:
            while data := source.recv(65536):
                sink.sendall(data)

    def serve() -> None:
        while True:
            client, _ = server.accept()
            upstream = socket.create_connection((target.hostname or "", target.port or 0))
            for pair in ((client, upstream), (upstream.dup(), client.dup())):
                threading.Thread(target=pump, args=pair, daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
