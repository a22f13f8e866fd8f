"""The folder in which instances wait for the hub: what it has said to hold, it holds over SIGKILL and power cuts.

    incoming/   what is being written; nobody was told of it, and a start empties it
    waiting/    <number>-<study>-<sha256>.dcm: Part 10 objects in the order of their arrival
    refused/    <sha256>.dcm and <sha256>.json, the reason: what the hub will never take
    lock        held by the one process that spools here

The names hold no UID: the study is a digest that only keeps a study's instances together.
"""  # fmt: skip

import contextlib
import fcntl
import hashlib
import json
import os
import re
import tempfile
import threading
import time
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

_NAME: Final = re.compile(r"([0-9]{16})-([0-9a-f]{16})-([0-9a-f]{64})\.dcm")


class SpoolFull(OSError):
    """There is no room for this instance within the bound."""


class SpoolInUse(RuntimeError):
    """Another process spools in this folder."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """An instance that waits."""

    number: int
    """Order of arrival."""
    study: str
    """The same for instances of one study."""
    sha256: str
    size: int
    since: float
    """Seconds since 1970."""

    @property
    def name(self) -> str:
        """Of its file."""
        return f"{self.number:016d}-{self.study}-{self.sha256}.dcm"


class SpoolFolder:
    """What waits, on disk and, by name, in memory. Safe from many threads of one process."""

    def __init__(self, folder: Path, *, maximum_bytes: int) -> None:
        """Take the folder, empty `incoming`, and find what waits.

        Raises:
            SpoolInUse: another process has it.
            OSError: it cannot be made or read.
        """
        self._maximum_bytes = maximum_bytes
        self.incoming, self._waiting_folder, self._refused_folder = (folder / name for name in ("incoming", "waiting", "refused"))
        for one in (folder, self.incoming, self._waiting_folder, self._refused_folder):
            one.mkdir(parents=True, exist_ok=True, mode=0o700)
        _sync(folder)
        self._held = _hold(folder / "lock")
        for path in self.incoming.iterdir():
            path.unlink()
        found = sorted(_find(self._waiting_folder), key=lambda entry: entry.number)
        self._waiting = OrderedDict((entry.number, entry) for entry in found)
        self._by_digest = {entry.sha256: entry for entry in found}
        self._next = found[-1].number + 1 if found else 1
        self._refused = {path.name: path.stat().st_size for path in self._refused_folder.glob("*.dcm")}
        self._bytes = sum(entry.size for entry in found) + sum(self._refused.values())
        self._reserved = 0
        self._turned_away = False
        self._lock = threading.Lock()
        self.arrived = threading.Event()
        """Set when something new waits."""

    def add(self, study_instance_uid: str, blocks: Iterable[bytes], size: int) -> bool:
        """Keep an object of `size` bytes; False when the same waits already.

        Returning promises that the object is on the disk under its name, file and folder synced.

        Raises:
            SpoolFull: it does not fit within the bound.
            OSError: the disk is full or broken; nothing is promised.
        """
        with self._lock:
            if self._bytes + self._reserved + size > self._maximum_bytes:
                self._turned_away = True
                raise SpoolFull("the spool is full")
            self._reserved += size
        try:
            return self._add(study_instance_uid, blocks, size)
        except OSError:
            self._turned_away = True
            raise
        finally:
            with self._lock:
                self._reserved -= size

    def _add(self, study_instance_uid: str, blocks: Iterable[bytes], size: int) -> bool:
        digest = hashlib.sha256()
        descriptor, temporary = tempfile.mkstemp(dir=self.incoming)
        try:
            with open(descriptor, "wb") as file:  # noqa: PTH123 - a descriptor
                for block in blocks:
                    digest.update(block)
                    file.write(block)
                file.flush()
                os.fsync(file.fileno())
            sha256 = digest.hexdigest()
            with self._lock:
                if sha256 in self._by_digest:
                    return False
                number, self._next = self._next, self._next + 1
            study = hashlib.sha256(study_instance_uid.encode()).hexdigest()[:16]
            entry = Waiting(number, study, sha256, size, time.time())
            os.rename(temporary, self.path(entry))  # noqa: PTH104 - the name is text
            try:
                _sync(self._waiting_folder)
            except OSError:
                self.path(entry).unlink()
                raise
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)  # noqa: PTH108 - the name is text
        with self._lock:
            self._waiting[number] = self._by_digest[sha256] = entry
            self._bytes += size
            self._turned_away = False
        self.arrived.set()
        return True

    def path(self, entry: Waiting) -> Path:
        """Where the object is."""
        return self._waiting_folder / entry.name

    def due(self, held: Iterable[str], most: int) -> list[Waiting]:
        """The first of what waits, in the order of arrival, without the studies of `held`."""
        kept = set(held)
        due: list[Waiting] = []
        with self._lock:
            for entry in self._waiting.values():
                if entry.study not in kept:
                    due.append(entry)
                    if len(due) == most:
                        break
        return due

    def forwarded(self, entry: Waiting) -> None:
        """The hub has it: the copy here goes. Should it come back after a power cut, it is sent once more, which changes nothing."""
        self.path(entry).unlink()
        self._forget(entry, gone=True)

    def refuse(self, entry: Waiting, *, status: int | None, reason: str, comment: str = "") -> None:
        """Move it aside, with the reason beside it. A kill in between leaves it waiting."""
        record = {"status": None if status is None else f"{status:#06x}", "reason": reason, "comment": comment, "time": time.time()}
        target = self._refused_folder / f"{entry.sha256}.dcm"
        note = self.incoming / f"{entry.sha256}.json"
        with note.open("w") as file:
            json.dump(record, file)
            file.flush()
            os.fsync(file.fileno())
        note.rename(target.with_suffix(".json"))
        _sync(self._refused_folder)
        self.path(entry).rename(target)
        _sync(self._refused_folder)
        _sync(self._waiting_folder)
        with self._lock:
            again = self._refused.get(target.name)
            self._refused[target.name] = entry.size
        self._forget(entry, gone=again is not None)

    def _forget(self, entry: Waiting, *, gone: bool) -> None:
        with self._lock:
            del self._waiting[entry.number]
            del self._by_digest[entry.sha256]
            if gone:
                self._bytes -= entry.size
                self._turned_away = False

    @property
    def figures(self) -> tuple[int, int, float, int]:
        """How many wait, their bytes and the refused ones' together, for how long the first has waited (0: none waits), how many are refused."""
        with self._lock:
            first = next(iter(self._waiting.values()), None)
            age = max(0.0, time.time() - first.since) if first else 0.0
            return len(self._waiting), self._bytes, age, len(self._refused)

    @property
    def full(self) -> bool:
        """Whether there is no room: the last one was turned away, or less than a hundredth of the bound or of the disk is free."""
        disk = os.statvfs(self._waiting_folder)
        with self._lock:
            return self._turned_away or self._bytes > 0.99 * self._maximum_bytes or disk.f_bavail < 0.01 * disk.f_blocks

    def close(self) -> None:
        """Give the folder back."""
        self._held.close()


def _find(folder: Path) -> Iterable[Waiting]:
    for file in os.scandir(folder):
        if match := _NAME.fullmatch(file.name):
            seen = file.stat()
            yield Waiting(int(match[1]), match[2], match[3], seen.st_size, seen.st_mtime)


def _hold(path: Path) -> IO[str]:
    """The lock; the kernel gives it back however the process ends."""
    file = path.open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        raise SpoolInUse(f"another process spools in {path.parent.name}: one process a folder") from None
    return file


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
