"""C-STORE as a service class user: Part 10 files go out as they are, never decoded or converted (PS3.4 B, PS3.8 9.3.2)."""

import socket
import ssl
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pynetdicom import AE, _config, build_context, evt

CONTEXTS_PER_ASSOCIATION: Final = 128
"""PS3.8 9.3.2.2: context ids are the odd numbers from 1 to 255."""

_ASSOCIATION_SECONDS: Final = 10  # a receiver that was killed never answers
_ANSWER_SECONDS: Final = 60
_PDUS_AHEAD: Final = 16

Pair = tuple[str, str]
"""SOP Class UID and Transfer Syntax UID."""


class NoAssociation(ConnectionError):
    """There is no association. The text says why; `refused` says what the peer answered where it took none of the contexts."""

    def __init__(self, text: str, refused: Mapping[Pair, int] | None = None) -> None:
        super().__init__(text)
        self.refused: Mapping[Pair, int] = refused or {}


class NotSent(Exception):
    """This file could not be sent, or no answer came; the association may be gone."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What a C-STORE was answered (PS3.7 C)."""

    status: int
    comment: str
    """The peer's Error Comment, 64 characters at most."""


class StoreAssociation:
    """An association on which files of the accepted contexts can be sent. For one thread."""

    def __init__(self, association: Any) -> None:  # noqa: ANN401 - pynetdicom has no types
        self._association = association
        self.accepted = frozenset((str(one.abstract_syntax), str(one.transfer_syntax[0])) for one in association.accepted_contexts)
        self.refused = _refused(association)
        """The other contexts, with the peer's reason: 3 and 4 are for good (PS3.8 table 9-18)."""

    @property
    def established(self) -> bool:
        """Whether more can be sent."""
        return bool(self._association.is_established)

    def send(self, path: Path) -> Reply:
        """Send a file and wait for its answer, a minute at most after its last byte went out. Its size costs no memory.

        Raises:
            NotSent: no answer came, or the file cannot be sent.
        """
        try:
            answer = self._association.send_c_store(str(path))
        except (OSError, ValueError, AttributeError, RuntimeError, NotImplementedError) as error:
            raise NotSent(f"could not be sent: {type(error).__name__}") from error
        if "Status" not in answer:
            raise NotSent("no answer: the connection broke or timed out")
        return Reply(int(answer.Status), str(answer.get("ErrorComment") or ""))


@contextmanager
def store_association(
    host: str, port: int, *, calling: str, called: str, pairs: Collection[Pair], tls: ssl.SSLContext | None = None
) -> Iterator[StoreAssociation]:
    """An association that proposes each pair in a context of its own; released at the end, if it still stands.

    With `tls` it runs inside TLS, and the peer's certificate must be for `host` where the context says so.

    Raises:
        NoAssociation: nobody answers, or the peer does not want it or any of it.
        ValueError: there are more than 128 pairs, or none.
    """
    # The data set goes from the file to the socket; it is neither decoded nor held in memory.
    _config.STORE_SEND_CHUNKED_DATASET = True
    entity = AE(ae_title=calling)
    entity.acse_timeout = _ASSOCIATION_SECONDS
    entity.dimse_timeout = entity.network_timeout = _ANSWER_SECONDS
    entity.connection_timeout = _ASSOCIATION_SECONDS
    association: Any = entity.associate(
        host,
        port,
        contexts=[build_context(sop_class, syntax) for sop_class, syntax in pairs],
        ae_title=called,
        evt_handlers=[(evt.EVT_CONN_OPEN, _no_delay)],
        tls_args=None if tls is None else (tls, host),
    )
    if not association.is_established:
        answer = association.acceptor.primitive
        if association.is_rejected and answer is not None:
            raise NoAssociation(f"{called} at {host}:{port} refuses {calling}: {answer.reason_str}")
        if answer is not None:
            raise NoAssociation(f"{called} at {host}:{port} takes none of what was proposed", _refused(association))
        raise NoAssociation(f"nothing answers DICOM at {host}:{port}")
    keep_answers(association)
    _pace(association.dul)
    try:
        yield StoreAssociation(association)
    finally:
        if association.is_established:
            association.release()


def keep_answers(association: Any) -> None:  # noqa: ANN401 - pynetdicom has no types
    """Leave every message to who waits for it, on an association on which only we ask.

    pynetdicom's own thread of the association looks for requests in the queue in which answers come, and is meant to pause while one is waited
    for; but it says that it pauses a moment before it does, and so can take the answer of a fast peer: its sender waits a minute for nothing.
    """
    get = association.dimse.get_msg
    association.dimse.get_msg = lambda block=False: get(block) if block else (None, None)


def _refused(association: Any) -> Mapping[Pair, int]:  # noqa: ANN401 - pynetdicom has no types
    return {(str(one.abstract_syntax), str(one.transfer_syntax[0])): int(one.result) for one in association.rejected_contexts}


def _pace(provider: Any) -> None:  # noqa: ANN401 - pynetdicom has no types
    """Let only a few PDUs wait for the socket: pynetdicom would hold a whole instance, and time its answer from before it was sent."""
    send = provider.send_pdu

    def send_in_turn(primitive: object) -> None:
        while provider.to_provider_queue.qsize() >= _PDUS_AHEAD and provider.is_alive():
            time.sleep(0.001)
        send(primitive)

    provider.send_pdu = send_in_turn


def _no_delay(event: Any) -> None:  # noqa: ANN401 - pynetdicom has no types
    """Small packets wait for nobody: without it Nagle's algorithm costs up to 45 ms an instance."""
    connection = event.assoc.dul.socket
    if connection is not None and connection.socket is not None:
        connection.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
