"""One random cluster id in 64 starts with a hyphen; Kafka's tool must not take it for an option."""

import uuid

import pytest
from support.parts import start_parts


def test_a_cluster_id_that_starts_with_a_hyphen_is_formatted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hub_parts.kafka.uuid.uuid4", lambda: uuid.UUID(bytes=b"\xf8" + bytes(15)))
    with start_parts("kafka") as parts:
        assert parts.kafka_bootstrap_servers
