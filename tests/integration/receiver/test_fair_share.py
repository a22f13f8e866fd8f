"""Senders at the same time: nobody gets much less than a fair share, and who is slow slows nobody. Times are compared within one run."""

import itertools
import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from benchmarks.ingest.sender import association
from benchmarks.ingest.work import Series, Work, pdus, works
from support.receiver_process import ReceiverProcess
from support.wire import message, raw_association, read_status, store_request

SENDERS = 4
INSTANCES = 25
_run = itertools.count(1)


def _send(port: int, work: Work, senders: int) -> list[float]:
    """How long each of the senders took, all at the same time."""
    run, start = next(_run), threading.Barrier(senders)
    seconds: dict[int, float] = {}

    def one(number: int) -> None:
        with association(port, work.sop_class_uid) as (connection, maximum):
            stamp = pdus(work, Series(run, number), maximum)
            start.wait()
            begin = time.monotonic()
            for instance in range(INSTANCES):
                connection.sendall(stamp.number(instance))
                assert read_status(connection) == 0
            seconds[number] = time.monotonic() - begin

    threads = [threading.Thread(target=one, args=(number,)) for number in range(senders)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(seconds) == senders, "a sender failed"
    return list(seconds.values())


@contextmanager
def _dripping(port: int) -> Iterator[list[int]]:
    """A sender at one byte a second, in the middle of an instance; what it has sent by now."""
    stream, sent, stop = message(store_request("1.2.3"), b"x" * 5000), [0], threading.Event()
    with raw_association(port) as slow:
        slow.sendall(stream[:200])

        def drip() -> None:
            for byte in stream[200:]:
                slow.sendall(bytes([byte]))
                sent[0] += 1
                if stop.wait(1):
                    return

        thread = threading.Thread(target=drip)
        thread.start()
        try:
            yield sent
        finally:
            stop.set()
            thread.join()


def test_overlapping_senders_get_their_fair_share(receiver: ReceiverProcess) -> None:
    """With four at a time nobody takes more than four times as long as alone; twice that, because the machine does other things."""
    (work, *_) = works(INSTANCES, 1)
    port = receiver.peer.port
    _send(port, work, 1)
    alone, shared = [], []
    for _ in range(3):
        alone += _send(port, work, 1)
        shared.append(_send(port, work, SENDERS))
    slowest = statistics.median(max(seconds) for seconds in shared)
    assert slowest < 2 * SENDERS * statistics.median(alone), (alone, shared)
    # And they share alike: nobody waits until the others are done.
    assert statistics.median(max(seconds) / min(seconds) for seconds in shared) < 2, shared


def test_a_sender_at_one_byte_a_second_slows_nobody(receiver: ReceiverProcess) -> None:
    (work, *_) = works(INSTANCES, 1)
    port = receiver.peer.port
    _send(port, work, 1)
    without, beside = [], []
    for _ in range(3):
        without += _send(port, work, 1)
        with _dripping(port) as sent:
            beside += _send(port, work, 1)
            assert sent[0] >= 1
    assert statistics.median(beside) < 2 * statistics.median(without), (without, beside)
