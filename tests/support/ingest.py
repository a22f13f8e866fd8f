"""The assembler and the closer as real processes on a real broker and store, and what a receiver would have put before them."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar, cast

from confluent_kafka import Consumer, ConsumerGroupTopicPartitions, KafkaError, Producer, TopicPartition
from confluent_kafka.admin import AdminClient
from hub_dicom.keys import instance_key
from hub_events import Event, decode, encode
from hub_events.types import InstanceReceived, ObjectReference
from pydantic import BaseModel
from support.parts import S3

INSTANCES = "identifiable.instance.received"
QUIET = "identifiable.study.quiet"
RECEIVED = "identifiable.study.received"
BUCKET = "identifiable"
DEADLINE = 60.0
Found = TypeVar("Found")


def wait_for(what: str, look: Callable[[], Found], seconds: float = DEADLINE) -> Found:
    """The first true thing that `look` returns."""
    deadline = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        time.sleep(0.05)
    return found


class Process:
    """A service that runs; its log goes to a file."""

    def __init__(self, command: Sequence[str | Path], environment: dict[str, str], log: Path) -> None:
        self.log = log
        self.started = time.monotonic()
        with log.open("ab") as output:
            self.popen = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT)

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]

    @property
    def port(self) -> int | None:
        return next((line["port"] for line in self.lines if line["event"] == "started" and line["pid"] == self.popen.pid), None)

    def get(self, path: str) -> str:
        """An answer of the health port, whatever its status; empty while it does not listen."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port or 1}{path}", timeout=5) as answer:
                return str(answer.read().decode())
        except urllib.error.HTTPError as answer:
            return str(answer.read().decode())
        except (urllib.error.URLError, ConnectionError):
            return ""

    def metric(self, name: str) -> float:
        """The sum of a metric over its labels."""
        lines = [line for line in self.get("/metrics").splitlines() if line.startswith((f"{name}{{", f"{name} "))]
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines)

    @property
    def ready(self) -> bool:
        assert self.popen.poll() is None, f"the process ended with {self.popen.returncode}:\n{self.log.read_text()[-3000:]}"
        return self.port is not None and '"ready": true' in self.get("/readyz")

    def wait_ready(self) -> "Process":
        wait_for("the process is ready", lambda: self.ready)
        return self

    def kill(self) -> None:
        self.popen.kill()
        self.popen.wait()

    def stop(self) -> int:
        self.popen.send_signal(signal.SIGTERM)
        return self.popen.wait(timeout=30)


class Ingest:
    """One test's view: a trust of its own, its events, its objects."""

    def __init__(self, kafka: str, s3: S3 | None, folder: Path, *, quiet_seconds: float = 1.0) -> None:
        self.kafka, self.s3, self.folder = kafka, s3, folder
        self.trust = f"t{uuid.uuid4().hex[:12]}"
        self.trusts_file = folder / "trusts.yaml"
        self.quiet_seconds = quiet_seconds
        self.trusts_file.write_text(
            f"trusts:\n  - {{name: {self.trust}, ae_titles: [TEST], addresses: [127.0.0.1/32], assigning_authority: T, "
            f"quiet_seconds: {quiet_seconds}}}\n"
        )
        self.processes: list[Process] = []
        self._tails: dict[str, Tail] = {}
        self._producer = Producer({"bootstrap.servers": kafka, "partitioner": "murmur2_random", "linger.ms": 5})

    def study(self) -> str:
        """A new Study Instance UID."""
        return f"2.25.{uuid.uuid4().int}"

    def start(self, service: str, *, replica: str = "0", script: Path | None = None, **settings: object) -> Process:
        """Run `hub-<service>`, or a script in its place; further HUB_ settings by name."""
        environment = os.environ | {
            "HUB_KAFKA_BOOTSTRAP_SERVERS": self.kafka,
            "HUB_S3_ENDPOINT": self.s3.endpoint if self.s3 else "http://127.0.0.1:1",
            "HUB_S3_ACCESS_KEY": self.s3.access_key if self.s3 else "none",
            "HUB_S3_SECRET_KEY": self.s3.secret_key if self.s3 else "none",
            "HUB_TRUSTS_FILE": str(self.trusts_file),
            "HUB_DATA_FOLDER": str(self.folder / "data"),
            "HUB_REPLICA": replica,
            "HUB_LOG_STRICT": "true",
            "HUB_PARENT_PID": str(os.getpid()),
            "HUB_ASSEMBLER_TICK_SECONDS": "0.2",
            "HUB_SWEEP_SECONDS": "0",
            **{f"HUB_{name.upper()}": str(value) for name, value in settings.items()},
        }
        command: list[str | Path] = [sys.executable, script] if script else [Path(sys.executable).parent / f"hub-{service}"]
        process = Process(command, environment, self.folder / f"{service}-{replica}.log")
        self.processes.append(process)
        return process

    def put(self, study: str, numbers: Iterable[int], *, content: str = "") -> list[InstanceReceived]:
        """Store instances as the receiver does, tiny ones, eight at a time; their data for the events."""
        assert self.s3
        store = self.s3.store()

        def put_one(number: int) -> InstanceReceived:
            body = f"{study} {number} {content}".encode()
            data = self.instance(study, number, hashlib.sha256(body).hexdigest(), len(body))
            store.put_if_absent(BUCKET, data.object.key, body)
            return data

        with ThreadPoolExecutor(8) as pool:
            return list(pool.map(put_one, numbers))

    def instance(self, study: str, number: int, sha256: str = "0" * 64, size: int = 1) -> InstanceReceived:
        """What the receiver says of an instance."""
        series, sop = f"{study[:50]}.1", f"{study[:50]}.1.{number}"
        key = instance_key(self.trust, study, series, sop, sha256)
        return InstanceReceived(
            trust=self.trust,
            study_instance_uid=study,
            series_instance_uid=series,
            sop_instance_uid=sop,
            object=ObjectReference(bucket=BUCKET, key=key, sha256=sha256, size=size),
            origin="c-store",
        )

    def announce(self, instances: Iterable[InstanceReceived], *, traceparent: str | None = None) -> None:
        """Send the events and wait for their acknowledgement."""
        for data in instances:
            event = Event.first(INSTANCES, data.study_instance_uid, data, source="ingest.receiver", traceparent=traceparent)
            key, value, headers = encode(cast("Event[BaseModel]", event))
            self._producer.produce(INSTANCES, key=key, value=value, headers=[*headers])
            self._producer.poll(0)
        self.flush()

    def produce_raw(self, key: bytes | None, value: bytes | None) -> None:
        """A record that is no event."""
        self._producer.produce(INSTANCES, key=key, value=value)
        self.flush()

    def flush(self) -> None:
        assert self._producer.flush(30) == 0

    def events(self, topic: str) -> list[Event[Any]]:
        """This trust's events of a topic, from the beginning, as a `read_committed` reader sees them."""
        if topic not in self._tails:
            self._tails[topic] = Tail(self.kafka, topic)
        return [event for event in self._tails[topic].read() if getattr(event.data, "trust", None) == self.trust]

    def said(self, topic: str, study: str) -> list[Any]:
        """The data of one study's events of a topic."""
        return [event.data for event in self.events(topic) if event.data.study_instance_uid == study]

    def close(self) -> None:
        for tail in self._tails.values():
            tail.consumer.close()
        for process in self.processes:
            if process.popen.poll() is None:
                process.popen.send_signal(signal.SIGTERM)
        for process in self.processes:
            try:
                process.popen.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()


@contextmanager
def ingest(kafka: str, s3: S3 | None, folder: Path, *, quiet_seconds: float = 1.0) -> Iterator[Ingest]:
    """An `Ingest` whose processes end with the block."""
    one = Ingest(kafka, s3, folder, quiet_seconds=quiet_seconds)
    try:
        yield one
    finally:
        one.close()


class Tail:
    """Reads a topic on and on."""

    def __init__(self, kafka: str, topic: str) -> None:
        self.topic = topic
        self.messages: list[Any] = []
        self.events: list[Event[Any]] = []
        self.consumer = Consumer(
            {
                "bootstrap.servers": kafka,
                "group.id": "test-reader",
                "enable.auto.commit": False,
                "enable.partition.eof": True,
                "isolation.level": "read_committed",
            }
        )
        self.behind = set(self.consumer.list_topics(topic, timeout=10).topics[topic].partitions)
        self.consumer.assign([TopicPartition(topic, number, 0) for number in self.behind])

    def read(self) -> list[Event[Any]]:
        """Every event so far; what is none is left out."""
        while (messages := self.consumer.consume(1000, timeout=0.05)) or self.behind:
            for message in messages:
                if error := message.error():
                    assert error.code() == KafkaError._PARTITION_EOF, error
                    self.behind.discard(cast("int", message.partition()))
                    continue
                self.messages.append(message)
                with suppress(ValueError):
                    headers = cast("list[tuple[str, bytes | str | None]] | None", message.headers())
                    self.events.append(decode(self.topic, message.key(), message.value(), headers))
        return self.events


def records(kafka: str, topic: str) -> list[Any]:
    """Every committed record of a topic up to its present end."""
    tail = Tail(kafka, topic)
    tail.read()
    tail.consumer.close()
    return tail.messages


def read(kafka: str, topic: str) -> list[Event[Any]]:
    """Every event of a topic up to its present end."""
    tail = Tail(kafka, topic)
    tail.read()
    tail.consumer.close()
    return tail.events


def committed(kafka: str, group: str, topic: str) -> dict[int, int]:
    """Partition to committed offset."""
    admin = AdminClient({"bootstrap.servers": kafka})
    (future,) = admin.list_consumer_group_offsets([ConsumerGroupTopicPartitions(group)]).values()
    return {place.partition: place.offset for place in future.result().topic_partitions if place.topic == topic}
