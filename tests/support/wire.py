"""An association said byte by byte: what no well-behaved sender would say, too."""

import socket
import struct
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

from hub_ingest.dimse import encode_command, p_data, parse_command

CT = "1.2.840.10008.5.1.4.1.1.2"
EXPLICIT = "1.2.840.10008.1.2.1"
VERIFICATION = "1.2.840.10008.1.1"
RELEASE_RQ = b"\x05\x00\x00\x00\x00\x04\x00\x00\x00\x00"
RELEASE_RP = b"\x06\x00\x00\x00\x00\x04\x00\x00\x00\x00"


def abort(source: int, reason: int) -> bytes:
    return struct.pack(">BBLBBBB", 7, 0, 4, 0, 0, source, reason)


def pdu(kind: int, body: bytes) -> bytes:
    return struct.pack(">BBL", kind, 0, len(body)) + body


def pdv(fragment: bytes, header: int, context_id: int = 1) -> bytes:
    """A presentation data value; header 1: command, 2: last, 3: both."""
    return struct.pack(">LBB", len(fragment) + 2, context_id, header) + fragment


def store_request(sop_instance_uid: str = "1.2.3", *, message_id: int = 1, sop_class_uid: str = CT, data_set: bool = True) -> bytes:
    return encode_command(
        {
            0x0002: sop_class_uid.encode(),
            0x0100: b"\x01\x00",
            0x0110: message_id.to_bytes(2, "little"),
            0x0700: b"\x00\x00",
            0x0800: b"\x01\x00" if data_set else b"\x01\x01",
            0x1000: sop_instance_uid.encode(),
        }
    )


def echo_request() -> bytes:
    return encode_command({0x0002: VERIFICATION.encode(), 0x0100: b"\x30\x00", 0x0110: b"\x01\x00", 0x0800: b"\x01\x01"})


def message(command: bytes, data_set: bytes | None, *, context_id: int = 1, maximum: int = 16_384) -> bytes:
    """A whole message as most senders cut it."""
    parts = [*p_data(context_id, command, command=True, maximum=maximum)]
    if data_set is not None:
        parts += p_data(context_id, data_set, command=False, maximum=maximum)
    return b"".join(parts)


def associate_request(
    *, calling: str = "NORTHGATE", called: str = "REGIONALHUB", contexts: Sequence[tuple[str, str]] = ((CT, EXPLICIT),)
) -> bytes:
    """An A-ASSOCIATE-RQ (PS3.8 9.3.2); contexts get the ids 1, 3, 5, ..."""

    def item(kind: int, body: bytes) -> bytes:
        return struct.pack(">BBH", kind, 0, len(body)) + body

    def context(number: int, abstract: str, transfer: str) -> bytes:
        return item(0x20, bytes([2 * number + 1, 0, 0, 0]) + item(0x30, abstract.encode()) + item(0x40, transfer.encode()))

    user = item(0x51, struct.pack(">L", 131_072)) + item(0x52, b"1.2.826.0.1.3680043.9.9999")
    body = b"\x00\x01\x00\x00" + called.ljust(16).encode() + calling.ljust(16).encode() + bytes(32)
    body += (
        item(0x10, b"1.2.840.10008.3.1.1.1") + b"".join(context(number, *pair) for number, pair in enumerate(contexts)) + item(0x50, user)
    )
    return pdu(1, body)


def exactly(connection: socket.socket, size: int) -> bytes:
    found = b""
    while len(found) < size:
        block = connection.recv(size - len(found))
        if not block:
            raise ConnectionError(f"the peer closed after {found!r}")
        found += block
    return found


def read_pdu(connection: socket.socket) -> tuple[int, bytes]:
    kind, length = struct.unpack(">BxL", exactly(connection, 6))
    return kind, exactly(connection, length)


def read_status(connection: socket.socket) -> int:
    """The status of the next response."""
    kind, body = read_pdu(connection)
    assert kind == 4, (kind, body)
    return parse_command(body[6:]).number(0x0900)


def read_comment(connection: socket.socket) -> tuple[int, str]:
    """Status and Error Comment of the next response."""
    kind, body = read_pdu(connection)
    assert kind == 4, (kind, body)
    command = parse_command(body[6:])
    return command.number(0x0900), command.text(0x0902)


def statuses(answers: bytes) -> Iterator[int]:
    """Those of all responses in what a peer sent."""
    while answers[:1] == b"\x04":
        length = int.from_bytes(answers[2:6], "big")
        yield parse_command(answers[12 : 6 + length]).number(0x0900)
        answers = answers[6 + length :]


@contextmanager
def raw_association(
    port: int, *, calling: str = "NORTHGATE", contexts: Iterable[tuple[str, str]] = ((CT, EXPLICIT),)
) -> Iterator[socket.socket]:
    """A connection whose association was accepted; it is closed, not released."""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        connection.sendall(associate_request(calling=calling, contexts=list(contexts)))
        kind, body = read_pdu(connection)
        assert kind == 2, (kind, body)
        yield connection
