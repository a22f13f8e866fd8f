"""DIMSE messages on the wire (PS3.7 6.3, 9.3, E.1): command sets and how a message is cut into P-DATA-TF PDUs (PS3.8 9.3.5)."""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

C_STORE_RQ: Final = 0x0001
C_ECHO_RQ: Final = 0x0030
C_CANCEL_RQ: Final = 0x0FFF
N_EVENT_REPORT_RQ: Final = 0x0100
N_EVENT_REPORT_RSP: Final = 0x8100
N_ACTION_RQ: Final = 0x0130
RESPONSE: Final = 0x8000  # PS3.7 E.1: the bit that makes a request's command field its response's

AFFECTED_SOP_CLASS_UID: Final = 0x0002
REQUESTED_SOP_CLASS_UID: Final = 0x0003
COMMAND_FIELD: Final = 0x0100
MESSAGE_ID: Final = 0x0110
MESSAGE_ID_BEING_RESPONDED_TO: Final = 0x0120
COMMAND_DATA_SET_TYPE: Final = 0x0800
STATUS: Final = 0x0900
ERROR_COMMENT: Final = 0x0902
AFFECTED_SOP_INSTANCE_UID: Final = 0x1000
REQUESTED_SOP_INSTANCE_UID: Final = 0x1001
EVENT_TYPE_ID: Final = 0x1002
ACTION_TYPE_ID: Final = 0x1008
_DATA_SET: Final = 0x0001
_NO_DATA_SET: Final = 0x0101  # PS3.7 E.1; any other value: there is one
_COMMENT_BYTES: Final = 64  # VR LO


class MalformedCommand(ValueError):
    """What was sent is no command set; the association cannot go on. The text holds no value."""


@dataclass(frozen=True, slots=True)
class Command:
    """A command set: values by element number of group 0000, as they came."""

    elements: dict[int, bytes]

    @property
    def field(self) -> int:
        """Which operation: (0000,0100)."""
        return self.number(COMMAND_FIELD)

    @property
    def has_data_set(self) -> bool:
        """A data set follows: (0000,0800)."""
        return self.number(COMMAND_DATA_SET_TYPE) != _NO_DATA_SET

    def number(self, element: int) -> int:
        """The value of a US element.

        Raises:
            MalformedCommand: it is missing or no US.
        """
        value = self.elements.get(element, b"")
        if len(value) != 2:
            raise MalformedCommand(f"(0000,{element:04X}) is missing or not of two bytes")
        return int.from_bytes(value, "little")

    def text(self, element: int) -> str:
        """The value of a UI or LO element without its padding, empty where there is none."""
        return self.elements.get(element, b"").decode("latin-1").strip("\0 ")


def parse_command(encoded: bytes | bytearray) -> Command:
    """Read a command set, which is Implicit VR Little Endian whatever the context's transfer syntax (PS3.7 6.3.1).

    Raises:
        MalformedCommand: it is none, or lacks what every command has.
    """
    elements: dict[int, bytes] = {}
    place, end = 0, len(encoded)
    while place < end:
        if end - place < 8:
            raise MalformedCommand("the command set is cut off")
        group, element, length = struct.unpack_from("<HHL", encoded, place)
        place += 8
        if group != 0 or length > end - place:
            raise MalformedCommand("an element of the command set is not of group 0000 or reaches beyond its end")
        elements[element] = bytes(encoded[place : place + length])
        place += length
    command = Command(elements)
    command.number(COMMAND_FIELD)
    command.number(COMMAND_DATA_SET_TYPE)
    if command.field != C_CANCEL_RQ and not command.field & RESPONSE:
        command.number(MESSAGE_ID)
    return command


def encode_command(elements: dict[int, bytes]) -> bytes:
    """The command set of these elements, ascending and with its group length; values of odd length are padded with a zero."""
    body = b"".join(
        struct.pack("<HHL", 0, element, len(value) + len(value) % 2) + value + b"\0" * (len(value) % 2)
        for element, value in sorted(elements.items())
    )
    return struct.pack("<HHLL", 0, 0, 4, len(body)) + body


def response(request: Command, status: int, comment: str = "") -> bytes:
    """The response to a request, without a data set: its UIDs and message id given back, `status`, and an Error Comment if any."""
    elements = {
        COMMAND_FIELD: (request.field | RESPONSE).to_bytes(2, "little"),
        MESSAGE_ID_BEING_RESPONDED_TO: request.number(MESSAGE_ID).to_bytes(2, "little"),
        COMMAND_DATA_SET_TYPE: _NO_DATA_SET.to_bytes(2, "little"),
        STATUS: status.to_bytes(2, "little"),
    }
    # A response speaks of the affected ones, also where the request names them requested (PS3.7 10.3).
    for element, requested in ((AFFECTED_SOP_CLASS_UID, REQUESTED_SOP_CLASS_UID), (AFFECTED_SOP_INSTANCE_UID, REQUESTED_SOP_INSTANCE_UID)):
        if value := request.elements.get(element) or request.elements.get(requested):
            elements[element] = value
    if value := request.elements.get(ACTION_TYPE_ID):
        elements[ACTION_TYPE_ID] = value
    if comment:
        text = comment.encode("ascii", "replace")[:_COMMENT_BYTES]
        elements[ERROR_COMMENT] = text + b" " * (len(text) % 2)
    return encode_command(elements)


def event_report(message_id: int, sop_class_uid: str, sop_instance_uid: str, event_type_id: int) -> bytes:
    """An N-EVENT-REPORT-RQ, whose Event Information follows (PS3.7 10.3.1)."""
    return encode_command(
        {
            AFFECTED_SOP_CLASS_UID: sop_class_uid.encode("ascii"),
            COMMAND_FIELD: N_EVENT_REPORT_RQ.to_bytes(2, "little"),
            MESSAGE_ID: message_id.to_bytes(2, "little"),
            COMMAND_DATA_SET_TYPE: _DATA_SET.to_bytes(2, "little"),
            AFFECTED_SOP_INSTANCE_UID: sop_instance_uid.encode("ascii"),
            EVENT_TYPE_ID: event_type_id.to_bytes(2, "little"),
        }
    )


def p_data(context_id: int, content: bytes, *, command: bool, maximum: int) -> Iterator[bytes]:
    """P-DATA-TF PDUs that carry a command set or a data set.

    Args:
        context_id: the presentation context.
        content: all of it.
        command: a command set, not a data set.
        maximum: what the peer said is the longest PDU it takes (PS3.8 D.1); 0: it takes any.

    Raises:
        ValueError: the peer takes PDUs that can carry nothing.
    """
    room = maximum - 6 if maximum else 65_536
    if room < 1:
        raise ValueError("the peer's maximum length leaves no room for a fragment")
    for start in range(0, max(len(content), 1), room):
        fragment = content[start : start + room]
        header = (1 if command else 0) | (2 if start + room >= len(content) else 0)
        yield struct.pack(">BBLLBB", 4, 0, len(fragment) + 6, len(fragment) + 2, context_id, header) + fragment
