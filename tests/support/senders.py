"""Real senders: pynetdicom's SCU, byte for byte as the file has it, and DCMTK's storescu where the machine has it (pynetdicom's elsewhere)."""

import os
import re
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hub_dicom import read_file_meta
from hub_dicom.sending import keep_answers
from pynetdicom import AE, _config, build_context
from pynetdicom.transport import AssociationSocket

# A file is sent as its bytes, not decoded and encoded again.
_config.STORE_SEND_CHUNKED_DATASET = True
_config.LOG_HANDLER_LEVEL = "none"

STORESCU = shutil.which("storescu", path="/usr/local/bin:/usr/bin:/bin")
"""DCMTK's. pynetdicom installs another program under the same name beside our Python, which serves where DCMTK is missing."""


def _shutdown_socket(self: Any) -> None:
    """Close the socket also where the peer is gone and `shutdown` fails: pynetdicom leaves it to the garbage collector then."""
    if self.socket is not None:
        with suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)
        self.socket.close()


AssociationSocket._shutdown_socket = _shutdown_socket


_TO_DO = re.compile(r"\b(send|repair|fetch|ask|keep)\b")


def says_what_to_do(comment: str) -> bool:
    """Whether an Error Comment is one (VR LO), tells the sender's people what to do, and has nothing in it that could be a number of somebody."""
    return 0 < len(comment) <= 64 and _TO_DO.search(comment) is not None and not re.search(r"[0-9^=\\]", comment)


class Rejected(Exception):
    """The association was rejected: result, source and reason of PS3.8 table 9-21."""

    def __init__(self, result: int, source: int, reason: int) -> None:
        super().__init__(f"rejected: {result}/{source}/{reason}")
        self.code = (result, source, reason)


@dataclass(frozen=True, slots=True)
class Sent:
    """What came back for one file. `status` is None where no response came: the association ended, or its context was refused."""

    path: Path
    status: int | None
    comment: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Peer:
    """A receiver and how a sender calls it."""

    port: int
    host: str = "127.0.0.1"
    called: str = "REGIONALHUB"
    calling: str = "NORTHGATE"
    tls: ssl.SSLContext | None = None


@contextmanager
def association(peer: Peer, contexts: Iterable[tuple[str, str]]) -> Iterator[Any]:
    """An open association that proposes each pair of abstract and transfer syntax.

    Raises:
        Rejected: the peer does not want it.
        ConnectionError: nobody listens, or the peer aborted.
    """
    ae = AE(ae_title=peer.calling)
    # So long pynetdicom also waits, aborting, for a peer that was killed.
    ae.acse_timeout = 10
    ae.dimse_timeout = ae.network_timeout = 60
    ae.connection_timeout = 10
    ae.maximum_pdu_size = 131_072
    wanted = [build_context(abstract, transfer) for abstract, transfer in dict.fromkeys(contexts)]
    tls = {"tls_args": (peer.tls, "hub.example")} if peer.tls is not None else {}
    assoc = ae.associate(peer.host, peer.port, contexts=wanted, ae_title=peer.called, max_pdu=131_072, **tls)
    if assoc.is_rejected:
        answer = assoc.acceptor.primitive
        raise Rejected(answer.result, answer.result_source, answer.diagnostic)
    if not assoc.is_established and not assoc.rejected_contexts:
        raise ConnectionError("no association: nobody listens, or the peer aborted")
    keep_answers(assoc)
    try:
        yield assoc
    finally:
        if assoc.is_established:
            assoc.release()
        elif not assoc.is_aborted:
            assoc.abort()


def echo(peer: Peer) -> int:
    """The status of one C-ECHO."""
    with association(peer, [("1.2.840.10008.1.1", "1.2.840.10008.1.2")]) as assoc:
        return int(assoc.send_c_echo().Status)


def send(peer: Peer, paths: Sequence[Path], *, after_each: Callable[[Sent], None] | None = None) -> list[Sent]:
    """Send DICOM files over as few associations as their contexts allow; what was answered for each, in order.

    Raises:
        Rejected: the peer does not want the association.
        ConnectionError: nobody listens.
    """
    pairs = {path: _pair(path) for path in paths}
    sent: list[Sent] = []
    waiting = list(paths)
    while waiting:
        contexts = list(dict.fromkeys(pairs[path] for path in waiting))[:128]
        now = [path for path in waiting if pairs[path] in contexts]
        waiting = [path for path in waiting if pairs[path] not in contexts]
        with association(peer, contexts) as assoc:
            for path in now:
                sent.append(_send_one(assoc, path, *pairs[path]))
                if after_each is not None:
                    after_each(sent[-1])
    order = {path: number for number, path in enumerate(paths)}
    return sorted(sent, key=lambda one: order[one.path])


def send_at_once(jobs: Sequence[tuple[Peer, Sequence[Path]]]) -> list[list[Sent]]:
    """Send each job over an association of its own, all at the same time."""
    results: list[list[Sent] | BaseException] = [[] for _ in jobs]

    def run(number: int) -> None:
        try:
            results[number] = send(*jobs[number])
        except BaseException as error:  # noqa: BLE001 - raised again below, in the caller's own thread
            results[number] = error

    threads = [threading.Thread(target=run, args=(number,)) for number in range(len(jobs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    done = []
    for result in results:
        if isinstance(result, BaseException):
            raise result
        done.append(result)
    return done


def storescu(peer: Peer, paths: Sequence[Path], *options: str) -> subprocess.CompletedProcess[str]:
    """Run DCMTK's storescu, or pynetdicom's where the machine has no DCMTK; 0 when every file was answered with success.

    `options` are DCMTK's and go to it alone.
    """
    program = (
        [STORESCU, "-v", "-R", "-to", "30", "-ta", "30", "-td", "60", *options]
        if STORESCU
        else [sys.executable, "-m", "pynetdicom", "storescu"]
    )
    command = [*program, "-aet", peer.calling, "-aec", peer.called, peer.host, str(peer.port), *map(str, paths)]
    return subprocess.run(command, env=os.environ | {"TCP_NODELAY": "1"}, capture_output=True, text=True, timeout=180, check=False)


def _pair(path: Path) -> tuple[str, str]:
    with path.open("rb") as file:
        meta = read_file_meta(file.read(4096))
    return meta.sop_class_uid, meta.transfer_syntax_uid


def _send_one(assoc: Any, path: Path, abstract: str, transfer: str) -> Sent:
    start = time.monotonic()
    accepted = any(cx.abstract_syntax == abstract and cx.transfer_syntax[0] == transfer for cx in assoc.accepted_contexts)
    if not assoc.is_established or not accepted:
        return Sent(path, None, "no accepted presentation context" if assoc.is_established else "no association", 0.0)
    try:
        response = assoc.send_c_store(path)
    except RuntimeError:  # the association went while this one was sent
        return Sent(path, None, "no association", time.monotonic() - start)
    comment = str(response.get("ErrorComment", ""))
    return Sent(path, int(response.Status) if "Status" in response else None, comment, time.monotonic() - start)
