"""The threads that handle records, beside the loop that polls."""

import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from hub_runtime.backlog import Item
from hub_runtime.handlers import NotRun, Outcome, Runner, Stop


@dataclass(frozen=True, slots=True)
class Result:
    """What came of one item."""

    item: Item
    outcome: Outcome
    seconds: float


class Slots:
    """A fixed number of threads, each with a runner of its own; items in, results out."""

    def __init__(self, count: int, make_runner: Callable[[], Runner], work: Callable[[Runner, Item], Outcome]) -> None:
        self.hold = False
        """While set, items that have not begun come back as NotRun."""
        self.results: queue.SimpleQueue[Result] = queue.SimpleQueue()
        self._work = work
        self._waiting: queue.SimpleQueue[Item | None] = queue.SimpleQueue()
        self._running: dict[int, Item] = {}
        self._runners = [make_runner() for _ in range(count)]
        for number in range(count):
            threading.Thread(target=self._serve, args=(number,), name=f"slot-{number}", daemon=True).start()

    @property
    def running(self) -> int:
        """How many are in a handler now."""
        return len(self._running)

    def submit(self, item: Item) -> None:
        """Handle it as soon as a thread is free."""
        self._waiting.put(item)

    def call_off(self, item: Item) -> None:
        """Its result is wanted no more: end it where that is possible."""
        for number, running in list(self._running.items()):
            if running is item:
                self._runners[number].call_off(item.record)

    def close(self) -> None:
        """Begin nothing more, and end child processes."""
        self.hold = True
        for runner in self._runners:
            runner.close()
            self._waiting.put(None)

    def _serve(self, number: int) -> None:
        runner = self._runners[number]
        while (item := self._waiting.get()) is not None:
            began = time.monotonic()
            if self.hold or item.discarded:
                self.results.put(Result(item, NotRun(), 0.0))
                continue
            self._running[number] = item
            try:
                outcome = self._work(runner, item)
            except BaseException as error:  # noqa: BLE001 - SystemExit in a handler, say: a slot that is gone would hold its record for ever
                outcome = Stop(f"a slot failed with {type(error).__name__}", 70)
            del self._running[number]
            self.results.put(Result(item, outcome, time.monotonic() - began))
