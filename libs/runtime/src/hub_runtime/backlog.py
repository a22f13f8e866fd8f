"""One partition's records between being read and being committed."""

from collections import deque
from dataclasses import dataclass, field
from typing import Any

from hub_events import Event, UnreadableEvent

from hub_runtime.records import Outgoing, Place, Record

LIMIT = 100
"""Records of one partition that wait at most; then the partition is paused."""


@dataclass(eq=False, slots=True)
class Item:
    """A record on its way through this process."""

    record: Record
    event: Event[Any] | UnreadableEvent
    attempts: int = 0
    deaths: int = 0
    """Processes that it killed, this one's predecessors included."""
    outputs: tuple[Outgoing, ...] | None = None
    """Set when it is finished."""
    dead_reason: str | None = None
    discarded: bool = False
    """Its partition went to another member: whatever comes of it is not committed here."""

    @property
    def key(self) -> bytes:
        """Records with the same key are handled one after the other."""
        return self.record.key or b""


@dataclass(slots=True)
class Commit:
    """What one partition has for the next transaction."""

    place: Place
    offset: int
    metadata: str
    items: list[Item]


@dataclass(eq=False, slots=True)
class Backlog:
    """What is read from one assigned partition and not yet committed: order per key, and the prefix that is finished."""

    place: Place
    blocked: set[bytes] = field(default_factory=set)
    """Keys that a call from an earlier assignment still has in hand."""
    committed: int | None = None
    known: bool = False
    """Whether `committed` and the deaths are read from the group."""
    paused: bool | None = None
    _items: deque[Item] = field(default_factory=deque)
    _lanes: dict[bytes, deque[Item]] = field(default_factory=dict)
    _ready: deque[Item] = field(default_factory=deque)
    _held: list[Item] = field(default_factory=list)
    _deaths: dict[int, int] = field(default_factory=dict)
    _end: int = 0

    def __len__(self) -> int:
        return len(self._items)

    @property
    def full(self) -> bool:
        """No more records, please."""
        return len(self._items) >= (LIMIT // 2 if self.paused else LIMIT)

    def learn(self, committed: int | None, metadata: str | None) -> None:
        """Take over what the group knows of the partition: the position and which records killed how many processes."""
        self.committed, self.known = committed, True
        self._deaths = read_deaths(metadata)
        for item in self._items:
            item.deaths = self._deaths.get(item.record.offset, 0)

    def add(self, item: Item) -> None:
        """A record was read; offsets only grow."""
        item.deaths = self._deaths.get(item.record.offset, 0)
        self._items.append(item)
        lane = self._lanes.setdefault(item.key, deque())
        lane.append(item)
        if len(lane) == 1:
            self._ready.append(item)

    def reached(self, end: int) -> None:
        """There is nothing more to read before `end`: what lies between holds control records only."""
        self._end = max(self._end, end)

    @property
    def ready(self) -> bool:
        """Whether `take` would give one."""
        return self.known and any(item.key not in self.blocked for item in self._ready)

    def take(self) -> Item | None:
        """The next record that may be handled now: every earlier one of its key is finished."""
        for item in self._ready if self.known else ():
            if item.key not in self.blocked:
                self._ready.remove(item)
                return item
        return None

    def take_this(self, item: Item) -> Item:
        """That very record, which was put back."""
        self._ready.remove(item)
        return item

    def put_back(self, item: Item) -> None:
        """It was not handled: it is the next one again."""
        self._ready.appendleft(item)

    def died(self, item: Item) -> None:
        """Its handling killed a process: it is handled again only when the count is committed."""
        item.deaths += 1
        self._deaths[item.record.offset] = item.deaths
        self._held.append(item)

    def finish(self, item: Item, outputs: tuple[Outgoing, ...], dead_reason: str | None) -> None:
        """It is done; the next one of its key may go."""
        item.outputs, item.dead_reason = outputs, dead_reason
        lane = self._lanes[item.key]
        lane.popleft()
        if lane:
            self._ready.append(lane[0])
        else:
            del self._lanes[item.key]

    def next_commit(self) -> Commit | None:
        """The finished prefix and the position behind it; None when there is nothing to say."""
        done: list[Item] = []
        position = 0
        for item in self._items:
            if item.outputs is None:
                position = item.record.offset
                break
            done.append(item)
        if len(done) == len(self._items):
            position = max(self._end, done[-1].record.offset + 1 if done else 0, self.committed or 0)
        at_the_end = not self._items and self.known and position > (self.committed or 0)
        if not (done or self._held or at_the_end):
            return None
        return Commit(self.place, position, write_deaths({at: count for at, count in self._deaths.items() if at >= position}), done)

    def confirm(self, commit: Commit) -> None:
        """The transaction is in."""
        for _ in commit.items:
            self._items.popleft()
        self.committed = commit.offset
        self._deaths = {at: count for at, count in self._deaths.items() if at >= commit.offset}
        for item in reversed(self._held):
            self.put_back(item)
        self._held.clear()

    def discard(self) -> int:
        """Give up all that is left, because the partition is no longer ours; how many records."""
        for item in self._items:
            item.discarded = True
        count = len(self._items)
        self._items.clear()
        return count


def write_deaths(deaths: dict[int, int]) -> str:
    """The counts as a commit's metadata, which may hold 4,096 bytes: `deaths 17=2 19=1`."""
    return " ".join(["deaths", *(f"{offset}={count}" for offset, count in sorted(deaths.items()))]) if deaths else ""


def read_deaths(metadata: str | None) -> dict[int, int]:
    """The counts that a commit's metadata holds; none when another program wrote it."""
    words = (metadata or "").split()
    if not words or words[0] != "deaths":
        return {}
    pairs = [word.partition("=") for word in words[1:]]
    return {int(offset): int(count) for offset, _, count in pairs if offset.isdigit() and count.isdigit()}
