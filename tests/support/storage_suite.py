"""What every object store must do: one suite, passed by the fake and by the real ones. A test class inherits it and gives `store`."""

import hashlib
import io
import secrets
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, BinaryIO, cast

import pytest
from hub_objectstore import DigestMismatch, ObjectMissing, ObjectStore

BUCKET = "identifiable"
OTHER_BUCKET = "research"
LARGE = 66 * 2**20


class Pattern(io.RawIOBase):
    """A stream of `size` bytes that are nowhere in memory at once, that cannot seek, and that gives less than asked for."""

    _BLOCK = bytes(range(251)) * 4096

    def __init__(self, size: int) -> None:
        self._size = size
        self._place = 0

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        start = self._place % len(self._BLOCK)
        end = start + min(self._size - self._place, size if size >= 0 else self._size)
        block = self._BLOCK[start:end]
        self._place += len(block)
        return block


class SeekablePattern(Pattern):
    """The same, and it can seek."""

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._place = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._size}[whence]
        return self._place


def digest_of(stream: io.RawIOBase | BinaryIO) -> str:
    digest = hashlib.sha256()
    while block := stream.read(2**20):
        digest.update(block)
    return digest.hexdigest()


class StorageSuite:
    """Each test has a prefix of its own, so that they need no clean store."""

    @pytest.fixture
    def store(self) -> ObjectStore:
        raise NotImplementedError

    @pytest.fixture
    def prefix(self) -> str:
        return f"suite-{secrets.token_hex(6)}"

    def test_what_is_put_is_got(self, store: ObjectStore, prefix: str) -> None:
        for size in (0, 1, 100_000):
            body = secrets.token_bytes(size)
            store.put(BUCKET, f"{prefix}/{size}", body)
            assert store.get(BUCKET, f"{prefix}/{size}") == body

    def test_a_put_replaces_what_was_there(self, store: ObjectStore, prefix: str) -> None:
        store.put(BUCKET, f"{prefix}/a", b"first")
        store.put(BUCKET, f"{prefix}/a", b"second")
        assert store.get(BUCKET, f"{prefix}/a") == b"second"

    def test_a_missing_object_is_said_to_be_missing(self, store: ObjectStore, prefix: str) -> None:
        key = f"{prefix}/nothing"
        assert store.stat(BUCKET, key) is None
        for call in (
            lambda: store.get(BUCKET, key),
            lambda: store.get_range(BUCKET, key, 0, 5),
            lambda: store.copy(BUCKET, key, BUCKET, key + "2"),
        ):
            with pytest.raises(ObjectMissing) as missing:
                call()
            assert prefix not in str(missing.value), "an error names no key"
        with pytest.raises(ObjectMissing), store.open(BUCKET, key) as stream:
            stream.read()

    def test_stat_says_size_and_time(self, store: ObjectStore, prefix: str) -> None:
        store.put(BUCKET, f"{prefix}/a", b"12345")
        info = store.stat(BUCKET, f"{prefix}/a")
        assert info is not None
        assert (info.bucket, info.key, info.size) == (BUCKET, f"{prefix}/a", 5)
        assert abs(datetime.now(UTC) - info.last_modified) < timedelta(minutes=1)

    def test_ranges(self, store: ObjectStore, prefix: str) -> None:
        store.put(BUCKET, f"{prefix}/a", b"0123456789")
        for offset, length, expected in (
            (0, 3, b"012"),
            (4, 3, b"456"),
            (8, 9, b"89"),
            (10, 1, b""),
            (99, 5, b""),
            (3, 0, b""),
            (0, 1, b"0"),
        ):
            assert store.get_range(BUCKET, f"{prefix}/a", offset, length) == expected, (offset, length)

    def test_a_stream_is_read_in_pieces(self, store: ObjectStore, prefix: str) -> None:
        body = secrets.token_bytes(500_000)
        store.put(BUCKET, f"{prefix}/a", body)
        with store.open(BUCKET, f"{prefix}/a") as stream:
            assert stream.read(10) == body[:10]
            assert b"".join(iter(lambda: stream.read(70_001), b"")) == body[10:]
        with store.open(BUCKET, f"{prefix}/a") as stream:  # left half-read
            assert stream.read(10) == body[:10]
        assert store.get(BUCKET, f"{prefix}/a") == body

    def test_a_listing_is_recursive_and_sorted_by_key(self, store: ObjectStore, prefix: str) -> None:
        # `.` sorts before `/`: folder by folder would be another order.
        keys = [f"{prefix}/{name}" for name in ("1.2/x", "1.2.3/x", "1.2.3/y/z", "1.10/x", "a-b/c.json", "ab")]
        for key in keys:
            store.put(BUCKET, key, key.encode())
        listed = list(store.list(BUCKET, f"{prefix}/"))
        assert [info.key for info in listed] == sorted(keys)
        assert [info.size for info in listed] == [len(key) for key in sorted(keys)]
        assert [info.key for info in store.list(BUCKET, f"{prefix}/1.2/")] == [f"{prefix}/1.2/x"]
        assert [info.key for info in store.list(BUCKET, f"{prefix}/a")] == [f"{prefix}/a-b/c.json", f"{prefix}/ab"]
        assert list(store.list(BUCKET, f"{prefix}/none/")) == []

    def test_a_listing_has_more_than_one_page(self, store: ObjectStore, prefix: str) -> None:
        keys = sorted(f"{prefix}/1.2.{series}/{number}" for series in range(3) for number in range(350))

        def put(part: int) -> None:
            for key in keys[part::8]:
                store.put(BUCKET, key, b"x")

        with_threads(8, put)
        assert [info.key for info in store.list(BUCKET, f"{prefix}/")] == keys

    def test_keys_of_every_kind_that_the_hub_uses(self, store: ObjectStore, prefix: str) -> None:
        digest = "0123456789abcdef" * 4
        uid = "2.25." + "9" * 39
        for name in (
            f"northgate-2/{uid}/{uid}/{uid}/{digest}",
            f"manifests/a/{uid}/17.json",
            "chest-2024/1/training/ct-metadata/AB12CD/x.json",
            "dead-letters/identifiable.instance.received/a b+c=d&e%20~'(1).json",
            "x.metadata.jsonl.gz",
        ):
            key = f"{prefix}/{name}"
            store.put(BUCKET, key, b"content")
            assert store.get(BUCKET, key) == b"content"
            assert [info.key for info in store.list(BUCKET, key)] == [key]
            store.copy(BUCKET, key, OTHER_BUCKET, key)
            assert store.get(OTHER_BUCKET, key) == b"content"

    def test_a_copy_crosses_buckets_and_replaces(self, store: ObjectStore, prefix: str) -> None:
        body = secrets.token_bytes(300_000)
        store.put(BUCKET, f"{prefix}/a", body)
        store.put(OTHER_BUCKET, f"{prefix}/b", b"old")
        store.copy(BUCKET, f"{prefix}/a", OTHER_BUCKET, f"{prefix}/b")
        assert store.get(OTHER_BUCKET, f"{prefix}/b") == body
        assert store.get(BUCKET, f"{prefix}/a") == body

    def test_a_deleted_object_is_gone_and_may_be_deleted_again(self, store: ObjectStore, prefix: str) -> None:
        store.put(BUCKET, f"{prefix}/a", b"x")
        store.delete(BUCKET, f"{prefix}/a")
        store.delete(BUCKET, f"{prefix}/a")
        assert store.stat(BUCKET, f"{prefix}/a") is None
        assert list(store.list(BUCKET, f"{prefix}/")) == []

    def test_put_if_absent_keeps_the_first(self, store: ObjectStore, prefix: str) -> None:
        key = f"{prefix}/manifest/1.json"
        assert store.put_if_absent(BUCKET, key, b"first")
        assert not store.put_if_absent(BUCKET, key, b"second")
        assert not store.put_if_absent(BUCKET, key, io.BytesIO(b"third"))
        assert store.get(BUCKET, key) == b"first"
        store.delete(BUCKET, key)
        assert store.put_if_absent(BUCKET, key, io.BytesIO(b"fourth"), size=6)
        assert store.get(BUCKET, key) == b"fourth"

    def test_of_many_put_if_absent_at_once_exactly_one_wins(self, store: ObjectStore, prefix: str) -> None:
        for attempt in range(5):
            won: list[int] = []
            start = threading.Barrier(8)

            def one(number: int, attempt: int = attempt, won: list[int] = won, start: threading.Barrier = start) -> None:
                start.wait()
                if store.put_if_absent(BUCKET, f"{prefix}/{attempt}", f"by {number}".encode()):
                    won.append(number)

            with_threads(8, one)
            assert len(won) == 1
            assert store.get(BUCKET, f"{prefix}/{attempt}") == f"by {won[0]}".encode()

    def test_another_digest_than_named_is_refused_and_nothing_written(self, store: ObjectStore, prefix: str) -> None:
        wrong = hashlib.sha256(b"something else").hexdigest()
        right = hashlib.sha256(b"content").hexdigest()
        bodies: tuple[bytes | BinaryIO, ...] = (b"content", io.BytesIO(b"content"))
        for number, body in enumerate(bodies):
            key = f"{prefix}/{number}"
            with pytest.raises(DigestMismatch) as refused:
                store.put(BUCKET, key, body, sha256=wrong)
            assert prefix not in str(refused.value), "an error names no key"
            if not isinstance(body, bytes):
                body.seek(0)
            with pytest.raises(DigestMismatch):
                store.put_if_absent(BUCKET, key, body, sha256=wrong)
            assert store.stat(BUCKET, key) is None
            if not isinstance(body, bytes):
                body.seek(0)
            assert store.put_if_absent(BUCKET, key, body, sha256=right)

    def test_a_body_shorter_than_named_is_refused_and_nothing_written(self, store: ObjectStore, prefix: str) -> None:
        with pytest.raises(ValueError, match="10"):
            store.put(BUCKET, f"{prefix}/a", io.BytesIO(b"short"), size=10, sha256=hashlib.sha256(b"short").hexdigest())
        with pytest.raises(ValueError, match="10"):
            store.put_if_absent(BUCKET, f"{prefix}/a", b"short", size=10)
        assert store.stat(BUCKET, f"{prefix}/a") is None
        store.put(BUCKET, f"{prefix}/a", b"still works")

    def test_a_large_stream_of_unknown_size(self, store: ObjectStore, prefix: str) -> None:
        key = f"{prefix}/large"
        store.put(BUCKET, key, Pattern(LARGE))  # type: ignore[arg-type]  # read() is all that is asked of it
        with store.open(BUCKET, key) as stream:
            assert digest_of(stream) == digest_of(Pattern(LARGE))
        info = store.stat(BUCKET, key)
        assert info is not None
        assert info.size == LARGE
        store.copy(BUCKET, key, OTHER_BUCKET, key)
        assert store.get_range(OTHER_BUCKET, key, LARGE - 10, 100) == store.get_range(BUCKET, key, LARGE - 10, 10)
        store.delete(BUCKET, key)
        store.delete(OTHER_BUCKET, key)

    def test_a_large_stream_with_its_digest_goes_in_if_absent(self, store: ObjectStore, prefix: str) -> None:
        body = bytes(range(256)) * (24 * 4096)
        key, digest = f"{prefix}/large", hashlib.sha256(body).hexdigest()
        assert store.put_if_absent(BUCKET, key, io.BytesIO(body), size=len(body), sha256=digest)
        assert not store.put_if_absent(BUCKET, key, io.BytesIO(body), size=len(body), sha256=digest)
        assert store.get(BUCKET, key) == body
        store.delete(BUCKET, key)

    def test_a_large_stream_that_can_seek(self, store: ObjectStore, prefix: str) -> None:
        key, digest = f"{prefix}/large", digest_of(Pattern(LARGE))
        tail = SeekablePattern(LARGE)
        tail.seek(LARGE - 10)
        end = tail.read()
        named: Any
        for number, named in enumerate(({"size": LARGE, "sha256": digest}, {})):
            assert store.put_if_absent(BUCKET, f"{key}-{number}", cast("BinaryIO", SeekablePattern(LARGE)), **named)
            assert not store.put_if_absent(BUCKET, f"{key}-{number}", cast("BinaryIO", SeekablePattern(LARGE)), **named)
            with store.open(BUCKET, f"{key}-{number}") as stream:
                assert digest_of(stream) == digest
            store.delete(BUCKET, f"{key}-{number}")
        store.put(BUCKET, key, b"something else")
        store.put(BUCKET, key, cast("BinaryIO", SeekablePattern(LARGE)), sha256=digest)
        assert store.get_range(BUCKET, key, LARGE - 10, 100) == end
        store.delete(BUCKET, key)

    def test_of_many_large_put_if_absent_at_once_exactly_one_wins(self, store: ObjectStore, prefix: str) -> None:
        won: list[int] = []
        start = threading.Barrier(3)

        def one(number: int) -> None:
            start.wait()
            if store.put_if_absent(BUCKET, f"{prefix}/large", cast("BinaryIO", SeekablePattern(LARGE)), size=LARGE):
                won.append(number)

        with_threads(3, one)
        assert len(won) == 1
        store.delete(BUCKET, f"{prefix}/large")

    def test_a_large_body_that_is_not_what_was_named_is_refused_and_nothing_written(self, store: ObjectStore, prefix: str) -> None:
        key, wrong = f"{prefix}/large", digest_of(Pattern(LARGE + 1))
        for body in (SeekablePattern(LARGE), SeekablePattern(LARGE).read()):
            with pytest.raises(DigestMismatch) as refused:
                store.put(BUCKET, key, cast("Any", body), sha256=wrong)
            assert prefix not in str(refused.value), "an error names no key"
        with pytest.raises(DigestMismatch):
            store.put_if_absent(BUCKET, key, cast("BinaryIO", SeekablePattern(LARGE)), size=LARGE, sha256=wrong)
        with pytest.raises(ValueError, match=str(LARGE + 1)):
            store.put_if_absent(BUCKET, key, cast("BinaryIO", SeekablePattern(LARGE)), size=LARGE + 1)
        assert store.stat(BUCKET, key) is None
        store.put(BUCKET, key, b"still works")

    def test_it_is_reachable(self, store: ObjectStore) -> None:
        assert store.reachable()


def with_threads(count: int, work: Callable[[int], None]) -> None:
    """Run `work(number)` in `count` threads; what one raises is raised here."""
    failures: list[BaseException] = []

    def run(number: int) -> None:
        try:
            work(number)
        except BaseException as error:  # noqa: BLE001 - raised again below, in the test's own thread
            failures.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
