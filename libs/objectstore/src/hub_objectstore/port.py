"""What the hub asks of an object store, and how it says no.

No text of an error here names a key: keys of the identifiable zone hold UIDs, and errors end in logs.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from typing import BinaryIO, Protocol


class StoreUnavailable(ConnectionError):
    """A passing fault: refused, timed out, 5xx. The same call may succeed later.

    Nothing is known of a write: a store that hangs may still do it when it goes on. So a `put_if_absent` that is tried again and
    says False may have met its own first try: compare contents where that matters.
    """


class StoreRefused(StoreUnavailable):
    """The store answers and refuses this identity, or has no such bucket. It passes when an operator mends credentials or buckets."""


class ObjectMissing(KeyError):
    """There is no such object. Asking again will not help."""

    def __str__(self) -> str:
        """The text itself: KeyError would quote it."""
        return str(self.args[0]) if self.args else ""


class DigestMismatch(ValueError):
    """The bytes that the store got do not have the SHA-256 that the caller named. Nothing was written."""


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """What a listing says of one object."""

    bucket: str
    key: str
    size: int
    """Bytes."""
    last_modified: datetime
    """With time zone."""


class ObjectStore(Protocol):
    """An S3 store. Every method may be called from any thread and blocks until the store has answered.

    Each raises `StoreUnavailable` within its timeout (seconds, not minutes) when the store is away; none retries by itself.
    A write is visible whole or not at all, and durable when the method returns.
    """

    def put(
        self,
        bucket: str,
        key: str,
        body: bytes | BinaryIO,
        *,
        size: int | None = None,
        sha256: str | None = None,
        content_type: str = "application/octet-stream",
    ) -> None:
        """Write an object, over one that is there.

        A stream with `sha256` that can seek, or whose `size` is given, goes in one request; any other in parts, bounded in memory.
        A large body (64 MiB) that can seek goes in parts of 16 MiB, up to four at a time and each read as it is sent; its whole SHA-256
        is computed on the way, the store checks that of each part. An upload that fails is aborted; one whose abort the store did not
        answer, or whose process was killed, stays in the store unseen until a rule for incomplete uploads takes it.

        Raises:
            DigestMismatch: the store got bytes of another SHA-256 (hexadecimal).
            ValueError: the stream ends before `size` bytes.
        """
        ...

    def put_if_absent(
        self,
        bucket: str,
        key: str,
        body: bytes | BinaryIO,
        *,
        size: int | None = None,
        sha256: str | None = None,
        content_type: str = "application/octet-stream",
    ) -> bool:
        """Write an object unless its key is taken (`If-None-Match: *`). True: it is this call's; False: it was there and is untouched.

        Of calls at the same time exactly one gets True. A stream must be able to seek, or come with `size` and `sha256`.
        A large body goes in parts, as with `put`.

        Raises:
            DigestMismatch: the store got bytes of another SHA-256 (hexadecimal).
            ValueError: the stream ends before `size` bytes.
        """
        ...

    def get(self, bucket: str, key: str) -> bytes:
        """The whole object.

        Raises:
            ObjectMissing: there is none.
        """
        ...

    def open(self, bucket: str, key: str) -> AbstractContextManager[BinaryIO]:
        """The object as a stream that holds no more than a buffer in memory. It cannot seek.

        Raises:
            ObjectMissing: there is none.
        """
        ...

    def get_range(self, bucket: str, key: str, offset: int, length: int) -> bytes:
        """At most `length` bytes from `offset`; fewer at the end, none beyond it.

        Raises:
            ObjectMissing: there is no such object.
        """
        ...

    def stat(self, bucket: str, key: str) -> ObjectInfo | None:
        """The object's size and time, or None where there is none."""
        ...

    def list(self, bucket: str, prefix: str) -> Iterator[ObjectInfo]:
        """Every object whose key starts with `prefix`, sorted by key."""
        ...

    def copy(self, source_bucket: str, source_key: str, bucket: str, key: str) -> None:
        """Copy within the store, over an object that is there.

        Raises:
            ObjectMissing: there is no source.
        """
        ...

    def delete(self, bucket: str, key: str) -> None:
        """Take the object away; nothing happens where there is none."""
        ...

    def reachable(self) -> bool:
        """Whether the store answers and knows these credentials."""
        ...
