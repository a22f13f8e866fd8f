"""Real consumer processes for the runtime's tests, and what the topics hold afterwards."""

import contextlib
import itertools
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from confluent_kafka import Consumer, KafkaError, Message, Producer, TopicPartition
from hub_events import Event, decode
from hub_runtime import EventProducer, ServiceSettings, create_topics, kafka_config
from support.parts import ROOT, S3
from support.runtime_service import SOURCE, Work, register

_EOF = KafkaError._PARTITION_EOF


def settings_for(kafka: str, s3: S3 | None = None) -> ServiceSettings:
    """Settings of a client of the tests."""
    return ServiceSettings.model_validate(
        {
            "kafka_bootstrap_servers": kafka,
            "s3_endpoint": s3.endpoint if s3 else "http://127.0.0.1:1",
            "s3_access_key": s3.access_key if s3 else "none",
            "s3_secret_key": s3.secret_key if s3 else "none",
        }
    )


@dataclass
class Bench:
    """A topic with its dead letters and outputs, of its own for one test, and the processes that consume it."""

    kafka: str
    s3: S3
    folder: Path
    partitions: int = 4
    topic: str = field(default_factory=lambda: f"identifiable.test.{secrets.token_hex(4)}")
    processes: list["Process"] = field(default_factory=list)

    @property
    def journal_file(self) -> Path:
        return self.folder / "journal.jsonl"

    @property
    def out(self) -> str:
        return f"{self.topic}.out"

    @property
    def dlq(self) -> str:
        return f"{self.topic}.dlq"

    @property
    def group(self) -> str:
        return f"group.{self.topic}"

    def start(self, *arguments: str, wait: bool = True, **settings: object) -> "Process":
        """A consumer process; `settings` are HUB_ variables in lower case."""
        port = free_port()
        replica = str(settings.pop("replica", len(self.processes)))
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT / "tests"), os.environ.get("PYTHONPATH")])),
            "HUB_KAFKA_BOOTSTRAP_SERVERS": self.kafka,
            "HUB_S3_ENDPOINT": self.s3.endpoint,
            "HUB_S3_ACCESS_KEY": self.s3.access_key,
            "HUB_S3_SECRET_KEY": self.s3.secret_key,
            "HUB_LOG_STRICT": "1",
            "HUB_REPLICA": replica,
            "HUB_HEALTH_PORT": str(port),
            "HUB_TEST_TOPIC": self.topic,
            "HUB_TEST_GROUP": self.group,
            "HUB_TEST_PARTITIONS": str(self.partitions),
            "HUB_TEST_JOURNAL": str(self.journal_file),
            **{f"HUB_{name.upper()}": str(value) for name, value in settings.items()},
        }
        log = self.folder / f"log-{len(self.processes)}.jsonl"
        with log.open("wb") as stderr:
            popen = subprocess.Popen([sys.executable, "-m", "support.runtime_service", *arguments], env=environment, stderr=stderr)
        process = Process(popen, port, log)
        self.processes.append(process)
        if wait:
            until(process.ready, 30, process.log_text)
        return process

    def put(self, works: Iterable[tuple[str, Work]], *, traceparent: str | None = None, topic: str | None = None) -> list[Event[Work]]:
        """Produce events (key, work) as an edge would, all acknowledged."""
        events = [Event.first(topic or self.topic, key, work, source=SOURCE, traceparent=traceparent) for key, work in works]
        with EventProducer(settings_for(self.kafka)) as producer:
            producer.produce(*events)
        return events

    def put_raw(self, records: Iterable[tuple[bytes | None, bytes, Any]]) -> None:
        """Produce records that need not be events."""
        producer = Producer(kafka_config(settings_for(self.kafka)))
        for key, value, headers in records:
            producer.produce(self.topic, key=key, value=value, headers=headers)
        assert producer.flush(20) == 0

    def outputs(self, count: int, seconds: float = 40, *, settle: float = 0.0) -> list[Work]:
        """The outputs that a read_committed reader sees: waits for `count`, then reads to the end; see them all, doubled ones too."""
        return [work_of(message) for message in read(self.kafka, self.out, count, seconds, settle=settle, why=self.logs)]

    def journal(self) -> list[dict[str, Any]]:
        """What handlers noted."""
        if not self.journal_file.exists():
            return []
        return [json.loads(line) for line in self.journal_file.read_text().splitlines()]

    def begun(self, n: int) -> int:
        """How often the handler began with record `n`."""
        return sum(line["what"] == "begin" and line["n"] == n for line in self.journal())

    def lag(self) -> int:
        """Committed positions against the ends of the partitions, as an operator's tool sees it."""
        consumer = Consumer({"bootstrap.servers": self.kafka, "group.id": self.group})
        try:
            places = [TopicPartition(self.topic, partition) for partition in range(self.partitions)]
            committed = {place.partition: max(0, place.offset) for place in consumer.committed(places, timeout=10)}
            return sum(consumer.get_watermark_offsets(place, timeout=10)[1] - committed[place.partition] for place in places)
        finally:
            consumer.close()

    def logs(self) -> str:
        """All processes' logs, for a failure's message."""
        return "\n".join(process.log_text() for process in self.processes)


@dataclass
class Process:
    """One consumer process."""

    popen: "subprocess.Popen[bytes]"
    port: int
    log: Path

    def get(self, path: str) -> tuple[int, str]:
        """Status and body of a health page; 0 when nobody answers."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
        except OSError:
            return 0, ""

    def ready(self) -> bool:
        return self.get("/readyz")[0] == 200

    def metric(self, name: str, **labels: str) -> float:
        """The sum of a metric's samples that have these labels."""
        total = 0.0
        for line in self.get("/metrics")[1].splitlines():
            if line.startswith((f"{name} ", f"{name}{{")) and all(f'{label}="{value}"' in line for label, value in labels.items()):
                total += float(line.rsplit(" ", 1)[1])
        return total

    def signal(self, number: int) -> None:
        self.popen.send_signal(number)

    def stop(self, seconds: float = 30) -> int:
        """SIGTERM, and the exit code."""
        self.popen.terminate()
        return self.popen.wait(seconds)

    def kill(self) -> None:
        self.popen.kill()
        self.popen.wait()

    def log_text(self) -> str:
        return self.log.read_text()


@contextlib.contextmanager
def bench(kafka: str, s3: S3, folder: Path, partitions: int = 4) -> Iterator[Bench]:
    """A bench with its topics made; its processes are gone afterwards."""
    made = Bench(kafka, s3, folder, partitions)
    create_topics(kafka_config(settings_for(kafka)), topics=register(made.topic, partitions))
    try:
        yield made
    finally:
        for process in made.processes:
            if process.popen.poll() is None:
                process.signal(signal.SIGCONT)
                process.kill()


def read(
    kafka: str,
    topic: str,
    count: int,
    seconds: float = 40,
    *,
    settle: float = 0.0,
    why: Callable[[], str] = str,
    isolation: str = "read_committed",
) -> list[Message]:
    """Read a topic from its beginning, read_committed: at least `count` records within `seconds`, then on to the end of each partition."""
    consumer = Consumer(
        {
            "bootstrap.servers": kafka,
            "group.id": f"reader-{secrets.token_hex(4)}",
            "isolation.level": isolation,
            "enable.auto.commit": False,
            "enable.partition.eof": True,
            "auto.offset.reset": "earliest",
        }
    )
    found: list[Message] = []
    deadline, quiet_from = time.monotonic() + seconds, 0.0
    ended: set[int] = set()
    try:
        partitions = list(consumer.list_topics(topic, timeout=10).topics[topic].partitions)
        consumer.assign([TopicPartition(topic, partition, 0) for partition in partitions])
        while True:
            message = consumer.poll(0.1)
            now = time.monotonic()
            if message is not None and message.error() is None:
                found.append(message)
                ended.discard(message.partition() or 0)
                quiet_from = now
            elif message is not None:
                error = message.error()
                assert error is not None
                assert error.code() == _EOF, error
                ended.add(message.partition() or 0)
            if len(found) >= count and len(ended) == len(partitions) and now >= quiet_from + settle:
                return found
            if now > deadline:
                raise AssertionError(f"{len(found)} of {count} records in {topic} after {seconds} s\n{why()}")
    finally:
        consumer.close()


def work_of(message: Message) -> Work:
    """The work that an output carries."""
    data = event_of(message).data
    assert isinstance(data, Work)
    return data


def event_of(message: Message) -> Event[Any]:
    """The event that a record carries."""
    return decode(message.topic() or "", message.key(), message.value(), message.headers())  # type: ignore[arg-type]


def numbers(works: Iterable[Work]) -> list[int]:
    """Sorted; a doubled one stands there twice."""
    return sorted(work.n for work in works)


def until(condition: Callable[[], object], seconds: float = 30, why: Callable[[], str] = str) -> None:
    """Wait until `condition()` holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds} s\n{why()}")
        time.sleep(0.1)


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


def overlaps(journal: list[dict[str, Any]]) -> tuple[bool, int]:
    """Whether two records of one key were handled at the same time, and how many of different keys at most."""
    running: dict[str, int] = defaultdict(int)
    doubled, most = False, 0
    for line in sorted(journal, key=lambda line: line["at"]):
        running[line["key"]] += 1 if line["what"] == "begin" else -1
        doubled = doubled or running[line["key"]] > 1
        most = max(most, sum(running.values()))
    return doubled, most


def keys(count: int) -> Iterator[str]:
    """Keys, again and again."""
    return itertools.cycle([f"2.25.{number}" for number in range(count)])
