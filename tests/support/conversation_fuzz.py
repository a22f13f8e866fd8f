"""Any bytes as an association's stream: what the receiver's fast path stores of it must be what a plain reader of PS3.8 finds in it.

`one_input` is what atheris (tests/fuzz) and hypothesis (tests/unit/receiver) call. The bytes are choices: how the stream is made of
messages, fragments and rubbish, how it is cut into segments, and how it ends.
"""

import atexit
import hashlib
import struct
import tempfile
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Final, cast

from hub_ingest.arrival import Answer, MemoryBudget, Spool
from hub_ingest.conversation import Context, Conversation
from hub_ingest.dimse import Command
from support.wire import CT, EXPLICIT, RELEASE_RP, RELEASE_RQ, VERIFICATION, abort, echo_request, pdu, pdv, statuses, store_request

CONTEXTS: Final = {1: Context(1, CT, EXPLICIT), 3: Context(3, VERIFICATION, EXPLICIT)}
LONGEST: Final = 2000
MEMORY: Final = 700
ALL_MEMORY: Final = 900


class Choices:
    """Bytes as decisions; at their end everything is 0."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._place = 0

    @property
    def left(self) -> int:
        return max(0, len(self._data) - self._place)

    def byte(self) -> int:
        self._place += 1
        return self._data[self._place - 1] if self._place <= len(self._data) else 0

    def bytes(self, size: int) -> bytes:
        self._place += size
        return self._data[self._place - size : self._place]


class Line:
    """The transport: gives the stream in segments of any size, then the end; takes answers."""

    def __init__(self, stream: bytes, sizes: list[int], end: str) -> None:
        self.sent = bytearray()
        self._stream = stream
        self._sizes = sizes
        self._end = end
        self._place = self._number = 0

    def settimeout(self, seconds: float) -> None:
        """Time is the fuzzer's."""

    def recv_into(self, room: memoryview) -> int:
        if self._place == len(self._stream):
            if self._end == "idle":
                raise TimeoutError
            if self._end == "reset":
                raise ConnectionResetError
            return 0
        size = min(len(room), self._sizes[self._number % len(self._sizes)], len(self._stream) - self._place)
        self._number += 1
        room[:size] = self._stream[self._place : self._place + size]
        self._place += size
        return size

    def sendall(self, data: bytes) -> None:
        self.sent += data


class Taker:
    """Keeps what came whole."""

    other = None

    def __init__(self, folder: Path) -> None:
        self.taken: list[tuple[str, bytes]] = []
        self.open_bodies = 0
        self.budget = MemoryBudget(ALL_MEMORY)
        self._folder = folder

    def open(self, context: Context, command: Command) -> "Kept":
        self.open_bodies += 1
        return Kept(self, self._folder, MEMORY, 10**6, start=b"start", budget=self.budget)

    def store(self, context: Context, command: Command, body: Any) -> Answer:
        body.stream.seek(0)
        content = body.stream.read()
        assert body.sha256 == hashlib.sha256(b"start" + content).hexdigest(), "the digest is that of what waits"
        assert body.size == len(content)
        self.taken.append((command.text(0x1000), content))
        return Answer(0x0000)


class Kept(Spool):
    """Says when it is given back."""

    def __init__(self, taker: Taker, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self._taker = taker

    def discard(self) -> None:
        super().discard()
        self._taker.open_bodies -= 1


def make(data: bytes) -> tuple[bytes, list[int], str]:
    """A stream, how it is cut, and how it ends."""
    choices = Choices(data)
    sizes = [1 + choices.byte() * (1 + choices.byte() % 9) for _ in range(1 + choices.byte() % 4)]
    end = ("close", "reset", "idle", "release", "abort")[choices.byte() % 5]
    stream = bytearray()
    waiting = bytearray()
    number = 0
    while choices.left:
        op = choices.byte()
        match op % 9:
            case 0:
                number += 1
                waiting += pdv(store_request(f"1.2.{number}", data_set=op < 240), 3)
            case 1:
                number += 1
                command, cut = store_request(f"1.2.{number}"), choices.byte()
                waiting += pdv(command[:cut], 1) + pdv(command[cut:], 3)
            case 2:
                waiting += pdv(choices.bytes(choices.byte()), 0)
            case 3:
                waiting += pdv(choices.bytes(choices.byte()), 2)
            case 4:
                waiting += pdv(bytes([op]) * (choices.byte() * 7), 2 if op > 128 else 0)
            case 5:
                stream += pdu(4, bytes(waiting))
                waiting.clear()
            case 6:
                waiting += pdv(choices.bytes(choices.byte() % 16), choices.byte(), context_id=choices.byte() % 5)
            case 7:
                waiting += pdv(echo_request(), 3, context_id=3)
            case _:
                waiting += choices.bytes(choices.byte() % 32)
        if len(waiting) > LONGEST - 300 or op > 200:
            stream += pdu(4, bytes(waiting))
            waiting.clear()
    if waiting:
        stream += pdu(4, bytes(waiting)) if len(waiting) % 7 else bytes(waiting)
    stream += {"release": RELEASE_RQ, "abort": abort(0, 0)}.get(end, b"")
    return bytes(stream), sizes, end


class _Ended(Exception):
    """There are no more bytes."""


class _Violation(Exception):
    """PS3.8 is broken."""


@dataclass
class Expected:
    """What a receiver must make of a stream."""

    taken: list[tuple[str, bytes]] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)
    end: str = ""


class Reader:
    """Reads a whole stream plainly, fragment by fragment."""

    def __init__(self, stream: bytes) -> None:
        self.expected = Expected()
        self._stream = stream
        self._place = 0
        self._forget()

    def read(self) -> Expected:
        try:
            while not self.expected.end:
                self._pdu()
        except _Ended:
            self.expected.end = "ended"
        except _Violation:
            self.expected.end = "violation"
        return self.expected

    def _forget(self) -> None:
        self._context = 0
        self._encoded = b""
        self._command: dict[int, bytes] | None = None
        self._content = b""

    def _take(self, size: int) -> bytes:
        if self._place + size > len(self._stream):
            raise _Ended
        self._place += size
        return self._stream[self._place - size : self._place]

    def _pdu(self) -> None:
        kind, length = struct.unpack(">BxL", self._take(6))
        if kind in {5, 7} and length == 4:
            self._take(4)
            self.expected.end = "released" if kind == 5 else "aborted-by-peer"
            return
        if kind != 4 or not 6 <= length <= LONGEST:
            raise _Violation
        while length:
            if length < 6:
                raise _Violation
            size, context, header = struct.unpack(">LBB", self._take(6))
            if not 2 <= size <= length - 4 or context not in CONTEXTS or header > 3 or self._context not in {0, context}:
                raise _Violation
            self._context = context
            length -= 4 + size
            self._fragment(size - 2, command=bool(header & 1), last=bool(header & 2))

    def _fragment(self, size: int, *, command: bool, last: bool) -> None:
        if command:
            if self._command is not None or len(self._encoded) + size > 16_384:
                raise _Violation
            self._encoded += self._take(size)
            if not last:
                return
            self._command = _elements(self._encoded)
            if self._command[0x0800] == b"\x01\x01":
                self._whole(self._command)
            return
        if self._command is None:
            raise _Violation
        self._content += self._take(size)
        if last:
            self._whole(self._command)

    def _whole(self, command: dict[int, bytes]) -> None:
        operation = int.from_bytes(command[0x0100], "little")
        abstract = CONTEXTS[self._context].abstract_syntax
        if operation == 0x0001:
            if abstract == CT and _text(command, 2) == CT:
                self.expected.taken.append((_text(command, 0x1000), self._content))
                self.expected.statuses.append(0)
            else:
                self.expected.statuses.append(0x0122)
        elif operation == 0x0030 and abstract == VERIFICATION:
            self.expected.statuses.append(0)
        elif operation & 0x8000:
            raise _Violation
        elif operation != 0x0FFF:
            self.expected.statuses.append(0x0211)
        self._forget()


def _text(command: dict[int, bytes], element: int) -> str:
    return command.get(element, b"").decode("latin-1").strip("\0 ")


def _elements(encoded: bytes) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    rest = encoded
    while rest:
        if len(rest) < 8:
            raise _Violation
        group, element, length = struct.unpack("<HHL", rest[:8])
        if group or length > len(rest) - 8:
            raise _Violation
        found[element] = rest[8 : 8 + length]
        rest = rest[8 + length :]
    operation = found.get(0x0100, b"")
    needed = [0x0100, 0x0800]
    if operation != b"\xff\x0f" and not int.from_bytes(operation, "little") & 0x8000:
        needed.append(0x0110)
    if any(len(found.get(element, b"")) != 2 for element in needed):
        raise _Violation
    return found


@cache
def _folder() -> Path:
    folder = tempfile.TemporaryDirectory()
    atexit.register(folder.cleanup)
    return Path(folder.name)


def one_input(data: bytes) -> Expected:
    """Let the fast path read what `data` says.

    Raises:
        AssertionError: it stored, answered or ended otherwise than it must.
    """
    stream, sizes, end = make(data)
    expected = Reader(stream).read()
    line = Line(stream, sizes, end)
    folder = _folder()
    taker = Taker(folder)
    ended = Conversation(
        cast("Any", line), CONTEXTS, taker, maximum_pdu=LONGEST, peer_maximum_pdu=LONGEST, idle_seconds=1, artim_seconds=0.01
    ).run()
    assert list(folder.iterdir()) == []
    assert taker.taken == expected.taken
    assert taker.open_bodies == 0
    assert taker.budget.take(ALL_MEMORY), "all memory is given back"
    assert [*statuses(bytes(line.sent))] == expected.statuses
    lost = {"idle": "idle"}.get(end, "connection-lost")
    if expected.end == "violation":
        assert ended not in {"released", "aborted-by-peer", "idle", "connection-lost"}, ended
        assert line.sent[-10:-4] == abort(0, 0)[:-4]
    else:
        assert ended == (lost if expected.end == "ended" else expected.end)
        assert not line.sent.endswith(RELEASE_RP) or ended == "released"
    return expected
