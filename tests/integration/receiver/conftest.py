"""A broker that checks rights, a store, and receivers as processes."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hub_objectstore import S3ObjectStore
from hub_parts import Parts
from hub_runtime import create_topics
from support.parts import s3_of, start_parts
from support.receiver_process import TRUSTS, ReceiverProcess, StartReceiver, Topic


@pytest.fixture(scope="session")
def parts() -> Iterator[Parts]:
    with start_parts("kafka", "s3", secured_kafka=True) as parts:
        create_topics(parts.kafka_config("admin"))
        yield parts


@pytest.fixture(scope="session")
def admin_store(parts: Parts) -> S3ObjectStore:
    return s3_of(parts).store()


@pytest.fixture(scope="session")
def start_receiver(parts: Parts, tmp_path_factory: pytest.TempPathFactory) -> StartReceiver:
    @contextmanager
    def start(*arguments: str, **settings: str) -> Iterator[ReceiverProcess]:
        folder = tmp_path_factory.mktemp("receiver")
        trusts = folder / "trusts.yaml"
        trusts.write_text(TRUSTS)
        environment = parts.environment("receiver") | {
            "HUB_RECEIVER_PORT": "0",
            "HUB_TRUSTS_FILE": str(trusts),
            "HUB_DATA_FOLDER": str(folder),
            "HUB_LOG_STRICT": "true",
            "HUB_DRAIN_SECONDS": "5",
        }
        receiver = ReceiverProcess(environment | settings, *arguments)
        try:
            receiver.wait_listening()
            yield receiver
        finally:
            receiver.stop()
        assert not [line for line in receiver.lines if "unstructured" in line], "everything on stderr is a log line"

    return start


@pytest.fixture(scope="module")
def receiver(start_receiver: StartReceiver) -> Iterator[ReceiverProcess]:
    """A receiver that the tests of one file share."""
    with start_receiver() as receiver:
        yield receiver


@pytest.fixture
def topic(parts: Parts) -> Iterator[Topic]:
    topic = Topic(parts)
    yield topic
    topic.close()
