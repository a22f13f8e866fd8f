"""A sender that is never the limit: PDUs from memory, and the next instance only after the answer to the last one, as routers do.

DCMTK's storescu reads, decodes and encodes each file; at several hundred instances a second it is what one would measure.
"""

import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from support.wire import EXPLICIT, RELEASE_RQ, associate_request, read_pdu, read_status

from benchmarks.ingest.work import Series, Stamp, Work, pdus

CALLING = "NORTHGATE"
_PATIENCE_SECONDS = 120


class NotStored(Exception):
    """An instance was not answered with success: what was measured would be worth nothing."""


@contextmanager
def association(port: int, sop_class_uid: str) -> Iterator[tuple[socket.socket, int]]:
    """An accepted association and the longest PDU that the receiver takes; released at the end."""
    with socket.create_connection(("127.0.0.1", port), timeout=_PATIENCE_SECONDS) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.sendall(associate_request(calling=CALLING, contexts=[(sop_class_uid, EXPLICIT)]))
        kind, body = read_pdu(connection)
        if kind != 2:
            raise NotStored(f"the association was not accepted: PDU {kind}")
        yield connection, _maximum(body)
        connection.sendall(RELEASE_RQ)
        read_pdu(connection)


def send(port: int, work: Work, run: int, measured: Callable[[], None]) -> float:
    """Send all of it and return the seconds from the first connection to the last answer. `measured` is called then, before any release.

    Raises:
        NotStored: an answer was not success.
    """
    with association(port, work.sop_class_uid) as (_, maximum):
        pass
    messages = [pdus(work, Series(run, number), maximum) for number in range(work.senders)]
    begin, done, go_on = threading.Barrier(work.senders + 1), threading.Barrier(work.senders + 1), threading.Event()
    failures: list[BaseException] = []

    def one(stamp: Stamp) -> None:
        begin.wait()
        try:
            with association(port, work.sop_class_uid) as (connection, _):
                _send_all(connection, stamp, work.instances_per_sender)
                done.wait()
                go_on.wait()
        except BaseException as error:  # noqa: BLE001 - raised again below, in the caller's own thread
            failures.append(error)
            done.abort()

    threads = [threading.Thread(target=one, args=(stamp,)) for stamp in messages]
    for thread in threads:
        thread.start()
    begin.wait()
    start = time.perf_counter()
    try:
        done.wait()
        seconds = time.perf_counter() - start
        measured()
    except threading.BrokenBarrierError:
        seconds = 0.0
    finally:
        go_on.set()
        for thread in threads:
            thread.join()
    for failure in failures:
        if not isinstance(failure, threading.BrokenBarrierError):
            raise failure
    return seconds


def _send_all(connection: socket.socket, stamp: Stamp, instances: int) -> None:
    for number in range(instances):
        connection.sendall(stamp.number(number))
        if (status := read_status(connection)) != 0:
            raise NotStored(f"answered {status:#06x}")


def _maximum(accepted: bytes) -> int:
    """The maximum length in an A-ASSOCIATE-AC (PS3.8 9.3.3, D.1)."""
    place = 68
    while place < len(accepted):
        kind, length = struct.unpack_from(">BxH", accepted, place)
        place += 4
        if kind == 0x50:
            inner = accepted[place : place + length]
            while inner:
                kind, length = struct.unpack_from(">BxH", inner)
                if kind == 0x51:
                    return int(struct.unpack_from(">L", inner, 4)[0])
                inner = inner[4 + length :]
            return 0
        if kind == 0x21 and accepted[place + 2] != 0:
            raise NotStored("the receiver does not take this kind of image")
        place += length
    return 0
