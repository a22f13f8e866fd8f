"""A broker that checks rights, a store, and STOW-RS as a process."""

from collections.abc import Iterator
from contextlib import AbstractContextManager

import pytest
from hub_objectstore import S3ObjectStore
from hub_parts import Parts
from hub_runtime import create_topics
from support.parts import s3_of, start_parts
from support.receiver_process import Topic
from support.stow import StartStow, StowProcess, stow_process


@pytest.fixture(scope="session")
def parts() -> Iterator[Parts]:
    with start_parts("kafka", "s3", secured_kafka=True) as parts:
        create_topics(parts.kafka_config("admin"))
        yield parts


@pytest.fixture(scope="session")
def admin_store(parts: Parts) -> S3ObjectStore:
    return s3_of(parts).store()


@pytest.fixture(scope="session")
def start_stow(parts: Parts, tmp_path_factory: pytest.TempPathFactory) -> StartStow:
    def start(*arguments: str, **settings: str) -> AbstractContextManager[StowProcess]:
        return stow_process(parts, tmp_path_factory.mktemp("stow"), *arguments, **settings)

    return start


@pytest.fixture(scope="module")
def stow(start_stow: StartStow) -> Iterator[StowProcess]:
    """One that the tests of a file share."""
    with start_stow() as stow:
        stow.wait_until(stow.ready)
        yield stow


@pytest.fixture
def topic(parts: Parts) -> Iterator[Topic]:
    topic = Topic(parts)
    yield topic
    topic.close()
