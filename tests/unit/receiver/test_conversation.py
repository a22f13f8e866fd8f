"""An association byte by byte: whatever the cutting into PDUs, fragments and segments, what is stored is what was sent, or nothing."""

import socket
import struct
import tempfile
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from hub_ingest.arrival import Answer, MemoryBudget, Spool
from hub_ingest.conversation import Context, Conversation, Message, Outgoing
from hub_ingest.dimse import Command, encode_command, event_report, p_data, parse_command, response
from hypothesis import given, settings
from hypothesis import strategies as st
from support.conversation_fuzz import one_input
from support.wire import (
    CT,
    EXPLICIT,
    RELEASE_RP,
    RELEASE_RQ,
    VERIFICATION,
    abort,
    echo_request,
    message,
    pdu,
    pdv,
    statuses,
    store_request,
)

CONTEXTS = {1: Context(1, CT, EXPLICIT), 3: Context(3, VERIFICATION, EXPLICIT)}
LONGEST = 16_384


class Taker:
    """Keeps what came whole."""

    def __init__(self, folder: Path) -> None:
        self.taken: list[tuple[str, bytes]] = []
        self.messages: list[Message] = []
        self.open_bodies = 0
        self.opened = 0
        self.budget = MemoryBudget(4000)
        self.other = Others(self.messages)
        self._folder = folder

    def open(self, context: Context, command: Command) -> "Kept":
        self.open_bodies += 1
        self.opened += 1
        return Kept(self, self._folder, 1000, 10**6, start=b"", budget=self.budget)

    def store(self, context: Context, command: Command, body: Any) -> Answer:
        body.stream.seek(0)
        self.taken.append((command.text(0x1000), body.stream.read()))
        return Answer(0x0000)


class Others:
    """Answers N-ACTION with two messages, and has something to say when it has been quiet for a while after one."""

    def __init__(self, messages: list[Message]) -> None:
        self.watching = False
        self._messages = messages

    def answer(self, message: Message) -> Iterable[Outgoing] | None:
        self._messages.append(message)
        if message.command.field != 0x0130:
            return None
        return [Outgoing(response(message.command, 0)), Outgoing(encode_command({0x0100: b"\x00\x01", 0x0800: b"\x01\x00"}), b"data")]

    def idle(self, seconds: float) -> Iterable[tuple[Context, Outgoing]]:
        assert seconds > 0
        self.watching = False
        return [(CONTEXTS[3], Outgoing(event_report(1, CT, "1.2", 2), b"report"))]

    def end(self) -> None:
        """Nothing is left to do."""


class Waiting(Others):
    """Has nothing to say, ever."""

    def __init__(self, messages: list[Message]) -> None:
        super().__init__(messages)
        self.watching = True

    def idle(self, seconds: float) -> Iterable[tuple[Context, Outgoing]]:
        return []


class Kept(Spool):
    """Says when it is given back."""

    def __init__(self, taker: Taker, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self._taker = taker

    def discard(self) -> None:
        super().discard()
        self._taker.open_bodies -= 1


def converse(chunks: Iterable[bytes], *, reset: bool = False) -> tuple[Taker, str, bytes]:
    """Send `chunks` and close (or reset); what was taken, how it ended, and what came back."""
    ours, theirs = socket.socketpair()
    end: list[str] = []
    with tempfile.TemporaryDirectory() as folder, ours, theirs:
        taker = Taker(Path(folder))
        talk = Conversation(theirs, CONTEXTS, taker, maximum_pdu=LONGEST, peer_maximum_pdu=LONGEST, idle_seconds=5, artim_seconds=2)
        thread = threading.Thread(target=lambda: end.append(talk.run()))
        thread.start()
        answers = bytearray()
        reader = threading.Thread(target=lambda: answers.extend(_until_closed(ours)))
        reader.start()
        try:
            for chunk in chunks:
                ours.sendall(chunk)
            ours.shutdown(socket.SHUT_RDWR if reset else socket.SHUT_WR)
        except OSError:
            pass  # the receiver has hung up already
        thread.join(20)
        theirs.close()
        reader.join(20)
        assert end, "the conversation did not end"
        assert taker.open_bodies == 0
        assert taker.budget.take(4000), "all memory is given back"
        assert list(Path(folder).iterdir()) == []
    return taker, end[0], bytes(answers)


def _until_closed(connection: socket.socket) -> bytes:
    found = b""
    try:
        while block := connection.recv(65_536):
            found += block
    except OSError:
        pass
    return found


data_sets = st.lists(st.binary(max_size=3000), min_size=1, max_size=4)
sizes = st.lists(st.one_of(st.integers(1, 8), st.integers(1, 4000)), min_size=1, max_size=30)


def _fragments(command: bytes, data_set: bytes, cuts: list[int]) -> list[bytes]:
    """The PDVs of a message, cut at will; cutting goes round."""
    found = []
    number = 0
    for content, header in ((command, 1), (data_set, 0)):
        place = 0
        while True:
            size = cuts[number % len(cuts)]
            number += 1
            part = content[place : place + size]
            place += size
            found.append(pdv(part, header | (2 if place >= len(content) else 0)))
            if place >= len(content):
                break
    return found


def _stream(contents: list[bytes], cuts: list[int], together: list[int]) -> bytes:
    pdvs = [one for number, content in enumerate(contents) for one in _fragments(store_request(f"1.2.{number}"), content, cuts)]
    stream, number = b"", 0
    while pdvs:
        body = pdvs.pop(0)
        for _ in range(together[number % len(together)] - 1):
            if pdvs and len(body) + len(pdvs[0]) <= LONGEST:
                body += pdvs.pop(0)
        number += 1
        stream += pdu(4, body)
    return stream


def _segments(stream: bytes, cuts: list[int]) -> Iterable[bytes]:
    place = number = 0
    while place < len(stream):
        size = cuts[number % len(cuts)] * (1 if len(stream) < 20_000 else 50)
        yield stream[place : place + size]
        place += size
        number += 1


@settings(deadline=None, max_examples=150)
@given(data_sets, sizes, st.lists(st.integers(1, 9), min_size=1, max_size=9), sizes)
def test_however_it_is_cut_what_is_stored_is_what_was_sent(
    contents: list[bytes], cuts: list[int], together: list[int], segments: list[int]
) -> None:
    taker, end, answers = converse(_segments(_stream(contents, cuts, together) + RELEASE_RQ, segments))
    assert taker.taken == [(f"1.2.{number}", content) for number, content in enumerate(contents)]
    assert end == "released"
    assert [*statuses(answers)] == [0] * len(contents)
    assert answers.endswith(RELEASE_RP)


@settings(deadline=None, max_examples=150)
@given(data_sets, sizes, st.floats(0, 1), st.sampled_from(["close", "reset", "abort", "release"]))
def test_what_is_broken_off_anywhere_is_not_stored(contents: list[bytes], cuts: list[int], where: float, how: str) -> None:
    stream = _stream(contents, cuts, [1])
    cut = int(where * len(stream))
    if how in {"abort", "release"}:  # at a boundary of PDUs, where it is heard
        place = 0
        while place + 6 + int.from_bytes(stream[place + 2 : place + 6], "big") <= cut:
            place += 6 + int.from_bytes(stream[place + 2 : place + 6], "big")
        cut = place
    last = {"abort": abort(0, 0), "release": RELEASE_RQ}.get(how, b"")
    taker, end, _ = converse([stream[:cut] + last], reset=how == "reset")
    whole = [(f"1.2.{number}", content) for number, content in enumerate(contents)]
    assert taker.taken == whole[: len(taker.taken)]
    assert len(taker.taken) < len(contents) or cut >= len(stream)
    assert end == {"abort": "aborted-by-peer", "release": "released"}.get(how, "connection-lost")


@settings(deadline=None, max_examples=300)
@given(st.lists(st.one_of(st.binary(max_size=60), st.sampled_from([message(store_request(), b"x" * 50), pdu(4, pdv(b"", 2)), RELEASE_RQ]))))
def test_rubbish_neither_raises_nor_is_stored(rubbish: list[bytes]) -> None:
    taker, _, _ = converse(rubbish)
    assert all(content == b"x" * 50 for _, content in taker.taken)


@settings(deadline=None, max_examples=300)
@given(st.binary(max_size=400))
def test_what_a_plain_reader_finds_in_any_stream_is_what_is_stored(choices: bytes) -> None:
    """The property that `make fuzz` looks for failures of, guided by coverage."""
    one_input(choices)


COMMAND = pdu(4, pdv(store_request(), 3))
HOSTILE = [
    ("pdu-length", struct.pack(">BBL", 4, 0, 0xFFFFFFFF), (2, 6)),
    ("pdu-length", struct.pack(">BBL", 4, 0, LONGEST + 1), (2, 6)),
    ("pdu-length", pdu(4, b""), (2, 6)),
    ("pdu-length", pdu(5, b"\0" * 8), (2, 6)),
    ("pdv-length", pdu(4, struct.pack(">LBB", 0xFFFFFFFF, 1, 3)), (2, 6)),
    ("pdv-length", pdu(4, struct.pack(">LBB", 1, 1, 3)), (2, 6)),
    ("pdv-length", pdu(4, pdv(store_request(), 3) + b"\0\0\0"), (2, 6)),
    ("pdv-length", pdu(4, struct.pack(">LBB", 100, 1, 3) + b"short"), (2, 6)),
    ("unknown-context", pdu(4, pdv(store_request(), 3, context_id=5)), (2, 6)),
    ("unknown-context", pdu(4, pdv(store_request(), 3, context_id=2)), (2, 6)),
    ("message-control-header", pdu(4, pdv(store_request(), 7)), (2, 6)),
    ("message-control-header", pdu(4, pdv(store_request(), 0x80)), (2, 6)),
    ("data-set-before-command", pdu(4, pdv(b"data", 2)), (2, 5)),
    ("data-set-before-command", pdu(4, pdv(store_request()[:20], 1)) + pdu(4, pdv(b"data", 2)), (2, 5)),
    ("command-before-data-set", COMMAND + COMMAND, (2, 5)),
    ("context-changed", COMMAND + pdu(4, pdv(b"data", 2, context_id=3)), (2, 5)),
    ("context-changed", pdu(4, pdv(store_request()[:20], 1)) + pdu(4, pdv(store_request()[20:], 3, context_id=3)), (2, 5)),
    ("command-too-long", pdu(4, pdv(b"\0" * 10_000, 1)) * 2, (2, 6)),
    ("malformed-command", pdu(4, pdv(b"rubbish", 3)), (2, 6)),
    ("malformed-command", pdu(4, pdv(b"", 3)), (2, 6)),
    ("malformed-command", pdu(4, pdv(struct.pack("<HHL", 0, 2, 0xFFFFFFFF), 3)), (2, 6)),
    ("malformed-command", pdu(4, pdv(encode_command({0x0100: b"\x01\x00", 0x0800: b"\x01\x00"}), 3)), (2, 6)),  # no message id
    ("unexpected-pdu", pdu(1, b"\0" * 70), (2, 2)),
    ("unexpected-pdu", pdu(2, b"\0" * 70), (2, 2)),
    ("unexpected-pdu", pdu(3, b"\0" * 4), (2, 2)),
    ("unexpected-pdu", RELEASE_RP, (2, 2)),
    ("unrecognised-pdu", pdu(0, b"x"), (2, 1)),
    ("unrecognised-pdu", b"GET / HTTP/1.1\r\n\r\n", (2, 1)),
    ("response-without-request", message(encode_command({0x0100: b"\x01\x80", 0x0800: b"\x01\x01"}), None), (2, 5)),
]


@pytest.mark.parametrize(("reason", "said", "code"), HOSTILE)
def test_what_breaks_the_rules_is_aborted_with_the_standards_reason(reason: str, said: bytes, code: tuple[int, int]) -> None:
    for before in (b"", message(store_request("1.2.9"), b"good")):
        taker, end, answers = converse([before + said])
        assert end == reason
        assert answers.endswith(abort(*code))
        assert taker.taken == ([("1.2.9", b"good")] if before else [])


def test_one_byte_at_a_time() -> None:
    stream = _stream([b"0123456789" * 20], [1], [1]) + RELEASE_RQ
    taker, end, _ = converse(stream[place : place + 1] for place in range(len(stream)))
    assert (taker.taken, end) == ([("1.2.0", b"0123456789" * 20)], "released")


def test_what_is_not_stored_here_is_answered_so() -> None:
    other_class = message(store_request(sop_class_uid="1.2.840.10008.5.1.4.1.1.4"), b"data")
    not_storage = message(store_request(sop_class_uid=VERIFICATION), b"data", context_id=3)
    find = message(encode_command({0x0100: b"\x20\x00", 0x0110: b"\x07\x00", 0x0800: b"\x01\x00"}), b"query")
    cancel = message(encode_command({0x0100: b"\xff\x0f", 0x0120: b"\x07\x00", 0x0800: b"\x01\x01"}), None)
    no_data_set = message(store_request("1.2.4", data_set=False), None)
    echo = message(echo_request(), None, context_id=3)
    taker, end, answers = converse([other_class + not_storage + find + cancel + no_data_set + echo + RELEASE_RQ])
    assert [*statuses(answers)] == [0x0122, 0x0122, 0x0211, 0, 0]
    assert (taker.taken, end) == ([("1.2.4", b"")], "released")
    assert [one.data_set for one in taker.messages] == [b"query", None]


def test_another_message_is_handed_on_whole_and_its_answers_sent_in_order() -> None:
    action = encode_command({0x0003: b"1.2", 0x0100: b"\x30\x01", 0x0110: b"\x07\x00", 0x0800: b"\x01\x00"})
    taker, _, answers = converse([message(action, b"request" * 100, maximum=64) + RELEASE_RQ])
    assert [one.data_set for one in taker.messages] == [b"request" * 100]
    first, rest = answers[: 6 + int.from_bytes(answers[2:6], "big")], answers[6 + int.from_bytes(answers[2:6], "big") :]
    assert parse_command(first[12:]).field == 0x8130
    assert rest[12 : 6 + int.from_bytes(rest[2:6], "big")].startswith(encode_command({0x0100: b"\x00\x01", 0x0800: b"\x01\x00"})[:12])
    assert b"data" in rest


def test_a_message_that_is_too_large_is_handed_on_without_its_data_set() -> None:
    action = encode_command({0x0003: b"1.2", 0x0100: b"\x30\x01", 0x0110: b"\x07\x00", 0x0800: b"\x01\x00"})
    taker, end, _ = converse([message(action, b"x" * (4 * 2**20 + 1), maximum=LONGEST - 6), message(action, b"small"), RELEASE_RQ])
    assert [(one.data_set, one.too_large) for one in taker.messages] == [(None, True), (b"small", False)]
    assert end == "released"


def test_between_two_messages_something_may_be_said_by_us() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs, tempfile.TemporaryDirectory() as folder:
        ours.settimeout(10)
        taker = Taker(Path(folder))
        taker.other.watching = True
        talk = Conversation(theirs, CONTEXTS, taker, maximum_pdu=LONGEST, peer_maximum_pdu=0, idle_seconds=10, artim_seconds=0.1)
        thread = threading.Thread(target=talk.run)
        thread.start()
        expected = b"".join(p_data(3, event_report(1, CT, "1.2", 2), command=True, maximum=0))
        expected += b"".join(p_data(3, b"report", command=False, maximum=0))
        heard = b""
        while len(heard) < len(expected):
            heard += ours.recv(1000)
        assert heard == expected
        ours.sendall(message(store_request(), b"data"))
        assert list(statuses(ours.recv(1000))) == [0]
        ours.sendall(RELEASE_RQ)
        assert ours.recv(100) == RELEASE_RP
        thread.join(10)
    assert [data for _, data in taker.taken] == [b"data"]


def test_who_is_watched_is_hung_up_on_for_silence_too() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        taker = Taker(Path(tempfile.gettempdir()))
        taker.other = Waiting([])
        talk = Conversation(theirs, CONTEXTS, taker, maximum_pdu=LONGEST, peer_maximum_pdu=0, idle_seconds=0.5, artim_seconds=0.1)
        assert talk.run() == "idle"


def test_a_sender_that_says_nothing_is_hung_up_on() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        taker = Taker(Path(tempfile.gettempdir()))
        talk = Conversation(theirs, CONTEXTS, taker, maximum_pdu=LONGEST, peer_maximum_pdu=0, idle_seconds=0.1, artim_seconds=0.1)
        assert talk.run() == "idle"
        assert ours.recv(100) == abort(0, 0)
