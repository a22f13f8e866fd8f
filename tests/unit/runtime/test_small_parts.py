"""Keys, metrics, health, errors, settings, dead letters: the parts without a broker."""

import hashlib
import hmac
import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from hub_events import TOPICS, Event
from hub_events.types import StudyQuiet
from hub_objectstore import MemoryObjectStore
from hub_runtime import (
    BadKeyRing,
    GiveUp,
    KeyRing,
    Metric,
    Metrics,
    Record,
    RetryLater,
    ServiceSettings,
    UndeclaredMetric,
    bury,
    kafka_config,
    unbury,
)
from hub_runtime.handlers import Handled, InThread, Later, Refused, Stop, call
from hub_runtime.health import Health, HealthServer
from hub_runtime.metrics import RUNTIME_METRICS
from hub_runtime.records import outgoing
from hub_runtime.slots import Slots
from pydantic import ValidationError

KAFKA: dict[str, Any] = {
    "kafka_bootstrap_servers": "127.0.0.1:1",
    "s3_endpoint": "http://127.0.0.1:2",
    "s3_access_key": "a",
    "s3_secret_key": "hidden",
}


def quiet() -> Event[Any]:
    data = StudyQuiet.model_validate(
        {"trust": "northgate", "study_instance_uid": "1.2.3", "instances": 1, "last_seen": "2026-11-25T10:00:00Z"}
    )
    return Event.first("identifiable.study.quiet", "1.2.3", data, source="test")


def record_of(event: Event[Any]) -> Record:
    sent = outgoing(event)
    headers = tuple((name, value.encode() if isinstance(value, str) else value) for name, value in sent.headers)
    return Record(event.topic, 3, 17, sent.key, sent.value, headers, 1_700_000_000_000)


def test_keys_are_kept_by_purpose_and_parts_cannot_run_together(tmp_path: Path) -> None:
    ring = KeyRing.generate(["subject", "uid"], version=2)
    path = tmp_path / "keys.json"
    ring.save(path)
    assert path.stat().st_mode & 0o777 == 0o600
    again = KeyRing.load(path)
    assert again == ring == KeyRing.load(text=path.read_text())
    assert ring.hmac("subject", "ab", "c") != ring.hmac("subject", "a", "bc")
    assert ring.hmac("subject", "x") != ring.hmac("uid", "x")
    expected = hmac.new(ring.keys["uid"], (1).to_bytes(8, "big") + b"x", hashlib.sha256).digest()
    assert again.hmac("uid", "x") == expected
    assert ring.keys["uid"].hex() not in repr(ring)
    with pytest.raises(FileExistsError):
        ring.save(path)
    with pytest.raises(BadKeyRing, match="no key for date"):
        ring.hmac("date", "x")


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"version": 0, "keys": {"a": "00"}}', '{"version": true, "keys": {"a": "00"}}', '{"version": 1, "keys": {}}']
    + [json.dumps({"version": 1, "keys": {"a": key}}) for key in ("beef", "zz" * 32, 7)],
)
def test_a_bad_key_ring_is_refused_without_showing_it(text: str) -> None:
    with pytest.raises(BadKeyRing) as error:
        KeyRing.load(text=text)
    assert "beef" not in str(error.value)


def test_a_key_ring_comes_from_one_place() -> None:
    with pytest.raises(BadKeyRing):
        KeyRing.load()
    with pytest.raises(BadKeyRing, match="cannot be read"):
        KeyRing.load(Path("/nowhere/keys.json"))


def test_an_undeclared_metric_is_an_error_and_each_is_declared_once_with_its_meaning() -> None:
    metrics = Metrics([Metric("hub_test_total", "counter", "A test's own.", ("trust",))])
    metrics.count("hub_test_total", trust="northgate")
    assert b'hub_test_total{trust="northgate"} 1.0' in metrics.text()
    with pytest.raises(UndeclaredMetric):
        metrics.count("hub_no_such_total")
    with pytest.raises(UndeclaredMetric):
        metrics.set("hub_test_total", 1)
    with pytest.raises(ValueError, match="Duplicated"):
        Metrics([Metric("hub_records_handled_total", "counter", "Again.")])
    assert len({metric.name for metric in RUNTIME_METRICS}) == len(RUNTIME_METRICS)
    assert all(metric.meaning.endswith(".") for metric in RUNTIME_METRICS)


def test_the_runtime_uses_every_metric_that_it_declares() -> None:
    source = "".join(
        path.read_text() for path in (Path(__file__).parents[3] / "libs/runtime/src/hub_runtime").glob("*.py") if path.name != "metrics.py"
    )
    assert [metric.name for metric in RUNTIME_METRICS if f'"{metric.name}"' not in source] == []


def test_health_says_live_ready_and_why_not() -> None:
    health, metrics = Health(live_seconds=0.5, ready_seconds=0.2), Metrics()
    server = HealthServer("127.0.0.1", 0, health, metrics)
    try:
        assert _get(server, "/livez") == (200, {"live": True})
        assert _get(server, "/readyz") == (200, {"ready": True, "reasons": {}})
        health.unready("store", "store-unavailable")
        assert _get(server, "/readyz") == (503, {"ready": False, "reasons": {"store": "store-unavailable"}})
        health.ready("store")
        assert _get(server, "/readyz")[0] == 200
        health.beat()
        assert _get(server, "/livez")[0] == 200
        time.sleep(0.25)
        status, body = _get(server, "/readyz")
        assert (status, list(body["reasons"])) == (503, ["loop"])
        time.sleep(0.3)
        assert _get(server, "/livez") == (503, {"live": False})
        assert _get(server, "/other")[0] == 404
    finally:
        server.close()


def _get(server: HealthServer, path: str) -> tuple[int, Any]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{server.port}{path}") as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


def test_a_reason_is_a_code() -> None:
    assert (RetryLater("store-away").reason, GiveUp("no-pixels").reason) == ("store-away", "no-pixels")
    with pytest.raises(ValueError, match="lower-case words"):
        GiveUp("John Smith has no pixels")


def test_what_a_handler_raises_decides_the_fate() -> None:
    event = quiet()
    record = record_of(event)

    def fate(error: BaseException) -> object:
        def handle(_: Event[Any]) -> list[Event[Any]]:
            raise error

        return InThread(handle, (ConnectionError,)).run(event, record)

    class StoreAway(ConnectionError):
        pass

    assert fate(RetryLater("gate-closed")) == Later("gate-closed")
    assert fate(StoreAway()) == Later("store-away")
    assert fate(GiveUp("no-pixels")) == Refused("no-pixels", "GiveUp")
    assert fate(KeyError("JOHN")) == Refused("unexpected-error", "KeyError")
    assert isinstance(fate(MemoryError()), Stop)
    assert call(lambda _: [], event, record, ()) == Handled(())
    assert call(lambda _: [quiet()], event, record, ()).__class__ is Handled
    too_large = StudyQuiet.model_construct(**{**event.data.model_dump(), "trust": "x" * 1_000_000})
    assert call(lambda e: [e.follow("identifiable.study.quiet", "k", too_large, source="t")], event, record, ()) == Refused(
        "output-too-large", "ValueError"
    )


def test_a_dead_letter_holds_the_bytes_and_its_event_does_not() -> None:
    store, event = MemoryObjectStore(), quiet()
    record = record_of(event)
    letter = bury(store, record, group="ingest.closer", source="ingest.closer", reason="unexpected-error", error="KeyError", attempts=2)

    assert (letter.topic, letter.key, letter.trace_id) == ("identifiable.study.quiet.dlq", event.key, event.trace_id)
    where = letter.data.object
    assert (where.bucket, where.key) == ("identifiable", "dead-letters/identifiable.study.quiet/ingest.closer/3/17")
    body = store.get(where.bucket, where.key)
    assert (hashlib.sha256(body).hexdigest(), len(body)) == (where.sha256, where.size)
    assert unbury(body) == record
    again = bury(store, record, group="ingest.closer", source="ingest.closer", reason="unexpected-error", error="KeyError", attempts=3)
    assert (again.id, again.data.object) == (letter.id, letter.data.object)
    unread = bury(
        store, Record(event.topic, 0, 0, b"\xff", None, (("x", None),), 0), group="g", source="s", reason="r", error="e", attempts=1
    )
    assert outgoing(unread).topic == "identifiable.study.quiet.dlq"


def test_every_topic_that_a_consumer_reads_has_a_dead_letter_topic() -> None:
    read = [topic for topic in TOPICS.values() if topic.read_by not in ((), ("console",)) and not topic.name.endswith(".dlq")]
    assert read
    assert [topic.name for topic in read if topic.dead_letter_topic not in TOPICS] == []


def test_settings_come_from_the_environment_are_frozen_and_hide_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in KAFKA.items():
        monkeypatch.setenv(f"HUB_{name.upper()}", value)
    monkeypatch.setenv("HUB_REPLICA", "closer-0")
    settings = ServiceSettings()
    assert (settings.replica, settings.health_host, settings.s3_secret_key.get_secret_value()) == ("closer-0", "127.0.0.1", "hidden")
    assert "hidden" not in repr(settings)
    with pytest.raises(ValidationError):
        settings.replica = "other"  # type: ignore[misc]  # on purpose
    with pytest.raises(ValidationError):
        ServiceSettings(**KAFKA, replica="not a name")


def test_every_client_partitions_as_java_does_and_authenticates_when_told() -> None:
    config = kafka_config(ServiceSettings(**KAFKA))
    assert (config["partitioner"], config["retry.backoff.ms"], config["retry.backoff.max.ms"]) == ("murmur2_random", 1, 10)
    assert "security.protocol" not in config
    secured = kafka_config(ServiceSettings(**KAFKA, kafka_username="closer", kafka_password="p"))
    assert (secured["security.protocol"], secured["sasl.mechanisms"], secured["sasl.username"], secured["sasl.password"]) == (
        "SASL_PLAINTEXT",
        "PLAIN",
        "closer",
        "p",
    )
    with pytest.raises(ValueError, match="HUB_KAFKA_PASSWORD"):
        kafka_config(ServiceSettings(**KAFKA, kafka_username="closer"))


SERVICE = """
import sys, threading
from hub_runtime import ProcessSettings, Service, StopProcess, run_service

def serve(service):
    match sys.argv.pop():
        case "wait":
            service.wait()
        case "stop":
            raise StopProcess("told to", 75)
        case "bug":
            raise KeyError("JOHN SMITH")
        case "thread":
            service.start_thread("sweep", lambda: 1 / 0)
            service.wait()

what = sys.argv.pop()
sys.argv.append(what) if what == "--help" else None
run_service("test", ProcessSettings, lambda service: (sys.argv.append(what), serve(service)))
"""


@pytest.mark.parametrize(("what", "code"), [("stop", 75), ("bug", 70), ("thread", 70)])
def test_a_service_that_cannot_go_on_ends_with_a_code(what: str, code: int) -> None:
    done = subprocess.run([sys.executable, "-c", SERVICE, what], capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == code, done.stderr
    assert "SMITH" not in done.stderr
    assert "the process ends" in done.stderr


def test_a_service_ends_gracefully_at_sigterm() -> None:
    process = subprocess.Popen([sys.executable, "-c", SERVICE, "wait"], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    with process.stderr:
        assert json.loads(process.stderr.readline())["event"] == "started"
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0


def test_missing_settings_are_named_without_their_values() -> None:
    program = "from hub_runtime import ServiceSettings, run_service\nrun_service('test', ServiceSettings, print)"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HUB_")} | {
        "HUB_S3_SECRET_KEY": "hidden",
        "HUB_WORKERS": "hidden",
    }
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=False, env=environment)
    assert done.returncode == 78
    assert "HUB_KAFKA_BOOTSTRAP_SERVERS: Field required" in done.stderr
    assert "HUB_WORKERS" in done.stderr
    assert "hidden" not in done.stderr


def test_threads_of_slots_end_when_the_slots_are_closed() -> None:
    before = threading.active_count()
    slots = Slots(3, lambda: InThread(lambda _: [], ()), lambda *_: Handled(()))
    slots.close()
    deadline = time.monotonic() + 5
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() <= before
