"""Real Kafka, S3 and PostgreSQL, started once for all tests that ask for them."""

from collections.abc import Iterator

import pytest
from support.parts import S3, s3_of, start_parts


@pytest.fixture(scope="session")
def kafka() -> Iterator[str]:
    """Bootstrap servers of a real broker that asks for no password and makes no topic by itself."""
    with start_parts("kafka") as parts:
        yield parts.kafka_bootstrap_servers


@pytest.fixture(scope="session")
def s3() -> Iterator[S3]:
    """A real store with the hub's buckets: SeaweedFS, or MinIO with HUB_PARTS_S3=minio."""
    with start_parts("s3") as parts:
        yield s3_of(parts)


@pytest.fixture(scope="session")
def database() -> Iterator[str]:
    """The administrator's URL of a real PostgreSQL with the hub's roles and its empty schema."""
    with start_parts("database") as parts:
        yield parts.database_url
