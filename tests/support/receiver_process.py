"""A receiver as a process, and what comes into its topic."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, cast

import httpx
from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition
from hub_events import Event, decode
from hub_parts import Parts
from support.senders import Peer

TOPIC = "identifiable.instance.received"
TRUSTS = """
trusts:
  - name: northgate
    title: Northgate Hospitals (made up)
    ae_titles: [NORTHGATE, NORTHGATE2]
    addresses: [127.0.0.1/32]
    assigning_authority: RNG
  - name: southmead
    ae_titles: [SOUTHMEAD]
    addresses: [127.0.0.1/32]
    assigning_authority: RSM
  - name: elsewhere
    ae_titles: [ELSEWHERE]
    addresses: [192.0.2.0/24]
    assigning_authority: REL
  - name: easton
    ae_titles: [EASTON]
    addresses: [127.0.0.1/32]
    assigning_authority: REA
    certificates: [router.easton.example, router2.easton.example]
  - name: westbury
    ae_titles: [WESTBURY]
    addresses: [127.0.0.1/32]
    assigning_authority: RWE
    certificates: [router.westbury.example]
  - name: netherby
    ae_titles: [NETHERBY]
    addresses: [127.0.0.1/32]
    assigning_authority: RNB
    refuse_sop_classes: [1.2.840.10008.5.1.4.1.1.104.1]
    quarantine_sop_classes: [1.2.840.10008.5.1.4.1.1.7]
    private_sop_classes: quarantine
    modalities: [CT]
    test_patients: {}
"""


class ReceiverProcess:
    """One `hub-receiver`, its log and its port."""

    module = "hub_ingest.receiver"

    def __init__(self, environment: dict[str, str], *arguments: str) -> None:
        self.lines: list[dict[str, Any]] = []
        self.process = subprocess.Popen(
            [sys.executable, "-m", self.module, *arguments],
            env=os.environ | environment,
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            text=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def wait_listening(self) -> None:
        self.wait_until(lambda: "listening" in self.events or self.process.poll() is not None)
        assert self.process.poll() is None, self.lines
        self.peer = Peer(self.line("listening")["port"])
        self.health = f"http://127.0.0.1:{self.line('started')['port']}"

    @property
    def events(self) -> list[str]:
        return [line["event"] for line in self.lines]

    def line(self, event: str) -> dict[str, Any]:
        return next(line for line in self.lines if line["event"] == event)

    def as_caller(self, calling: str) -> Peer:
        return Peer(self.peer.port, calling=calling)

    def ready(self) -> bool:
        return httpx.get(f"{self.health}/readyz", timeout=5).status_code == 200

    def unready(self) -> dict[str, str]:
        """What /readyz says is in the way."""
        return dict(httpx.get(f"{self.health}/readyz", timeout=5).json()["reasons"])

    def metric(self, start: str) -> float:
        lines = httpx.get(f"{self.health}/metrics", timeout=5).text.splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(start))

    def wait_until(self, condition: Callable[[], bool], seconds: float = 20) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"waited {seconds} s in vain; the log: {self.lines[-5:]}"
            time.sleep(0.05)

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self._reader.join()
        if self.process.stderr is not None:
            self.process.stderr.close()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            try:
                self.lines.append(json.loads(line))
            except ValueError:
                self.lines.append({"event": line.rstrip(), "unstructured": True})


StartReceiver = Callable[..., AbstractContextManager[ReceiverProcess]]


class Topic:
    """Reads what came into the instances' topic since it was made."""

    def __init__(self, parts: Parts) -> None:
        config = parts.kafka_config("admin") | {
            "group.id": "receiver-tests",
            "enable.auto.commit": False,
            "isolation.level": "read_committed",
        }
        self._consumer = Consumer(config)
        partitions = self._consumer.list_topics(TOPIC, timeout=10).topics[TOPIC].partitions
        self._start = {number: self._end(number) for number in partitions}

    def events(self) -> list[Event[Any]]:
        self._consumer.assign([TopicPartition(TOPIC, number, offset) for number, offset in self._start.items()])
        left = sum(self._end(number) - offset for number, offset in self._start.items())
        found = []
        while left > 0:
            message = self._consumer.poll(10)
            assert message is not None
            assert message.error() is None
            found.append(decode(TOPIC, message.key(), message.value(), cast("Any", message.headers())))
            left -= 1
        return found

    def close(self) -> None:
        self._consumer.close()

    def _end(self, partition: int) -> int:
        deadline = time.monotonic() + 20
        while True:
            try:
                return int(self._consumer.get_watermark_offsets(TopicPartition(TOPIC, partition), timeout=10)[1])
            except KafkaException as error:
                # A topic that has just been made has no leader for a moment.
                if error.args[0].code() != KafkaError.NOT_LEADER_FOR_PARTITION or time.monotonic() > deadline:
                    raise
                time.sleep(0.2)
                self._consumer.list_topics(TOPIC, timeout=10)
