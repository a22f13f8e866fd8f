"""S3 by the `minio` SDK, with the SDK's patience taken away: five seconds, no retries."""

import base64
import hashlib
import io
import logging
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO, Final, Protocol, cast, runtime_checkable
from urllib.parse import quote, urlsplit, urlunsplit

import urllib3
from minio import Minio
from minio import time as minio_time
from minio.credentials.credentials import Credentials
from minio.error import InvalidResponseError, MinioException, S3Error, ServerError
from minio.helpers import BaseURL
from minio.signer import sign_v4_s3
from urllib3.exceptions import HTTPError

from hub_objectstore.port import DigestMismatch, ObjectInfo, ObjectMissing, StoreRefused, StoreUnavailable
from hub_objectstore.upload import PARALLEL, Conflict, Upload, Window

_REGION: Final = "us-east-1"  # naming one saves a request for the bucket's location
_LARGE_BYTES: Final = 64 * 2**20  # from here on a body goes in parts
_PART_BYTES: Final = 16 * 2**20  # of a stream of unknown size
_PARTS_AT_ONCE: Final = 8  # of all uploads of a process, as far as each has at least one
_PART_ANSWERS: Final = 2  # a busy store takes its time for a whole part: so many timeouts
_COMPLETE_ANSWERS: Final = 3  # it may put the parts together before it answers
_MAXIMUM_PUT_BYTES: Final = 5 * 2**30  # of one request, Amazon S3 User Guide, "Uploading objects"
_BLOCK_BYTES: Final = 128 * 2**10
_PIECE_BYTES: Final = 2**20
_COPY_BYTES_PER_SECOND: Final = 20 * 2**20  # a copy answers when all is copied: a slow store is not a dead one
_MISSING: Final = {"NoSuchKey", "NoSuchObject", "ResourceNotFound"}
_OTHER_DIGEST: Final = {"BadDigest", "XAmzContentSHA256Mismatch", "InvalidDigest", "XAmzContentChecksumMismatch"}
_PASSING: Final = {
    "SlowDown",
    "InternalError",
    "ServiceUnavailable",
    "RequestTimeout",
    "Busy",
    "OperationAborted",
    "ServerBusy",
    "NoSuchUpload",
}

# Its debug lines and its warnings of a full pool name paths, and paths name UIDs.
logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)


class _Readable(Protocol):
    def read(self, size: int = ..., /) -> bytes: ...


@runtime_checkable
class InMemory(Protocol):
    """A body that is in memory, and can be sent from where it is instead of being read in blocks."""

    def buffers(self) -> Sequence[bytes | memoryview] | None:
        """All of it, in order, valid until the request has ended; None: it is not in memory after all."""
        ...


class S3ObjectStore:
    """An S3 store over HTTP(S): see `ObjectStore` for what each method promises."""

    def __init__(self, endpoint: str, access_key: str, secret_key: str, *, timeout_seconds: float = 5.0, pool_size: int = 16) -> None:
        """Connects nowhere yet.

        Args:
            endpoint: a URL without path, `http://127.0.0.1:8333`.
            access_key: the identity.
            secret_key: its secret.
            timeout_seconds: how long to wait for a connection, and for each answer.
            pool_size: how many connections are kept open.

        Raises:
            ValueError: the endpoint is no such URL.
        """
        url = urlsplit(endpoint)
        if url.scheme not in {"http", "https"} or not url.netloc or url.path.strip("/") or url.query or url.username:
            raise ValueError("the S3 endpoint must be a URL without path or user, such as http://127.0.0.1:8333")
        self.endpoint: Final = f"{url.scheme}://{url.netloc}"
        self._credentials = Credentials(access_key, secret_key)
        self._timeout_seconds = timeout_seconds
        self._uploads = 0
        self._uploads_lock = threading.Lock()
        self._pool = urllib3.PoolManager(
            num_pools=2,
            maxsize=pool_size,
            timeout=urllib3.Timeout(connect=timeout_seconds, read=timeout_seconds),
            retries=urllib3.Retry(total=False, redirect=False),
            blocksize=_BLOCK_BYTES,
        )
        self._url = BaseURL(self.endpoint, _REGION)
        self._client = Minio(url.netloc, access_key, secret_key, secure=url.scheme == "https", region=_REGION, http_client=self._pool)

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
        """See `ObjectStore.put`."""
        large = _large(body, size)
        if large is not None:
            self._upload(bucket, key, large, sha256=sha256, content_type=content_type, only_if_absent=False)
            return
        if isinstance(body, bytes) or (sha256 is not None and (size is not None or body.seekable())):
            self._put(bucket, key, _measure(body, size, sha256), content_type, only_if_absent=False)
            return
        stream = _Checked(body, size, sha256)
        with self._failures("PUT", bucket):
            self._client.put_object(
                bucket,
                key,
                cast("BinaryIO", stream),
                -1 if size is None else size,
                content_type=content_type,
                part_size=_PART_BYTES,
                num_parallel_uploads=1,
            )

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
        """See `ObjectStore.put_if_absent`.

        A large body's condition is that of CompleteMultipartUpload, which SeaweedFS 4.48 and MinIO honour; the key is looked for before,
        too, so that a repeat costs no upload.
        """
        large = _large(body, size)
        if large is not None:
            return self._upload(bucket, key, large, sha256=sha256, content_type=content_type, only_if_absent=True)
        return self._put(bucket, key, _measure(body, size, sha256), content_type, only_if_absent=True)

    def get(self, bucket: str, key: str) -> bytes:
        """See `ObjectStore.get`."""
        with self.open(bucket, key) as stream:
            return stream.read()

    @contextmanager
    def open(self, bucket: str, key: str) -> Iterator[BinaryIO]:
        """See `ObjectStore.open`."""
        with self._failures("GET", bucket):
            response = self._client.get_object(bucket, key)
        try:
            raw = _Body(response, f"GET in bucket {bucket} of the object store at {self.endpoint}")
            yield cast("BinaryIO", io.BufferedReader(raw, _BLOCK_BYTES))
        finally:
            response.close()
            response.release_conn()

    def get_range(self, bucket: str, key: str, offset: int, length: int) -> bytes:
        """See `ObjectStore.get_range`."""
        if length <= 0:
            return b""
        try:
            with self._failures("GET", bucket):
                # Written out: the SDK sends no Range for offset 0 with some lengths.
                response = self._client.get_object(bucket, key, request_headers={"Range": f"bytes={offset}-{offset + length - 1}"})
                try:
                    return response.read()
                finally:
                    response.close()
                    response.release_conn()
        except _RangeBeyondEnd:
            return b""

    def stat(self, bucket: str, key: str) -> ObjectInfo | None:
        """See `ObjectStore.stat`."""
        try:
            with self._failures("HEAD", bucket):
                found = self._client.stat_object(bucket, key)
        except ObjectMissing:
            return None
        if found.size is None or found.last_modified is None:
            raise StoreUnavailable(f"the object store at {self.endpoint} answered HEAD in bucket {bucket} without size or time")
        return ObjectInfo(bucket, key, found.size, found.last_modified)

    def list(self, bucket: str, prefix: str) -> Iterator[ObjectInfo]:
        """See `ObjectStore.list`."""
        with self._failures("LIST", bucket):
            found = [
                ObjectInfo(bucket, item.object_name, item.size or 0, item.last_modified)
                for item in self._client.list_objects(bucket, prefix, recursive=True)
                if item.object_name is not None and not item.is_dir and item.last_modified is not None
            ]
        # SeaweedFS lists folder by folder: `1.2/…` before `1.2.3/…`, which is not the order of keys.
        found.sort(key=lambda info: info.key)
        yield from found

    def copy(self, source_bucket: str, source_key: str, bucket: str, key: str) -> None:
        """See `ObjectStore.copy`."""
        source = self.stat(source_bucket, source_key)
        if source is None:
            raise ObjectMissing(f"no such object in bucket {source_bucket} of the object store at {self.endpoint}")
        seconds = self._timeout_seconds + source.size / _COPY_BYTES_PER_SECOND
        headers = {"x-amz-copy-source": quote(f"/{source_bucket}/{source_key}"), "Content-Length": "0"}
        with self._failures("COPY", bucket):
            response = self._send("PUT", bucket, key, _measure(b"", 0, None), headers, seconds=seconds)
            # CopyObject may say 200 first and fail in its body (Amazon S3 API, CopyObject).
            if b"<Error>" in response.data[:4096]:
                raise StoreUnavailable(f"the object store at {self.endpoint} broke off COPY in bucket {bucket}")

    def delete(self, bucket: str, key: str) -> None:
        """See `ObjectStore.delete`."""
        try:
            with self._failures("DELETE", bucket):
                self._client.remove_object(bucket, key)
        except ObjectMissing:
            return

    def reachable(self) -> bool:
        """See `ObjectStore.reachable`."""
        try:
            with self._failures("GET", "-"):
                self._client.list_buckets()
        except _NotAllowed:
            return True  # the identity is known; it may only not list buckets
        except StoreUnavailable:
            return False
        return True

    def _put(self, bucket: str, key: str, content: "_Content", content_type: str, *, only_if_absent: bool) -> bool:
        """One signed PUT: the SDK's own neither streams a body nor passes If-None-Match on."""
        if content.size > _MAXIMUM_PUT_BYTES:
            raise ValueError(f"an object of {content.size} bytes is more than one PUT can carry (5 GiB)")
        headers = {
            "Content-Length": str(content.size),
            "Content-Type": content_type,
            "x-amz-checksum-sha256": base64.b64encode(bytes.fromhex(content.sha256)).decode(),
        }
        if only_if_absent:
            headers["If-None-Match"] = "*"
        with self._failures("PUT", bucket):
            try:
                self._send("PUT", bucket, key, content, headers)
            except S3Error as error:
                if only_if_absent and self._taken(error, bucket, key):
                    return False
                raise
            finally:
                content.release()
        return True

    def _upload(
        self, bucket: str, key: str, large: tuple[BinaryIO, int], *, sha256: str | None, content_type: str, only_if_absent: bool
    ) -> bool:
        """A large body in parts."""

        def send(
            verb: str,
            query: Mapping[str, str],
            body: bytes | Window,
            *,
            sha256: str,
            headers: Mapping[str, str],
            seconds: float | None = None,
        ) -> urllib3.BaseHTTPResponse:
            return self._send(verb, bucket, key, _Content(body, 0, sha256), dict(headers), query=dict(query), seconds=seconds)

        if only_if_absent and self._is_there(bucket, key):
            return False
        with self._uploads_lock:
            self._uploads += 1
            parallel = max(1, min(PARALLEL, _PARTS_AT_ONCE // self._uploads))
        try:
            with self._failures("PUT", bucket):
                try:
                    upload = Upload(
                        send,
                        *large,
                        sha256=sha256,
                        parallel=parallel,
                        part_seconds=_PART_ANSWERS * self._timeout_seconds,
                        complete_seconds=_COMPLETE_ANSWERS * self._timeout_seconds,
                    )
                    upload.run(content_type=content_type, only_if_absent=only_if_absent)
                except (S3Error, Conflict) as error:
                    if only_if_absent and self._taken(error, bucket, key):
                        return False
                    raise
        finally:
            with self._uploads_lock:
                self._uploads -= 1
        return True

    def _is_there(self, bucket: str, key: str) -> bool:
        try:
            return self.stat(bucket, key) is not None
        except _NotAllowed:
            return False  # it may write and not read: the condition of the write decides

    def _taken(self, error: S3Error | Conflict, bucket: str, key: str) -> bool:
        """Whether a conditional write failed because the key is taken."""
        if error.code == "PreconditionFailed" or (isinstance(error, S3Error) and error.response.status == 412):
            return True
        if error.code == "ConditionalRequestConflict":
            # Another write of this key was under way; it has it, or nobody does and the caller may come again.
            if self.stat(bucket, key) is not None:
                return True
            raise StoreUnavailable(f"the object store at {self.endpoint} was busy with PUT in bucket {bucket}") from None
        return False

    def _send(
        self,
        verb: str,
        bucket: str,
        key: str,
        content: "_Content",
        headers: dict[str, str],
        *,
        query: dict[str, str] | None = None,
        seconds: float | None = None,
    ) -> urllib3.BaseHTTPResponse:
        url = self._url.build(method=verb, region=_REGION, bucket_name=bucket, object_name=key, query_params=cast("Any", query))
        moment = minio_time.utcnow()
        signed = sign_v4_s3(
            method=verb,
            url=url,
            region=_REGION,
            headers={**headers, "Host": url.netloc, "x-amz-content-sha256": content.sha256, "x-amz-date": minio_time.to_amz_date(moment)},
            credentials=self._credentials,
            content_sha256=content.sha256,
            date=moment,
        )
        timeout = urllib3.Timeout(connect=self._timeout_seconds, read=seconds or self._timeout_seconds)
        response = self._pool.urlopen(verb, urlunsplit(url), body=content.body, headers=cast("dict[str, str]", signed), timeout=timeout)
        if response.status in {200, 204}:
            return response
        if response.data.lstrip().startswith(b"<") and response.status < 500:
            raise S3Error.fromxml(response)
        code = "PreconditionFailed" if response.status == 412 else "NoSuchKey" if response.status == 404 else None
        if code is None:
            raise ServerError(f"HTTP status {response.status}", response.status)
        raise S3Error(response, code, None, None, None, None)

    @contextmanager
    def _failures(self, verb: str, bucket: str) -> Iterator[None]:
        """Say a failure in the port's words. `from None`: the SDK's texts name keys."""
        where = f"the object store at {self.endpoint}"
        try:
            yield
        except S3Error as error:
            raise self._translated(error, verb, bucket, where) from None
        except (ServerError, InvalidResponseError) as error:
            status = getattr(error, "status_code", None) or getattr(error, "_code", None)
            raise StoreUnavailable(f"{where} answered {verb} in bucket {bucket} with HTTP status {status or 'unknown'}") from None
        except (StoreUnavailable, ObjectMissing):
            raise
        except (HTTPError, OSError, MinioException) as error:
            reason = getattr(error, "reason", None)  # urllib3 wraps: MaxRetryError(reason=ReadTimeoutError)
            kind = type(reason if isinstance(reason, Exception) else error).__name__
            raise StoreUnavailable(
                f"{where} did not answer {verb} in bucket {bucket} within {self._timeout_seconds:g} s ({kind}): is it running and reachable?"
            ) from None

    @staticmethod
    def _translated(error: S3Error, verb: str, bucket: str, where: str) -> Exception:
        code = error.code or "unknown"
        said = f"{where} answered {verb} in bucket {bucket} with {code}"
        translated: Exception
        if code in _MISSING:
            translated = ObjectMissing(f"no such object in bucket {bucket} of {where}")
        elif code in _OTHER_DIGEST:
            translated = DigestMismatch(f"{said}: it got other bytes than the caller named")
        elif code == "InvalidRange":
            translated = _RangeBeyondEnd()
        elif code == "AccessDenied":
            translated = _NotAllowed(f"{said}: give this identity the right or correct its credentials")
        elif code in _PASSING or error.response.status >= 500:
            translated = StoreUnavailable(said)
        else:
            translated = StoreRefused(f"{said} (HTTP status {error.response.status}): correct the credentials or make the bucket")
        return translated


class _NotAllowed(StoreRefused):
    """The identity is known and lacks a right."""


class _RangeBeyondEnd(Exception):
    """The offset is at or after the object's end."""


class _Body(io.RawIOBase):
    """A response's body whose failures are the port's."""

    def __init__(self, response: urllib3.BaseHTTPResponse, what: str) -> None:
        self._response = response
        self._what = what

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]  # typeshed's WriteableBuffer is these two here
        try:
            block = self._response.read(len(buffer))
        except (HTTPError, OSError) as error:
            raise StoreUnavailable(f"{self._what} broke off ({type(error).__name__})") from None
        buffer[: len(block)] = block
        return len(block)


class _Checked:
    """A stream that must have `size` bytes and `sha256`, as far as they are given; said at its end, so that the upload is broken off."""

    def __init__(self, stream: _Readable, size: int | None, sha256: str | None) -> None:
        self._stream = stream
        self._size = size
        self._sha256 = sha256
        self._read = 0
        self._hash = hashlib.sha256() if sha256 is not None else None

    def read(self, size: int = -1) -> bytes:
        if self._size is not None:
            left = self._size - self._read
            size = left if size < 0 else min(size, left)
        block = self._stream.read(size) if size else b""
        self._read += len(block)
        if self._hash is not None:
            self._hash.update(block)
        ended = not block or self._read == self._size
        if not block and self._size is not None and self._read < self._size:
            raise ValueError(f"the body ends after {self._read} of {self._size} bytes")
        if ended and self._hash is not None and self._hash.hexdigest() != self._sha256:
            raise DigestMismatch("the body does not have the SHA-256 that was named")
        return block


@dataclass(frozen=True, slots=True)
class _Content:
    """A body of one request, measured."""

    body: bytes | _Checked | Window | Sequence[bytes | memoryview]
    size: int
    sha256: str

    def release(self) -> None:
        """Hold nothing of a body in memory any longer, whoever still holds this, such as the traceback of a failure."""
        if isinstance(self.body, list):
            for piece in self.body:
                if isinstance(piece, memoryview):
                    piece.release()


def _large(body: bytes | BinaryIO, size: int | None) -> tuple[BinaryIO, int] | None:
    """The body as a stream that can seek, and its size, where it is one for parts."""
    if isinstance(body, bytes):
        return (io.BytesIO(body), len(body)) if len(body) >= _LARGE_BYTES and size in {None, len(body)} else None
    if not body.seekable():
        return None
    if size is None:
        start = body.tell()
        size = body.seek(0, io.SEEK_END) - start
        body.seek(start)
    return (body, size) if size >= _LARGE_BYTES else None


def _measure(body: bytes | BinaryIO, size: int | None, sha256: str | None) -> _Content:
    """The body with its size and SHA-256, found out where the caller does not know them."""
    if isinstance(body, bytes):
        if size is not None and size != len(body):
            raise ValueError(f"the body has {len(body)} bytes, not {size}")
        return _Content(body, len(body), sha256 or hashlib.sha256(body).hexdigest())
    if size is not None and sha256 is not None and isinstance(body, InMemory):
        buffers = body.buffers()
        if buffers is not None:
            if (found := sum(len(one) for one in buffers)) != size:
                raise ValueError(f"the body has {found} bytes, not {size}")
            # In pieces: the timeout of a write is for all that is written at once.
            return _Content([one[at : at + _PIECE_BYTES] for one in buffers for at in range(0, len(one), _PIECE_BYTES)], size, sha256)
    if size is None or sha256 is None:
        if not body.seekable():
            raise ValueError("a stream that cannot seek needs its size and its SHA-256 named")
        start = body.tell()
        if sha256 is None:
            sha256 = _digest(body, size)
        if size is None:
            size = body.seek(0, io.SEEK_END) - start
        body.seek(start)
    return _Content(_Checked(body, size, None), size, sha256)


def _digest(stream: BinaryIO, size: int | None) -> str:
    digest = hashlib.sha256()
    left = size
    while block := stream.read(_BLOCK_BYTES if left is None else min(left, _BLOCK_BYTES)):
        digest.update(block)
        left = None if left is None else left - len(block)
    return digest.hexdigest()
