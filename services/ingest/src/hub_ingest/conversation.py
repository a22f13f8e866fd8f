"""An accepted association: P-DATA from the socket straight to where a data set waits, its answers back, until release or abort.

PS3.8 9.2 (states Sta6, Sta8, Sta13), 9.3 and annex E. What is read is bounded by one buffer; a length in a header is a claim that is
checked, and nothing is allocated on its word.
"""

import select
import socket
import ssl
import struct
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

from hub_ingest.arrival import Answer
from hub_ingest.dimse import (
    AFFECTED_SOP_CLASS_UID,
    C_CANCEL_RQ,
    C_ECHO_RQ,
    C_STORE_RQ,
    RESPONSE,
    Command,
    MalformedCommand,
    p_data,
    parse_command,
    response,
)

VERIFICATION: Final = "1.2.840.10008.1.1"
_SUCCESS: Final = 0x0000
_SOP_CLASS_NOT_SUPPORTED: Final = 0x0122  # PS3.7 C.5.6
_UNRECOGNISED_OPERATION: Final = 0x0211  # PS3.7 C.5.21
_P_DATA_TF, _RELEASE_RQ, _ABORT = 4, 5, 7
_KNOWN_PDUS: Final = range(1, 8)
_RELEASE_RP: Final = b"\x06\x00\x00\x00\x00\x04\x00\x00\x00\x00"
_PDV_HEADER: Final = struct.Struct(">LBB")
_PDU_HEADER: Final = struct.Struct(">BxL")
_COMMAND_BYTES: Final = 16_384
_MESSAGE_BYTES: Final = 4 * 2**20  # of a data set that is no instance
_BUFFER_BYTES: Final = 262_144
_WATCH_MILLISECONDS: Final = 200

# PS3.8 table 9-26, an A-ABORT's source and reason.
_BY_USER: Final = (0, 0)
_UNRECOGNISED_PDU: Final = (2, 1)
_UNEXPECTED_PDU: Final = (2, 2)
_UNEXPECTED_PARAMETER: Final = (2, 5)
_INVALID_PARAMETER: Final = (2, 6)


@dataclass(frozen=True, slots=True)
class Context:
    """An accepted presentation context."""

    context_id: int
    abstract_syntax: str
    transfer_syntax: str
    as_scp: bool = True
    """We are the SCP in it, as we are unless the role selection says otherwise (PS3.7 D.3.3.4)."""


@dataclass(frozen=True, slots=True)
class Message:
    """A whole DIMSE message that is neither C-STORE nor C-ECHO."""

    context: Context
    command: Command
    data_set: bytes | None
    too_large: bool = False
    """There was a data set, but not one that is kept here."""


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A message to the peer: an encoded command set (`hub_ingest.dimse.encode_command`) and the data set that it announces, if any."""

    command: bytes
    data_set: bytes | None = None


class Body(Protocol):
    """Where the data set of one C-STORE goes."""

    def write(self, data: memoryview, /) -> object:
        """Append; must not raise, and not keep `data`, which is overwritten after it returns."""
        ...

    def discard(self) -> None:
        """It is answered, or will never be whole: give everything back."""
        ...


class Other(Protocol):
    """What is done on an association beside C-STORE and C-ECHO. All are called from the association's own thread and must not raise."""

    @property
    def watching(self) -> bool:
        """While it is set, `idle` is called now and then."""
        ...

    def answer(self, message: Message, /) -> Iterable[Outgoing] | None:
        """A message is here: what is sent back in order on its context, or None where the operation is not known here."""
        ...

    def idle(self, seconds: float, /) -> Iterable[tuple[Context, Outgoing]]:
        """Nothing has gone on for so long, and nothing is under way: what to send now."""
        ...

    def end(self) -> None:
        """The association is over."""
        ...


class Handler(Protocol):
    """What an association's messages are for. All are called from the association's own thread and must not raise."""

    @property
    def other(self) -> Other | None:
        """Who is asked about other operations; None: they are not known here."""
        ...

    def open(self, context: Context, command: Command) -> Any:  # noqa: ANN401 - a Body, which `store` gets back
        """A C-STORE-RQ is here, its data set not yet."""
        ...

    def store(self, context: Context, command: Command, body: Any) -> Answer:  # noqa: ANN401 - what `open` gave
        """The data set is whole. Blocks as long as the sender may wait."""
        ...


class Aborted(Exception):
    """The association ends with our A-ABORT."""

    def __init__(self, code: tuple[int, int], reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason


class Hung(Exception):
    """The peer ended it: `reason` says how."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Conversation:
    """One association from its acceptance on. It stores only what came whole."""

    def __init__(
        self,
        connection: socket.socket,
        contexts: Mapping[int, Context],
        handler: Handler,
        *,
        maximum_pdu: int,
        peer_maximum_pdu: int,
        idle_seconds: float,
        artim_seconds: float = 5.0,
    ) -> None:
        """Say nothing yet.

        Args:
            connection: the transport, TCP or TLS; it is not closed here.
            contexts: those accepted, by id.
            handler: what the messages are for.
            maximum_pdu: the longest P-DATA-TF that we said we take.
            peer_maximum_pdu: the longest that the peer takes, 0: any.
            idle_seconds: after so long without a byte, or without room for ours, the association is aborted.
            artim_seconds: how long the peer may take to close after release or abort (PS3.8 9.1.5).
        """
        self._connection = connection
        self._contexts = contexts
        self._handler = handler
        self._maximum_pdu = maximum_pdu
        self._peer_maximum_pdu = peer_maximum_pdu
        self._idle_seconds = idle_seconds
        self._artim_seconds = artim_seconds
        self._buffer = memoryview(bytearray(_BUFFER_BYTES))
        self._start = self._end = 0
        self._context: Context | None = None
        self._encoded = bytearray()
        self._command: Command | None = None
        self._body: Any = None
        self._message: bytearray | None = None
        self._message_too_large = False
        connection.settimeout(idle_seconds)

    def run(self) -> str:
        """Talk until the end; how it ended: `released`, or a reason code for metrics. Raises nothing that a peer can cause."""
        try:
            while True:
                self._pdu()
        except Hung as end:
            if end.reason == "released":
                self._finish(_RELEASE_RP)
            return end.reason
        except (Aborted, MalformedCommand) as fault:
            code, reason = (fault.code, fault.reason) if isinstance(fault, Aborted) else (_INVALID_PARAMETER, "malformed-command")
            self._finish(struct.pack(">BBLBBBB", _ABORT, 0, 4, 0, 0, *code))
            return reason
        except OSError:
            return "connection-lost"
        finally:
            self._drop()

    def _pdu(self) -> None:
        """Take one PDU."""
        if self._handler.other is not None and self._handler.other.watching and self._context is None:
            self._watch(self._handler.other)
        kind, length = _PDU_HEADER.unpack(self._exactly(_PDU_HEADER.size))
        if kind == _P_DATA_TF:
            if not 6 <= length <= self._maximum_pdu:
                raise Aborted(_INVALID_PARAMETER, "pdu-length")
            while length:
                length = self._pdv(length)
        elif kind in {_RELEASE_RQ, _ABORT}:
            if length != 4:
                raise Aborted(_INVALID_PARAMETER, "pdu-length")
            self._exactly(length)
            raise Hung("released" if kind == _RELEASE_RQ else "aborted-by-peer")
        elif kind in _KNOWN_PDUS:
            raise Aborted(_UNEXPECTED_PDU, "unexpected-pdu")
        else:
            raise Aborted(_UNRECOGNISED_PDU, "unrecognised-pdu")

    def _watch(self, other: Other) -> None:
        """Between two messages: let `other` say something, until the peer does."""
        began = time.monotonic()
        poll = select.poll()
        poll.register(self._connection, select.POLLIN)
        while (
            other.watching and self._start == self._end and not (isinstance(self._connection, ssl.SSLSocket) and self._connection.pending())
        ):
            if poll.poll(_WATCH_MILLISECONDS):
                return
            quiet = time.monotonic() - began
            if quiet >= self._idle_seconds:
                raise Aborted(_BY_USER, "idle")
            for context, outgoing in other.idle(quiet):
                self._send(context, outgoing)

    def _pdv(self, left: int) -> int:
        """Take one presentation data value of a PDU that has `left` bytes more; how many it has then."""
        if left < 6:
            raise Aborted(_INVALID_PARAMETER, "pdv-length")
        length: int
        length, context_id, header = _PDV_HEADER.unpack(self._exactly(_PDV_HEADER.size))
        if not 2 <= length <= left - 4:
            raise Aborted(_INVALID_PARAMETER, "pdv-length")
        context = self._contexts.get(context_id)
        if context is None:
            raise Aborted(_INVALID_PARAMETER, "unknown-context")
        if header > 3:  # annex E.2: the other bits are 0
            raise Aborted(_INVALID_PARAMETER, "message-control-header")
        if self._context is not None and context is not self._context:
            raise Aborted(_UNEXPECTED_PARAMETER, "context-changed")
        self._context = context
        if header & 1:
            self._command_fragment(length - 2, last=bool(header & 2))
        else:
            self._data_fragment(length - 2, last=bool(header & 2))
        return left - 4 - length

    def _command_fragment(self, length: int, *, last: bool) -> None:
        if self._command is not None:
            raise Aborted(_UNEXPECTED_PARAMETER, "command-before-data-set")
        if len(self._encoded) + length > _COMMAND_BYTES:
            raise Aborted(_INVALID_PARAMETER, "command-too-long")
        while length:
            part = self._some(length)
            self._encoded += part
            length -= len(part)
        if not last:
            return
        self._command = command = parse_command(self._encoded)
        if command.field == C_STORE_RQ:
            self._body = self._handler.open(self._known_context(), command)
        elif command.has_data_set:
            self._message = bytearray()
        if not command.has_data_set:
            self._complete()

    def _data_fragment(self, length: int, *, last: bool) -> None:
        if self._command is None:
            raise Aborted(_UNEXPECTED_PARAMETER, "data-set-before-command")
        message = self._message
        if message is not None:
            self._message_too_large = self._message_too_large or len(message) + length > _MESSAGE_BYTES
            while length:
                part = self._some(length)
                length -= len(part)
                if not self._message_too_large:
                    message += part
        else:
            write = self._body.write
            while length:
                part = self._some(length)
                write(part)
                length -= len(part)
        if last:
            self._complete()

    def _complete(self) -> None:
        """A message is whole: answer it."""
        context, command = self._known_context(), self._command
        if command is None:
            raise RuntimeError("no command is complete")
        try:
            for outgoing in self._answer(context, command):
                self._send(context, outgoing)
        finally:
            self._drop()

    def _answer(self, context: Context, command: Command) -> Iterable[Outgoing]:
        if command.field == C_STORE_RQ:
            if context.abstract_syntax == VERIFICATION or context.abstract_syntax != command.text(AFFECTED_SOP_CLASS_UID):
                answer = Answer(_SOP_CLASS_NOT_SUPPORTED, "SOP class is not its context's: send it in a context of its own")
            else:
                answer = self._handler.store(context, command, self._body)
            return [Outgoing(response(command, answer.status, answer.comment))]
        if command.field == C_ECHO_RQ and context.abstract_syntax == VERIFICATION:
            return [Outgoing(response(command, _SUCCESS))]
        too_large = self._message_too_large
        message = Message(context, command, bytes(self._message) if self._message is not None and not too_large else None, too_large)
        outgoing = self._handler.other.answer(message) if self._handler.other is not None else None
        if outgoing is not None:
            return outgoing
        if command.field == C_CANCEL_RQ:  # it has no response, and nothing here runs long enough to be cancelled
            return []
        if command.field & RESPONSE:
            raise Aborted(_UNEXPECTED_PARAMETER, "response-without-request")
        return [Outgoing(response(command, _UNRECOGNISED_OPERATION))]

    def _send(self, context: Context, outgoing: Outgoing) -> None:
        try:
            pdus = [*p_data(context.context_id, outgoing.command, command=True, maximum=self._peer_maximum_pdu)]
            if outgoing.data_set is not None:
                pdus += p_data(context.context_id, outgoing.data_set, command=False, maximum=self._peer_maximum_pdu)
        except ValueError:
            raise Aborted(_BY_USER, "peer-takes-nothing") from None
        self._connection.sendall(b"".join(pdus))

    def _known_context(self) -> Context:
        if self._context is None:
            raise RuntimeError("no message is under way")
        return self._context

    def _drop(self) -> None:
        """Forget the message under way, or the one just answered."""
        body, self._body = self._body, None
        self._command = self._context = self._message = None
        self._message_too_large = False
        self._encoded = bytearray()
        if body is not None:
            body.discard()

    def _exactly(self, size: int) -> memoryview:
        """The next `size` bytes, a few; valid until the next call."""
        if self._end - self._start < size:
            rest = self._end - self._start
            self._buffer[:rest] = bytes(self._buffer[self._start : self._end])
            self._start, self._end = 0, rest
            while self._end < size:
                self._end += self._receive(self._buffer[self._end :])
        self._start += size
        return self._buffer[self._start - size : self._start]

    def _some(self, most: int) -> memoryview:
        """The next bytes, at least one and at most `most`; valid until the next call."""
        if self._start == self._end:
            self._start, self._end = 0, self._receive(self._buffer)
        size = min(most, self._end - self._start)
        self._start += size
        return self._buffer[self._start - size : self._start]

    def _receive(self, room: memoryview) -> int:
        try:
            size: int = self._connection.recv_into(room)
        except TimeoutError:
            raise Aborted(_BY_USER, "idle") from None
        if size == 0:
            raise Hung("connection-lost")
        return size

    def _finish(self, last: bytes) -> None:
        """Say the last word, and wait for the peer to close (Sta13): whatever else it says is not heard."""
        self._drop()
        deadline = time.monotonic() + self._artim_seconds
        try:
            self._connection.settimeout(self._artim_seconds)
            self._connection.sendall(last)
            while (left := deadline - time.monotonic()) > 0:
                self._connection.settimeout(left)
                if self._connection.recv_into(self._buffer) == 0:
                    return
        except OSError:
            return
