"""The fake keeps the port's promises, so that tests with it mean something."""

import pytest
from hub_objectstore import MemoryObjectStore, ObjectStore, S3ObjectStore, StoreUnavailable
from support.storage_suite import BUCKET, StorageSuite


class TestMemory(StorageSuite):
    @pytest.fixture
    def store(self) -> ObjectStore:
        return MemoryObjectStore()


def test_away_it_raises_what_a_real_one_raises() -> None:
    store = MemoryObjectStore()
    store.put(BUCKET, "a", b"x")
    store.away = True
    assert not store.reachable()
    for call in (lambda: store.get(BUCKET, "a"), lambda: store.put(BUCKET, "a", b"y"), lambda: list(store.list(BUCKET, ""))):
        with pytest.raises(StoreUnavailable):
            call()
    store.away = False
    assert store.get(BUCKET, "a") == b"x"


@pytest.mark.parametrize("endpoint", ["", "127.0.0.1:8333", "ftp://host", "http://host/bucket", "http://user@host"])
def test_an_endpoint_must_be_a_plain_url(endpoint: str) -> None:
    with pytest.raises(ValueError, match=r"http://127\.0\.0\.1:8333"):
        S3ObjectStore(endpoint, "a", "b")
