"""One instance as it came in, not decoded: where its bytes wait, and what its sender is answered."""

import contextlib
import errno
import hashlib
import io
import os
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal, cast

_CHECKED_BYTES = 16 * 2**20

Part = Literal["store", "broker", "disk"]
"""What an instance needs to be taken in."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """One instance of a request. The data set is what came over the network, byte for byte."""

    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    data_set: BinaryIO
    size: int
    too_large: bool = False
    """There was more than the limit; the data set is not whole."""
    fault: OSError | None = None
    """It could not be kept; the data set is not whole."""
    away: Part | None = None
    """This was known to be away before it came; nothing of it was kept."""
    sha256: str | None = None
    """Of the whole object, `file_meta` of these UIDs and then the data set, where it was computed on the way."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A C-STORE response: a status of PS3.4 table B.2-1, and a comment of at most 64 characters that names nobody."""

    status: int
    comment: str = ""


class MemoryBudget:
    """So many bytes all arrivals of a process may hold in memory together. Safe from many threads."""

    def __init__(self, total_bytes: int) -> None:
        self._left = total_bytes
        self._lock = threading.Lock()

    def take(self, size: int) -> bool:
        """Reserve `size` bytes if there are so many."""
        with self._lock:
            if size > self._left:
                return False
            self._left -= size
            return True

    def give_back(self, size: int) -> None:
        """What `take` reserved is free again."""
        with self._lock:
            self._left += size


class Spool(io.BytesIO):
    """Where a data set waits: memory up to a bound, then a file without a name, which is gone with the process however it ends."""

    def __init__(
        self,
        folder: Path,
        memory_bytes: int,
        maximum_bytes: int,
        *,
        start: bytes | None = None,
        budget: MemoryBudget | None = None,
        keep_free_bytes: int = 0,
        away: Part | None = None,
    ) -> None:
        """An empty one.

        Args:
            folder: where the file is made.
            memory_bytes: so much waits in memory.
            maximum_bytes: of more, nothing is kept.
            start: what stands before the data set in the stored object; given, `sha256` is computed on the way.
            budget: what all spools may hold in memory; without room in it the file comes earlier.
            keep_free_bytes: a file is not begun, nor gone on with, where the file system has less room.
            away: what is missing to take an instance in; given, nothing is kept.
        """
        super().__init__()
        self.size = 0
        self.too_large = False
        self.fault: OSError | None = None
        self.away = away
        self._folder = folder
        self._memory_bytes = memory_bytes
        self._maximum_bytes = maximum_bytes
        self._file: BinaryIO | None = None
        self._hash = hashlib.sha256(start) if start is not None else None
        self._budget = budget
        self._reserved = 0
        self._keep_free_bytes = keep_free_bytes
        self._unchecked = 0

    @property
    def stream(self) -> BinaryIO:
        """What was written, at whatever place it stands."""
        return self._file if self._file is not None else self

    @property
    def sha256(self) -> str | None:
        """Of `start` and all that was written, if `start` was given."""
        return self._hash.hexdigest() if self._hash is not None else None

    def write(self, data: Any, /) -> int:  # noqa: ANN401 - a buffer
        """Append. Never raises: an exception here would end the association without an answer."""
        size = len(data)
        if self.size + size > self._maximum_bytes:
            self.too_large = True
        if self.too_large or self.fault is not None or self.away is not None:
            return size
        try:
            if self._file is None and not self._fits(size):
                self._open()
            if self._file is None:
                super().write(data)
            else:
                self._check_room(size)
                _write_all(self._file, data)
        except OSError as error:
            self.fault = error.with_traceback(None)  # which would hold buffers
            return size
        if self._hash is not None:
            self._hash.update(data)
        self.size += size
        return size

    def discard(self) -> None:
        """Give memory and file back now, not when the last reference goes."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.close()
        self.close()
        self._release()

    def _fits(self, size: int) -> bool:
        """Whether so much more may wait in memory."""
        wanted = self.size + size
        if wanted > self._memory_bytes:
            return False
        if self._budget is None or wanted <= self._reserved:
            return True
        step = min(max(wanted, 2 * self._reserved), self._memory_bytes) - self._reserved
        if not self._budget.take(step):
            return False
        self._reserved += step
        return True

    def _open(self) -> None:
        self._unchecked = _CHECKED_BYTES
        self._check_room(self.size)
        self._file = cast("BinaryIO", tempfile.TemporaryFile(dir=self._folder, buffering=0))  # noqa: SIM115 - `discard` closes it
        with self.getbuffer() as so_far:
            _write_all(self._file, so_far)
        super().seek(0)
        super().truncate(0)
        self._release()

    def _check_room(self, size: int) -> None:
        """See now and then that the file system has room to spare."""
        self._unchecked += size
        if self._unchecked < _CHECKED_BYTES or not self._keep_free_bytes:
            return
        self._unchecked = 0
        if free_bytes(self._folder) < self._keep_free_bytes + size:
            raise OSError(errno.ENOSPC, "less room than is to be kept free")

    def _release(self) -> None:
        reserved, self._reserved = self._reserved, 0
        if self._budget is not None and reserved:
            self._budget.give_back(reserved)


def _write_all(file: BinaryIO, data: Any) -> None:  # noqa: ANN401 - a buffer
    """A disk that is getting full takes what fits and says so only of the next write."""
    left = memoryview(data)
    while left:
        left = left[file.write(left) :]


def free_bytes(folder: Path) -> int:
    """How much the file system of `folder` has left for us.

    Raises:
        OSError: there is no such folder.
    """
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize
