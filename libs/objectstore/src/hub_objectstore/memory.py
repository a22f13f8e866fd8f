"""A store in memory, for tests of what stands above the port. It passes the same suite as the real ones."""

import hashlib
import io
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from typing import BinaryIO

from hub_objectstore.port import DigestMismatch, ObjectInfo, ObjectMissing, StoreUnavailable


class MemoryObjectStore:
    """Objects in a dictionary. Any bucket exists."""

    def __init__(self) -> None:
        self.away = False
        """Set it, and every call raises `StoreUnavailable`."""
        self._objects: dict[tuple[str, str], tuple[bytes, datetime]] = {}
        self._lock = threading.Lock()

    def put(
        self,
        bucket: str,
        key: str,
        body: bytes | BinaryIO,
        *,
        size: int | None = None,
        sha256: str | None = None,
        content_type: str = "application/octet-stream",  # noqa: ARG002 -- the port's; nothing reads it back
    ) -> None:
        """See `ObjectStore.put`."""
        self._check(bucket, "PUT")
        content = _content(body, size, sha256)
        with self._lock:
            self._objects[bucket, key] = (content, datetime.now(UTC))

    def put_if_absent(
        self,
        bucket: str,
        key: str,
        body: bytes | BinaryIO,
        *,
        size: int | None = None,
        sha256: str | None = None,
        content_type: str = "application/octet-stream",  # noqa: ARG002 -- the port's; nothing reads it back
    ) -> bool:
        """See `ObjectStore.put_if_absent`."""
        self._check(bucket, "PUT")
        content = _content(body, size, sha256)
        with self._lock:
            if (bucket, key) in self._objects:
                return False
            self._objects[bucket, key] = (content, datetime.now(UTC))
            return True

    def get(self, bucket: str, key: str) -> bytes:
        """See `ObjectStore.get`."""
        self._check(bucket, "GET")
        with self._lock:
            found = self._objects.get((bucket, key))
        if found is None:
            raise ObjectMissing(f"no such object in bucket {bucket}")
        return found[0]

    def open(self, bucket: str, key: str) -> AbstractContextManager[BinaryIO]:
        """See `ObjectStore.open`."""
        return io.BytesIO(self.get(bucket, key))

    def get_range(self, bucket: str, key: str, offset: int, length: int) -> bytes:
        """See `ObjectStore.get_range`."""
        return self.get(bucket, key)[offset : offset + max(length, 0)]

    def stat(self, bucket: str, key: str) -> ObjectInfo | None:
        """See `ObjectStore.stat`."""
        self._check(bucket, "HEAD")
        with self._lock:
            found = self._objects.get((bucket, key))
        return None if found is None else ObjectInfo(bucket, key, len(found[0]), found[1])

    def list(self, bucket: str, prefix: str) -> Iterator[ObjectInfo]:
        """See `ObjectStore.list`."""
        self._check(bucket, "LIST")
        with self._lock:
            found = [
                ObjectInfo(bucket, key, len(content), moment)
                for (where, key), (content, moment) in self._objects.items()
                if where == bucket and key.startswith(prefix)
            ]
        yield from sorted(found, key=lambda info: info.key)

    def copy(self, source_bucket: str, source_key: str, bucket: str, key: str) -> None:
        """See `ObjectStore.copy`."""
        self.put(bucket, key, self.get(source_bucket, source_key))

    def delete(self, bucket: str, key: str) -> None:
        """See `ObjectStore.delete`."""
        self._check(bucket, "DELETE")
        with self._lock:
            self._objects.pop((bucket, key), None)

    def reachable(self) -> bool:
        """See `ObjectStore.reachable`."""
        return not self.away

    def _check(self, bucket: str, verb: str) -> None:
        if self.away:
            raise StoreUnavailable(f"the store in memory is away: {verb} in bucket {bucket}")


def _content(body: bytes | BinaryIO, size: int | None, sha256: str | None) -> bytes:
    content = body if isinstance(body, bytes) else _read(body, size)
    if size is not None and len(content) != size:
        raise ValueError(f"the body ends after {len(content)} of {size} bytes")
    if sha256 is not None and hashlib.sha256(content).hexdigest() != sha256:
        raise DigestMismatch("the body does not have the SHA-256 that was named")
    return content


def _read(stream: BinaryIO, size: int | None) -> bytes:
    """All of it, or `size` bytes: one read may give less than is there."""
    blocks = []
    left = size
    while block := stream.read(-1 if left is None else left):
        blocks.append(block)
        left = None if left is None else left - len(block)
    return b"".join(blocks)
