"""A large object in parts (Amazon S3 User Guide, "Multipart upload"): several at a time, read as they are sent, each with its checksum."""

import base64
import contextlib
import hashlib
import re
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import BinaryIO, Final, Protocol
from xml.sax.saxutils import escape, unescape

from urllib3 import BaseHTTPResponse

from hub_objectstore.port import DigestMismatch, StoreUnavailable

PART_BYTES: Final = 16 * 2**20
PARALLEL: Final = 4
_MAXIMUM_PARTS: Final = 10_000
_BLOCK_BYTES: Final = 128 * 2**10
_UPLOAD_ID: Final = re.compile(rb"<UploadId>([^<]+)</UploadId>")
_CODE: Final = re.compile(rb"<Code>([^<]+)</Code>")


class Send(Protocol):
    """One signed request about one key."""

    def __call__(
        self,
        verb: str,
        query: Mapping[str, str],
        body: "bytes | Window",
        *,
        sha256: str,
        headers: Mapping[str, str],
        seconds: float | None = None,
    ) -> BaseHTTPResponse:
        """Raises what says that the store refused it or did not answer; `seconds`: how long an answer is waited for."""
        ...


class Conflict(Exception):
    """The store did not complete it: the key was taken meanwhile, or is being taken."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code


class _Stopped(Exception):
    """Another part failed: this one need not go on."""


class _Source:
    """A stream that several threads read, each at its own place."""

    def __init__(self, stream: BinaryIO, size: int) -> None:
        self.size = size
        self.stopped = False
        self._stream = stream
        self._start = stream.tell()
        self._lock = threading.Lock()

    def read(self, place: int, size: int) -> bytes:
        """At least one byte, at most `size`.

        Raises:
            ValueError: the stream ends there.
        """
        if self.stopped:
            raise _Stopped
        with self._lock:
            self._stream.seek(self._start + place)
            block = self._stream.read(size)
        if not block:
            raise ValueError(f"the body ends after {place} of {self.size} bytes")
        return block


class Window:
    """The bytes of one part, read when they are sent."""

    def __init__(self, source: _Source, start: int, end: int) -> None:
        self.size = end - start
        self._source = source
        self._place = start
        self._end = end

    def read(self, size: int = -1) -> bytes:
        """The next bytes, none at the end."""
        left = self._end - self._place
        wanted = left if size < 0 else min(size, left)
        block = self._source.read(self._place, wanted) if wanted else b""
        self._place += len(block)
        return block


@dataclass(frozen=True, slots=True)
class _Part:
    number: int
    start: int
    end: int
    sha256: str


class Upload:
    """One object's upload. It is visible after `run`, or not at all."""

    def __init__(
        self,
        send: Send,
        stream: BinaryIO,
        size: int,
        *,
        sha256: str | None,
        parallel: int,
        part_seconds: float,
        complete_seconds: float,
    ) -> None:
        """Do nothing yet.

        Args:
            send: makes a request about the object.
            stream: stands at its first byte, and can seek.
            size: of what is uploaded.
            sha256: its SHA-256, hexadecimal; None: any will do.
            parallel: so many parts are sent at a time.
            part_seconds: how long the answer to a part is waited for.
            complete_seconds: how long that to the completion is.
        """
        self._send = send
        self._source = _Source(stream, size)
        self._sha256 = sha256
        self._parallel = parallel
        self._part_seconds = part_seconds
        self._complete_seconds = complete_seconds
        self._query: dict[str, str] = {}

    def run(self, *, content_type: str, only_if_absent: bool) -> None:
        """Upload and complete. After any failure the upload is aborted: a store that answers keeps none of its parts.

        Raises:
            Conflict: `only_if_absent`, and the store has the key.
            DigestMismatch: the stream does not have the SHA-256 that was named, or the store got other bytes of a part.
            ValueError: the stream ends too early.
        """
        headers = {"Content-Type": content_type, "x-amz-checksum-algorithm": "SHA256"}
        answer = self._send("POST", {"uploads": ""}, b"", sha256=_hexdigest(b""), headers=headers)
        found = _UPLOAD_ID.search(answer.data)
        if found is None:
            raise StoreUnavailable("the object store answered the begin of an upload without its id")
        self._query = {"uploadId": unescape(found[1].decode())}
        try:
            self._complete(self._parts(), only_if_absent=only_if_absent)
        except BaseException:
            self._abort()
            raise

    def _parts(self) -> list[tuple[_Part, str]]:
        """Send all parts; each with its ETag, in order."""
        with ThreadPoolExecutor(self._parallel, thread_name_prefix="upload") as pool:
            try:
                sent = list(self._begin(pool))
                return [one.result() for one in sent]
            except BaseException:
                self._source.stopped = True  # the others break off; the pool waits for them, so that no part comes after the abort
                raise

    def _begin(self, pool: ThreadPoolExecutor) -> Iterator[Future[tuple[_Part, str]]]:
        """Begin to send each part, as many at a time as may be.

        This thread reads ahead: it computes the digest of the whole and that of the next part while the parts before it are sent. A part's
        bytes are read again for sending, and the store compares them with the part's digest: what is stored is what was hashed.
        """
        size = self._source.size
        step = max(PART_BYTES, -(-size // _MAXIMUM_PARTS))
        whole = hashlib.sha256()
        running: set[Future[tuple[_Part, str]]] = set()
        for number, start in enumerate(range(0, size, step), 1):
            part = self._digested(number, start, min(start + step, size), whole)
            while len(running) >= self._parallel:
                done, running = wait(running, return_when=FIRST_COMPLETED)
                for one in done:
                    one.result()
            one = pool.submit(self._send_part, part)
            running.add(one)
            yield one
        if self._sha256 is not None and whole.hexdigest() != self._sha256:
            raise DigestMismatch("the body does not have the SHA-256 that was named")

    def _digested(self, number: int, start: int, end: int, whole: "hashlib._Hash") -> _Part:
        digest = hashlib.sha256()
        window = Window(self._source, start, end)
        while block := window.read(_BLOCK_BYTES):
            whole.update(block)
            digest.update(block)
        return _Part(number, start, end, digest.hexdigest())

    def _send_part(self, part: _Part) -> tuple[_Part, str]:
        window = Window(self._source, part.start, part.end)
        query = {"partNumber": str(part.number), **self._query}
        headers = {"Content-Length": str(window.size), "x-amz-checksum-sha256": _base64(part.sha256)}
        answer = self._send("PUT", query, window, sha256=part.sha256, headers=headers, seconds=self._part_seconds)
        etag = answer.headers.get("ETag")
        if not etag:
            raise StoreUnavailable("the object store answered a part without its ETag")
        return part, etag

    def _complete(self, parts: list[tuple[_Part, str]], *, only_if_absent: bool) -> None:
        listed = "".join(
            f"<Part><PartNumber>{part.number}</PartNumber><ETag>{escape(etag)}</ETag>"
            f"<ChecksumSHA256>{_base64(part.sha256)}</ChecksumSHA256></Part>"
            for part, etag in parts
        )
        body = f'<CompleteMultipartUpload xmlns="http://s3.amazonaws.com/doc/2006-03-01/">{listed}</CompleteMultipartUpload>'.encode()
        headers = {"Content-Length": str(len(body)), "Content-Type": "application/xml"}
        if only_if_absent:
            headers["If-None-Match"] = "*"
        answer = self._send("POST", self._query, body, sha256=_hexdigest(body), headers=headers, seconds=self._complete_seconds)
        # It may say 200 first and fail in its body (Amazon S3 API, CompleteMultipartUpload).
        if b"<Error>" in answer.data:
            code = _CODE.search(answer.data)
            said = code[1].decode() if code is not None else "unknown"
            if only_if_absent and said in {"PreconditionFailed", "ConditionalRequestConflict"}:
                raise Conflict(said)
            raise StoreUnavailable(f"the object store did not complete an upload: {said}")

    def _abort(self) -> None:
        # The failure before it is what the caller hears of; `ObjectStore.put` says what may stay.
        with contextlib.suppress(Exception):
            self._send("DELETE", self._query, b"", sha256=_hexdigest(b""), headers={})


def _hexdigest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _base64(hexadecimal: str) -> str:
    return base64.b64encode(bytes.fromhex(hexadecimal)).decode()
