"""The real store passes the suite, and is away within its timeout when it is away: SeaweedFS, or MinIO with HUB_PARTS_S3=minio."""

import hashlib
import io
import signal
import socket
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import BinaryIO, cast

import pytest
from hub_objectstore import DigestMismatch, ObjectStore, S3ObjectStore, StoreRefused, StoreUnavailable
from hub_parts import Parts
from support.parts import S3, s3_of, start_parts
from support.storage_suite import BUCKET, LARGE, Pattern, SeekablePattern, StorageSuite, digest_of


class TestS3(StorageSuite):
    @pytest.fixture
    def store(self, s3: S3) -> ObjectStore:
        return s3.store()

    def test_a_large_upload_that_fails_leaves_no_part_behind(self, s3: S3, prefix: str) -> None:
        store, key = s3.store(), f"{prefix}/large"
        bodies: list[tuple[type[Exception], Changing]] = [(DigestMismatch, OtherTheSecondTime(LARGE)), (StoreUnavailable, Failing(LARGE))]
        for error, body in bodies:
            with pytest.raises(error):
                store.put_if_absent(BUCKET, key, cast("BinaryIO", body), size=LARGE)
            assert body.bent
            assert store.stat(BUCKET, key) is None
            assert _uploads(store, key) == 0
        with pytest.raises(DigestMismatch):
            store.put_if_absent(BUCKET, key, cast("BinaryIO", SeekablePattern(LARGE)), size=LARGE, sha256="0" * 64)
        assert _uploads(store, key) == 0
        # The same look sees what was not aborted.
        store._client._create_multipart_upload(BUCKET, key, {})
        assert _uploads(store, key) == 1

    def test_a_large_body_is_never_whole_in_memory(self, s3: S3, prefix: str) -> None:
        store, size = s3.store(), 3 * LARGE
        digest = digest_of(Pattern(size))
        tracemalloc.start()
        try:
            assert store.put_if_absent(BUCKET, f"{prefix}/large", cast("BinaryIO", SeekablePattern(size)), size=size, sha256=digest)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak < 8 * 2**20, f"{peak / 2**20:.1f} MiB"
        store.delete(BUCKET, f"{prefix}/large")


class Changing(SeekablePattern):
    """Its bytes at one place are not always the same."""

    bent = False

    def read(self, size: int = -1) -> bytes:
        start = self._place
        block = super().read(size)
        if start <= 40_000_000 < start + len(block):
            return self.bend(block)
        return block

    def bend(self, block: bytes) -> bytes:
        raise NotImplementedError


class OtherTheSecondTime(Changing):
    """A file that somebody writes into while it is sent."""

    seen = False

    def bend(self, block: bytes) -> bytes:
        if not self.seen:
            self.seen = True
            return block
        self.bent = True
        return bytes(len(block))


class Failing(Changing):
    """A disk that cannot be read in the middle."""

    def bend(self, block: bytes) -> bytes:
        self.bent = True
        raise OSError("unreadable")


def _uploads(store: S3ObjectStore, key: str) -> int:
    """Of this key, not completed and not aborted."""
    return len(store._client._list_multipart_uploads(BUCKET, prefix=key).uploads)


def _calls(store: ObjectStore) -> list[Callable[[], object]]:
    return [
        lambda: store.put(BUCKET, "a", b"x" * 2_000_000),
        lambda: store.put_if_absent(BUCKET, "never", b"x"),
        lambda: store.get(BUCKET, "secret-key"),
        lambda: store.stat(BUCKET, "secret-key"),
        lambda: list(store.list(BUCKET, "secret-key")),
        lambda: store.copy(BUCKET, "secret-key", BUCKET, "b"),
        lambda: store.delete(BUCKET, "secret-key-2"),
    ]


def _all_unavailable(store: ObjectStore, endpoint: str, within: float, calls: list[Callable[[], object]] | None = None) -> None:
    for call in calls or _calls(store):
        start = time.monotonic()
        with pytest.raises(StoreUnavailable) as away:
            call()
        assert time.monotonic() - start < within
        text = str(away.value)
        assert endpoint in text
        assert BUCKET in text
        assert "secret-key" not in text
        assert away.value.__cause__ is None
        assert away.value.__suppress_context__, "the SDK's error names the key"


def test_wrong_credentials_are_refused_and_said_to_be(s3: S3) -> None:
    for store in (S3ObjectStore(s3.endpoint, s3.access_key, "wrong"), S3ObjectStore(s3.endpoint, "nobody", s3.secret_key)):
        _all_unavailable(store, s3.endpoint, 5)
        with pytest.raises(StoreRefused, match="credentials"):
            store.put(BUCKET, "a", b"x")
        assert not store.reachable()


def test_a_bucket_that_is_not_there_is_said(s3: S3) -> None:
    with pytest.raises(StoreRefused, match="nowhere"):
        s3.store().put("nowhere", "a", b"x")


def test_nobody_listens() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{taken.getsockname()[1]}"
        store = S3ObjectStore(endpoint, "a", "b", timeout_seconds=1)
        _all_unavailable(store, endpoint, 1)
        assert not store.reachable()


@contextmanager
def _listener(answer: bytes | None) -> Iterator[str]:
    """Something that takes connections and answers every request with the same bytes, then hangs up, or never answers."""
    server = socket.create_server(("127.0.0.1", 0))
    connections: list[socket.socket] = []

    def serve() -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            connections.append(connection)
            if answer is not None:
                connection.recv(65_536)
                connection.sendall(answer)
                connection.shutdown(socket.SHUT_WR)
                while connection.recv(65_536):  # a body must be taken, or the answer is lost to a reset
                    pass

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
    finally:
        server.shutdown(socket.SHUT_RDWR)
        server.close()
        thread.join()
        for connection in connections:
            connection.close()


def _http(status: str, body: bytes, kind: str = "application/xml") -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body


@pytest.mark.parametrize(
    "answer",
    [
        _http("503 Slow Down", b"<Error><Code>SlowDown</Code><Message>slow</Message><Resource>/secret-key</Resource></Error>"),
        _http("500 Internal Server Error", b"<Error><Code>InternalError</Code><Message>secret-key</Message></Error>"),
        _http("502 Bad Gateway", b"<html>secret-key</html>", "text/html"),
        _http("503 Service Unavailable", b""),
        b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nshort",
        b"rubbish\r\n",
        b"",
    ],
)
def test_what_a_sick_store_says_is_a_passing_fault(answer: bytes) -> None:
    with _listener(answer) as endpoint:
        store = S3ObjectStore(endpoint, "a", "b", timeout_seconds=1)
        calls: list[Callable[[], object]] = [lambda: store.get(BUCKET, "secret-key"), lambda: list(store.list(BUCKET, "secret-key"))]
        if b"200 OK" not in answer:
            calls += [lambda: store.put_if_absent(BUCKET, "secret-key", b"x"), lambda: store.copy(BUCKET, "secret-key", BUCKET, "b")]
            assert not store.reachable()
        _all_unavailable(store, endpoint, 3, calls)


def test_a_store_that_never_answers_is_given_up_in_time() -> None:
    with _listener(None) as endpoint:
        store = S3ObjectStore(endpoint, "a", "b", timeout_seconds=0.5)
        _all_unavailable(store, endpoint, 2, _calls(store))


def test_a_stopped_store_is_away_and_serves_again_when_it_goes_on() -> None:
    with start_parts("s3") as parts:
        s3 = s3_of(parts)
        store = S3ObjectStore(s3.endpoint, s3.access_key, s3.secret_key, timeout_seconds=1)
        store.put(BUCKET, "secret-key", b"x")
        (program,) = parts.programs
        parts.supervisor.signal(program, signal.SIGSTOP)
        try:
            _all_unavailable(store, s3.endpoint, 3, _calls(store))
            start = time.monotonic()
            with pytest.raises(StoreUnavailable):
                store.put(BUCKET, "large", Pattern(40 * 2**20))  # type: ignore[arg-type]  # read() is all that is asked of it
            assert time.monotonic() - start < 10
            start = time.monotonic()
            with pytest.raises(StoreUnavailable):
                store.put_if_absent(BUCKET, "large", cast("BinaryIO", SeekablePattern(LARGE)), size=LARGE)
            assert time.monotonic() - start < 10
        finally:
            parts.supervisor.signal(program, signal.SIGCONT)
        assert store.get(BUCKET, "secret-key") == b"x"
        store.put(BUCKET, "secret-key", b"y")
        assert store.get(BUCKET, "secret-key") == b"y"
        _a_store_that_stops_in_the_middle_of_a_large_upload(parts, store)
        for identity in ("receiver", "deidentification"):
            assert (
                s3_of(parts, identity)
                .store()
                .put_if_absent(BUCKET, f"large-by-{identity}", cast("BinaryIO", SeekablePattern(LARGE)), size=LARGE)
            ), "its rights are enough for an upload in parts"


def _a_store_that_stops_in_the_middle_of_a_large_upload(parts: Parts, store: S3ObjectStore) -> None:
    (program,) = parts.programs

    class Stopping(SeekablePattern):
        def read(self, size: int = -1) -> bytes:
            if self._place > LARGE // 2:
                parts.supervisor.signal(program, signal.SIGSTOP)
            return super().read(size)

    start = time.monotonic()
    try:
        with pytest.raises(StoreUnavailable) as away:
            store.put_if_absent(BUCKET, "secret-key-3", cast("BinaryIO", Stopping(LARGE)), size=LARGE)
        assert time.monotonic() - start < 10
        assert "secret-key" not in str(away.value)
    finally:
        parts.supervisor.signal(program, signal.SIGCONT)
    assert store.stat(BUCKET, "secret-key-3") is None


class InMemoryBody(io.BytesIO):
    """A body that is sent from where it is."""

    def buffers(self) -> tuple[bytes, memoryview]:
        return b"start", self.getbuffer()


def test_a_body_in_memory_is_stored_whole_and_nothing_holds_it_afterwards(s3: S3) -> None:
    body = InMemoryBody(bytes(range(256)) * 10_000)  # more than one piece
    whole = b"start" + body.getvalue()
    sha256 = hashlib.sha256(whole).hexdigest()
    key = f"in-memory/{sha256}"
    store = s3.store()
    with pytest.raises(ValueError, match="not 7"):
        store.put_if_absent(BUCKET, key, body, size=7, sha256=sha256)
    assert store.put_if_absent(BUCKET, key, body, size=len(whole), sha256=sha256)
    body.close()  # refused while a piece of it is held
    assert store.get(BUCKET, key) == whole
