"""Promise 5, as far as this hub goes today: what was planted is found nowhere behind the identifiable objects."""

import json
from collections.abc import Iterator
from pathlib import Path

import psycopg
from confluent_kafka import Consumer, TopicPartition
from confluent_kafka.admin import AdminClient
from hub_objectstore import S3ObjectStore
from psycopg import sql
from support.cohort import Cohort
from support.exported import Exported
from support.hub import Hub
from support.planted import found_needles


def credentials(hub: Hub, kind: str) -> dict[str, str]:
    found: dict[str, str] = json.loads(Path(hub.endpoints["credentials_file"]).read_text())[kind]["admin"]
    return found


def store(hub: Hub) -> S3ObjectStore:
    identity = credentials(hub, "s3")
    return S3ObjectStore(hub.endpoints["s3"]["endpoint"], identity["access_key"], identity["secret_key"])


def records(hub: Hub) -> Iterator[tuple[str, bytes]]:
    """Every record of every topic, faust's changelog too: topic, and key, value and headers in one."""
    user = credentials(hub, "kafka")
    config = {
        "bootstrap.servers": hub.endpoints["kafka"]["bootstrap_servers"],
        "security.protocol": "SASL_PLAINTEXT",
        "sasl.mechanism": "PLAIN",
    }
    config |= {"sasl.username": user["username"], "sasl.password": user["password"]}
    topics = AdminClient(config).list_topics(timeout=10).topics
    consumer = Consumer(config | {"group.id": "test-needles", "enable.auto.commit": False, "isolation.level": "read_uncommitted"})
    wanted = {}
    for topic, metadata in topics.items():
        for partition in metadata.partitions:
            low, high = consumer.get_watermark_offsets(TopicPartition(topic, partition), timeout=10)
            if high > low and not topic.startswith("__"):
                wanted[topic, partition] = high
    consumer.assign([TopicPartition(topic, partition, 0) for topic, partition in wanted])
    idle = 0
    while wanted and idle < 20:
        messages = consumer.consume(1000, timeout=0.5)
        idle = 0 if messages else idle + 1
        for message in messages:
            assert not message.error(), message.error()
            parts: list[str | bytes | None] = [message.key(), message.value()]
            for header in message.headers() or []:
                parts += header
            yield str(message.topic()), b"\n".join(part.encode() if isinstance(part, str) else part for part in parts if part)
    consumer.close()


def test_objects_that_leave_hold_no_planted_identifier(hub: Hub, peaceful: Exported, cohort: Cohort) -> None:
    s3 = store(hub)
    looked = 0
    for bucket in ("research", "datasets-training", "datasets-validation"):
        for info in s3.list(bucket, ""):
            content = s3.get(bucket, info.key)
            looked += 1
            assert not found_needles(content + info.key.encode(), cohort.needles), f"{bucket}/{info.key}"
    assert looked > 3 * len(cohort.all)


def test_no_record_of_either_zone_holds_one(hub: Hub, peaceful: Exported, cohort: Cohort) -> None:
    topics = set()
    for topic, content in records(hub):
        topics.add(topic)
        assert not found_needles(content, cohort.needles), topic
    assert {
        "identifiable.instance.received",
        "identifiable.study.received",
        "research.study.deidentified",
        "research.study.indexed",
    } <= topics


def test_the_index_holds_none(hub: Hub, peaceful: Exported, cohort: Cohort) -> None:
    url = json.loads(Path(hub.endpoints["credentials_file"]).read_text())["database"]["admin"]
    rows = 0
    with psycopg.connect(url) as connection:
        tables = connection.execute(
            "select table_schema, table_name from information_schema.tables where table_schema not in ('pg_catalog', 'information_schema')"
        ).fetchall()
        for schema, table in tables:
            for (text,) in connection.execute(sql.SQL("select t::text from {} t").format(sql.Identifier(schema, table))):
                rows += 1
                assert not found_needles(text.encode(), cohort.needles), f"{schema}.{table}"
    assert rows > len(cohort.all)


def test_no_log_holds_one(hub: Hub, peaceful: Exported, cohort: Cohort) -> None:
    logs = [path for path in Path(hub.endpoints["logs"]).rglob("*") if path.is_file()]
    assert any("receiver" in path.name for path in logs)
    assert sum(path.stat().st_size for path in logs) > 1000
    for path in [*logs, hub.output]:
        assert not found_needles(path.read_bytes(), cohort.needles), path.name
