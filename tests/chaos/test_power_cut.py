"""A power cut: the disk as it was when the last acknowledgement came, and nothing of what the system still held in memory.

The parts write to a file system in an image file. All is stopped with SIGSTOP after the last acknowledgement, the image is copied, and the parts
are started over the copy, whose journal the kernel replays. `make test-power` runs this; it needs root for the loop device.
"""

import contextlib
import io
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pytest
from confluent_kafka import Consumer, KafkaError, Producer
from confluent_kafka.admin import AdminClient, NewTopic  # type: ignore[attr-defined]  # documented, but not marked as exported
from hub_parts import Parts
from hub_parts.credentials import ADMIN
from hub_parts.s3 import client
from minio.error import S3Error
from support.parts import settings

RECORDS, OBJECTS, ROWS = 400, 100, 50
MEGABYTES = 1500


@pytest.fixture
def folder() -> Iterator[Path]:
    if os.geteuid() != 0:
        pytest.fail("the power-cut test mounts an image and so needs root: run `sudo make test-power`")
    missing = [
        tool for tool in ("mkfs.ext4", "mount", "umount") if shutil.which(tool, path=f"{os.environ['PATH']}:/usr/sbin:/sbin") is None
    ]
    if missing:
        pytest.fail(f"the power-cut test needs {', '.join(missing)}: run `apt-get install e2fsprogs mount`")
    path = Path(tempfile.mkdtemp(prefix="hub-power-"))
    try:
        yield path
    finally:
        shutil.rmtree(path)


@contextlib.contextmanager
def mounted(image: Path, where: Path) -> Iterator[Path]:
    """The image's file system; the kernel replays its journal when it was not unmounted."""
    where.mkdir()
    # No writeback by time: only what a program asks to be written is on the disk.
    run("mount", "-o", "loop,commit=600", str(image), str(where))
    try:
        yield where
    finally:
        for _ in range(50):
            if subprocess.run(["umount", str(where)], capture_output=True, check=False).returncode == 0:
                break
            time.sleep(0.2)
        else:
            run("umount", "--lazy", str(where))
        where.rmdir()


def run(*command: str) -> None:
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"}
    )
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"


def cut_and_look(folder: Path, *, start_is_safe: bool = False, **own: object) -> dict[str, int]:
    """Write until everything is acknowledged, cut the power, and count what the copy does not hold.

    With `start_is_safe` all is written to the disk once before the first record, so that only what came later can be missing.
    """
    image, copy = folder / "disk.img", folder / "copy.img"
    with image.open("wb") as file:
        file.truncate(MEGABYTES * 1024 * 1024)
    run("mkfs.ext4", "-q", "-F", str(image))
    with mounted(image, folder / "disk") as disk:
        parts = Parts.start(disk / "hub", settings(**own))
        processes = [psutil.Process(parts.supervisor.daemon_pid)]
        processes += processes[0].children(recursive=True)
        try:
            if start_is_safe:
                run("sync", "--file-system", str(disk))
            write(parts)
            for process in processes:
                process.send_signal(signal.SIGSTOP)
            run("cp", "--sparse=always", str(image), str(copy))
        finally:
            for process in processes:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.send_signal(signal.SIGKILL)
            parts.stop()
    image.unlink()
    with mounted(copy, folder / "after") as disk, Parts.start(disk / "hub", settings(**own)) as parts:
        return read(parts)


def write(parts: Parts) -> None:
    """Returns when Kafka, the store and the database have acknowledged everything."""
    admin = AdminClient(parts.kafka_config())
    for made in admin.create_topics([NewTopic("plain", 3, 1), NewTopic("transactional", 1, 1)]).values():
        made.result()
    with psycopg.connect(parts.database_url, autocommit=True) as connection:
        connection.execute("CREATE TABLE cut (number int)")
        for number in range(ROWS):
            connection.execute("INSERT INTO cut VALUES (%s)", (number,))
    store = client(parts.s3_endpoint, parts.credentials["s3"][ADMIN], timeout_seconds=60)
    with ThreadPoolExecutor(4) as pool:
        list(
            pool.map(
                lambda number: store.put_object("identifiable", f"study/{number}", io.BytesIO(body(number)), len(body(number))),
                range(OBJECTS),
            )
        )
    store._http.clear()

    transaction = Producer({**parts.kafka_config(), "transactional.id": "cut", "retry.backoff.ms": 1, "retry.backoff.max.ms": 10})
    transaction.init_transactions(30)
    for number in range(0, RECORDS, 40):
        transaction.begin_transaction()
        for one in range(number, number + 40):
            transaction.produce("transactional", str(one).encode())
        transaction.commit_transaction(30)
    refused: list[KafkaError] = []

    def answered(error: KafkaError | None, _: Any) -> None:
        if error is not None:
            refused.append(error)

    producer = Producer({**parts.kafka_config(), "acks": "all", "linger.ms": 0})
    for number in range(RECORDS):
        producer.produce("plain", str(number).encode(), on_delivery=answered)
        producer.poll(0)
    assert producer.flush(120) == 0
    assert not refused


def read(parts: Parts) -> dict[str, int]:
    """How many of each kind are missing."""
    store = client(parts.s3_endpoint, parts.credentials["s3"][ADMIN], timeout_seconds=60)
    missing = 0
    for number in range(OBJECTS):
        try:
            answer = store.get_object("identifiable", f"study/{number}")
        except S3Error:
            missing += 1
            continue
        missing += answer.read() != body(number)
        answer.close()
    store._http.clear()
    try:
        with psycopg.connect(parts.database_url) as connection:
            rows = {number for (number,) in connection.execute("SELECT number FROM cut")}
    except psycopg.Error:
        rows = set()
    return {
        "objects": missing,
        "rows": len(set(range(ROWS)) - rows),
        "records": len(set(range(RECORDS)) - records(parts, "plain")),
        "records of transactions": len(set(range(RECORDS)) - records(parts, "transactional")),
    }


def records(parts: Parts, topic: str) -> set[int]:
    config = {**parts.kafka_config(), "group.id": "after", "auto.offset.reset": "earliest", "enable.partition.eof": True, "log_level": 0}
    consumer = Consumer(config)
    if not AdminClient(parts.kafka_config()).list_topics(topic, timeout=10).topics[topic].partitions:
        consumer.close()
        return set()
    consumer.subscribe([topic])
    found: set[int] = set()
    ended: set[int | None] = set()
    deadline = time.monotonic() + 60
    partitions = 3 if topic == "plain" else 1
    while len(ended) < partitions:
        assert time.monotonic() < deadline, f"{topic} could not be read to its end"
        message = consumer.poll(1)
        if message is None:
            continue
        error = message.error()
        if error is None:
            found.add(int(message.value() or b"-1"))
        elif error.code() == KafkaError._PARTITION_EOF:
            ended.add(message.partition())
    consumer.close()
    return found


def body(number: int) -> bytes:
    return f"object {number} ".encode() * 20_000


@pytest.mark.timeout(600)
def test_power_loses_nothing_that_was_acknowledged(folder: Path) -> None:
    assert cut_and_look(folder, durability="power") == {"objects": 0, "rows": 0, "records": 0, "records of transactions": 0}


@pytest.mark.timeout(600)
def test_the_cut_is_a_cut(folder: Path) -> None:
    """Without the promise records are lost: were they all there, the test above would prove nothing."""
    lost = cut_and_look(folder, start_is_safe=True, durability="process", parts_s3="minio")
    assert lost["records"] > 0
