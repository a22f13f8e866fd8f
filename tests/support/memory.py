"""How much memory a process has resident, over time."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import psutil

MIB = 2**20


class Resident:
    """Bytes of its own: neither page cache nor what it has mapped and never touched."""

    def __init__(self, pid: int) -> None:
        self._process = psutil.Process(pid)
        self.before = self.now()
        self.peak = self.before
        self._done = threading.Event()

    def now(self) -> int:
        return int(self._process.memory_info().rss)

    def watch(self) -> None:
        while not self._done.wait(0.02):
            self.peak = max(self.peak, self.now())

    def end(self) -> None:
        self._done.set()

    def __str__(self) -> str:
        return f"resident before {self.before / MIB:.0f} MiB, at most {self.peak / MIB:.0f} MiB"


@contextmanager
def resident(pid: int) -> Iterator[Resident]:
    """Watches a process of that id every 20 ms."""
    memory = Resident(pid)
    watcher = threading.Thread(target=memory.watch)
    watcher.start()
    try:
        yield memory
    finally:
        memory.end()
        watcher.join()
