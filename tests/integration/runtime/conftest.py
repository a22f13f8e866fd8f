"""A bench per test: topics of its own on the real broker, and consumer processes that are gone afterwards."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_events import TOPICS
from support.parts import S3
from support.runtime import Bench, bench


@pytest.fixture(autouse=True)
def registry() -> Iterator[None]:
    """What a test adds to the registry of topics is gone after it."""
    before = dict(TOPICS)
    yield
    TOPICS.clear()
    TOPICS.update(before)


@pytest.fixture
def made(kafka: str, s3: S3, tmp_path: Path) -> Iterator[Bench]:
    with bench(kafka, s3, tmp_path) as made:
        yield made
