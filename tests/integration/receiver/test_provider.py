"""The DICOM side alone, in this process: what cannot be seen from outside."""

import resource
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, cast

import pytest
from hub_dicom import Trust, Trusts
from hub_dicom.synthetic import SyntheticPatient, synthetic_series
from hub_events import Event
from hub_events.types import InstanceReceived
from hub_ingest.arrival import Answer, Arrival
from hub_ingest.intake import Call, Intake
from hub_ingest.receiver import METRICS, Receiver
from hub_ingest.receiver_scp import StorageProvider
from hub_ingest.settings import ReceiverSettings
from hub_objectstore import MemoryObjectStore
from hub_runtime import Metrics
from support.dicom_files import write_series
from support.senders import Peer, Rejected, association, echo, says_what_to_do, send
from support.wire import CT, EXPLICIT, abort, associate_request, message, pdu, pdv, raw_association, read_pdu, read_status, store_request

TRUST = Trust(name="northgate", ae_titles=("NORTHGATE",), addresses=("127.0.0.1/32",), assigning_authority="RNG")


OTHER = Trust(name="southmead", ae_titles=("SOUTHMEAD",), addresses=("127.0.0.1/32",), assigning_authority="RSM")


class BrokenProducer:
    """Fails as nobody foresaw."""

    def produce(self, *events: Event[InstanceReceived]) -> None:
        raise RuntimeError("unforeseen")


def test_an_error_that_nobody_foresaw_is_said_to_be_ours(tmp_path: Path) -> None:
    receiver = Receiver(Intake(MemoryObjectStore(), BrokenProducer(), source="ingest.receiver", origin="c-store"), Metrics(METRICS))
    paths = write_series(tmp_path / "files", synthetic_series(SyntheticPatient("SYNTHETIC^P", "P"), study="unforeseen", instances=2))
    with _provider(tmp_path, Trusts(trusts=(TRUST,)), [], take=lambda trust, arrival: receiver.take(Call(trust), arrival)) as provider:
        sent = send(Peer(provider.port), paths)
    assert [one.status for one in sent] == [0x0110, 0x0110]
    assert all(says_what_to_do(one.comment) for one in sent)


@contextmanager
def _provider(
    folder: Path, trusts: Trusts, taken: list[Arrival], *, take: Callable[[Trust, Arrival], Answer] | None = None, **more: object
) -> Iterator[StorageProvider[Trust]]:
    needed = {"kafka_bootstrap_servers": "x", "s3_endpoint": "http://x", "s3_access_key": "a", "s3_secret_key": "b", "receiver_port": 0}
    settings = ReceiverSettings.model_validate(needed | more)

    def note(_call: Trust, arrival: Arrival) -> Answer:
        taken.append(arrival)
        return Answer(0x0000 if arrival.fault is None else 0xA700)

    provider = StorageProvider(settings, trusts, admit=lambda trust: trust, take=take or note, metrics=Metrics(METRICS), folder=folder)
    thread = threading.Thread(target=provider.serve)
    thread.start()
    try:
        yield provider
    finally:
        assert provider.close(5) == 0
        thread.join()


def test_accepted_connections_do_not_wait_for_more_to_send(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    with _provider(tmp_path, Trusts(trusts=(TRUST,)), []) as provider:
        accepted = provider._server.get_request

        def observed() -> tuple[socket.socket, object]:
            connection, address = accepted()
            seen.append(connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
            return connection, address

        monkeypatch.setattr(provider._server, "get_request", observed)
        assert _statuses(provider, tmp_path) == [0x0000]
    assert seen == [1]


class BrokenTrusts:
    """Fails where nobody thought it could."""

    def by_caller(self, _title: str, _address: str) -> Trust | None:
        raise RuntimeError("unforeseen")


def test_when_looking_up_the_caller_fails_nothing_gets_in(tmp_path: Path) -> None:
    taken: list[Arrival] = []
    with _provider(tmp_path, cast("Any", BrokenTrusts()), taken) as provider:
        paths = write_series(tmp_path / "files", synthetic_series(SyntheticPatient("SYNTHETIC^P", "P"), study="provider", instances=1))
        (sent,) = send(Peer(provider.port), paths)
        assert sent.status == 0x0124
        assert says_what_to_do(sent.comment)
    assert taken == []


def _statuses(provider: StorageProvider[Trust], folder: Path) -> list[int | None]:
    paths = write_series(folder / "files", synthetic_series(SyntheticPatient("SYNTHETIC^P", "P"), study="provider", instances=1))
    return [one.status for one in send(Peer(provider.port), paths)]


HOSTILE = [
    pdu(4, pdv(b"data", 2)),
    struct.pack(">BBL", 4, 0, 0xFFFFFFFF),
    pdu(4, struct.pack(">LBB", 0xFFFFFFFF, 1, 3)),
    pdu(4, pdv(store_request(), 3)) + pdu(1, bytes(70)),
    b"GET / HTTP/1.1\r\n\r\n",
]


@pytest.mark.parametrize("said", HOSTILE)
def test_after_what_breaks_the_rules_a_new_sender_is_served_at_once(tmp_path: Path, said: bytes) -> None:
    taken: list[Arrival] = []
    with _provider(tmp_path, Trusts(trusts=(TRUST,)), taken) as provider, raw_association(provider.port) as hostile:
        hostile.sendall(said)
        kind, body = read_pdu(hostile)
        assert (kind, body[2]) == (7, 2)
        assert taken == []
        start = time.monotonic()
        assert _statuses(provider, tmp_path) == [0x0000]
        assert time.monotonic() - start < 5


def test_a_request_that_claims_gigabytes_is_hung_up_on_before_they_come(tmp_path: Path) -> None:
    with _provider(tmp_path, Trusts(trusts=(TRUST,)), []) as provider:
        with socket.create_connection(("127.0.0.1", provider.port), timeout=5) as hostile:
            hostile.sendall(struct.pack(">BBL", 1, 0, 0xFFFFFFFF))
            assert hostile.recv(100) in {b"", abort(2, 0)}
        assert _statuses(provider, tmp_path) == [0x0000]


def test_data_that_comes_with_the_request_is_not_lost_to_the_hand_over(tmp_path: Path) -> None:
    """A sender in a hurry: the first message follows the acceptance at once, many times over."""
    taken: list[Arrival] = []
    with _provider(tmp_path, Trusts(trusts=(TRUST,)), taken) as provider:
        for number in range(40):
            with raw_association(provider.port) as connection:
                connection.sendall(message(store_request(f"1.2.{number}"), b"x" * 50_000))
                assert read_status(connection) == 0
                connection.sendall(abort(0, 0))
    assert [arrival.size for arrival in taken] == [50_000] * 40


def test_a_sender_of_single_bytes_slows_nobody(tmp_path: Path) -> None:
    taken: list[Arrival] = []
    stream = message(store_request(), b"x" * 5000)
    stop = threading.Event()
    with _provider(tmp_path, Trusts(trusts=(TRUST,)), taken) as provider, raw_association(provider.port) as slow:

        def drip() -> None:
            for byte in stream:
                slow.sendall(bytes([byte]))
                if stop.wait(0.02):
                    return

        dripping = threading.Thread(target=drip)
        dripping.start()
        start = time.monotonic()
        for number in range(3):
            assert _statuses(provider, tmp_path / str(number)) == [0x0000]
        seconds = time.monotonic() - start
        stop.set()
        dripping.join()
        slow.close()
    assert seconds < 5
    assert len(taken) == 3, "what did not come whole is not stored"


def test_a_trust_has_its_own_bound_and_leaves_room_for_the_others(tmp_path: Path) -> None:
    trusts = Trusts(trusts=(TRUST, OTHER))
    with _provider(tmp_path, trusts, [], receiver_associations_per_trust=2) as provider:
        theirs, other = Peer(provider.port), Peer(provider.port, calling="SOUTHMEAD")
        with association(theirs, [(CT, EXPLICIT)]), association(theirs, [(CT, EXPLICIT)]):
            with pytest.raises(Rejected) as rejected, association(theirs, [(CT, EXPLICIT)]):
                pass
            assert rejected.value.code == (2, 3, 2)
            assert echo(other) == 0
        deadline = time.monotonic() + 5
        while not _gets_in(theirs):
            assert time.monotonic() < deadline, "the places were not given back"
            time.sleep(0.05)


def test_two_hundred_open_associations_have_a_bound_of_memory(tmp_path: Path) -> None:
    taken: list[Arrival] = []
    trusts = Trusts(trusts=(TRUST, OTHER))
    most: dict[str, Any] = {"receiver_associations": 200, "receiver_associations_per_trust": 200}
    with _provider(tmp_path, trusts, taken, **most) as provider, raw_association(provider.port), ExitStack() as open_now:
        before = _resident()
        # Each has begun an instance: 1 MB of it is here, the rest never comes.
        for _ in range(198):
            connection = open_now.enter_context(raw_association(provider.port))
            connection.sendall(pdu(4, pdv(store_request(), 3)) + pdu(4, pdv(bytes(100_000), 0)) * 10)
        time.sleep(1)
        grown = _resident() - before
        assert _store_one(provider.port) == 0
        with raw_association(provider.port), socket.create_connection(("127.0.0.1", provider.port), timeout=10) as one_more:
            one_more.sendall(associate_request())
            assert read_pdu(one_more) == (3, b"\0\2\3\2")
    assert grown < 150 * 2**20
    assert len(taken) == 1


def test_what_needs_a_file_is_refused_where_the_disk_is_nearly_full(tmp_path: Path) -> None:
    taken: list[Arrival] = []
    more: dict[str, Any] = {"receiver_memory_bytes": 100_000, "receiver_free_bytes": 2**60}
    with _provider(tmp_path, Trusts(trusts=(TRUST,)), taken, **more) as provider, raw_association(provider.port) as connection:
        for size, status in ((200_000, 0xA700), (50_000, 0x0000), (200_000, 0xA700)):
            connection.sendall(message(store_request(), bytes(size)))
            assert read_status(connection) == status


def _store_one(port: int) -> int:
    """The status of a small instance on an association of its own."""
    with raw_association(port) as connection:
        connection.sendall(message(store_request(), b"x" * 100))
        return read_status(connection)


def _resident() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def _gets_in(peer: Peer) -> bool:
    try:
        return echo(peer) == 0
    except Rejected:
        return False
